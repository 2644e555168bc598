"""The gradient of a quantized linear: with respect to x alone, since the weights stay as they are."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from triton_kernels.operands import Epilogue, Matrix, check_linear

# A product of x (M, K) with a matrix and what follows it: (M, N), or (M, N // 2) after "swiglu".
Multiply = Callable[[Tensor, Matrix, Epilogue], Tensor]
# grad_out (M, N) @ weights (N, K).
MultiplyTransposed = Callable[[Tensor, Matrix], Tensor]


class _Product(torch.autograd.Function):
    """``x @ dequantize(matrix).T``; nothing is saved but the quantized matrix itself."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        matrix: Matrix,
        dtype: torch.dtype,
        multiply: Multiply,
        multiply_transposed: MultiplyTransposed,
    ) -> Tensor:
        ctx.matrix, ctx.multiply_transposed, ctx.dtype = matrix, multiply_transposed, x.dtype
        return multiply(x, matrix, Epilogue(dtype=dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.multiply_transposed(grad_out.contiguous(), ctx.matrix).to(ctx.dtype), *[None] * 4


def quantized_linear(
    x: Tensor, matrix: Matrix, epilogue: Epilogue, multiply: Multiply, multiply_transposed: MultiplyTransposed
) -> Tensor:
    """A checked linear on the given products, differentiable with respect to x, bias and residual.

    Raises:
        ValueError: shapes, dtypes, devices or strides do not agree.
    """
    check_linear(x, matrix, epilogue)
    rows = x.reshape(-1, matrix.in_features)
    learned = [t for t in (x, epilogue.bias, epilogue.residual) if t is not None and t.requires_grad]
    if torch.is_grad_enabled() and learned:
        dtype = epilogue.dtype or x.dtype
        product = _Product.apply(rows, matrix, dtype, multiply, multiply_transposed)
        return finish(product.view(*x.shape[:-1], matrix.out_features), epilogue, dtype)
    with torch.no_grad():
        width = epilogue.out_features(matrix.out_features)
        if epilogue.residual is not None:
            epilogue = replace(epilogue, residual=epilogue.residual.view(-1, width))
        out = multiply(rows, matrix, epilogue) if rows.shape[0] else x.new_empty(0, width, dtype=epilogue.dtype)
    return out.view(*x.shape[:-1], width)


def finish(product: Tensor, epilogue: Epilogue, dtype: torch.dtype) -> Tensor:
    """An epilogue in plain torch: float32 arithmetic, then ``dtype``."""
    out = product.float()
    if epilogue.bias is not None:
        out = out + epilogue.bias.float()
    if epilogue.activation == "gelu":
        out = F.gelu(out, approximate="tanh")
    elif epilogue.activation == "swiglu":
        gate, up = out.chunk(2, dim=-1)
        out = F.silu(gate) * up
    if epilogue.residual is not None:
        out = out + epilogue.alpha * epilogue.residual.float()
    return out.to(dtype)
