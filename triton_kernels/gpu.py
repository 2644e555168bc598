"""Runs the kernels: picks a launch, allocates, and calls.

Only this module and those of the kernels import triton.
"""

from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from triton_kernels import launch
from triton_kernels.cublas import multiply_into, shares_of_rows
from triton_kernels.dequantize import dequantize_kernel
from triton_kernels.dot import dot_kernel
from triton_kernels.epilogue import finish_kernel
from triton_kernels.gemv import gemv_kernel
from triton_kernels.launch import Launch
from triton_kernels.operands import Epilogue, Matrix
from triton_kernels.packing import RUN
from triton_kernels.row_scaling import scale_rows_kernel

# Memory for a dequantized piece of a matrix, at most.
SCRATCH_BYTES = 32 << 20
# Between rows of x; offsets inside a tile have 32 bits.
_MAX_STRIDE = 1 << 24
# The interpreter runs no assembly.
_USE_ASM = not triton.knobs.runtime.interpret


def takes(dtype: torch.dtype, matrix: Matrix) -> bool:
    """Whether the kernels compute such products: in fp16, whole runs of weights, groups that planes do not cross."""
    size = matrix.group_size
    groups = size in (32, 64) or size % RUN == 0
    return dtype == torch.float16 and matrix.in_features % RUN == 0 and groups


def multiply(x: Tensor, matrix: Matrix, epilogue: Epilogue) -> Tensor:
    """x (M, K) times the matrix, and what follows: (M, N), or (M, N // 2) after "swiglu".

    x may be of another float than fp16: its rows are scaled by powers of two then, in place of overflowing.
    """
    device, row = torch.cuda.get_device_properties(x.device), _choose(x, matrix)
    with torch.cuda.device(x.device):
        if row is None:
            return multiply_dequantized(x, matrix, epilogue)
        splits = launch.num_splits(row, matrix.in_features, matrix.out_features, device.multi_processor_count)
        return run(row, splits, x, matrix, epilogue)


def kernel_name(x: Tensor, matrix: Matrix) -> str:
    """What ``multiply`` runs for as many rows as x (M, K) has."""
    row = _choose(x, matrix)
    return "dequantize" if row is None else f"{row.kernel} {row.block_m}x{row.block_n}"


def _choose(x: Tensor, matrix: Matrix) -> Launch | None:
    device = torch.cuda.get_device_properties(x.device)
    return launch.choose(matrix.bits, 10 * device.major + device.minor, x.shape[0])


def run(row: Launch, splits: int, x: Tensor, matrix: Matrix, epilogue: Epilogue) -> Tensor:
    """One launch of the table, and ``finish_kernel`` where the product is split or its columns meet."""
    num_rows, columns = x.shape[0], matrix.out_features
    dtype = epilogue.dtype or x.dtype
    if x.stride(0) >= _MAX_STRIDE:
        x = x.contiguous()
    x, factors = (x, None) if x.dtype == torch.float16 or row.kernel == "gemv" else scaled_rows(x)
    whole = splits == 1 and epilogue.activation != "swiglu"
    shape = (num_rows, columns) if whole else (splits, num_rows, columns)
    out = torch.empty(shape, dtype=dtype if whole else torch.float32, device=x.device)
    inner = epilogue if whole else Epilogue()
    kernel = dot_kernel if row.kernel == "dot" else gemv_kernel
    kernel[(triton.cdiv(num_rows, row.block_m), triton.cdiv(columns, row.block_n), splits)](
        x,
        matrix.qweight,
        matrix.scales,
        matrix.zero_points,
        inner.bias,
        inner.residual,
        out,
        num_rows,
        columns,
        matrix.in_features,
        x.stride(0) if num_rows > 1 else matrix.in_features,
        float(inner.alpha),
        **({"factors_ptr": factors} if row.kernel == "dot" else {}),
        **row.constants(matrix.bits, _group_size(matrix)),
        ACTIVATION=inner.activation,
        USE_ASM=_USE_ASM,
        num_warps=row.num_warps,
        num_stages=row.num_stages,
        maxnreg=row.max_registers,
    )
    return out if whole else finish(out, epilogue, dtype)


