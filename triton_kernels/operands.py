"""What a quantized linear takes, and the checks that it agrees."""

from dataclasses import dataclass

import torch
from torch import Tensor

ACTIVATIONS = (None, "gelu", "swiglu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A quantized (N, K) matrix: ``(q - zero_point) * scale``.

    qweight: (N, K // 4) int16, planar (see packing.py), or (N, K) uint8.
    scales: (K // group_size, N) floating point. zero_points: same shape, uint8; None stands for the middle.
    """

    bits: int
    qweight: Tensor
    scales: Tensor
    zero_points: Tensor | None
    group_size: int

    @property
    def out_features(self) -> int:
        return self.qweight.shape[0]

    @property
    def in_features(self) -> int:
        return self.qweight.shape[1] * (4 if self.bits == 4 else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Epilogue:
    """What follows a product: ``alpha * residual + activation(product + bias)``, in float32.

    bias: (N,) or None. activation: None, "gelu" (the tanh approximation) or "swiglu" (silu of the first
    half of the columns times the second half). residual: shaped as the result, or None. dtype: of the
    result; None is x's.
    """

    bias: Tensor | None = None
    activation: str | None = None
    residual: Tensor | None = None
    alpha: float = 1.0
    dtype: torch.dtype | None = None

    @property
    def empty(self) -> bool:
        """Whether the product is the result."""
        return self.bias is None and self.activation is None and self.residual is None and self.dtype is None

    def out_features(self, columns: int) -> int:
        """Columns of the result for a product of so many columns."""
        return columns // 2 if self.activation == "swiglu" else columns


def check_linear(x: Tensor, matrix: Matrix, epilogue: Epilogue) -> None:
    """Raise ValueError where the arguments of a quantized linear do not agree."""
    dtype = torch.int16 if matrix.bits == 4 else torch.uint8
    if matrix.qweight.dtype != dtype or matrix.qweight.ndim != 2:
        raise ValueError(f"qweight must be {dtype} with 2 dimensions, got {_describe(matrix.qweight)}")
    in_features, out_features, group_size = matrix.in_features, matrix.out_features, matrix.group_size
    if x.ndim == 0 or x.shape[-1] != in_features or not x.is_floating_point():
        raise ValueError(f"x must be floating point (..., {in_features}), got {_describe(x)}")
    if group_size < 1 or in_features % group_size:
        raise ValueError(f"group_size must divide {in_features}, got {group_size}")
    shape = (in_features // group_size, out_features)
    if tuple(matrix.scales.shape) != shape or not matrix.scales.is_floating_point():
        raise ValueError(
            f"scales must be floating point {shape} for group_size={group_size}, got {_describe(matrix.scales)}"
        )
    zero_points, bias, residual = matrix.zero_points, epilogue.bias, epilogue.residual
    if zero_points is not None and (tuple(zero_points.shape) != shape or zero_points.dtype != torch.uint8):
        raise ValueError(f"zero_points must be uint8 {shape}, got {_describe(zero_points)}")
    if bias is not None and (tuple(bias.shape) != (out_features,) or not bias.is_floating_point()):
        raise ValueError(f"bias must be floating point ({out_features},), got {_describe(bias)}")
    if epilogue.activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {epilogue.activation!r}")
    if epilogue.activation == "swiglu" and out_features % 2:
        raise ValueError(f"swiglu needs an even number of columns, got {out_features}")
    if epilogue.dtype is not None and not epilogue.dtype.is_floating_point:
        raise ValueError(f"out_dtype must be floating point or None, got {epilogue.dtype}")
    result = (*x.shape[:-1], epilogue.out_features(out_features))
    if residual is not None and (tuple(residual.shape) != result or not residual.is_floating_point()):
        raise ValueError(f"residual must be floating point {result}, got {_describe(residual)}")
    if x.numel() and x.stride(-1) != 1 and in_features > 1:
        raise ValueError(f"x must be contiguous in its last dimension, got strides {x.stride()}; call x.contiguous()")
    tensors = {"qweight": matrix.qweight, "scales": matrix.scales, "zero_points": zero_points, "bias": bias}
    for name, tensor in (tensors | {"residual": residual}).items():
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} must be on {x.device} as x is, got {tensor.device}")
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}; call {name}.contiguous()")


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
