"""Safetensors files, mapped for reading and streamed for writing.

The safetensors library reads whole tensors and writes whole files; quantizing in little memory needs
rows of a mapped file on one side and a header written before the data on the other.
"""

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from glm_int4.errors import CheckpointError

MAX_HEADER_BYTES = 32 << 20

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, shape and dtype of a tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def map_safetensors(path: Path) -> tuple[dict[str, Tensor], set[str]]:
    """Map a file; nothing is read until it is used.

    Returns:
        The tensors by name, and the names of those that are views of the mapping.
    Raises:
        CheckpointError: the header is broken, or the file shorter than it says.
    """
    try:
        entries, data_start = _read_header(path)
    except OSError as error:
        raise CheckpointError(f"expected a readable {path}, got: {error.strerror}") from error
    size = path.stat().st_size
    data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    tensors, mapped = {}, set()
    for name, (dtype, shape, start, stop) in entries.items():
        if data_start + stop > size:
            raise CheckpointError(
                f"expected {data_start + stop} bytes or more in {path}, got {size}; "
                "the file is truncated, download it again"
            )
        part = data[data_start + start : data_start + stop]
        if part.storage_offset() % dtype.itemsize:
            part = part.clone()
        else:
            mapped.add(name)
        tensors[name] = part.view(dtype).view(shape)
    return tensors, mapped


def _read_header(path: Path) -> tuple[dict[str, tuple[torch.dtype, list[int], int, int]], int]:
    broken = f"expected a safetensors header in {path}, got something else; download the file again"
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(broken)
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(broken) from error
    if not isinstance(header, dict):
        raise CheckpointError(broken)
    entries = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if isinstance(entry, dict) and isinstance(entry.get("dtype"), str) and entry["dtype"] not in DTYPES:
            raise CheckpointError(
                f"expected a dtype of {', '.join(DTYPES)} in {path}, got {entry['dtype']!r} for {name!r}; "
                "use the official half-precision checkpoint"
            )
        try:
            dtype, shape, (start, stop) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            numbers = [*shape, start, stop]
            fits = all(type(n) is int and n >= 0 for n in numbers) and stop - start == math.prod(shape) * dtype.itemsize
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{broken} (tensor {name!r})") from error
        if not fits:
            raise CheckpointError(f"{broken} (tensor {name!r})")
        entries[name] = dtype, shape, start, stop
    return entries, 8 + length


class SafetensorsWriter:
    """Writes one file piece by piece: the header first, then bytes wherever they belong."""

    def __init__(self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> None:
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        offset = 0
        self._offsets: dict[str, int] = {}
        for spec in specs:
            header[spec.name] = {
                "dtype": DTYPE_NAMES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [offset, offset + spec.num_bytes],
            }
            self._offsets[spec.name] = offset
            offset += spec.num_bytes
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)
        self._data_start, self.remaining_bytes = 8 + len(encoded), offset
        self._file = path.open("wb")
        self._file.write(struct.pack("<Q", len(encoded)) + encoded)

    def write(self, name: str, tensor: Tensor, offset_bytes: int = 0) -> None:
        """Write a tensor, or a run of its rows that begins ``offset_bytes`` into it."""
        data = tensor.contiguous().flatten().view(torch.uint8).numpy().data
        self._file.seek(self._data_start + self._offsets[name] + offset_bytes)
        self._file.write(data)
        self.remaining_bytes -= data.nbytes

    def close(self, sync: bool) -> None:
        """Close the file; with ``sync``, after its bytes have reached the disk."""
        if sync:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