def scaled_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (M, K) as fp16 ones, and the powers of two (M,) between them; see ``reference.scaled_rows``."""
    num_rows, columns = x.shape
    out = torch.empty(num_rows, columns, dtype=torch.float16, device=x.device)
    factors = torch.empty(num_rows, dtype=torch.float32, device=x.device)
    scale_rows_kernel[(num_rows,)](
        x,
        out,
        factors,
        columns,
        x.stride(0) if num_rows > 1 else columns,
        BLOCK_K=launch.SCALE_BLOCK,
        num_warps=8,
    )
    return out, factors


def finish(parts: Tensor, epilogue: Epilogue, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """The sum of parts (splits, M, N), first split first, and what follows a product.

    ``out``, if given, receives it; it may be the only part where columns do not meet.
    """
    num_splits, num_rows, columns = parts.shape
    width = epilogue.out_features(columns)
    if out is None:
        out = torch.empty(num_rows, width, dtype=dtype, device=parts.device)
    finish_kernel[(num_rows, triton.cdiv(width, launch.FINISH_BLOCK))](
        parts,
        epilogue.bias,
        epilogue.residual,
        out,
        num_rows,
        columns,
        num_splits,
        float(epilogue.alpha),
        ACTIVATION=epilogue.activation,
        BLOCK_N=launch.FINISH_BLOCK,
    )
    return out


def multiply_dequantized(x: Tensor, matrix: Matrix, epilogue: Epilogue) -> Tensor:
    """As ``multiply``, with the weights dequantized in chunks for torch's own product, in bfloat16 where x is."""
    dtype, factors = epilogue.dtype or x.dtype, None
    out = torch.empty(x.shape[0], matrix.out_features, dtype=x.dtype, device=x.device)
    if x.dtype not in (torch.float16, torch.bfloat16):
        x, factors = scaled_rows(x)
    for rows, weight in _weight_chunks(matrix, x.shape[0], x.dtype):
        multiply_into(out[:, rows], x, weight.T)
        del weight  # the scratch goes with the last one
    if factors is not None:
        out *= factors[:, None]
    if epilogue.empty:
        return out
    in_place = dtype == out.dtype and epilogue.activation != "swiglu"
    return finish(out[None], epilogue, dtype, out if in_place else None)


def multiply_transposed(grad_out: Tensor, matrix: Matrix) -> Tensor:
    """grad_out (M, N) times the weights (N, K), summed in float32 over chunks of N; rows as ``shares_of_rows``."""
    shares, largest = shares_of_rows(grad_out)
    grad_x = torch.zeros(grad_out.shape[0], matrix.in_features, device=grad_out.device)
    with torch.cuda.device_of(grad_out):
        for rows, weight in _weight_chunks(matrix, shares.shape[0], shares.dtype):
            grad_x += shares[:, rows] @ weight
    return (grad_x * largest).to(grad_out.dtype)


def _weight_chunks(matrix: Matrix, num_rows: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Runs of rows and their 16-bit weights, all in the same scratch, for a product with so many rows of x."""
    columns, in_features, device = matrix.out_features, matrix.in_features, matrix.qweight.device
    wanted = launch.piece_rows(num_rows, num_multiprocessors(device))
    step = max(min(SCRATCH_BYTES // (2 * in_features), wanted, columns), 1)
    scratch = torch.empty(step, in_features, dtype=dtype, device=device)
    for start in range(0, columns, step):
        rows = slice(start, min(start + step, columns))
        yield rows, dequantize(matrix, rows, scratch[: rows.stop - start])


def num_multiprocessors(device: torch.device) -> int:
    """Of a GPU; 1 for what stands in for one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def dequantize(matrix: Matrix, rows: slice, out: Tensor) -> Tensor:
    """Write a run of rows as weights into ``out`` (rows, K), fp16 or bfloat16, and return it."""
    group_size = _group_size(matrix)
    dequantize_kernel[(matrix.in_features // RUN, triton.cdiv(out.shape[0], launch.DEQUANTIZE_BLOCK))](
        matrix.qweight,
        matrix.scales,
        matrix.zero_points,
        out,
        rows.start,
        out.shape[0],
        matrix.out_features,
        matrix.in_features,
        BITS=matrix.bits,
        GROUP_SIZE=group_size,
        BLOCK_N=launch.DEQUANTIZE_BLOCK,
        PLANE=launch.plane(matrix.bits, group_size),
        USE_ASM=_USE_ASM,
        num_warps=4,
    )
    return out


def _group_size(matrix: Matrix) -> int | None:
    """None where a whole row shares a scale."""
    return None if matrix.group_size == matrix.in_features else matrix.group_size
