"""A linear and the activation behind it, in one pass where the Triton kernels run."""

import torch.nn.functional as F
from torch import Tensor, nn

from glm_int4.quantization.gpu.matrix import TritonMatrix
from glm_int4.quantization.linear import QuantizedLinear


def linear_activation(linear: nn.Module, x: Tensor, activation: str) -> Tensor:
    """``activation(linear(x))`` without gradients.

    Args:
        linear: quantized or not. x: (..., K).
        activation: "gelu" (the tanh approximation), or "swiglu": silu of the first half of the columns times
            the second half.
    Returns:
        (..., N), or (..., N // 2) after "swiglu".
    """
    if isinstance(linear, QuantizedLinear) and isinstance(linear.matrix, TritonMatrix):
        return linear.matrix(x, activation=activation)
    out = linear(x)
    if activation == "gelu":
        return F.gelu(out, approximate="tanh")
    gate, up = out.chunk(2, dim=-1)
    return F.silu(gate) * up
