"""Linear layers, unquantized and quantized; ``backends.py`` has what multiplies."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from glm_int4.quantization.backends import make_matrix
from glm_int4.quantization.scheme import QuantizedWeight

# (name of the layer in the checkpoint, in_features, out_features, has_bias) -> the module
LinearFactory = Callable[[str, int, int, bool], nn.Module]


class DenseLinear(nn.Linear):
    """An unquantized linear layer that computes in its weight's dtype, whatever the input's."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N) in the weight's dtype."""
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


def dense_linear(name: str, in_features: int, out_features: int, has_bias: bool) -> nn.Module:
    """The factory of unquantized models."""
    return DenseLinear(in_features, out_features, bias=has_bias)


class QuantizedLinear(nn.Module):
    """A linear layer with INT4 or INT8 weights.

    Args:
        weight: the quantized matrix (N, K).
        bias: (N,) or None.
        backend: one of ``backends.BACKENDS``.
    """

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, backend: str) -> None:
        super().__init__()
        self.in_features, self.out_features, self.scheme = weight.in_features, weight.out_features, weight.scheme
        self.matrix: nn.Module = make_matrix(weight, bias, backend)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N); the dtype is the backend's."""
        out: Tensor = self.matrix(x)
        return out
