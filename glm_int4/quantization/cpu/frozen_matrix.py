"""What the matrices of a CPU share: a gradient of their input, never of their weights."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class FrozenMatrix(nn.Module, ABC):
    """A quantized matrix (N, K) with its bias. How it multiplies and dequantizes is up to its class."""

    in_features: int
    out_features: int

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N) in float32, through which a gradient passes if x asks for one."""
        if torch.is_grad_enabled() and x.requires_grad:
            out: Tensor = _FrozenProduct.apply(x, self)
            return out
        return self.multiply(x)

    @abstractmethod
    def multiply(self, x: Tensor) -> Tensor:
        """``forward`` without a gradient."""

    @abstractmethod
    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows and their weights (n, K) in float32; the next piece may take the same memory."""


class _FrozenProduct(torch.autograd.Function):
    """Forward as without a gradient; backward is ``grad @ weight``, with the weights dequantized again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: FrozenMatrix) -> Tensor:
        ctx.matrix, ctx.dtype = matrix, x.dtype
        return matrix.multiply(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        rows = grad.reshape(-1, grad.shape[-1])
        total = torch.zeros(rows.shape[0], ctx.matrix.in_features)
        for part, weight in ctx.matrix.pieces():
            total += rows[:, part].to(weight.dtype) @ weight
        return total.view(*grad.shape[:-1], -1).to(ctx.dtype), None
