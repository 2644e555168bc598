"""Quantized linear layers on a CPU with AVX2 or more: inputs as 16-bit integers, exact integer sums.

Weights stay packed whatever the number of rows. In a tile of 32 output features, 32-bit words of the file
layout lie feature by feature: (N / 32, K * bits / 32, 32) int32. Scales and zero points are (N / 32,
K / G, 32). Inputs are scaled per row and run of at most 128 weights, which loses 1.5e-5 of the run's
largest value: bfloat16 loses up to 4e-3 of every value. The sums of a row do not depend on the rows
beside it, so a row of a batch gets bit for bit what it would get alone.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from glm_int4.quantization.cpu import huge_pages
from glm_int4.quantization.cpu.frozen_matrix import FrozenMatrix
from glm_int4.quantization.cpu.threads import numba_threads
from glm_int4.quantization.scheme import QuantizationScheme, QuantizedWeight

TILE_ROWS = 32

_PIECE_TILES = 8  # of weights dequantized at a time


class IntegerMatrix(FrozenMatrix):
    """A quantized matrix (N, K) in tiles, with its bias.

    Args:
        weight: the matrix; see ``takes``.
        bias: (N,) or None.
    """

    packed: Tensor
    scales: Tensor
    zeros: Tensor
    bias: Tensor

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = weight.in_features, weight.out_features
        self.bits, self.group_size = weight.scheme.bits, weight.group_size
        self.run = _run(weight)
        zeros = weight.zero_points
        if zeros is None:
            zeros = torch.full(weight.scales.shape, weight.scheme.zero, dtype=torch.uint8)
        self.register_buffer("packed", self._pack(weight.packed.contiguous()))
        self.register_buffer("scales", _tiles(weight.scales))
        self.register_buffer("zeros", _tiles(zeros))
        self.register_buffer("bias", torch.zeros(self.out_features) if bias is None else bias.float().contiguous())

    @staticmethod
    def takes(out_features: int, in_features: int) -> bool:
        """Whether the tiles take this shape."""
        return in_features % 32 == 0 and out_features % TILE_ROWS == 0

    @staticmethod
    def resident_bytes(out_features: int, in_features: int, scheme: QuantizationScheme, *, has_bias: bool) -> int:
        """Bytes of a matrix (N, K); a matrix without a bias has zeros."""
        num_groups = in_features // scheme.row_group_size(in_features)
        return out_features * (in_features * scheme.bits // 8 + 3 * num_groups + 4)

    @property
    def addresses(self) -> tuple[int, int, int, int]:
        """Where packed weights, scales, zero points and bias lie."""
        return self.packed.data_ptr(), self.scales.data_ptr(), self.zeros.data_ptr(), self.bias.data_ptr()

    def multiply(self, x: Tensor, activation: str | None = None) -> Tensor:
        """(..., K) to (..., N) in float32; ``activation`` ("gelu" or "swiglu") is applied to x first.

        SwiGLU takes x as (..., 2 * K), the gate first.
        """
        from glm_int4.quantization.cpu import integer_loops

        kind = {None: integer_loops.PLAIN, "gelu": integer_loops.GELU, "swiglu": integer_loops.SWIGLU}[activation]
        width = self.in_features * (2 if activation == "swiglu" else 1)
        rows = x.reshape(-1, width).float().contiguous()
        num_rows = rows.shape[0]
        out = torch.empty(num_rows, self.out_features)
        if num_rows:
            num_groups = self.in_features // self.group_size
            arguments = (rows.detach().numpy(), kind, self.addresses, self.bits, num_groups, self.run, self.in_features)
            if num_rows * self.packed.nbytes <= integer_loops.SERIAL_BYTES:
                integer_loops.linear_here(*arguments, out.numpy())
            else:
                with numba_threads() as threads:
                    integer_loops.linear(*arguments, threads, out.numpy())
        return out.view(*x.shape[:-1], self.out_features)

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows and their weights in float32, a piece at a time."""
        step = _PIECE_TILES * TILE_ROWS
        for start in range(0, self.out_features, step):
            rows = slice(start, min(start + step, self.out_features))
            yield rows, self.dequantize(rows)

    def dequantize(self, rows: slice | Tensor) -> Tensor:
        """The chosen rows in float32."""
        from glm_int4.quantization.cpu import integer_loops, integer_tiles

        if isinstance(rows, slice):
            rows = torch.arange(*rows.indices(self.out_features))
        out = torch.empty(len(rows), self.in_features)
        arguments = (
            self.packed.view(torch.uint32).numpy(), self.scales.view(torch.uint16).numpy(), self.zeros.numpy(),
            rows.numpy(), self.bits, self.group_size, out.numpy(),
        )  # fmt: skip
        if out.numel() <= integer_loops.SERIAL_VALUES:
            integer_tiles.dequantize_rows_here(*arguments)
        else:
            with numba_threads():
                integer_tiles.dequantize_rows(*arguments)
        return out

    def _pack(self, packed: Tensor) -> Tensor:
        """Tiles of words, as int32: torch writes no unsigned words to files."""
        from glm_int4.quantization.cpu import integer_tiles

        words = packed.view(torch.uint32)
        tiles = huge_pages.empty((words.shape[0] // TILE_ROWS, words.shape[1], TILE_ROWS), torch.uint32)
        with numba_threads():
            integer_tiles.pack_tiles(words.numpy(), self.bits, tiles.numpy())
        return tiles.view(torch.int32)


def _run(weight: QuantizedWeight) -> int:
    """Weights that share a scale of the inputs: a group, or what divides the row."""
    if weight.scheme.group_size is not None:
        return weight.scheme.group_size
    return next(size for size in (128, 64, 32) if weight.in_features % size == 0)


def _tiles(x: Tensor) -> Tensor:
    """(N, C) to (N / 32, C, 32), a copy."""
    tiles = x.view(-1, TILE_ROWS, x.shape[1]).transpose(1, 2)
    return huge_pages.empty(tuple(tiles.shape), x.dtype).copy_(tiles)
