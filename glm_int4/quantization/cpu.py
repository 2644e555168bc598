"""Quantized linear layers on a CPU: which way suits this machine, and the ways themselves.

``packed``: torch's packed operations in bfloat16 for few rows; for many, the same packed bytes are
dequantized piece by piece into scratch that fits the cache, and multiplied by oneDNN. ``rows``: Numba
loops over the file layout in float32, where the packed operations are slow (AVX2).
``reference``: plain torch, exact in float32.
"""

import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm_int4.quantization.aten_layout import learn_tile_layout, pack_aten, repack_aten, tile_width
from glm_int4.quantization.scheme import QuantizedWeight
from glm_int4.quantization.threads import has_numba, numba_threads
from glm_int4.quantization.vnni import is_supported

logger = logging.getLogger(__name__)
_thread = threading.local()

# Rows of x up to which the packed operations beat dequantize + matmul, from
#   python benchmarks/cpu_switch.py
# on 2 cores of an AMD EPYC with AVX-512 and BF16 (benchmarks/results/cpu_switch.json).
PACKED_INT4_MAX_ROWS = 40
PACKED_INT8_MAX_ROWS = 16
ROWS_MAX_ROWS = 20

# Scratch of one dequantized piece: small enough to stay in the last-level cache.
SCRATCH_BYTES = 4 << 20

# The packed operation must beat a float32 matrix-vector product by this factor to be chosen.
# Measured on one thread of an AMD EPYC: 5.5 to 5.8 with AVX-512, 1.5 held to AVX2.
_PACKED_MIN_SPEEDUP = 3.0


@functools.cache
def choose_backend() -> str:
    """Probe this machine once: "vnni", "packed", "rows" or "reference"."""
    if not has_numba():
        logger.warning("CPU backend: reference (plain torch, slow), because numba is not installed")
        return "reference"
    if is_supported():
        logger.info("CPU backend: vnni (%s with VNNI)", torch.backends.cpu.get_cpu_capability())
        return "vnni"
    if tile_width() is None:
        logger.info("CPU backend: rows, because torch's packed INT4 layout is unknown here")
        return "rows"
    weight = torch.ones(2048, 4096)
    packed = pack_aten(torch.zeros(2048, 4096, dtype=torch.uint8))
    params = torch.ones(32, 2048, 2, dtype=torch.bfloat16)
    x = torch.ones(1, 4096)
    x16 = x.bfloat16()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine, waiting for a second thread would hide the difference
    try:
        dense = _best_time(lambda: F.linear(x, weight))
        quantized = _best_time(lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(x16, packed, 128, params))
    finally:
        torch.set_num_threads(threads)
    backend = "packed" if dense > _PACKED_MIN_SPEEDUP * quantized else "rows"
    logger.info(
        "CPU backend: %s (%s; packed INT4 %.1fx as fast as float32)",
        backend,
        torch.backends.cpu.get_cpu_capability(),
        dense / quantized,
    )
    return backend


