"""What every operation means, in plain torch.

The definition that fast paths are tested against, and the path that runs where no fast one exists.
Weights are dequantized in chunks of rows, so that memory stays bounded.
"""

from collections.abc import Callable

import torch
from torch import Tensor

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
) -> Tensor:
    """Return ``x @ dequantize(qweight).T + bias``, accumulated in float32.

    Args:
        x: (..., K) floating point.
        qweight: (N, K // 4) int16, planar; see packing.py.
        scales: (K // group_size, N) floating point; per channel: one row, group_size = K.
        zero_points: same shape, uint8, or None for symmetric (8).
        bias: (N,) or None.
        group_size: weights per scale; divides K.
    Returns:
        (..., N) of x's dtype.
    Raises:
        ValueError: shapes or dtypes do not agree.
    """
    check_linear(x, 4 * qweight.shape[1], qweight.shape[0], scales, zero_points, bias, group_size)
    return _chunked_linear(x, qweight, scales, zero_points, bias, group_size, dequantize_int4)


def int8_linear(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    group_size: int,
) -> Tensor:
    """Return ``x @ dequantize(qweight).T + bias``; as ``int4_linear``, with qweight (N, K) uint8.

    Without ``zero_points`` the zero is 128.
    """
    check_linear(x, qweight.shape[1], qweight.shape[0], scales, zero_points, bias, group_size)
    return _chunked_linear(x, qweight, scales, zero_points, bias, group_size, dequantize_int8)


def dequantize_int4(qweight: Tensor, scales: Tensor, zero_points: Tensor | None, group_size: int) -> Tensor:
    """Return the weights (N, K) in float32: ``(q - zero_point) * scale``; arguments as ``int4_linear``."""
    return _dequantize(unpack_planar(qweight, group_size), scales, zero_points, group_size, zero=8)


def dequantize_int8(qweight: Tensor, scales: Tensor, zero_points: Tensor | None, group_size: int) -> Tensor:
    """Return the weights (N, K) in float32: ``(q - zero_point) * scale``; arguments as ``int8_linear``."""
    return _dequantize(qweight, scales, zero_points, group_size, zero=128)


def _dequantize(q: Tensor, scales: Tensor, zero_points: Tensor | None, group_size: int, zero: int) -> Tensor:
    groups = q.unflatten(1, (-1, group_size)).float()  # (N, K / G, G)
    zeros = zero if zero_points is None else zero_points.T.float()[:, :, None]
    return ((groups - zeros) * scales.T.float()[:, :, None]).flatten(1)


def _chunked_linear(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    bias: Tensor | None,
    group_size: int,
    dequantize: Callable[[Tensor, Tensor, Tensor | None, int], Tensor],
) -> Tensor:
    num_rows, in_features = qweight.shape[0], x.shape[-1]
    step = max(_CHUNK_WEIGHTS // in_features, 1)
    x32 = x.float()
    parts = []
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        zeros = None if zero_points is None else zero_points[:, rows]
        weight = dequantize(qweight[rows], scales[:, rows], zeros, group_size)
        parts.append(x32 @ weight.T)
    out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
    return (out if bias is None else out + bias.float()).to(x.dtype)


def check_linear(
    x: Tensor,
    in_features: int,
    out_features: int,
    scales: Tensor,
    zero_points: Tensor | None,
    bias: Tensor | None,
    group_size: int,
) -> None:
    """Raise ValueError where the arguments of a quantized linear do not agree."""
    if x.shape[-1] != in_features or not x.is_floating_point():
        raise ValueError(f"x must be floating point (..., {in_features}), got {x.dtype} {tuple(x.shape)}")
    if group_size < 1 or in_features % group_size:
        raise ValueError(f"group_size must divide {in_features}, got {group_size}")
    expected = (in_features // group_size, out_features)
    if tuple(scales.shape) != expected:
        raise ValueError(f"scales must be {expected} for group_size={group_size}, got {tuple(scales.shape)}")
    if zero_points is not None and (tuple(zero_points.shape) != expected or zero_points.dtype != torch.uint8):
        raise ValueError(f"zero_points must be uint8 {expected}, got {zero_points.dtype} {tuple(zero_points.shape)}")
    if bias is not None and tuple(bias.shape) != (out_features,):
        raise ValueError(f"bias must be ({out_features},), got {tuple(bias.shape)}")
    for name, other in (("scales", scales), ("zero_points", zero_points), ("bias", bias)):
        if other is not None and other.device != x.device:
            raise ValueError(f"{name} must be on {x.device}, got {other.device}")
