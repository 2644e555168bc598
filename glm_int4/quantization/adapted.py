"""Linear layers with adapters beside them: the matrix stays as it is, packed and shared.

``AdaptedLinear`` has one adapter for all that runs through it, ``ChosenLinear`` one for every row of a batch, which
``AdapterChoice`` tells.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm_int4.quantization.linear import QuantizedLinear


class Addition(nn.Module):
    """What an adapter makes of a matrix's outputs: ``out * ratio + shift + (x @ down.T) @ up``.

    Args:
        down: (R, K), perhaps of no rows.
        up: (R, N), transposed so that a product goes through it in one pass; every factor is in it already.
        ratio: (N,) or None for ones: what DoRA makes of the rows' lengths.
        shift: (N,) or None for zeros: what makes another bias of the base's.
    """

    down: Tensor
    up: Tensor
    ratio: Tensor | None
    shift: Tensor | None

    def __init__(self, down: Tensor, up: Tensor, ratio: Tensor | None = None, shift: Tensor | None = None) -> None:
        super().__init__()
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

    def add(self, out: Tensor, x: Tensor) -> Tensor:
        """The outputs (..., N) of inputs (..., K), changed, perhaps in their place; in their dtype."""
        dtype = out.dtype
        if self.ratio is not None:
            out = out * self.ratio
        if self.shift is not None:
            out = out + self.shift
        if len(self.down):
            # Rows of a step on a CPU each get the bits that they get alone.
            if x.dim() == 3 and len(x) > 1 and x.shape[1] == 1 and x.device.type == "cpu":
                out = torch.cat([self._add_product(*row) for row in zip(out.split(1), x.split(1), strict=True)])
            else:
                out = self._add_product(out, x)
        return out.to(dtype)

    def _add_product(self, out: Tensor, x: Tensor) -> Tensor:
        low = F.linear(x.to(self.down.dtype), self.down)
        if out.dtype != self.up.dtype or (torch.is_grad_enabled() and (out.requires_grad or low.requires_grad)):
            return out + low @ self.up
        rows = out.reshape(-1, self.out_features)  # the base's fresh result: nobody else has it
        return rows.addmm_(low.reshape(-1, len(self.up)), self.up).view(out.shape)


class AdaptedLinear(Addition):
    """``base(x) * ratio + shift + (x @ down.T) @ up``.

    Args:
        base: a linear layer (N, K) of any kind. The others are as of ``Addition``.
    """

    def __init__(
        self, base: nn.Module, down: Tensor, up: Tensor, ratio: Tensor | None = None, shift: Tensor | None = None
    ) -> None:
        super().__init__(down, up, ratio, shift)
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N), in the base's dtype."""
        return self.add(self.base(x), x)


class AdapterChoice:
    """Which adapter the rows of what runs now have; all layers of a model look here.

    Attributes:
        numbers: one for all rows; or of every row, as numbers, or as (B,) int64, which a CUDA graph reads anew. 0 is
            the model's own adapter, or none.
        count: of the numbers that there may be, 0 among them.
        changes: how often layers have been exchanged.
    """

    def __init__(self) -> None:
        self.numbers: int | Sequence[int] | Tensor = 0
        self.count, self.changes = 1, 0

    @contextmanager
    def of(self, numbers: int | Sequence[int] | Tensor) -> Iterator[None]:
        """Let what runs inside of the block have these."""
        before, self.numbers = self.numbers, numbers
        try:
            yield
        finally:
            self.numbers = before

    def of_rows(self, batch_size: int) -> Tensor | None:
        """Every row's number, (B,) int64; None where all are 0."""
        numbers = self.numbers
        if isinstance(numbers, int):
            return torch.full((batch_size,), numbers) if numbers else None
        return torch.as_tensor(numbers)


class ChosenLinear(nn.Module):
    """A linear layer whose rows may have different adapters; the base's product is computed once for all of them.

    Args:
        own: the layer of number 0, perhaps an ``AdaptedLinear``.
        choice: of the model.
    Attributes:
        named: by the number as a text, an ``Addition`` to the base, or a layer in place of it. Rows of other numbers
            have what number 0 has.
    """

    def __init__(self, own: nn.Module, choice: AdapterChoice) -> None:
        super().__init__()
        self.own, self.named, self._choice = own, nn.ModuleDict(), choice

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., K) to (B, ..., N)."""
        numbers = self._choice.numbers
        part = self.part(numbers) if isinstance(numbers, int) else None
        if part is not None and not isinstance(part, Addition):
            return part(x)
        return self.change(base_of(self.own)(x), lambda: x)

    def change(self, out: Tensor, inputs: Callable[[], Tensor]) -> Tensor:
        """The base's outputs (B, ..., N) of inputs (B, ..., K) as the rows' adapters leave them."""
        numbers = self._choice.numbers
        if isinstance(numbers, int):
            part = self.part(numbers)
            return out if part is None else _changed(part, out, inputs())
        x = inputs()
        if isinstance(numbers, Tensor):
            return self._masked(out, x, numbers)
        rows = zip(numbers, out.split(1), x.split(1), strict=True)
        return torch.cat([_changed(self.part(number), row, row_x) for number, row, row_x in rows])

    def part(self, number: int) -> nn.Module | None:
        """What rows of a number have in place of the base's outputs; None where these stay."""
        if str(number) in self.named:
            return self.named[str(number)]
        return self.own if isinstance(self.own, Addition) else None

    def _masked(self, out: Tensor, x: Tensor, numbers: Tensor) -> Tensor:
        """The outputs (B, N), for numbers that Python does not know: every adapter is computed for all rows."""
        result = _changed(self.part(0), out.clone(), x)
        for number, part in self.named.items():
            result = torch.where((numbers == int(number))[:, None], _changed(part, out.clone(), x), result)
        return result


def _changed(part: nn.Module | None, out: Tensor, x: Tensor) -> Tensor:
    """A base's outputs as a part leaves them."""
    if part is None:
        return out
    if isinstance(part, Addition):
        return part.add(out, x)
    replaced: Tensor = part(x)
    return replaced.to(out.dtype)


def changed(linear: nn.Module, out: Tensor, inputs: Callable[[], Tensor]) -> Tensor:
    """The outputs of a layer's base as the adapters around it leave them; ``inputs`` gives what the base was given."""
    if isinstance(linear, ChosenLinear):
        return linear.change(out, inputs)
    return linear.add(out, inputs()) if isinstance(linear, AdaptedLinear) else out


def base_of(linear: nn.Module) -> nn.Module:
    """A linear layer without the adapters around it."""
    linear = linear.own if isinstance(linear, ChosenLinear) else linear
    return linear.base if isinstance(linear, AdaptedLinear) else linear


def addition_of(linear: nn.Module, number: int) -> Addition | None:
    """What rows of a number have added in a layer; None for nothing, or for a layer in its place."""
    part = linear.part(number) if isinstance(linear, ChosenLinear) else linear
    return part if isinstance(part, Addition) else None


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
