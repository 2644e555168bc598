"""``int4_linear`` and ``int8_linear`` on the fastest path of the device.

float16 on a CUDA GPU runs the Triton kernels of ``gpu.py``, or without Triton, and for matrices whose shape they do not
take, dequantized products (``cublas.py``). Everything else runs the reference: other dtypes and devices.
"""

from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from triton_kernels import cublas, reference
from triton_kernels.autograd import quantized_linear
from triton_kernels.operands import Epilogue, Matrix

# A CPU build of torch needs no Triton, and importing it takes a while.
gpu: ModuleType | None = None
_triton_error: Exception | None = None
if torch.version.cuda is not None:
    try:
        gpu = import_module("triton_kernels.gpu")
    except Exception as error:  # a broken Triton raises anything
        _triton_error = error

# Triton compiles for no older one.
_OLDEST_ARCHITECTURE = (7, 5)


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
    """Return ``alpha * residual + activation(x @ dequantize(qweight).T + bias)``; see ``reference.int4_linear``."""
    matrix = Matrix(bits=4, qweight=qweight, scales=scales, zero_points=zero_points, group_size=group_size)
    return _linear(
        x, matrix, Epilogue(bias=bias, activation=activation, residual=residual, alpha=alpha, dtype=out_dtype)
    )


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
    """As ``int4_linear``, with qweight (N, K) uint8; see ``reference.int8_linear``."""
    matrix = Matrix(bits=8, qweight=qweight, scales=scales, zero_points=zero_points, group_size=group_size)
    return _linear(
        x, matrix, Epilogue(bias=bias, activation=activation, residual=residual, alpha=alpha, dtype=out_dtype)
    )


def obstacle(device: torch.device) -> str | None:
    """Why float16 on this device does not run the Triton kernels, or None if it does."""
    if device.type != "cuda" or torch.version.cuda is None:
        return f"{device} is no CUDA device"
    if gpu is None:
        return f"Triton cannot be imported: {_triton_error}"
    if torch.cuda.get_device_capability(device) < _OLDEST_ARCHITECTURE:
        return f"the kernels need compute capability 7.5, {device} has less"
    return None


def path(x: Tensor, matrix: Matrix, dtype: torch.dtype | None = None) -> ModuleType:
    """The module whose ``multiply`` and ``multiply_transposed`` are the fastest that this product has.

    ``dtype``: in which it may be computed; None for x's.
    """
    dtype = dtype or x.dtype
    if gpu is not None and gpu.takes(dtype, matrix) and obstacle(x.device) is None:
        return gpu
    return cublas if x.is_cuda and dtype == torch.float16 and cublas.takes(matrix) else reference


def _linear(x: Tensor, matrix: Matrix, epilogue: Epilogue) -> Tensor:
    chosen = path(x, matrix)
    return quantized_linear(x, matrix, epilogue, chosen.multiply, chosen.multiply_transposed)
