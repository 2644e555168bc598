"""Files of P-Tuning prefixes: official ptuning checkpoints and safetensors, checked against the model."""

import logging
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from glm_int4.checkpoint.checks import check_finite
from glm_int4.checkpoint.files.folder import has_weights
from glm_int4.checkpoint.files.reader import FLOATING, CheckpointReader
from glm_int4.checkpoint.files.safetensors_file import map_safetensors
from glm_int4.checkpoint.files.torch_file import map_torch_file
from glm_int4.checkpoint.formats.tensor_names import PREFIX_STEM
from glm_int4.downloads import ABSENT, found_instead, read_json, shown, shown_name
from glm_int4.errors import CheckpointError, ConfigError, InputError
from glm_int4.models.config import Config
from glm_int4.models.past import Prefix
from glm_int4.models.prefix_encoder import PrefixEncoder, prefix_width, split_prefix

logger = logging.getLogger(__name__)

OFFICIAL_FILE, SAFETENSORS_FILE = "pytorch_model.bin", "prefix_encoder.safetensors"
_ADAPTER_FILE = "adapter_config.json"
NO_PREFIX = "none"  # in place of a path: without the prefix that is stored with a model
_NAME = re.compile(r"(.*\bprefix_encoder\.|)((?:embedding|trans)\..+)")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_MOST_COLUMNS = 1 << 16
_MOST_NAMED = 3


def load_prefix(
    path: str | Path,
    config: Config,
    device: torch.device,
    dtype: torch.dtype,
    reader: CheckpointReader | Mapping[str, Tensor] | None = None,
) -> Prefix:
    """Compute the keys and values of a stored prefix; the encoder itself is dropped.

    Args:
        path, config, reader: as of ``read_prefix_encoder``.
        device, dtype: of the keys and values.
    """
    encoder = read_prefix_encoder(path, config, reader)
    prefix = split_prefix(encoder()).to(device, dtype)
    check_finite(f"the prefix in {path}, in {dtype}", prefix.k)
    check_finite(f"the prefix in {path}, in {dtype}", prefix.v)
    logger.info(
        "prefix %s: %s columns%s, %.1f MB",
        path,
        prefix.length,
        " with projection" if encoder.prefix_projection else "",
        prefix.num_bytes / 1e6,
    )
    return prefix


def read_prefix_encoder(
    path: str | Path, config: Config, reader: CheckpointReader | Mapping[str, Tensor] | None = None
) -> PrefixEncoder:
    """Read a prefix in float32, frozen.

    Args:
        path: a ptuning checkpoint folder, a folder of such checkpoints (the newest counts), a folder that holds
            the model too, or a ``.bin`` or ``.safetensors`` file.
        config: of the model that it is for.
        reader: of the folder or file ``path``, or its tensors, where it is open already.
    Raises:
        InputError: there is nothing at this path.
        CheckpointError: no prefix in the file, or one for another model.
        ConfigError: the config beside it says something else.
    """
    file, stored = (Path(path), reader) if reader is not None else _open(path)
    tensors = _prefix_tensors(file, stored)
    projection = any(name.startswith("trans.") for name in tensors)
    embedding = tensors.get("embedding.weight")
    length = embedding.shape[0] if embedding is not None and embedding.dim() == 2 else 0
    if embedding is not None and not 1 <= length <= _MOST_COLUMNS:
        raise CheckpointError(
            f"expected embedding.weight of 1 to {_MOST_COLUMNS} rows in {file}, got {tuple(embedding.shape)}; "
            "is this a P-Tuning prefix?"
        )
    encoder = PrefixEncoder(config, max(length, 1), projection, device="meta")
    _check_tensors(file, tensors, encoder, config)
    _check_config((file if file.is_dir() else file.parent) / "config.json", length, projection)
    for name, tensor in tensors.items():
        check_finite(f"{name} in {file}", tensor)
    encoder.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return encoder.requires_grad_(False).eval()


