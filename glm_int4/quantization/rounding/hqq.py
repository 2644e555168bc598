"""Half-quadratic quantization: ranges fitted to the many small weights, without calibration.

The weights' errors are split into a sparse part, which may stay large, and the rest, whose squares are
minimized; the two are fitted in turn. Zero points are floats on the way and end as integers, which is
what the checkpoint stores; scales are fitted once more to those.

Source: H. Badri and A. Shaji, Half-Quadratic Quantization of Large Machine Learning Models, 2023.
"""

import torch
from torch import Tensor

from glm_int4.quantization.kernels import packing
from glm_int4.quantization.rounding.rtn import SMALLEST_SCALE, check_shape
from glm_int4.quantization.scheme import QuantizationScheme, QuantizedWeight

_ITERATIONS, _REFITS = 20, 4
_NORM = 0.7  # of the sparse part: sum of |error| ** 0.7
# Weight of the quadratic part and its growth per iteration, for errors in units of a quantization step.
_BETA, _BETA_GROWTH = 10.0, 1.05
_PIECE_WEIGHTS = 1 << 18  # 1 MiB in float32: the iterations of a piece stay in the cache
_LARGEST_SCALE = 65504.0


def quantize_hqq(weight: Tensor, scheme: QuantizationScheme) -> tuple[QuantizedWeight, float, float]:
    """Quantize by half-quadratic fitting; arguments, result and errors as ``rounding.quantize_rtn``."""
    check_shape(weight, scheme)
    group_size = scheme.row_group_size(weight.shape[1])
    step = max(_PIECE_WEIGHTS // weight.shape[1], 1)
    parts = [
        _fit(weight[i : i + step].float().unflatten(1, (-1, group_size)), scheme) for i in range(0, len(weight), step)
    ]
    q, scales, zeros = (torch.cat(tensors) for tensors in list(zip(*parts, strict=True))[:3])
    error, norm = (sum(float(part[i]) for part in parts) for i in (3, 4))
    q = q.flatten(1)
    quantized = QuantizedWeight(
        scheme=scheme,
        packed=packing.pack_int4(q) if scheme.bits == 4 else q,
        scales=scales,
        zero_points=None if scheme.symmetric else zeros,
    )
    return quantized, error, norm


def _fit(groups: Tensor, scheme: QuantizationScheme) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Integers (n, K / G, G) uint8, scales float16 and zero points uint8 (n, K / G), squared errors and weights."""
    top = (1 << scheme.bits) - 1
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    if scheme.symmetric:
        scale = torch.maximum(-low, high) / (scheme.zero - 1)
        zero = torch.full_like(scale, scheme.zero)
    else:
        scale = (high - low) / top
        zero = -low / scale.clamp(min=SMALLEST_SCALE)
    scale = scale.clamp(min=SMALLEST_SCALE)
    beta = _BETA
    for _ in range(_ITERATIONS):
        q = (groups / scale + zero).round_().clamp_(0, top)
        errors = groups / scale - (q - zero)  # in steps
        size = errors.abs()
        sparse = errors.sign() * (size - size.clamp(min=1e-6).pow(_NORM - 1) / beta).clamp_(min=0)
        if scheme.symmetric:
            scale = _refitted(groups - sparse * scale, q - zero, scale)
        else:
            zero = (q - groups / scale + sparse).mean(-1, keepdim=True)
        beta *= _BETA_GROWTH
    zero = zero.round_().clamp_(0, top)
    best, best_error = scale, torch.full_like(scale, torch.inf)
    for _ in range(_REFITS):
        scale = scale.clamp(max=_LARGEST_SCALE).half().float().clamp(min=SMALLEST_SCALE)
        q = (groups / scale + zero).round_().clamp_(0, top)
        error = ((q - zero) * scale - groups).square_().sum(-1, keepdim=True)
        best = torch.where(error < best_error, scale, best)
        best_error = torch.minimum(error, best_error)
        scale = _refitted(groups, q - zero, scale)
    q = (groups / best + zero).round_().clamp_(0, top)
    norm = groups.double().square().sum()
    return q.byte(), best.half()[..., 0], zero.byte()[..., 0], best_error.double().sum(), norm


def _refitted(groups: Tensor, integers: Tensor, scale: Tensor) -> Tensor:
    """The scale with the least squared error for these integers; where it would not be positive, as it was."""
    fitted = (groups * integers).sum(-1, keepdim=True) / integers.square().sum(-1, keepdim=True).clamp(min=1e-12)
    return torch.where(fitted > 0, fitted, scale)
