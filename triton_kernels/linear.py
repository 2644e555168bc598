"""``int4_linear`` and ``int8_linear`` on the fastest path of the device.

float16 on a CUDA GPU runs the Triton kernels of ``gpu.py``. Everything else runs the reference: other
dtypes and devices, matrices whose shape the kernels do not take, and installations without Triton.
"""

import torch
from torch import Tensor

from triton_kernels import reference
from triton_kernels.autograd import quantized_linear
from triton_kernels.operands import Epilogue, Matrix

try:
    from triton_kernels import gpu
except ImportError:  # CPU builds of torch bring no Triton; there is none for macOS
    gpu = None  # type: ignore[assignment]

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


def runs_kernels(device: torch.device) -> bool:
    """Whether float16 on this device runs the Triton kernels."""
    if gpu is None or device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= _OLDEST_ARCHITECTURE


def _linear(x: Tensor, matrix: Matrix, epilogue: Epilogue) -> Tensor:
    fast = runs_kernels(x.device) and gpu.takes(x, matrix)
    path = gpu if fast else reference
    return quantized_linear(x, matrix, epilogue, path.multiply, path.multiply_transposed)
