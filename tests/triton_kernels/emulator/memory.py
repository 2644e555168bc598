"""Global and shared memory that refuse what a GPU would refuse, or would only sometimes get right."""

import ctypes
from collections.abc import Sequence

import numpy as np
import torch

# Where shared memory begins: not 0, so that an address that was never added to shows.
SHARED_BASE = 1024
_PADDING = 64
_NOBODY, _SEVERAL = -1, -2


class KernelError(Exception):
    """A kernel does what compute-sanitizer would report."""


class GlobalMemory:
    """The bytes of some tensors, at their own addresses; nothing else can be read or written.

    Blocks run in any order: one that reads what another one writes in the same launch is a fault, and so are two
    that write different values to one place.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        spans = sorted((t.data_ptr(), t.data_ptr() + _extent(t)) for t in tensors if t.numel())
        merged: list[list[int]] = []
        for start, end in spans:
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(end, merged[-1][1])
            else:
                merged.append([start, end])
        self._starts = np.array([start for start, _ in merged], dtype=np.int64)
        self._ends = np.array([end for _, end in merged], dtype=np.int64)
        places, size = [], _PADDING
        for start, end in merged:
            places.append(size + (start - size) % _PADDING)  # aligned as the tensor itself
            size = places[-1] + end - start + _PADDING
        self._shifts = np.array(places, dtype=np.int64) - self._starts
        self._bytes = np.zeros(size + -size % _PADDING, dtype=np.uint8)
        self._readers = np.full(self._bytes.shape, _NOBODY, dtype=np.int32)
        self._writers = np.full(self._bytes.shape, _NOBODY, dtype=np.int32)
        for start, end, place in zip(self._starts, self._ends, places, strict=True):
            self._bytes[place : place + end - start] = _memory_at(start, end)

    def write_back(self) -> None:
        """Copy all bytes to the tensors."""
        for start, end, shift in zip(self._starts, self._ends, self._shifts, strict=True):
            _memory_at(start, end)[:] = self._bytes[start + shift : end + shift]

    def load(self, blocks: np.ndarray, addresses: np.ndarray, dtype: np.dtype, count: int) -> np.ndarray:
        """(n, count) elements of a dtype."""
        places = self._places(addresses, count * dtype.itemsize)
        cells = places[:, None] + np.arange(count * dtype.itemsize)
        blocks = np.broadcast_to(blocks[:, None], cells.shape)
        if _touched_by_others(self._writers, cells, blocks).any():
            raise KernelError("a block reads what another one writes")
        several = _touched_by_others(self._readers, cells, blocks)
        self._readers[cells] = blocks
        several |= self._readers[cells] != blocks
        self._readers[cells[several]] = _SEVERAL
        return self._bytes.view(dtype)[(places // dtype.itemsize)[:, None] + np.arange(count)]

    def store(self, blocks: np.ndarray, addresses: np.ndarray, values: np.ndarray) -> None:
        """Write (n, count) elements."""
        places = self._places(addresses, values.shape[1] * values.itemsize)
        cells = places[:, None] + np.arange(values.shape[1] * values.itemsize)
        blocks = np.broadcast_to(blocks[:, None], cells.shape)
        if _touched_by_others(self._readers, cells, blocks).any():
            raise KernelError("a block writes what another one reads")
        old, new = self._bytes[cells], np.ascontiguousarray(values).view(np.uint8)
        self._bytes[cells] = new
        if (_touched_by_others(self._writers, cells, blocks) & (old != new)).any() or (self._bytes[cells] != new).any():
            raise KernelError("two blocks or threads write different values to one place")
        self._writers[cells] = blocks

    def _places(self, addresses: np.ndarray, size: int) -> np.ndarray:
        if (addresses % size).any():
            raise KernelError(f"misaligned access of {size} bytes to global memory")
        region = np.searchsorted(self._starts, addresses, side="right") - 1
        if (region < 0).any() or (addresses + size > self._ends[region]).any():
            raise KernelError(f"access of {size} bytes outside of every tensor")
        return addresses + self._shifts[region]


class SharedMemory:
    """The shared memory of several blocks, and who has touched each byte of it since the last barrier.

    Two warps that touch a byte without a barrier between them, one of them writing, are a fault, whatever
    order they would come in; so is reading what an asynchronous copy has not brought yet.
    """

    def __init__(self, num_blocks: int, size: int) -> None:
        self._size = size
        self._stride = size + -size % 16 + 16
        self._bytes = np.zeros(num_blocks * self._stride, dtype=np.uint8)
        shape = self._bytes.shape
        self._epochs = np.zeros(num_blocks, dtype=np.int32)
        # When each byte was last touched, in barriers of its block, and by which warp.
        self._written, self._read = np.full(shape, -1, dtype=np.int32), np.full(shape, -1, dtype=np.int32)
        self._writers, self._readers = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.int32)
        self._awaited = np.zeros(shape, dtype=np.int32)

    def barrier(self, blocks: np.ndarray) -> None:
        """What these blocks did is ordered before what they do next."""
        self._epochs[blocks] += 1

    def load(self, blocks: np.ndarray, warps: np.ndarray, addresses: np.ndarray, dtype: np.dtype, count: int):
        """(n, count) elements of a dtype."""
        places = self._places(blocks, addresses, count * dtype.itemsize)
        cells = places[:, None] + np.arange(count * dtype.itemsize)
        self._check_written(cells, blocks, warps)
        if self._awaited[cells].any():
            raise KernelError("shared memory is read before an asynchronous copy has arrived")
        epochs = np.broadcast_to(self._epochs[blocks][:, None], cells.shape)
        warps = np.broadcast_to(warps[:, None], cells.shape)
        several = (self._read[cells] == epochs) & (self._readers[cells] != warps)
        self._readers[cells] = warps
        several |= self._readers[cells] != warps
        self._readers[cells[several]] = _SEVERAL
        self._read[cells] = epochs
        return self._bytes.view(dtype)[(places // dtype.itemsize)[:, None] + np.arange(count)]

    def store(self, blocks: np.ndarray, warps: np.ndarray, addresses: np.ndarray, values: np.ndarray) -> None:
        """Write (n, count) elements."""
        places = self._places(blocks, addresses, values.shape[1] * values.itemsize)
        cells = places[:, None] + np.arange(values.shape[1] * values.itemsize)
        self._check_written(cells, blocks, warps)
        self._check_read(cells, blocks, warps)
        self._writers[cells] = warps[:, None]
        self._written[cells] = self._epochs[blocks][:, None]
        elements = (places // values.itemsize)[:, None] + np.arange(values.shape[1])
        target = self._bytes.view(values.dtype)
        target[elements] = values
        if (target[elements] != values).any():
            raise KernelError("two lanes write different values to the same shared memory")

    def announce(self, blocks: np.ndarray, warps: np.ndarray, addresses: np.ndarray, size: int, change: int) -> None:
        """An asynchronous copy to these addresses has begun (change 1), or ends now (-1)."""
        cells = self._places(blocks, addresses, size)[:, None] + np.arange(size)
        if change > 0:
            self._check_written(cells, blocks, warps)
            self._check_read(cells, blocks, warps)
        self._awaited[cells] += change

    def _places(self, blocks: np.ndarray, addresses: np.ndarray, size: int) -> np.ndarray:
        if (addresses % size).any():
            raise KernelError(f"misaligned access of {size} bytes to shared memory")
        offsets = addresses - SHARED_BASE
        if (offsets < 0).any() or (offsets + size > self._size).any():
            raise KernelError(f"access of {size} bytes outside of {self._size} bytes of shared memory")
        return blocks * self._stride + offsets

    def _check_written(self, cells: np.ndarray, blocks: np.ndarray, warps: np.ndarray) -> None:
        if ((self._written[cells] == self._epochs[blocks][:, None]) & (self._writers[cells] != warps[:, None])).any():
            raise KernelError("no barrier since another warp wrote to this shared memory")

    def _check_read(self, cells: np.ndarray, blocks: np.ndarray, warps: np.ndarray) -> None:
        if ((self._read[cells] == self._epochs[blocks][:, None]) & (self._readers[cells] != warps[:, None])).any():
            raise KernelError("no barrier since another warp read this shared memory")


def _touched_by_others(owners: np.ndarray, cells: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    return (owners[cells] != _NOBODY) & (owners[cells] != blocks)


def _extent(tensor: torch.Tensor) -> int:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.itemsize


def _memory_at(start: int, end: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * int(end - start)).from_address(int(start)))
