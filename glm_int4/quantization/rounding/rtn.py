"""Rounding weights to integers: per group, with the range chosen by a clip search.

``quantize_rtn`` is the one entry. On the CPU its loops run in Numba (``rtn_loops.py``); on other
devices, without Numba, and as the definition of the same thing, in plain torch.
"""

import torch
from torch import Tensor

from glm_int4.quantization.cpu.threads import has_numba
from glm_int4.quantization.kernels import packing
from glm_int4.quantization.scheme import QuantizationScheme, QuantizedWeight

# Shares of a group's full range that the search starts from. Against 91 shares from 1 to 0.1, the relative RMS
# error is at most 1 % larger (of itself) on Gaussian and t(5) weights in groups of 32, 128 and per channel;
# tests/quantization/rounding/test_rtn.py holds that. Without zero points a tail cannot be cut off on one side alone,
# and lower shares win.
CLIP_SHARES_GROUP = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8)
CLIP_SHARES_SYMMETRIC = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
CLIP_SHARES_CHANNEL = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
CLIP_SHARES_INT8 = (1.0,)

# The smallest positive float16: scales are never zero.
SMALLEST_SCALE = 2.0**-24


def clip_shares(scheme: QuantizationScheme) -> tuple[float, ...]:
    """The grid of the clip search; 8 bits need none."""
    if scheme.bits == 8:
        return CLIP_SHARES_INT8
    if scheme.group_size is None:
        return CLIP_SHARES_CHANNEL
    return CLIP_SHARES_SYMMETRIC if scheme.symmetric else CLIP_SHARES_GROUP


def check_shape(weight: Tensor, scheme: QuantizationScheme) -> None:
    """Raise ValueError for a matrix whose rows do not divide into whole groups and bytes."""
    in_features = weight.shape[1]
    group_size = scheme.row_group_size(in_features)
    if in_features % group_size or in_features % 2:
        raise ValueError(f"in_features must be even and a multiple of {group_size}, got {in_features}")


def dequantize(weight: QuantizedWeight, rows: slice = slice(None)) -> Tensor:
    """The chosen rows in float32, in plain torch: what a quantized matrix means."""
    packed = weight.packed[rows]
    q = packing.unpack_int4(packed) if weight.scheme.bits == 4 else packed
    zeros = weight.scheme.zero if weight.zero_points is None else weight.zero_points[rows, :, None].float()
    groups = q.unflatten(1, (-1, weight.group_size)).float()
    return groups.sub_(zeros).mul_(weight.scales[rows, :, None].float()).flatten(1)


def quantize_rtn(weight: Tensor, scheme: QuantizationScheme) -> tuple[QuantizedWeight, float, float]:
    """Round to nearest in the range with the least squared error, then choose the scale that keeps a group's norm.

    The scale with the least squared error shrinks a group: along its own direction, by 0.9 % for 128 Gaussian
    weights. That adds up over the layers, since inputs of a trained model have 1.6 to 5 times as much energy in that
    direction as in others. At the scale where quantized and original weights have the same norm it is 0.6 %, and the
    squared error is still smaller than without the fitted scale and zero point;
    benchmarks/quality/bench_rounding.py compares the two. 8 bits are not searched and stay as they are.

    Args:
        weight: (N, K) floating point, finite; K a multiple of the group size.
        scheme: bits, group size, symmetry.
    Returns:
        The quantized weight, the sum of squared errors and the sum of squared weights.
    Raises:
        ValueError: the shape does not fit the scheme.
    """
    check_shape(weight, scheme)
    group_size = scheme.row_group_size(weight.shape[1])
    if weight.device.type == "cpu" and has_numba():
        from glm_int4.quantization.rounding import rtn_loops

        search = rtn_loops.search
        weight = (weight if weight.dtype == torch.float16 else weight.float()).contiguous()
    else:
        search = search_reference
        weight = weight.float()
    packed, scales, zeros, error, norm = search(weight, scheme, group_size, clip_shares(scheme))
    zero_points = None if scheme.symmetric else zeros
    return QuantizedWeight(scheme=scheme, packed=packed, scales=scales, zero_points=zero_points), error, norm


