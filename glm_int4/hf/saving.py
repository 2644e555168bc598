"""``save_pretrained``: the folder that was read, with what is not quantized as it is in memory by now.

Packed matrices never change, so they are copied from the files: in memory they lie in a layout of the device.
"""

import contextlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils.hub import convert_file_size_to_int

from glm_int4.checkpoint.files.folder import read_config
from glm_int4.checkpoint.files.reader import CheckpointReader
from glm_int4.checkpoint.files.safetensors_file import SafetensorsWriter, TensorSpec
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.formats.tensor_names import PREFIX_STEM
from glm_int4.checkpoint.opening import CheckpointInfo, open_checkpoint, tensor_specs
from glm_int4.checkpoint.prefix_file import NO_PREFIX, SAFETENSORS_FILE
from glm_int4.checkpoint.writing.output_folder import Unit, fill_shards
from glm_int4.errors import InputError, OutputError

logger = logging.getLogger(__name__)

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
# By which a version is known, where only the caller knew it.
_NAMES = {"1": "chatglm-6b", "2": "chatglm2-6b", "3": "chatglm3-6b", "4": "glm-4-9b-chat"}


class _Saved(Protocol):
    """What ``save_model`` asks of a model."""

    config: PreTrainedConfig
    generation_config: Any

    def state_dict(self) -> dict[str, Tensor]: ...


def save_model(
    model: _Saved,
    source: dict[str, Any],
    folder: Path,
    is_main_process: bool = True,
    state_dict: dict[str, Tensor] | None = None,
    max_shard_size: int | str = "1GB",
    **options: Any,
) -> None:
    """Write weights, config.json and generation_config.json of a model.

    Args:
        model: without an adapter.
        source: what it was loaded from, as ``load`` takes it.
        folder: may exist; weights in it are replaced.
        is_main_process: False to write nothing.
        state_dict: the model's, by name, if it is at hand.
        max_shard_size: bytes of a file, or a text like "1GB".
        options: refused where they would change anything.
    Raises:
        InputError: options that this format does not have.
        OutputError: nothing can be written there.
    """
    asked = [key for key, value in options.items() if value and key not in ("safe_serialization", "save_peft_format")]
    if asked:
        raise InputError(f"expected options of saving safetensors to a folder, got {', '.join(asked)}; leave them out")
    if not is_main_process:
        return
    reader, info = open_checkpoint(source["model"], source["model_version"])
    state = model.state_dict() if state_dict is None else state_dict
    units = [_unit(name, reader, info, state) for name in (*layout.matrices(info.config), *_vectors(info))]
    if source["prefix"] != NO_PREFIX:
        units += [_unit(name, reader, info, state) for name in reader if name.startswith(PREFIX_STEM)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_weights(folder, fill_shards(units, convert_file_size_to_int(max_shard_size)), reader, state)
        _write_json(folder / "config.json", _config(model.config, info, source))
        _copy_prefix(folder, source)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"expected to write {folder}, got: {reason}; choose another folder") from error
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


def _vectors(info: CheckpointInfo) -> list[str]:
    return list(layout.vectors(info.config))


def _unit(name: str, reader: CheckpointReader, info: CheckpointInfo, state: dict[str, Tensor]) -> Unit:
    """The tensors that a matrix or a vector is stored as."""
    scheme = info.schemes.get(name)
    if scheme is not None:
        specs = tensor_specs(layout.matrices(info.config)[name], scheme, official=info.official)
        return Unit(name, tuple(TensorSpec(s.name, tuple(reader[s.name].shape), reader[s.name].dtype) for s in specs))
    stored = f"{name}.weight" if name in info.schemes else name
    tensor = _value(stored, reader, state)
    return Unit(name, (TensorSpec(stored, tuple(tensor.shape), tensor.dtype),))


def _value(name: str, reader: CheckpointReader, state: dict[str, Tensor]) -> Tensor:
    """A tensor as it is now, in the dtype of the file where that loses nothing."""
    if name not in state:
        return reader[name]
    value = state[name].detach().cpu()
    stored = value.to(reader[name].dtype)
    return stored if torch.equal(stored.to(value.dtype), value) else value


def _write_weights(folder: Path, shards: list[list[Unit]], reader: CheckpointReader, state: dict[str, Tensor]) -> None:
    """Write all files under other names first: what is there may be what is being read."""
    total = len(shards)
    names = [_SINGLE] if total == 1 else [f"model-{i:05d}-of-{total:05d}.safetensors" for i in range(1, total + 1)]
    weight_map: dict[str, str] = {}
    try:
        for name, units in zip(names, shards, strict=True):
            specs = [spec for unit in units for spec in unit.specs]
            writer = SafetensorsWriter(folder / f"{name}.tmp", specs, {"format": "pt"})
            for spec in specs:
                writer.write(spec.name, _value(spec.name, reader, state))
                reader.release(spec.name)
                weight_map[spec.name] = name
            writer.close(sync=True)
        for path in [*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin*"), folder / _INDEX]:
            path.unlink(missing_ok=True)
        for name in names:
            os.replace(folder / f"{name}.tmp", folder / name)
    finally:
        for name in names:
            with contextlib.suppress(OSError):
                (folder / f"{name}.tmp").unlink()
    if total > 1:
        size = sum(unit.num_bytes for shard in shards for unit in shard)
        _write_json(folder / _INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})


def _config(config: PreTrainedConfig, info: CheckpointInfo, source: dict[str, Any]) -> dict[str, Any]:
    """The file's keys, with the values that they have by now; the version where only the caller knew it.

    ``use_cache`` stays: a Trainer turns it off.
    """
    raw = read_config(source["model"])
    now = config.to_dict()
    kept = ("use_cache", "quantization_config", "tokenizer_class", "torch_dtype", "dtype", "transformers_version")
    raw |= {key: now[key] for key in raw if key in now and key not in kept and not key.startswith("_")}
    if info.version_from == "the caller":
        raw.setdefault("_name_or_path", _NAMES[info.config.version])
    return raw


def _copy_prefix(folder: Path, source: dict[str, Any]) -> None:
    """Keep a P-Tuning prefix that lies beside the weights."""
    beside = Path(source["model"]) / SAFETENSORS_FILE
    if source["prefix"] is None and beside.is_file() and not (folder / SAFETENSORS_FILE).exists():
        shutil.copyfile(beside, folder / SAFETENSORS_FILE)
    elif source["prefix"] not in (None, NO_PREFIX):
        logger.warning("the prefix %s is not saved with the model: pass it again to load that", source["prefix"])


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)
