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
        """N."""
        return self.qweight.shape[0]

    @property
    def in_features(self) -> int:
        """K."""
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


def check_gather(table: Tensor, ids: Tensor) -> None:
    """Raise ValueError where the arguments of ``gather_rows`` do not agree."""
    if table.ndim != 2 or not table.is_contiguous() or table.device.type == "cuda":
        raise ValueError(f"table must be (V, W) in the host's memory and contiguous, got {_describe(table)}")
    if ids.ndim != 1 or ids.dtype != torch.int64 or not ids.is_contiguous():
        raise ValueError(f"ids must be (M,) int64 and contiguous, got {_describe(ids)}")


def check_norm(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> None:
    """Raise ValueError where the arguments of ``add_norm`` do not agree."""
    _check(x.ndim == 2 and x.is_floating_point() and x.is_contiguous(), "x must be contiguous (M, K)", x)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            fits = tuple(tensor.shape) == (x.shape[1],) and tensor.device == x.device
            _check(fits and tensor.is_contiguous(), f"{name} must be ({x.shape[1]},) on {x.device}", tensor)
    if residual is not None:
        fits = residual.shape == x.shape and residual.dtype == x.dtype and residual.is_contiguous()
        _check(fits and residual.device == x.device, f"residual must be as x is, {_describe(x)}", residual)


def check_rotary(
    qkv: Tensor,
    cos: Tensor,
    positions: Tensor,
    slots: Tensor,
    columns: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scales: Tensor,
    v_scales: Tensor,
    num_heads: int,
    two_dimensional: bool,
) -> None:
    """Raise ValueError where the arguments of ``rotary_to_cache`` do not agree."""
    _check_cache(qkv, k_cache, v_cache, k_scales, v_scales)
    batch_size, (num_kv_heads, _, head_dim) = len(qkv), k_cache.shape[1:]
    width = (num_heads + 2 * num_kv_heads) * head_dim
    fits = tuple(qkv.shape) == (batch_size, width) and qkv.is_contiguous()
    _check(fits, f"qkv must be contiguous ({batch_size}, {width})", qkv)
    if two_dimensional and num_heads != num_kv_heads:
        raise ValueError(f"two-dimensional positions need a key head for each of {num_heads} heads, got {num_kv_heads}")
    kinds = 2 if two_dimensional else 1
    fits = tuple(positions.shape) == (batch_size, kinds) and positions.dtype == torch.int64
    _check(fits and positions.is_contiguous(), f"positions must be contiguous int64 ({batch_size}, {kinds})", positions)
    _check_rows(qkv, slots=slots, columns=columns)
    fits = cos.ndim == 2 and cos.shape[1] == head_dim // 4 and cos.dtype == torch.float32
    _check(fits and cos.is_contiguous(), f"cos must be contiguous float32 (positions, {head_dim // 4})", cos)


def check_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scales: Tensor,
    v_scales: Tensor,
    slots: Tensor,
    lengths: Tensor,
    padding: Tensor,
    max_columns: int,
) -> None:
    """Raise ValueError where the arguments of ``one_token_attention`` do not agree."""
    _check_cache(q, k_cache, v_cache, k_scales, v_scales)
    num_kv_heads, max_length, head_dim = k_cache.shape[1:]
    fits = q.ndim == 3 and q.shape[2] == head_dim and q.shape[1] % num_kv_heads == 0
    _check(fits and q.is_contiguous(), f"q must be contiguous (B, heads, {head_dim})", q)
    _check_rows(q, slots=slots, lengths=lengths, padding=padding)
    if not 1 <= max_columns <= max_length:
        raise ValueError(f"max_columns must be from 1 to {max_length}, got {max_columns}")


def _check_rows(x: Tensor, **numbers: Tensor) -> None:
    """Of numbers of which each row of x has one."""
    for name, tensor in numbers.items():
        fits = tuple(tensor.shape) == (len(x),) and tensor.dtype == torch.int64 and tensor.is_contiguous()
        _check(fits and tensor.device == x.device, f"{name} must be contiguous int64 ({len(x)},) on {x.device}", tensor)


def _check_cache(x: Tensor, k_cache: Tensor, v_cache: Tensor, k_scales: Tensor, v_scales: Tensor) -> None:
    head_dim = k_cache.shape[-1]
    dtypes = (torch.int8, x.dtype)
    fits = k_cache.ndim == 4 and k_cache.dtype in dtypes and k_cache.is_contiguous() and k_cache.device == x.device
    _check(fits, f"k_cache must be contiguous (slots, Hkv, S, D), int8 or {x.dtype}, on {x.device}", k_cache)
    if head_dim < 16 or head_dim & (head_dim - 1):
        raise ValueError(f"heads must have a power of two of 16 elements or more, got {head_dim}")
    fits = v_cache.shape == k_cache.shape and v_cache.dtype == k_cache.dtype and v_cache.is_contiguous()
    _check(fits, f"v_cache must be as k_cache is, {_describe(k_cache)}", v_cache)
    if k_cache.dtype == torch.int8:
        for name, scales in (("k_scales", k_scales), ("v_scales", v_scales)):
            fits = scales.shape == k_cache.shape[:3] and scales.dtype == torch.float16 and scales.is_contiguous()
            _check(fits, f"{name} must be contiguous float16 {tuple(k_cache.shape[:3])}", scales)


def _check(fits: bool, expected: str, tensor: Tensor) -> None:
    if not fits:
        raise ValueError(f"{expected}, got {_describe(tensor)} on {tensor.device}")


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
