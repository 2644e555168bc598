"""Where an adapter lies: what a caller or a command line names, and the folder that this is."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

from glm_int4.adapters.adapter_file import CONFIG_FILE, FILES
from glm_int4.checkpoint.files.folder import has_weights, resolve_folder
from glm_int4.checkpoint.prefix_file import SAFETENSORS_FILE, newest_checkpoint
from glm_int4.downloads import ABSENT, found_instead, shown
from glm_int4.errors import ConfigError, InputError

# What ``load`` takes: a folder or hub id, one with a scale, or several of these.
AdapterName = str | Path | tuple[str | Path, float]
Adapters = AdapterName | Sequence[AdapterName]

NAME = re.compile(r"\w[\w.-]{0,127}")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """An adapter's folder, and the factor of what it adds to the model."""

    folder: Path
    scale: float


def parse_adapter(text: str) -> AdapterName:
    """``DIR[:SCALE]`` of a command line; what follows the last colon is a scale where it is a number."""
    name, colon, scale = text.rpartition(":")
    return (name, float(scale)) if colon and _NUMBER.fullmatch(scale) else text


def parse_named_adapter(text: str) -> tuple[str | None, AdapterName]:
    """``[NAME=]DIR[:SCALE]`` of a command line: the name, None for none, and the rest.

    What stands in front of the first "=" is a name where it could be one, and no path.
    """
    name, equals, rest = text.partition("=")
    return (name, parse_adapter(rest)) if equals and NAME.fullmatch(name) else (None, parse_adapter(text))


def check_name(name: str) -> None:
    """Raise InputError for what is no name of an adapter."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(
            f"expected letters, digits, '_', '.' and '-' as an adapter's name, 128 at most, got {shown(name)}"
        )


def find_adapters(adapters: Adapters | None) -> list[AdapterSource]:
    """The folders of all adapters, downloaded where they are hub ids.

    Raises:
        InputError: there is none, the same one twice, or a scale that is no finite number.
        ConfigError: the folder holds something else.
    """
    if adapters is None:
        return []
    names = adapters if isinstance(adapters, list) else [adapters]
    sources = [_find(*(name if _is_pair(name) else (name, 1.0))) for name in names]  # type: ignore[misc]
    folders = [source.folder.resolve() for source in sources]
    for i, folder in enumerate(folders):
        if folder in folders[:i]:
            raise InputError(f"expected every adapter once, got {sources[i].folder} twice; add up their scales instead")
    return sources


def _is_pair(name: object) -> bool:
    return isinstance(name, tuple) and len(name) == 2


def _find(name: str | Path, scale: float) -> AdapterSource:
    if not isinstance(name, str | os.PathLike) or not str(name):
        raise InputError(f"expected a folder or a hub id as adapter, got {name!r}")
    if not isinstance(scale, Real) or isinstance(scale, bool) or not math.isfinite(scale):
        raise InputError(f"expected a finite number as scale of the adapter {name}, got {scale!r}")
    folder = resolve_folder(name, what="an adapter", files=(CONFIG_FILE, *FILES))
    if found_instead(folder / CONFIG_FILE) == ABSENT:
        newest = newest_checkpoint(folder)
        if newest is None or found_instead(newest / CONFIG_FILE) == ABSENT:
            raise ConfigError(f"expected {CONFIG_FILE} in {folder}, got none; {_what_it_is(newest or folder)}")
        folder = newest
    return AdapterSource(folder, float(scale))


def _what_it_is(folder: Path) -> str:
    if (folder / SAFETENSORS_FILE).is_file():
        return "this is a P-Tuning prefix: give it with --prefix"
    if has_weights(folder):
        return "this is a model, or a P-Tuning prefix, which is given with --prefix"
    return "is this the folder that peft's save_pretrained has written?"
