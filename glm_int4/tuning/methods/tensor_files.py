"""Files of tensors, written so that they are on the disk when the call returns."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glm_int4.checkpoint.files.safetensors_file import SafetensorsWriter, TensorSpec


def save_pickle(path: Path, value: Any) -> None:
    """Write what ``torch.load`` reads with ``weights_only``."""
    with path.open("wb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())


def save_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors of the CPU by name."""
    specs = [TensorSpec(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]
    writer = SafetensorsWriter(path, specs, {"format": "pt"})
    try:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    finally:
        writer.close(sync=True)