def _open(path: str | Path) -> tuple[Path, Mapping[str, Tensor] | CheckpointReader]:
    """The file or folder that holds the prefix at a path, and its tensors; see ``read_prefix_encoder``."""
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"expected a folder or a file as prefix, got {path!r}")
    path = Path(path)
    try:
        if path.is_file():
            if path.suffix not in (".bin", ".safetensors"):
                raise InputError(f"expected a .bin or .safetensors file as prefix, got {path}")
            return path, _map(path)
        if path.is_dir():
            if (path / _ADAPTER_FILE).is_file():
                raise InputError(
                    f"expected a P-Tuning prefix in {path}, got an adapter of peft; give it with --adapter"
                )
            own = path / SAFETENSORS_FILE
            if found_instead(own) != ABSENT:
                return own, _map(own)
            if has_weights(path):
                reader = CheckpointReader(path)
                return reader.files[0] if len(reader.files) == 1 else path, reader
            newest = newest_checkpoint(path)
            if newest is not None:
                return _open(newest)
            raise InputError(
                f"expected {OFFICIAL_FILE} or {SAFETENSORS_FILE} in {path}, got none; is this a ptuning checkpoint?"
            )
    except OSError as error:
        raise InputError(f"expected a prefix that can be read, got {str(path)[:80]}: {error.strerror}") from error
    raise InputError(f"expected a ptuning checkpoint folder or a file as prefix, got {path}: there is none")


def _map(file: Path) -> Mapping[str, Tensor]:
    fault = found_instead(file)
    if fault is not None:
        raise CheckpointError(f"expected a prefix in {file}, got {fault}")
    return (map_safetensors(file) if file.suffix == ".safetensors" else map_torch_file(file))[0]


def newest_checkpoint(folder: Path) -> Path | None:
    """The folder ``checkpoint-N`` of the largest N in a folder, None where there is none."""
    numbered = [(int(m[1]), p) for p in folder.glob("checkpoint-*") if (m := _CHECKPOINT.fullmatch(p.name))]
    return max(numbered)[1] if numbered else None


def _prefix_tensors(file: Path, stored: Mapping[str, Tensor] | CheckpointReader) -> dict[str, Tensor]:
    """The tensors of the prefix encoder, by the names of its parameters."""
    matches = [(name, match) for name in stored if (match := _NAME.fullmatch(name))]
    named = [(name, match) for name, match in matches if match[1]]  # among a model's tensors
    found = {match[2]: stored[name] for name, match in named or matches}
    if "embedding.weight" in found:
        return found
    names = ", ".join(shown_name(name) for name in list(stored)[:_MOST_NAMED]) or "nothing"
    raise CheckpointError(
        f"expected {PREFIX_STEM}embedding.weight in {file}, got {names}; "
        "it holds no P-Tuning prefix: give the checkpoint folder that ptuning has written"
    )


def _check_tensors(file: Path, tensors: dict[str, Tensor], encoder: PrefixEncoder, config: Config) -> None:
    expected = {name: tuple(parameter.shape) for name, parameter in encoder.named_parameters()}
    if tensors.keys() != expected.keys():
        raise CheckpointError(
            f"expected {', '.join(expected)} in {file}, got {', '.join(map(shown_name, sorted(tensors)[:8]))}; "
            "the file is incomplete"
        )
    for name, shape in expected.items():
        found = tensors[name]
        if tuple(found.shape) != shape:
            raise CheckpointError(
                f"expected {name} of shape {shape} in {file}, which suits this model, got {tuple(found.shape)}; "
                f"{_belongs_to(tensors, config)}"
            )
        if found.dtype not in FLOATING:
            raise CheckpointError(f"expected floating-point numbers for {name} in {file}, got {found.dtype}")


def _belongs_to(tensors: dict[str, Tensor], config: Config) -> str:
    """Which model a prefix that does not fit is for, as far as its width tells."""
    last = tensors.get("trans.2.weight")
    width = math.prod(tensors["embedding.weight"].shape[1:] if last is None else last.shape[:1])
    official = {229376: "ChatGLM-6B", 14336: "ChatGLM2-6B or ChatGLM3-6B"}.get(width)
    what = f"it is a prefix of {official}" if official else f"its columns have {width} elements"
    return f"{what}, this {config.model_name} needs {prefix_width(config)}: load the model that it was trained on"


def _check_config(path: Path, length: int, projection: bool) -> None:
    """Compare what the config beside a prefix says with its shapes."""
    if found_instead(path) == ABSENT:
        return
    raw = read_json(path, ConfigError)
    for key, found in (("pre_seq_len", length), ("prefix_projection", projection)):
        said = raw.get(key)
        if not raw.get("pre_seq_len") or said is None:  # the config of a model without a prefix
            continue
        if said != found:
            raise ConfigError(
                f"expected {key} {shown(found)} in {path}, as the shapes of the prefix say, got {shown(said)}; "
                "the config and the prefix are of different runs"
            )
