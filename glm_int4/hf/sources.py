"""Where a model of transformers comes from: its folder, its device, its dtype, as ``from_pretrained`` means them."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from glm_int4.errors import InputError
from glm_int4.generation.engine import Engine
from glm_int4.generation.loading import load
from glm_int4.quantization.gpu.cuda_device import cuda_fault, has_cuda

_ANY_DEVICE = (None, "auto", "balanced", "balanced_low_0", "sequential")


def load_engine(device: str, dtype: Any, **source: Any) -> Engine:
    """Load a checkpoint for a device, with ``dtype`` as transformers means it."""
    return load(device=device, dtype=compute_dtype(dtype, device), **source)


def device_type(device_map: Any) -> str:
    """The device that transformers' ``device_map`` means: "auto", "cuda" or "cpu".

    Raises:
        InputError: several devices, or one that is not there.
    """
    if isinstance(device_map, dict):
        if set(device_map) != {""}:
            raise InputError(f"expected the whole model on one device, got {device_map!r:.80}; pass device_map='cuda'")
        device_map = device_map[""]
    if device_map in _ANY_DEVICE:
        return "auto"
    name = f"cuda:{device_map}" if type(device_map) is int else str(device_map)
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda"):
        raise InputError(f"expected the device_map cpu, cuda or auto, got {device_map!r:.80}; pass device_map='auto'")
    if index not in ("", "0"):
        raise InputError(f"expected the first CUDA device, got {name}; choose another with CUDA_VISIBLE_DEVICES")
    if kind == "cuda" and (fault := cuda_fault()):
        what = fault.fault.replace("a CUDA device", f"a CUDA device for device_map {device_map!r:.80}")
        raise InputError(f"{what}; leave device_map out for the CPU, or {fault.cure}")
    return kind


def compute_dtype(dtype: torch.dtype | str | None, device: str) -> torch.dtype | None:
    """``load``'s dtype; None for the fast path."""
    if isinstance(dtype, str) and dtype != "auto":
        dtype = getattr(torch, dtype, None) or dtype
    on_cuda = device == "cuda" or (device == "auto" and has_cuda())
    return None if dtype == "auto" or (dtype == torch.float16 and on_cuda) else dtype  # type: ignore[return-value]


def generation_config(folder: Path, engine: Engine) -> GenerationConfig:
    """The folder's, with the ids that end an answer of this version; greedy where it does not say."""
    found = (folder / "generation_config.json").is_file()
    config = GenerationConfig.from_pretrained(folder) if found else GenerationConfig()
    config.eos_token_id, config.pad_token_id = list(engine.stop_ids), engine.config.pad_token_id
    return config


def adapter_in(name: str | Path, options: dict[str, Any]) -> str | Path | None:
    """The folder or hub id of an adapter that was asked for, or that lies beside the weights; None for no adapter.

    Args:
        name: what was given to ``from_pretrained``.
        options: transformers' ``adapter_kwargs``; the entry that its Auto classes add is taken out.
    """
    if found := options.pop("_adapter_model_path", None):
        return found
    return name if os.path.isfile(Path(name) / "adapter_config.json") else None
