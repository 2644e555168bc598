"""GPTQ: rounding column by column, each column taking up the errors of those before it.

What counts is the error of the layer's output on calibration inputs, ``tr(D H D^T)`` with ``D`` the
weights' errors and ``H`` the inputs' second moments. With ``H = R R^T``, R upper triangular, that is the
squared norm of ``D R``, whose columns can be made small one after the other. No inverse is needed, and
columns keep their order, so that groups stay runs of neighbours.

Source: E. Frantar et al., GPTQ, 2022; in the form of J. Chee et al., QuIP, 2023.
"""

import torch
from torch import Tensor

from glm_int4.quantization.kernels import packing
from glm_int4.quantization.rounding.rtn import check_shape, quantize_rtn
from glm_int4.quantization.scheme import QuantizationScheme, QuantizedWeight

DAMPING = 0.01  # of the mean second moment, added to all of them
# Columns that take up each other's errors one after the other. What they leave to later columns is added there with
# a single matrix product.
_COLUMNS = 128
_HESSIAN_ROWS = 2048  # computed at a time: what lies above the diagonal is left out


class Hessian:
    """Second moments of a layer's inputs, their columns in reverse; the lower triangle alone is kept.

    Attributes:
        sums: (K, K) float32.
        count: input rows so far.
    """

    def __init__(self, in_features: int, device: torch.device | str = "cpu") -> None:
        self.sums = torch.zeros(in_features, in_features, device=device)
        self.count = 0

    def add(self, x: Tensor) -> None:
        """Take in inputs (..., K)."""
        rows = x.reshape(-1, x.shape[-1]).float().flip(1)
        self.count += len(rows)
        for start in range(0, rows.shape[1], _HESSIAN_ROWS):
            stop = start + _HESSIAN_ROWS
            self.sums[start:stop, :stop].addmm_(rows[:, start:stop].T, rows[:, :stop])

    def moments(self) -> Tensor:
        """Mean squares of the inputs, (K,)."""
        return self.sums.diagonal().flip(0) / max(self.count, 1)

    def factor(self, damping: float = DAMPING) -> Tensor:
        """The lower triangular factor of the damped moments, columns in reverse. ``sums`` are gone then.

        Raises:
            ValueError: the inputs were not finite.
        """
        diagonal = self.sums.diagonal()
        mean = float(diagonal.double().mean())
        if not mean < torch.inf:
            raise ValueError(f"inputs must be finite, got a mean square of {mean}")
        diagonal[diagonal == 0] = mean or 1.0  # an input that is always 0: its weights are just rounded
        added = 0.0
        for _ in range(6):
            diagonal += damping * (mean or 1.0) - added
            added = damping * (mean or 1.0)
            factor, failed = torch.linalg.cholesky_ex(self.sums)
            if not failed:
                self.sums = torch.empty(0)
                return factor
            damping *= 10
        raise ValueError("moments must be positive definite, got others even when damped")


def quantize_gptq(weight: Tensor, scheme: QuantizationScheme, factor: Tensor) -> tuple[QuantizedWeight, float, float]:
    """Round to the least squared error of the layer's output.

    Args:
        weight: (N, K) floating point, finite; K a multiple of the group size.
        scheme: bits, group size, symmetry.
        factor: (K, K), from ``Hessian.factor``.
    Returns:
        The quantized weight, the sum of squared errors of the weights and that of squared weights.
    Raises:
        ValueError: the shape does not fit the scheme.
    """
    check_shape(weight, scheme)
    in_features = weight.shape[1]
    group_size = scheme.row_group_size(in_features)
    top = (1 << scheme.bits) - 1
    original = weight.float().T.flip(0).contiguous()  # (K, N), the last column first
    errors = torch.empty_like(original)
    integers = torch.empty(original.shape, dtype=torch.uint8, device=weight.device)
    diagonal = factor.diagonal()
    width = group_size if in_features % _COLUMNS or group_size > _COLUMNS else _COLUMNS
    if scheme.group_size is None:
        width = min(_COLUMNS, in_features)
        scale, zero = _range(weight.float(), scheme)
    scales, zeros = [], []
    for stop in range(in_features, 0, -width):
        start = max(stop - width, 0)
        feedback = factor[start:, start:stop] / diagonal[start:stop]
        columns = original[start:stop].addmm(feedback[stop - start :].T, errors[stop:])  # (width, N)
        for j in range(stop - start - 1, -1, -1):
            column = start + j
            if scheme.group_size is not None and (column + 1) % group_size == 0:
                scale, zero = _range(columns[j + 1 - group_size : j + 1].flip(0).T, scheme)
                scales.append(scale)
                zeros.append(zero)
            q = (columns[j] / scale + zero).round_().clamp_(0, top)
            integers[column] = q.byte()
            errors[column] = original[column] - (q - zero) * scale
            columns[:j].addr_(feedback[j, :j], errors[column])
    if scheme.group_size is None:
        scales, zeros = [scale], [zero]
    q = integers.flip(0).T.contiguous()
    quantized = QuantizedWeight(
        scheme=scheme,
        packed=packing.pack_int4(q) if scheme.bits == 4 else q,
        scales=torch.stack(scales, dim=1).half(),
        zero_points=None if scheme.symmetric else torch.stack(zeros, dim=1).byte(),
    )
    return quantized, float(errors.double().square().sum()), float(original.double().square().sum())


def _range(weight: Tensor, scheme: QuantizationScheme) -> tuple[Tensor, Tensor]:
    """Scales and zero points (N,) float32 of one group (N, G), or of whole rows, from the clip search."""
    found, _, _ = quantize_rtn(weight, scheme)
    zeros = torch.full_like(found.scales, scheme.zero) if found.zero_points is None else found.zero_points
    return found.scales[:, 0].float(), zeros[:, 0].float()
