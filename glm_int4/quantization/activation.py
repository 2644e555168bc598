"""A linear layer and the activation before or behind it, in one pass where the backend has one.

Activations are "gelu" (the tanh approximation) and "swiglu": silu of the first half of the columns times the second.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm_int4.quantization.cpu.integer import IntegerMatrix
from glm_int4.quantization.gpu.matrix import TritonMatrix
from glm_int4.quantization.linear import QuantizedLinear


def linear_of_activation(linear: nn.Module, x: Tensor, activation: str) -> Tensor:
    """``linear(activation(x))`` of x (..., K), or (..., 2 * K) for "swiglu"."""
    matrix = linear.matrix if isinstance(linear, QuantizedLinear) else None  # not one with an adapter around it
    if isinstance(matrix, IntegerMatrix) and not (torch.is_grad_enabled() and x.requires_grad):
        return matrix.multiply(x, activation)
    out: Tensor = linear(_activate(x, activation))
    return out


def activation_of_linear(linear: nn.Module, x: Tensor, activation: str) -> Tensor:
    """``activation(linear(x))`` of x (..., K): (..., N), or (..., N // 2) for "swiglu"."""
    matrix = linear.matrix if isinstance(linear, QuantizedLinear) else None
    if isinstance(matrix, TritonMatrix):
        return matrix(x, activation=activation)
    return _activate(linear(x), activation)


def _activate(x: Tensor, activation: str) -> Tensor:
    if activation == "gelu":
        return F.gelu(x, approximate="tanh")
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up
