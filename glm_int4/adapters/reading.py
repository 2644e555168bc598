"""All adapters that a model is loaded with: found, read and checked before the model's weights are."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from glm_int4.adapters.adapter_source import AdapterSource
from glm_int4.adapters.applying import check_together
from glm_int4.adapters.lora_settings import LoraSettings, PrefixSettings, read_settings
from glm_int4.adapters.lora_tensors import Lora, read_lora
from glm_int4.adapters.prefix_tuning import read_peft_prefix
from glm_int4.checkpoint.build import ComputeSetup
from glm_int4.downloads import shown_name
from glm_int4.errors import InputError
from glm_int4.models.config import Config
from glm_int4.models.past import Prefix

logger = logging.getLogger(__name__)

# Names of bases: the family's number, "" for the first, and the variant.
_BASE = re.compile(r"(?:chat)?glm-?(\d?)-\d+b((?:-(?:base|32k|128k|chat|1m))*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ReadAdapters:
    """What adapters hold for one model."""

    loras: list[Lora] = field(default_factory=list)
    prefix: Prefix | None = None


def read_adapters(
    sources: Sequence[AdapterSource], config: Config, setup: ComputeSetup, model_names: Sequence[str] = ()
) -> ReadAdapters:
    """Read adapters and check them against the model that they are for.

    Args:
        model_names: what the model is called, the surest name first.
    Raises:
        UserError: what is wrong with one of them, in one line.
    """
    loras: list[Lora] = []
    prefixes: list[Prefix] = []
    for source in sources:
        settings = read_settings(source.folder)
        if isinstance(settings, LoraSettings):
            lora = read_lora(source.folder, settings, source.scale, config)
            loras.append(lora)
            logger.info("adapter %s: LoRA on %d matrices", source.folder, len(lora.deltas))
        else:
            prefixes.append(_read_prefix(source, settings, config, setup))
        _warn_of_another_base(source.folder, settings.base, config, model_names)
    if len(prefixes) > 1:
        raise InputError("expected at most one adapter of PREFIX_TUNING, got several; prefixes do not add up")
    check_together(loras)
    return ReadAdapters(loras, prefixes[0] if prefixes else None)


def read_loras(sources: Sequence[AdapterSource], config: Config, model_names: Sequence[str] = ()) -> list[Lora]:
    """As ``read_adapters``, for adapters that are to be merged: raises InputError for a prefix."""
    loras: list[Lora] = []
    for source in sources:
        settings = read_settings(source.folder)
        if not isinstance(settings, LoraSettings):
            raise InputError(
                f"expected LoRA to merge, got the prefix in {source.folder}; load it beside the quantized model"
            )
        loras.append(read_lora(source.folder, settings, source.scale, config))
        _warn_of_another_base(source.folder, settings.base, config, model_names)
    return loras


def _read_prefix(source: AdapterSource, settings: PrefixSettings, config: Config, setup: ComputeSetup) -> Prefix:
    if source.scale != 1:
        raise InputError(
            f"expected a scale of 1 for {source.folder}, which is a prefix, got {source.scale:g}; "
            "only products of LoRA have a scale"
        )
    return read_peft_prefix(source.folder, settings, config, setup.device, setup.prefix_dtype)


def _warn_of_another_base(folder: Path, base: str, config: Config, model_names: Sequence[str]) -> None:
    """Say so where an adapter was trained on another model, as far as the names tell."""
    if (trained_on := _family(base)) is None:
        return
    named = next((found for name in model_names if (found := _family(name)) is not None), None)
    if trained_on[0] != config.version or (named is not None and named != trained_on):
        logger.warning(
            "the adapter %s was trained on %s, another model than this one (%s): its answers may make no sense",
            folder,
            shown_name(base),
            next((name for name in model_names if name), config.model_name),
        )


def _family(name: str) -> tuple[str, str] | None:
    """Version and variant of a base, by its name."""
    match = _BASE.search(re.split(r"[\\/]", name.rstrip("\\/"))[-1])
    return (match[1] or "1", match[2].lower()) if match else None