def scratch(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory of this thread for a dequantized piece; the next call takes it again.

    Fresh memory for every piece would be faulted in page by page, which takes longer than dequantizing.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    buffer = getattr(_thread, "buffer", None)
    if buffer is None or buffer.numel() < num_bytes:
        buffer = _thread.buffer = torch.empty(max(num_bytes, SCRATCH_BYTES), dtype=torch.uint8)
    return buffer[:num_bytes].view(dtype).view(tuple(shape))


def _best_time(function: Callable[[], object]) -> float:
    times = []
    for _ in range(10):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


class PackedInt4Linear(nn.Module):
    """INT4 linear on torch's packed operation, bfloat16 inputs and scales."""

    packed: Tensor
    params: Tensor
    bias: Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.in_features, self.out_features = weight.in_features, weight.out_features
        self.group_size, scales, offsets = _aten_groups(weight)
        params = torch.stack((scales, offsets), dim=-1).transpose(0, 1)  # (K / G, N, 2)
        self.register_buffer("params", params.contiguous().bfloat16())
        self.register_buffer("bias", None if bias is None else bias.bfloat16())
        self.register_buffer("packed", repack_aten(weight.packed))

    @staticmethod
    def takes(weight: QuantizedWeight) -> bool:
        """Whether torch's operation takes this shape."""
        return weight.scheme.bits == 4 and weight.in_features % 32 == 0 and weight.out_features % 16 == 0

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N) in bfloat16."""
        rows = x.reshape(-1, self.in_features).bfloat16()
        if rows.shape[0] <= PACKED_INT4_MAX_ROWS:
            out = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, self.group_size, self.params)
        else:
            out = self._dequantize_matmul(rows)
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], self.out_features)

    def _dequantize_matmul(self, x: Tensor) -> Tensor:
        out = torch.empty(x.shape[0], self.out_features, dtype=torch.bfloat16)
        for start, num_rows, tile in self._row_tiles():
            weight = self._dequantize_tiles(start, num_rows, tile)
            if weight is None:
                out[:, start:] = self._multiply_last_rows(x, start)
            else:
                torch.mm(x, weight, out=out[:, start : start + num_rows])
        return out

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows and their weights in bfloat16, a piece at a time, in scratch."""
        for start, num_rows, tile in self._row_tiles():
            weight = self._dequantize_tiles(start, num_rows, tile)
            if weight is None:
                weight = self._multiply_last_rows(torch.eye(self.in_features, dtype=torch.bfloat16), start)
            yield slice(start, start + num_rows), weight.T

    def _row_tiles(self) -> list[tuple[int, int, int]]:
        """First row, number of rows and rows of a tile of pieces that fit the scratch."""
        width = tile_width()
        assert width is not None  # the probe would not have chosen this class
        piece = max(SCRATCH_BYTES // (2 * self.in_features * width), 1) * width
        num_tiled = self.out_features // width * width
        tiles = [(start, min(piece, num_tiled - start), width) for start in range(0, num_tiled, piece)]
        if num_tiled < self.out_features:
            rest = self.out_features - num_tiled
            tiles.append((num_tiled, rest, rest))
        return tiles

    def _dequantize_tiles(self, start: int, num_rows: int, tile: int) -> Tensor | None:
        """Weights of some rows, transposed (K, num_rows), in scratch; None where the tile's layout is unknown."""
        from glm_int4.quantization import cpu_loops

        layout = learn_tile_layout(tile)
        if layout is None:
            return None
        target = scratch((self.in_features, num_rows), torch.bfloat16)
        tiles = self.packed[start : start + num_rows].view(-1, self.in_features, tile // 2)
        with numba_threads():
            cpu_loops.dequantize_tiles(
                tiles.numpy(), self.params.view(torch.uint16).numpy(), self.group_size,
                layout.low_rows, layout.high_rows, start, target.view(torch.uint16).numpy(),
            )  # fmt: skip
        return target

    def _multiply_last_rows(self, x: Tensor, start: int) -> Tensor:
        params = self.params[:, start:].contiguous()
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.packed[start:], self.group_size, params)


def _aten_groups(weight: QuantizedWeight) -> tuple[int, Tensor, Tensor]:
    """Group size, scales and offsets (N, K / G) float32 of ``w = (q - 8) * scale + offset``.

    A per-channel scale is repeated over groups that torch's operation takes.
    """
    scales = weight.scales.float()
    zeros = 8.0 if weight.zero_points is None else weight.zero_points.float()
    offsets = (8.0 - zeros) * scales
    if weight.scheme.group_size is not None:
        return weight.scheme.group_size, scales, offsets
    group_size = next(size for size in (128, 64, 32) if weight.in_features % size == 0)
    repeats = weight.in_features // group_size
    return group_size, scales.repeat(1, repeats), offsets.repeat(1, repeats)


class PackedInt8Linear(nn.Module):
    """Per-channel symmetric INT8 linear on torch's packed operation, bfloat16 inputs and scales."""

    weight: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.in_features, self.out_features = weight.in_features, weight.out_features
        self.register_buffer("weight", (weight.packed ^ 128).view(torch.int8))
        self.register_buffer("scales", weight.scales.flatten().bfloat16())
        self.register_buffer("bias", None if bias is None else bias.bfloat16())

    @staticmethod
    def takes(weight: QuantizedWeight) -> bool:
        """Whether torch's operation takes this scheme and shape."""
        scheme = weight.scheme
        return scheme.bits == 8 and scheme.symmetric and scheme.group_size is None and weight.in_features % 32 == 0

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N) in bfloat16."""
        rows = x.reshape(-1, self.in_features).bfloat16()
        if rows.shape[0] <= PACKED_INT8_MAX_ROWS:
            out = torch.ops.aten._weight_int8pack_mm(rows, self.weight, self.scales)
        else:
            out = torch.empty(rows.shape[0], self.out_features, dtype=torch.bfloat16)
            for part, weight in self._unscaled_pieces():
                torch.mm(rows, weight.T, out=out[:, part])
            out *= self.scales
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], self.out_features)

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows and their weights in bfloat16, a piece at a time, in scratch."""
        for rows, weight in self._unscaled_pieces():
            yield rows, weight.mul_(self.scales[rows, None])

    def _unscaled_pieces(self) -> Iterator[tuple[slice, Tensor]]:
        piece = max(SCRATCH_BYTES // (2 * self.in_features), 1)
        for start in range(0, self.out_features, piece):
            rows = slice(start, min(start + piece, self.out_features))
            weight = self.weight[rows]
            yield rows, scratch(weight.shape, torch.bfloat16).copy_(weight)  # exact: eight significant bits


class RowsMatrix(nn.Module):
    """A quantized matrix in the file layout, multiplied in float32 by Numba loops."""

    packed: Tensor
    scales: Tensor
    zeros: Tensor

    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__()
        self.in_features, self.out_features = weight.in_features, weight.out_features
        self.bits, self.group_size = weight.scheme.bits, weight.group_size
        zeros = weight.zero_points
        if zeros is None:
            zeros = torch.full(weight.scales.shape, weight.scheme.zero, dtype=torch.uint8)
        self.register_buffer("packed", weight.packed.clone())  # not the mapped file
        self.register_buffer("scales", weight.scales.contiguous())
        self.register_buffer("zeros", zeros.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N) in float32."""
        from glm_int4.quantization import cpu_loops

        rows = x.reshape(-1, self.in_features).float().contiguous()
        packed, scales, zeros = self._arrays(slice(None))
        out = torch.empty(rows.shape[0], self.out_features)
        if rows.shape[0] <= ROWS_MAX_ROWS:
            gemv = cpu_loops.gemv_int4 if self.bits == 4 else cpu_loops.gemv_int8
            with numba_threads():
                for row, target in zip(rows.numpy(), out.numpy(), strict=True):
                    gemv(row, packed, scales, zeros, self.group_size, target)
        else:
            for part, weight in self.pieces():
                torch.mm(rows, weight.T, out=out[:, part])
        return out.view(*x.shape[:-1], self.out_features)

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows and their weights in float32, a piece at a time, in scratch."""
        piece = max(SCRATCH_BYTES // (4 * self.in_features), 1)
        for start in range(0, self.out_features, piece):
            rows = slice(start, min(start + piece, self.out_features))
            yield rows, self.dequantize(rows, scratch((rows.stop - start, self.in_features), torch.float32))

    def dequantize(self, rows: slice | Tensor, out: Tensor | None = None) -> Tensor:
        """The chosen rows in float32, in ``out`` if given."""
        from glm_int4.quantization import cpu_loops

        packed, scales, zeros = self._arrays(rows)
        out = torch.empty(packed.shape[0], self.in_features) if out is None else out
        with numba_threads():
            cpu_loops.dequantize_rows(packed, scales, zeros, self.group_size, self.bits, out.numpy())
        return out

    def _arrays(self, rows: slice | Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.packed[rows].numpy(), self.scales[rows].view(torch.uint16).numpy(), self.zeros[rows].numpy()
