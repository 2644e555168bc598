"""Quantized linear layers on a CPU: which way suits this machine, and the way without vector instructions.

"integer" is in ``integer.py``. "rows", for other processors and for shapes that it does not take: Numba loops over
the file layout in float32; many rows are multiplied by pieces of dequantized weights that fit the cache.
"reference" (``gpu.py``) is plain torch, exact in float32.
"""

import functools
import logging
import math
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from glm_int4.quantization.cpu.instructions import instruction_set
from glm_int4.quantization.cpu.threads import has_numba, numba_threads
from glm_int4.quantization.scheme import QuantizedWeight

logger = logging.getLogger(__name__)
_thread = threading.local()

# Rows of x up to which multiplying row by row beats dequantize + matmul, from
#   python -m benchmarks.kernels.cpu_switch
# on 2 cores of an AMD EPYC with AVX-512 (benchmarks/results/cpu_switch.json).
ROWS_MAX_ROWS = 20

# Scratch of one dequantized piece: small enough to stay in the last-level cache.
SCRATCH_BYTES = 4 << 20


@functools.cache
def choose_backend() -> str:
    """What suits this machine: "integer", "rows" or "reference"."""
    if not has_numba():
        logger.warning("CPU backend: reference (plain torch, slow), because numba is not installed")
        return "reference"
    instructions = instruction_set()
    if instructions is None:
        logger.info("CPU backend: rows, because this processor has no AVX2 (or Numba or torch may not use it)")
        return "rows"
    logger.info("CPU backend: integer (%s)", instructions.name)
    return "integer"


def scratch(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory of this thread for a dequantized piece; the next call takes it again.

    Fresh memory for every piece would be faulted in page by page, which takes longer than dequantizing.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    buffer = getattr(_thread, "buffer", None)
    if buffer is None or buffer.numel() < num_bytes:
        buffer = _thread.buffer = torch.empty(max(num_bytes, SCRATCH_BYTES), dtype=torch.uint8)
    return buffer[:num_bytes].view(dtype).view(tuple(shape))


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
        from glm_int4.quantization.cpu import float32_loops

        rows = x.reshape(-1, self.in_features).float().contiguous()
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
