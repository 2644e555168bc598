"""A linear layer with an adapter beside it: the matrix stays as it is, packed and shared."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm_int4.quantization.linear import QuantizedLinear


class AdaptedLinear(nn.Module):
    """``base(x) * ratio + shift + (x @ down.T) @ up``.

    Args:
        base: a linear layer (N, K) of any kind.
        down: (R, K), perhaps of no rows.
        up: (R, N), transposed so that a product goes through it in one pass; every factor is in it already.
        ratio: (N,) or None for ones: what DoRA makes of the rows' lengths.
        shift: (N,) or None for zeros: what makes another bias of the base's.
    """

    down: Tensor
    up: Tensor
    ratio: Tensor | None
    shift: Tensor | None

    def __init__(
        self, base: nn.Module, down: Tensor, up: Tensor, ratio: Tensor | None = None, shift: Tensor | None = None
    ) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("down", down.contiguous())
        self.register_buffer("up", up.contiguous())
        self.register_buffer("ratio", ratio)
        self.register_buffer("shift", shift)

    @property
    def in_features(self) -> int:
        """K."""
        return self.down.shape[1]

    @property
    def out_features(self) -> int:
        """N."""
        return self.up.shape[1]

    def extra_repr(self) -> str:
        """Its rank, and what else it changes."""
        more = [name for name in ("ratio", "shift") if getattr(self, name) is not None]
        return ", ".join([f"rank={len(self.down)}", *more])

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N), in the base's dtype."""
        out: Tensor = self.base(x)
        dtype = out.dtype
        if self.ratio is not None:
            out = out * self.ratio
        if self.shift is not None:
            out = out + self.shift
        if len(self.down):
            out = self._add_product(out, x)
        return out.to(dtype)

    def _add_product(self, out: Tensor, x: Tensor) -> Tensor:
        low = F.linear(x.to(self.down.dtype), self.down)
        if out.dtype != self.up.dtype or (torch.is_grad_enabled() and (out.requires_grad or low.requires_grad)):
            return out + low @ self.up
        rows = out.reshape(-1, self.out_features)  # the base's fresh result: nobody else has it
        return rows.addmm_(low.reshape(-1, len(self.up)), self.up).view(out.shape)


def base_of(linear: nn.Module) -> nn.Module:
    """A linear layer without the adapter around it."""
    return linear.base if isinstance(linear, AdaptedLinear) else linear


def bias_of(linear: nn.Module) -> Tensor | None:
    """The bias (N,) of an unquantized or a quantized layer, None where it has none."""
    bias: Tensor | None = (linear.matrix if isinstance(linear, QuantizedLinear) else linear).bias  # type: ignore[assignment]
    return bias


def weight_rows(linear: nn.Module, rows: slice) -> Tensor:
    """Some rows of an unquantized or a quantized layer's weights, in float32."""
    weights: Tensor
    if isinstance(linear, QuantizedLinear):
        weights = linear.matrix.dequantize(rows)  # type: ignore[operator]
    else:
        weights = linear.weight[rows].detach().float()  # type: ignore[index]
    return weights
