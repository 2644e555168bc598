"""Quantized matrices on a CPU without vector instructions of ours: Numba loops over the file layout, in float32.

For processors and shapes that ``integer.py`` does not take. Many rows are multiplied by pieces of dequantized weights
that fit the cache.
"""

import math
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from glm_int4.quantization.cpu.frozen_matrix import FrozenMatrix
from glm_int4.quantization.cpu.threads import numba_threads
from glm_int4.quantization.scheme import QuantizationScheme, QuantizedWeight

_thread = threading.local()

# Rows of x up to which multiplying row by row beats dequantize + matmul, from
#   python -m benchmarks.kernels.cpu_switch
# on 2 cores of an AMD EPYC with AVX-512 (benchmarks/results/cpu_switch.json).
ROWS_MAX_ROWS = 20

# Scratch of one dequantized piece: small enough to stay in the last-level cache.
SCRATCH_BYTES = 4 << 20


def scratch(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory of this thread for a dequantized piece; the next call takes it again.

    Fresh memory for every piece would be faulted in page by page, which takes longer than dequantizing.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    buffer = getattr(_thread, "buffer", None)
    if buffer is None or buffer.numel() < num_bytes:
        buffer = _thread.buffer = torch.empty(max(num_bytes, SCRATCH_BYTES), dtype=torch.uint8)
    return buffer[:num_bytes].view(dtype).view(tuple(shape))


class Float32Matrix(FrozenMatrix):
    """A quantized matrix in the file layout, with its bias (N,) or None."""

    packed: Tensor
    scales: Tensor
    zeros: Tensor
    bias: Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = weight.in_features, weight.out_features
        self.bits, self.group_size = weight.scheme.bits, weight.group_size
        zeros = weight.zero_points
        if zeros is None:
            zeros = torch.full(weight.scales.shape, weight.scheme.zero, dtype=torch.uint8)
        self.register_buffer("packed", weight.packed.clone())  # not the mapped file
        self.register_buffer("scales", weight.scales.contiguous())
        self.register_buffer("zeros", zeros.contiguous())
        self.register_buffer("bias", None if bias is None else bias.float())

    @staticmethod
    def resident_bytes(out_features: int, in_features: int, scheme: QuantizationScheme, *, has_bias: bool) -> int:
        """Bytes of a matrix (N, K): packed weights, float16 scales and a byte of zero point a group, float32 bias."""
        num_groups = in_features // scheme.row_group_size(in_features)
        return out_features * (in_features * scheme.bits // 8 + 3 * num_groups + 4 * has_bias)

    def multiply(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N) in float32."""
        from glm_int4.quantization.cpu import float32_loops

        rows = x.detach().reshape(-1, self.in_features).float().contiguous()
        packed, scales, zeros = self._arrays(slice(None))
        out = torch.empty(rows.shape[0], self.out_features)
        if rows.shape[0] <= ROWS_MAX_ROWS:
            gemv = float32_loops.gemv_int4 if self.bits == 4 else float32_loops.gemv_int8
            with numba_threads():
                for row, target in zip(rows.numpy(), out.numpy(), strict=True):
                    gemv(row, packed, scales, zeros, self.group_size, target)
        else:
            for part, weight in self.pieces():
                torch.mm(rows, weight.T, out=out[:, part])
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], self.out_features)

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows and their weights in float32, a piece at a time, in scratch."""
        piece = max(SCRATCH_BYTES // (4 * self.in_features), 1)
        for start in range(0, self.out_features, piece):
            rows = slice(start, min(start + piece, self.out_features))
            yield rows, self.dequantize(rows, scratch((rows.stop - start, self.in_features), torch.float32))

    def dequantize(self, rows: slice | Tensor, out: Tensor | None = None) -> Tensor:
        """The chosen rows in float32, in ``out`` if given."""
        from glm_int4.quantization.cpu import float32_loops

        packed, scales, zeros = self._arrays(rows)
        out = torch.empty(packed.shape[0], self.in_features) if out is None else out
        with numba_threads():
            float32_loops.dequantize_rows(packed, scales, zeros, self.group_size, self.bits, out.numpy())
        return out

    def _arrays(self, rows: slice | Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.packed[rows].numpy(), self.scales[rows].view(torch.uint16).numpy(), self.zeros[rows].numpy()
