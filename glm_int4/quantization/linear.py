"""Linear layers."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

# (name of the layer in the checkpoint, in_features, out_features, has_bias) -> the module
LinearFactory = Callable[[str, int, int, bool], nn.Module]


class DenseLinear(nn.Linear):
    """An unquantized linear layer that computes in its weight's dtype, whatever the input's."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


def dense_linear(name: str, in_features: int, out_features: int, has_bias: bool) -> nn.Module:
    """The factory of unquantized models."""
    return DenseLinear(in_features, out_features, bias=has_bias)
