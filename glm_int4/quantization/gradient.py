"""The gradient that passes through a frozen quantized matrix: of its input alone, never of its weights."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor


class FrozenMatrix(Protocol):
    """A quantized matrix (N, K) that multiplies and can be dequantized piece by piece."""

    in_features: int

    def __call__(self, x: Tensor) -> Tensor: ...

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows and their weights (n, K), dequantized; the next piece may take the same memory."""


def multiply(matrix: Any, x: Tensor) -> Tensor:
    """``matrix(x)``, through which a gradient passes if one is asked for."""
    if torch.is_grad_enabled() and x.requires_grad:
        out: Tensor = _FrozenMultiply.apply(x, matrix)
        return out
    return matrix(x)


class _FrozenMultiply(torch.autograd.Function):
    """Forward as without gradients; backward is ``grad @ weight``, with the weights dequantized again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: FrozenMatrix) -> Tensor:
        ctx.matrix, ctx.dtype = matrix, x.dtype
        return matrix(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        rows = grad.reshape(-1, grad.shape[-1])
        total = torch.zeros(rows.shape[0], ctx.matrix.in_features, device=grad.device)
        for part, weight in ctx.matrix.pieces():
            total += rows[:, part].to(weight.dtype) @ weight
        return total.view(*grad.shape[:-1], -1).to(ctx.dtype), None
