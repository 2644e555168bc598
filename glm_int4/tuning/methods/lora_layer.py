"""A linear layer with a LoRA product beside it that is trained; ``quantization/adapted.py`` has what answers."""

import math
import zlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RepeatableDropout:
    """Dropout that strikes the same values whenever a layer is computed for the same batch.

    So a layer that is computed twice drops the same, and a run that is resumed drops what it would have dropped.

    Attributes:
        batch: number of the batch at hand; None drops nothing.
    """

    def __init__(self, probability: float, seed: int, device: torch.device) -> None:
        self._probability, self._seed = probability, seed
        self._generator = torch.Generator(device)
        self.batch: int | None = None

    def __call__(self, x: Tensor, layer: int) -> Tensor:
        """x as layer number ``layer`` is given it."""
        if self.batch is None or not self._probability:
            return x
        self._generator.manual_seed(zlib.crc32(f"{self._seed} {self.batch} {layer}".encode()))
        kept = torch.rand(x.shape, generator=self._generator, device=x.device) >= self._probability
        return x * kept / (1 - self._probability)


class LoraLayer(nn.Module):
    """``base(x) + scale * B (A dropout(x))`` as peft has it; A begins at random, B with zeros.

    Args:
        base: a linear layer (N, K) of any kind, which stays as it is.
        number: of this layer, for the dropout.
    """

    def __init__(
        self,
        base: nn.Module,
        in_features: int,
        out_features: int,
        *,
        rank: int,
        scale: float,
        dropout: RepeatableDropout,
        number: int,
    ) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.down = nn.Parameter(torch.empty(rank, in_features))
        self.up = nn.Parameter(torch.zeros(out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self._dropout, self._number = dropout, number

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N), in the base's dtype."""
        out: Tensor = self.base(x)
        low = F.linear(self._dropout(x.to(self.down.dtype), self._number), self.down)
        return out + (self.scale * F.linear(low, self.up)).to(out.dtype)
