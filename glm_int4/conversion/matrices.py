"""Rounding one matrix of a plan by the plan's method, in pieces of rows where the method allows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from glm_int4.checkpoint.checks import check_finite
from glm_int4.checkpoint.formats.layout import MatrixSpec
from glm_int4.checkpoint.opening import read_weight
from glm_int4.conversion.calibrated.gptq_pass import CalibratedQuantizer
from glm_int4.conversion.plan import QuantizationPlan
from glm_int4.errors import CheckpointError
from glm_int4.quantization.rounding.hqq import quantize_hqq
from glm_int4.quantization.rounding.rtn import quantize_official, quantize_rtn
from glm_int4.quantization.scheme import QuantizationScheme, QuantizedWeight

# Of float16: 8 MiB. Its float32 copy then stays below the size that malloc gives back at once, instead of being
# faulted in anew for every piece: 30 s instead of 49 for ChatGLM-6B's shapes (2 cores of an AMD EPYC).
PIECE_WEIGHTS = 4 << 20

Quantize = Callable[[Tensor, QuantizationScheme], tuple[QuantizedWeight, float, float]]


@dataclass(slots=True)
class ErrorSums:
    """Sums of squared errors and of squared weights."""

    error: float = 0.0
    norm: float = 0.0

    @property
    def relative_rms(self) -> float:
        """Root mean square error as a share of the weights'."""
        return (self.error / self.norm) ** 0.5 if self.norm else 0.0


def quantized_pieces(
    plan: QuantizationPlan, matrix: MatrixSpec, sums: ErrorSums, calibrated: CalibratedQuantizer | None
) -> Iterator[QuantizedWeight]:
    """Yield a matrix in pieces of rows, quantized; adds their errors to ``sums``.

    Args:
        calibrated: GPTQ for the linear layers, which must come in order; None for the other methods.
    """
    source, scheme = plan.sources.get(matrix.name, matrix.name), plan.schemes[matrix.name]
    assert scheme is not None
    if plan.info.schemes.get(source) is not None:
        yield read_weight(plan.reader, plan.info, matrix)
        return
    if calibrated is not None and calibrated.takes(matrix.name):
        quantized, sums.error, sums.norm = calibrated.quantize(matrix.name, scheme)
        _check_scales(source, quantized)
        yield quantized
        return
    quantize: Quantize = quantize_official if plan.options.official else quantize_rtn
    if plan.method == "hqq":
        quantize = quantize_hqq
    step = max(PIECE_WEIGHTS // matrix.in_features, 1)
    for start in range(0, matrix.out_features, step):
        piece = plan.reader.rows(f"{source}.weight", slice(start, start + step))
        piece = piece.float() if piece.dtype == torch.float64 else piece
        check_finite(f"{source}.weight", piece)
        quantized, error, norm = quantize(plan.folding.fold(f"{matrix.name}.weight", piece), scheme)
        _check_scales(source, quantized)
        plan.reader.release(f"{source}.weight", slice(start, start + step))
        sums.error, sums.norm = sums.error + error, sums.norm + norm
        yield quantized


def _check_scales(source: str, quantized: QuantizedWeight) -> None:
    if not bool(torch.isfinite(quantized.scales).all()):
        raise CheckpointError(f"expected weights whose scales fit float16, got larger ones in {source}.weight")
