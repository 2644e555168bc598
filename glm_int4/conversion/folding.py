"""Outlier channels between a norm and the matrix behind it, evened out before rounding.

Where a norm makes a channel much larger than the others and the matrix takes it with much smaller weights,
those weights would all round to zero, whatever the group. A power of two moves from the norm's gain into the
matrix: the function stays the same, bit for bit up to overflow, and the weights are as large as their
neighbours. In ChatGLM-6B the norm's output is the residual as well, so nothing can move there.
"""

import logging
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glm_int4.checkpoint.files.reader import CheckpointReader
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.formats.layout import MatrixSpec
from glm_int4.checkpoint.opening import Schemes
from glm_int4.models.config import Config

logger = logging.getLogger(__name__)

# A channel moves where the norm's gain is so many times the usual one, and its weights so many times smaller.
_LEAST_FACTOR = 4.0
_PIECE_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Folding:
    """Factors, powers of two: ``columns`` (K,) of a matrix's columns, by its name; ``gains`` of the norm's gain
    before it, by that tensor's name. Empty where nothing moves."""

    columns: dict[str, Tensor] = field(default_factory=dict)
    gains: dict[str, Tensor] = field(default_factory=dict)

    def fold(self, name: str, tensor: Tensor) -> Tensor:
        """A norm's gain, or rows of a matrix, as they are after folding; other tensors as they were."""
        factors = self.gains.get(name)
        if factors is None:
            factors = self.columns.get(name.removesuffix(".weight"))
        if factors is None:
            return tensor
        if name in self.gains:
            return tensor * factors.to(device=tensor.device, dtype=tensor.dtype)
        return tensor.float() * factors.to(tensor.device)

    def __str__(self) -> str:
        return ", ".join(f"{name}: {int((factors != 1).sum())}" for name, factors in self.columns.items())


def find_folding(reader: CheckpointReader, config: Config, schemes: Schemes) -> Folding:
    """Look for outlier channels in front of the matrices that will be quantized."""
    folding = Folding()
    if config.residual_is_normed:
        return folding
    for matrix, norm in _pairs(config):
        if schemes[matrix.name] is None:
            continue
        factors = _factors(reader, matrix, norm)
        if factors is not None:
            folding.columns[matrix.name] = factors
            folding.gains[norm] = 1 / factors
    if folding.columns:
        logger.info("outlier channels moved from norms into the weights behind them: %s", folding)
    return folding


def _pairs(config: Config) -> list[tuple[MatrixSpec, str]]:
    """Matrices with the gain of the norm that feeds them alone."""
    norms = {"query_key_value": "input_layernorm", "dense_h_to_4h": "post_attention_layernorm"}
    pairs = []
    for matrix in layout.linears(config):
        if matrix.kind in norms:
            layer = matrix.name.rsplit(".", 2)[0]
            pairs.append((matrix, f"{layer}.{norms[matrix.kind]}.weight"))
    return [*pairs, (layout.vocabulary(config)[-1], "transformer.encoder.final_layernorm.weight")]


def _factors(reader: CheckpointReader, matrix: MatrixSpec, norm: str) -> Tensor | None:
    """Powers of two for the columns, 1 for most; None where no channel stands out."""
    gains = reader.rows(norm).float().abs()
    excess = gains / gains.median().clamp(min=1e-30)
    if not bool((excess >= _LEAST_FACTOR).any()):
        return None
    name = f"{matrix.name}.weight"
    squares = torch.zeros(matrix.in_features)
    for start in range(0, matrix.out_features, _PIECE_ROWS):
        rows = slice(start, start + _PIECE_ROWS)
        squares += reader.rows(name, rows).float().square().sum(0)
        reader.release(name, rows)
    sizes = squares.sqrt()
    lack = sizes.median() / sizes.clamp(min=1e-30)
    factors = torch.minimum(excess, lack)
    factors = torch.where((factors >= _LEAST_FACTOR) & (sizes > 0), factors.log2().round().exp2(), 1.0)
    return factors if bool((factors != 1).any()) else None
