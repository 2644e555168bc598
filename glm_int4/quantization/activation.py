"""A linear layer and the activation before or behind it, in one pass where the backend has one.

Activations are "gelu" (the tanh approximation) and "swiglu": silu of the first half of the columns times the second.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm_int4.quantization.adapted import base_of, changed
from glm_int4.quantization.cpu.integer import IntegerMatrix
from glm_int4.quantization.gpu.matrix import CublasMatrix
from glm_int4.quantization.linear import QuantizedLinear


def feed_forward(up: nn.Module, down: nn.Module, x: Tensor, activation: str) -> Tensor:
    """``down(activation(up(x)))`` of x (..., K), with the activation in the pass of the one or of the other."""
    if isinstance(_matrix(up), CublasMatrix):
        out: Tensor = down(activation_of_linear(up, x, activation))
        return out
    return linear_of_activation(down, up(x), activation)


def linear_of_activation(linear: nn.Module, x: Tensor, activation: str) -> Tensor:
    """``linear(activation(x))`` of x (..., K), or (..., 2 * K) for "swiglu"."""
    matrix = _matrix(base_of(linear))
    if isinstance(matrix, IntegerMatrix) and not (torch.is_grad_enabled() and x.requires_grad):
        # Whatever adapters there are, the base's bits are the same.
        return changed(linear, matrix.multiply(x, activation), lambda: _activate(x, activation))
    x = _activate(x, activation)  # in its place: the wider one is not kept beside the product
    out: Tensor = linear(x)
    return out


def activation_of_linear(linear: nn.Module, x: Tensor, activation: str) -> Tensor:
    """``activation(linear(x))`` of x (..., K): (..., N), or (..., N // 2) for "swiglu"."""
    matrix = _matrix(linear)
    if isinstance(matrix, CublasMatrix):
        return matrix(x, activation=activation)
    return _activate(linear(x), activation)


def _matrix(linear: nn.Module) -> nn.Module | None:
    """The quantized matrix of a layer that is nothing else."""
    return linear.matrix if isinstance(linear, QuantizedLinear) else None


def _activate(x: Tensor, activation: str) -> Tensor:
    if activation == "gelu":
        return F.gelu(x, approximate="tanh")
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up
