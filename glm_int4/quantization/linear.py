"""Linear layers: unquantized ones, and quantized ones on the backend that suits them.

Backends: "integer" (``integer.py``), "rows" (``cpu.py``), "triton" (``gpu.py``), and "reference" (plain torch on any
device, exact in the input's dtype up to float32 accumulation).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm_int4.quantization.cpu.float32 import RowsMatrix
from glm_int4.quantization.cpu.integer import IntegerMatrix
from glm_int4.quantization.gpu.matrix import ReferenceMatrix, TritonMatrix
from glm_int4.quantization.gradient import multiply
from glm_int4.quantization.scheme import QuantizedWeight

# (name of the layer in the checkpoint, in_features, out_features, has_bias) -> the module
LinearFactory = Callable[[str, int, int, bool], nn.Module]

BACKENDS = ("integer", "rows", "triton", "reference")


class DenseLinear(nn.Linear):
    """An unquantized linear layer that computes in its weight's dtype, whatever the input's."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


def dense_linear(name: str, in_features: int, out_features: int, has_bias: bool) -> nn.Module:
    """The factory of unquantized models."""
    return DenseLinear(in_features, out_features, bias=has_bias)


class QuantizedLinear(nn.Module):
    """A linear layer with INT4 or INT8 weights.

    Args:
        weight: the quantized matrix (N, K).
        bias: (N,) or None.
        backend: one of ``BACKENDS``. Shapes that "integer" cannot take use "rows".
    """

    bias: Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, backend: str) -> None:
        super().__init__()
        self.in_features, self.out_features, self.scheme = weight.in_features, weight.out_features, weight.scheme
        self.matrix: nn.Module
        if backend == "integer" and IntegerMatrix.takes(weight):
            self.matrix = IntegerMatrix(weight, bias)
            bias = None
        elif backend in ("integer", "rows"):
            self.matrix = RowsMatrix(weight)
        elif backend == "triton":
            self.matrix = TritonMatrix(weight, bias)
            bias = None
        elif backend == "reference":
            self.matrix = ReferenceMatrix(weight)
        else:
            raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
        self.register_buffer("bias", None if bias is None else bias.float())

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N); the dtype is the backend's."""
        out = multiply(self.matrix, x)
        return out if self.bias is None else out + self.bias.to(out.dtype)


def activate_and_multiply(activation: str, x: Tensor, linear: nn.Module) -> Tensor:
    """``linear(activation(x))``, in one pass where the backend can.

    Args:
        activation: "gelu" (tanh approximation), or "swiglu" of x (..., 2 * K), the gate first.
    """
    matrix = getattr(linear, "matrix", None)
    if isinstance(matrix, IntegerMatrix) and not (torch.is_grad_enabled() and x.requires_grad):
        return matrix(x, activation)
    if activation == "gelu":
        return linear(F.gelu(x, approximate="tanh"))
    gate, up = x.chunk(2, dim=-1)
    return linear(F.silu(gate) * up)
