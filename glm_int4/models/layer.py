"""What a layer is, whatever its version; and time for memory: few rows at a time, or computed twice in training."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from glm_int4.models.past import AttentionMask, Past

# Rows at a time. GPU: 512 x 27392 values in half precision are 28 MB. CPU: 128 x 27392 floats are 14 MB,
# which stay in the last-level cache between the two matrices.
_ROWS = {"cpu": 128}
_GPU_ROWS = 512


@dataclass(frozen=True, slots=True)
class LayerParts:
    """The modules of a layer, in the order in which they run.

    attention holds ``query_key_value`` and ``dense``; mlp ``dense_h_to_4h`` and ``dense_4h_to_h``.
    output_norms: of what attention and mlp give, where a layer has them; fused steps know none.
    """

    input_norm: nn.Module
    attention: nn.Module
    post_attention_norm: nn.Module
    mlp: nn.Module
    output_norms: tuple[nn.Module, ...] = ()

    @property
    def linears(self) -> list[nn.Module]:
        """Four linears, in the order in which they run."""
        attention, mlp = self.attention, self.mlp
        return [attention.query_key_value, attention.dense, mlp.dense_h_to_4h, mlp.dense_4h_to_h]  # type: ignore[list-item]

    @property
    def norms(self) -> list[nn.Module]:
        """Two norms, in the order in which they run."""
        return [self.input_norm, self.post_attention_norm]


class Layer(nn.Module, ABC):
    """One layer of any version."""

    @property
    @abstractmethod
    def parts(self) -> LayerParts:
        """Its modules, whatever their official names."""

    @abstractmethod
    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: AttentionMask, past: Past) -> Tensor:
        """x (B, T, hidden) to the same shape; rotary: as ``Model.rotary`` gives it."""


def by_chunks(
    function: Callable[..., Tensor], x: Tensor, *others: Tensor, in_place: bool = False, rows: int | None = None
) -> Tensor:
    """``function(x, *others)`` of tensors (B, T, ...), for a function that treats every token by itself.

    ``in_place``: x's values are not needed any more, and the result has its shape and dtype. ``rows``: at a time; None
    for what suits the device.
    """
    rows = rows or _ROWS.get(x.device.type, _GPU_ROWS)
    if (torch.is_grad_enabled() and x.requires_grad) or (x.shape[1] <= rows and not in_place):
        return function(x, *others)
    out = x if in_place else None
    for first in range(0, x.shape[1], rows):
        part = slice(first, first + rows)
        some = function(*(each[:, part] for each in (x, *others)))
        if out is None:
            out = some.new_empty(*x.shape[:2], *some.shape[2:])
        out[:, part] = some
        del some  # before the next ones are made
    assert out is not None
    return out


def turn_heads(
    rotate: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, rotary: tuple[Tensor, Tensor], dtype: torch.dtype
) -> Tensor:
    """Queries or keys (B, T, H, D) of a projection, turned by a rotary embedding and rounded to ``dtype``.

    On a GPU they stay where they are: a second copy of a prompt's would be a tenth of what its activations take.
    """
    reused = x.device.type != "cpu" and x.dtype == dtype
    return by_chunks(lambda part, cos, sin: rotate(part, cos, sin).to(dtype), x, *rotary, in_place=reused)


def run_twice(layer: Layer, x: Tensor, rotary: tuple[Tensor, Tensor], mask: AttentionMask, past: Past) -> Tensor:
    """Run a layer so that a backward pass computes it once more."""
    same = layer.training  # an adapter in a layer may have a dropout, which has to strike the same values twice
    out: Tensor = checkpoint(layer, x, rotary, mask, past, use_reentrant=False, preserve_rng_state=same)
    return out
