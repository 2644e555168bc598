"""Safetensors files, mapped for reading and streamed for writing.

The safetensors library maps files too (``safe_open`` and ``get_slice``). Here a file's pages can be given back once
their rows are quantized, broken headers are named in one line, and a header is written before its data, which the
library's ``save_file`` wants whole.
"""

import contextlib
import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glm_int4.downloads import shown, shown_name, unique_keys
from glm_int4.errors import CheckpointError
from glm_int4.system import opened_for_torch

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 50_000  # the official checkpoint has 368
_MAX_DIMENSIONS = 8

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
        """Bytes of the tensor as stored."""
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
        size = path.stat().st_size
        stop = max((entry.stop for entry in entries.values()), default=0)
        if data_start + stop != size:
            raise CheckpointError(
                f"expected {data_start + stop} bytes in {path}, got {size}; "
                f"the file is {'truncated' if data_start + stop > size else 'damaged'}, download it again"
            )
        with opened_for_torch(path) as name:
            data = torch.from_file(name, shared=False, size=size, dtype=torch.uint8)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0][:120]
        raise CheckpointError(f"expected a readable {path}, got: {reason}") from error
    tensors, mapped = {}, set()
    for name, entry in entries.items():
        part = data[data_start + entry.start : data_start + entry.stop]
        if (data_start + entry.start) % entry.dtype.itemsize:
            part = part.clone()
        else:
            mapped.add(name)
        tensors[name] = part.view(entry.dtype).view(entry.shape)
    return tensors, mapped


class _Entry(NamedTuple):
    dtype: torch.dtype
    shape: list[int]
    start: int
    stop: int


def _read_header(path: Path) -> tuple[dict[str, _Entry], int]:
    """The tensors that a file says it holds, and where their bytes begin."""
    broken = f"expected a safetensors header in {path}, got something else; download the file again"
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(broken)
        try:
            header = json.loads(file.read(length), object_pairs_hook=unique_keys)
        except (ValueError, RecursionError, MemoryError) as error:
            raise CheckpointError(broken) from error
    if not isinstance(header, dict):
        raise CheckpointError(broken)
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"expected at most {MAX_TENSORS} tensors in {path}, got {len(header)}; is this ChatGLM?")
    entries = {name: _parse_entry(path, name, entry, broken) for name, entry in header.items()}
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != position:
            raise CheckpointError(f"{broken} (tensor {shown_name(name)} overlaps another, or follows a gap)")
        position = entry.stop
    return entries, 8 + length


def _parse_entry(path: Path, name: str, entry: Any, broken: str) -> _Entry:
    dtype_name = entry.get("dtype") if isinstance(entry, dict) else None
    if isinstance(dtype_name, str) and dtype_name not in DTYPES:
        raise CheckpointError(
            f"expected a dtype of {', '.join(DTYPES)} in {path}, got {shown(dtype_name)} for {shown_name(name)}; "
            "use the official half-precision checkpoint"
        )
    try:
        dtype = DTYPES[entry["dtype"]]
        shape, (start, stop) = entry["shape"], entry["data_offsets"]
        numbers = [*shape, start, stop]
        fits = len(shape) <= _MAX_DIMENSIONS and all(type(n) is int and 0 <= n < 2**63 for n in numbers)
        fits = fits and stop - start == math.prod(shape) * dtype.itemsize
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{broken} (tensor {shown_name(name)})") from error
    if not fits:
        raise CheckpointError(f"{broken} (tensor {shown_name(name)})")
    return _Entry(dtype, shape, start, stop)


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
        try:
            self._file.write(struct.pack("<Q", len(encoded)) + encoded)
        except OSError:
            with contextlib.suppress(OSError):  # what could not be written cannot be flushed either
                self._file.close()
            raise

    def write(self, name: str, tensor: Tensor, offset_bytes: int = 0) -> None:
        """Write a tensor, or a run of its rows that begins ``offset_bytes`` into it."""
        data = tensor.contiguous().flatten().view(torch.uint8).numpy().data
        self._file.seek(self._data_start + self._offsets[name] + offset_bytes)
        self._file.write(data)
        self.remaining_bytes -= data.nbytes

    def close(self, sync: bool) -> None:
        """Close the file; with ``sync``, after its bytes have reached the disk."""
        try:
            if sync:
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
