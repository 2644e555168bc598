"""Linear layers, unquantized and quantized; ``backends.py`` has what multiplies."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm_int4.errors import InputError
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


class PackedWeight(Tensor):
    """Stands for a quantized matrix where another package asks for its weight: shape, dtype and device, no values."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "__get__":
            return super().__torch_function__(func, types, args, kwargs or {})
        raise InputError(
            "expected a layer with unquantized weights, got an INT8 or INT4 one, whose weights cannot be merged, "
            "trained or scaled by their norms; load the unquantized checkpoint for that"
        )


class QuantizedLinear(nn.Linear):
    """A linear layer with INT4 or INT8 weights, to which adapters can be added as to any other.

    Its ``weight`` has no values, and it has no ``bias``: what would be written there would be lost.

    Args:
        weight: the quantized matrix (N, K).
        bias: (N,) or None.
        backend: one of ``backends.BACKENDS``.
    """

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, backend: str) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.scheme = weight.in_features, weight.out_features, weight.scheme
        self.matrix: nn.Module = make_matrix(weight, bias, backend)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """What tells other packages shape and device, and is refused where they use it."""
        tensor = next(self.matrix.buffers())
        dtype = torch.float32 if tensor.device.type == "cpu" else torch.float16
        empty = torch.empty(1, 1, dtype=dtype, device=tensor.device)
        return empty.expand(self.out_features, self.in_features).as_subclass(PackedWeight)

    def __getattr__(self, name: str) -> Any:
        if name == "bias":
            raise InputError(
                "expected a layer with unquantized weights, got an INT8 or INT4 one, whose bias stays as it is; "
                "leave biases out of adapters, or load the unquantized checkpoint"
            )
        return super().__getattr__(name)

    def extra_repr(self) -> str:
        """Shape and scheme."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.scheme}"

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N); the dtype is the backend's."""
        out: Tensor = self.matrix(x)
        return out