def quantize_official(weight: Tensor, scheme: QuantizationScheme) -> tuple[QuantizedWeight, float, float]:
    """Round as the official checkpoints are rounded, integer for integer.

    The scale is the row's largest magnitude over 7 or 127, and weight / scale is rounded to float16
    before it is rounded to an integer. Where the official code goes wrong (rows of zeros give NaN, rows
    of subnormals integers that wrap around), integers are 0 or clipped instead. Weights in bfloat16, which float16
    does not hold, are divided in float32.

    Args:
        weight: (N, K) floating point, finite.
        scheme: per channel, symmetric.
    Returns:
        As ``quantize_rtn``.
    """
    weight = weight.float() if weight.dtype == torch.bfloat16 else weight.half()
    largest = scheme.zero - 1
    scales = (weight.abs().amax(dim=1, keepdim=True) / largest).half().to(weight.dtype)
    q = (weight / scales).nan_to_num_(0.0, largest, -largest).round_().clamp_(-largest, largest)
    error, norm = (q.float() * scales.float() - weight.float()).norm(), weight.float().norm()
    unsigned = (q + scheme.zero).to(torch.uint8)
    packed = packing.pack_int4(unsigned) if scheme.bits == 4 else unsigned
    return (
        QuantizedWeight(scheme=scheme, packed=packed, scales=scales.half(), zero_points=None),
        float(error) ** 2,
        float(norm) ** 2,
    )


def search_reference(
    weight: Tensor, scheme: QuantizationScheme, group_size: int, shares: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor, float, float]:
    """Search in plain torch: the shares' ranges, the scale fitted to the best one, and the zero points beside it.

    One share is no search: its range is taken as it is.

    Args:
        weight: (N, K) float32.
    Returns:
        packed (N, K * bits / 8) uint8, scales (N, K / G) float16, zero points (N, K / G) uint8, and
        the sums of squared errors and squared weights.
    """
    groups = weight.unflatten(1, (-1, group_size))
    top = (1 << scheme.bits) - 1
    low = groups.amin(-1).clamp(max=0)
    high = groups.amax(-1).clamp(min=0)
    best = torch.stack([torch.full_like(low, value) for value in (-1, 1, scheme.zero, 0, 0)])
    for share in shares:
        if scheme.symmetric:
            scale = _half(torch.maximum(-low, high) * share / (scheme.zero - 1))
            zero = torch.full_like(scale, scheme.zero)
        else:
            scale = _half((high - low) * share / top)
            zero = (-low * share / scale).round().clamp(0, top)
        best = _better(best, groups, scale, zero, top)
    if len(shares) > 1:
        _, scale, zero, products, squares = best
        best = _better(best, groups, torch.where(products > 0, _half(products / squares), scale), zero, top)
        for step in () if scheme.symmetric else (-1, 1):
            best = _better(best, groups, best[1], (best[2] + step).clamp(0, top), top)
    _, scale, zero, _, squares = best
    if len(shares) > 1:
        scale = torch.where(squares > 0, _half((groups.square().sum(-1) / squares).sqrt()), scale)
    q = _round(groups, scale, zero, top)
    error = ((q - zero[..., None]) * scale[..., None] - groups).square().sum(dtype=torch.float64)
    norm = weight.double().square().sum()
    q = q.to(torch.uint8).flatten(1)
    packed = packing.pack_int4(q) if scheme.bits == 4 else q
    return packed, scale.half(), zero.to(torch.uint8), float(error), float(norm)


def _better(best: Tensor, groups: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    """Per group, the range so far or this one, whichever has integers with the least squared error at their best scale.

    That error is the squared weights less ``products ** 2 / squares``, the gain.
    """
    integers = _round(groups, scale, zero, top) - zero[..., None]
    products, squares = (groups * integers).sum(-1), integers.square().sum(-1)
    gain = torch.where(squares > 0, products * (products / squares.clamp(min=1)), 0)
    better = gain > best[0]
    found = torch.stack((gain, scale, zero, products, squares))
    return torch.where(better, found, best)


def _half(scale: Tensor) -> Tensor:
    return scale.half().float().clamp(min=SMALLEST_SCALE)


def _round(groups: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    return ((groups / scale[..., None]).round() + zero[..., None]).clamp(0, top)
