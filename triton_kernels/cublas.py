"""Products with weights that are dequantized for each of them, in plain torch: where a GPU runs no kernel of ours.

A piece of the matrix at a time is taken apart into bytes, scaled to fp16 in one operation, and multiplied by torch's
own product; to bfloat16 for x in bfloat16. That moves 7 bytes a weight of INT4 and 5 of INT8; the weights are those of
``reference``, rounded once. The columns of a piece stand in the order in which bytes come out of the planar words. x,
which is smaller, is brought into that order too.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from triton_kernels.autograd import finish
from triton_kernels.operands import Epilogue, Matrix
from triton_kernels.packing import run_size
from triton_kernels.reference import scaled_rows

# Weights of a piece, and values of a result that are finished at a time in float32.
_PIECE_WEIGHTS = 1 << 24
_FINISHED_VALUES = 1 << 21
# Most memory that a product of up to 512 rows takes beside its operands and its result: fp16 weights, their bytes,
# scales and offsets, and the other order of x.
SCRATCH_BYTES = 9 * _PIECE_WEIGHTS // 2


def takes(matrix: Matrix) -> bool:
    """Whether this multiplies such a matrix: groups that planes do not cross."""
    if matrix.bits == 8:
        return True
    run = run_size(matrix.in_features)
    return matrix.group_size % run == 0 or run in (2 * matrix.group_size, 4 * matrix.group_size)


def multiply(x: Tensor, matrix: Matrix, epilogue: Epilogue) -> Tensor:
    """x (M, K) times the matrix, and what follows: (M, N), or (M, N // 2) after "swiglu"."""
    out = torch.empty(x.shape[0], matrix.out_features, dtype=x.dtype, device=x.device)
    if x.dtype in (torch.float16, torch.bfloat16):
        _multiply(out, _reordered(x, matrix), matrix)
    else:
        halves, factors = scaled_rows(x)
        _multiply(out, _reordered(halves, matrix), matrix)
        out *= factors[:, None]
    return out if epilogue.empty else _finish(out, epilogue, epilogue.dtype or x.dtype)


def multiply_transposed(grad_out: Tensor, matrix: Matrix) -> Tensor:
    """grad_out (M, N) times the weights (N, K), summed in float32 over pieces of N; rows as ``shares_of_rows``."""
    shares, largest = shares_of_rows(grad_out)
    grad_x = torch.zeros(grad_out.shape[0], matrix.in_features, device=grad_out.device)
    for rows, weight in _pieces(matrix):
        grad_x += shares[:, rows] @ weight
    return _in_order(grad_x * largest, matrix).to(grad_out.dtype)


def shares_of_rows(grad_out: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as fp16 shares of their largest element, and that (M, 1): many gradients are too small for fp16."""
    largest = grad_out.abs().amax(1, keepdim=True).float().clamp(min=torch.finfo(torch.float32).tiny)
    return (grad_out / largest).half(), largest


def multiply_into(out: Tensor, x: Tensor, weight: Tensor) -> None:
    """``out = x @ weight``; out is of their dtype, or float32, which 16-bit numbers may leave."""
    if out.dtype == x.dtype:
        torch.mm(x, weight, out=out)
    elif x.device.type == "cpu":  # which has no such product
        torch.mm(x.to(out.dtype), weight.to(out.dtype), out=out)
    else:
        torch.mm(x, weight, out_dtype=out.dtype, out=out)


def _multiply(out: Tensor, x: Tensor, matrix: Matrix) -> None:
    for rows, weight in _pieces(matrix, x.dtype):
        multiply_into(out[:, rows], x, weight.T)


def _pieces(matrix: Matrix, dtype: torch.dtype = torch.float16) -> Iterator[tuple[slice, Tensor]]:
    """Runs of rows and their weights (rows, K), all in the same scratch."""
    columns, in_features, device = matrix.out_features, matrix.in_features, matrix.qweight.device
    step = max(min(_PIECE_WEIGHTS // in_features, columns), 1)
    scratch = torch.empty(step, in_features, dtype=dtype, device=device)
    nibbles = torch.empty(step if matrix.bits == 4 else 0, 2, in_features // 2, dtype=torch.uint8, device=device)
    for start in range(0, columns, step):
        rows = slice(start, min(start + step, columns))
        yield rows, _dequantize(matrix, rows, nibbles, scratch[: rows.stop - start])


def _dequantize(matrix: Matrix, rows: slice, nibbles: Tensor, out: Tensor) -> Tensor:
    """Write a run of rows as weights into ``out`` (rows, K), and return it."""
    scales = matrix.scales[:, rows].T  # (rows, K / G)
    zeros: int | Tensor = 1 << (matrix.bits - 1) if matrix.zero_points is None else matrix.zero_points[:, rows].T
    offsets = scales.float().mul_(zeros).neg_()
    if matrix.bits == 8:
        shape: tuple[int, ...] = (-1, scales.shape[1], matrix.group_size)
        q, scales, offsets = matrix.qweight[rows].view(shape), scales[..., None], offsets[..., None]
    else:
        words = matrix.qweight[rows].view(torch.uint8)  # two nibbles a byte
        q = nibbles[: len(words)]
        torch.bitwise_and(words, 15, out=q[:, 0])
        torch.bitwise_right_shift(words, 4, out=q[:, 1])
        shape, (scales, offsets) = _plane_view(matrix, scales, offsets)
        q = q.view(shape)
    torch.addcmul(offsets, q, scales, out=out.view(shape))  # in float32, rounded once
    return out


def _plane_view(matrix: Matrix, *of_groups: Tensor) -> tuple[tuple[int, ...], list[Tensor]]:
    """A shape for the nibbles of rows, and numbers (rows, K / G) of their groups in a shape that goes with it."""
    run = run_size(matrix.in_features)
    groups_in_run = run // matrix.group_size
    if groups_in_run <= 1:
        return (-1, 2, of_groups[0].shape[1], matrix.group_size // 2), [x[:, None, :, None] for x in of_groups]
    # Byte 2 j + h of a run holds the planes 2 h and 2 h + 1 of its weights.
    planes = (2, groups_in_run // 2)
    views = [x.unflatten(1, (-1, *planes)).permute(0, 3, 1, 2)[:, :, :, None] for x in of_groups]
    return (-1, 2, matrix.in_features // run, run // 4, 2), views


def _reordered(x: Tensor, matrix: Matrix) -> Tensor:
    """The columns of x (M, K) as those of a piece stand."""
    if matrix.bits == 8:
        return x
    quarter = run_size(matrix.in_features) // 4
    return x.unflatten(1, (-1, 2, 2, quarter)).permute(0, 3, 1, 4, 2).reshape(x.shape)


def _in_order(x: Tensor, matrix: Matrix) -> Tensor:
    """Undo ``_reordered``."""
    if matrix.bits == 8:
        return x
    quarter = run_size(matrix.in_features) // 4
    return x.unflatten(1, (2, -1, quarter, 2)).permute(0, 2, 4, 1, 3).reshape(x.shape)


def _finish(product: Tensor, epilogue: Epilogue, dtype: torch.dtype) -> Tensor:
    """As ``autograd.finish``, some rows at a time, for the memory of float32 copies; in place where that fits."""
    num_rows, columns = product.shape
    width, out = epilogue.out_features(columns), product
    if width != columns or dtype != product.dtype:
        out = torch.empty(num_rows, width, dtype=dtype, device=product.device)
    step = max(_FINISHED_VALUES // columns, 1)
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        residual = None if epilogue.residual is None else epilogue.residual[rows]
        out[rows] = finish(product[rows], replace(epilogue, residual=residual), dtype)
    return out
