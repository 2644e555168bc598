"""What every operation means, in plain torch.

The definition that fast paths are tested against, and the path that runs where no fast one exists.
Weights are dequantized in chunks of rows, so that memory stays bounded.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from triton_kernels.autograd import finish, quantized_linear
from triton_kernels.operands import Epilogue, Matrix
from triton_kernels.packing import unpack_planar

_CHUNK_WEIGHTS = 1 << 24


def int4_linear(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    group_size: int,
    activation: str | None = None,
    residual: Tensor | None = None,
    alpha: float = 1.0,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return ``alpha * residual + activation(x @ dequantize(qweight).T + bias)``, accumulated in float32.

    Differentiable with respect to x, bias and residual; the weights have no gradient.

    Args:
        x: (..., K) floating point; last dim contiguous.
        qweight: (N, K // 4) int16, planar; see packing.py.
        scales: (K // group_size, N) floating point; per channel: one row, group_size = K.
        zero_points: same shape, uint8, or None for symmetric (8).
        bias: (N,) or None.
        group_size: weights per scale; divides K.
        activation: None, "gelu" (the tanh approximation), or "swiglu" (silu of the first half of the
            columns times the second half).
        residual: shaped as the result, or None.
        out_dtype: of the result; None is x's.
    Returns:
        (..., N); (..., N // 2) after "swiglu".
    Raises:
        ValueError: shapes, dtypes, devices or strides do not agree.
    """
    matrix = Matrix(bits=4, qweight=qweight, scales=scales, zero_points=zero_points, group_size=group_size)
    epilogue = Epilogue(bias=bias, activation=activation, residual=residual, alpha=alpha, dtype=out_dtype)
    return quantized_linear(x, matrix, epilogue, multiply, multiply_transposed)


def int8_linear(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    group_size: int,
    activation: str | None = None,
    residual: Tensor | None = None,
    alpha: float = 1.0,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """As ``int4_linear``, with qweight (N, K) uint8; without ``zero_points`` the zero is 128."""
    matrix = Matrix(bits=8, qweight=qweight, scales=scales, zero_points=zero_points, group_size=group_size)
    epilogue = Epilogue(bias=bias, activation=activation, residual=residual, alpha=alpha, dtype=out_dtype)
    return quantized_linear(x, matrix, epilogue, multiply, multiply_transposed)


def dequantize_int4(qweight: Tensor, scales: Tensor, zero_points: Tensor | None, group_size: int) -> Tensor:
    """Return the weights (N, K) in float32: ``(q - zero_point) * scale``; arguments as ``int4_linear``."""
    return _dequantize(unpack_planar(qweight), scales, zero_points, group_size, zero=8)


def dequantize_int8(qweight: Tensor, scales: Tensor, zero_points: Tensor | None, group_size: int) -> Tensor:
    """Return the weights (N, K) in float32: ``(q - zero_point) * scale``; arguments as ``int8_linear``."""
    return _dequantize(qweight, scales, zero_points, group_size, zero=128)


def _dequantize(q: Tensor, scales: Tensor, zero_points: Tensor | None, group_size: int, zero: int) -> Tensor:
    groups = q.unflatten(1, (-1, group_size)).float()  # (N, K / G, G)
    zeros = zero if zero_points is None else zero_points.T.float()[:, :, None]
    return ((groups - zeros) * scales.T.float()[:, :, None]).flatten(1)


def multiply(x: Tensor, matrix: Matrix, epilogue: Epilogue) -> Tensor:
    """x (M, K) times the matrix, and what follows: (M, N), or (M, N // 2) after "swiglu"."""
    dtype = _compute_dtype(x)
    out = torch.empty(x.shape[0], matrix.out_features, dtype=dtype, device=x.device)
    factor = x.to(dtype)
    for rows, weight in _weight_chunks(matrix, dtype):
        torch.mm(factor, weight.T, out=out[:, rows])
    return finish(out, epilogue, epilogue.dtype or x.dtype)


def multiply_transposed(grad_out: Tensor, matrix: Matrix) -> Tensor:
    """grad_out (M, N) times the weights (N, K), summed in float32 over chunks of N."""
    dtype = _compute_dtype(grad_out)
    grad_x = torch.zeros(grad_out.shape[0], matrix.in_features, device=grad_out.device)
    for rows, weight in _weight_chunks(matrix, dtype):
        grad_x += grad_out[:, rows].to(dtype) @ weight
    return grad_x.to(grad_out.dtype)


def _compute_dtype(x: Tensor) -> torch.dtype:
    """float16 where a GPU multiplies it with float32 sums, otherwise float32."""
    return torch.float16 if x.is_cuda and x.dtype == torch.float16 else torch.float32


def _weight_chunks(matrix: Matrix, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    dequantize = dequantize_int4 if matrix.bits == 4 else dequantize_int8
    step = max(_CHUNK_WEIGHTS // max(matrix.in_features, 1), 1)
    for start in range(0, matrix.out_features, step):
        rows = slice(start, start + step)
        zeros = None if matrix.zero_points is None else matrix.zero_points[:, rows]
        yield rows, dequantize(matrix.qweight[rows], matrix.scales[:, rows], zeros, matrix.group_size).to(dtype)
