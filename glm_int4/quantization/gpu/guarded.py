"""Products on Triton's kernels; where one fails, dequantized products in its place, for that kernel and shape alone.

``gpu_probe.py`` has tried the kernels before; what fails later is a variant of one, or a launch of it.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from glm_int4.quantization.gpu.kernel_faults import fault_of
from glm_int4.quantization.kernels import Epilogue, Matrix, cublas, product_path, reference

logger = logging.getLogger(__name__)

# Kernels that have failed, with the matrix's scheme and shape.
_failed: set[str] = set()
_causes: set[str] = set()


def multiply(x: Tensor, matrix: Matrix, epilogue: Epilogue) -> Tensor:
    """x (M, K) of any float times the matrix, and what follows: (M, N), or (M, N // 2) after "swiglu"."""
    path = product_path(x, matrix, torch.float16)
    if path in (cublas, reference):
        return path.multiply(x, matrix, epilogue)

    def kernel() -> str:
        what = f" with {epilogue.activation}" if epilogue.activation else ""
        return f"kernel {path.kernel_name(x, matrix)}{what} for {_describe(matrix)}"

    return _try(kernel, lambda: path.multiply(x, matrix, epilogue), lambda: cublas.multiply(x, matrix, epilogue))


def multiply_transposed(grad_out: Tensor, matrix: Matrix) -> Tensor:
    """grad_out (M, N) times the weights (N, K)."""
    path = product_path(grad_out, matrix, torch.float16)
    if path in (cublas, reference):
        return path.multiply_transposed(grad_out, matrix)
    return _try(
        lambda: f"the gradient's kernel for {_describe(matrix)}",
        lambda: path.multiply_transposed(grad_out, matrix),
        lambda: cublas.multiply_transposed(grad_out, matrix),
    )


def _describe(matrix: Matrix) -> str:
    group = "a row" if matrix.group_size == matrix.in_features else f"group {matrix.group_size}"
    return f"INT{matrix.bits} ({group}) of {matrix.out_features} x {matrix.in_features}"


def _try(kernel: Callable[[], str], run: Callable[[], Tensor], dequantized: Callable[[], Tensor]) -> Tensor:
    if _failed and kernel() in _failed:
        return dequantized()
    try:
        return run()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of Triton, its compiler or the driver: any type
        out = dequantized()  # raises where the GPU itself is to blame
        _failed.add(kernel())
        fault = fault_of(error)
        level = logging.INFO if fault.cause in _causes else logging.WARNING
        _causes.add(fault.cause)
        logger.log(level, "GPU backend: cublas (dequantizing) in place of %s, because %s", kernel(), fault)
        return out
