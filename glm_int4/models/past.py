"""What a layer finds before the tokens that it is given: who sees whom, and earlier keys and values.

A prefix alone, a cache, slots of one, or the cache of another package. How they are attended to is in
``attention.py``; what a prefix is made from, in ``prefix_encoder.py``.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from glm_int4.models.kv_cache import KVCache, RunningRows


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionMask:
    """Who sees whom: context columns are visible to every row, the rest is causal.

    ``context_length``: length of the bidirectional context of an unpadded sequence, counted from the
    first column; 0 is causal throughout. ``bias``: additive scores (B, 1, T, S) for several rows of a
    padded batch, instead. ``padding``: (B,) columns hidden from a single new token, the leading ones
    behind ``prefix_length`` columns of a prefix, which every row sees.
    """

    context_length: int = 0
    bias: Tensor | None = None
    padding: Tensor | None = None
    prefix_length: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """Keys and values of a prefix of P columns: k and v are (num_layers, Hkv, P, D).

    ``recompute``: whether a backward pass computes a layer's activations anew instead of keeping them.
    """

    k: Tensor
    v: Tensor
    recompute: bool = False

    @property
    def length(self) -> int:
        """Columns of the prefix."""
        return self.k.shape[2]

    @property
    def num_bytes(self) -> int:
        """Bytes of its keys and values."""
        return self.k.numel() * self.k.element_size() + self.v.numel() * self.v.element_size()

    def join(self, layer_id: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put one layer's prefix in front of keys and values (B, Hkv, T, D)."""
        parts = ((self.k[layer_id], k), (self.v[layer_id], v))
        joined = [torch.cat((p.to(x.dtype).expand(x.shape[0], -1, -1, -1), x), dim=2) for p, x in parts]
        return joined[0], joined[1]

    def to(self, device: torch.device, dtype: torch.dtype) -> "Prefix":
        """A copy of its own on a device."""
        k, v = (x.to(device, dtype, copy=True, memory_format=torch.contiguous_format) for x in (self.k, self.v))
        return Prefix(k=k, v=v, recompute=self.recompute)


class NoCache:
    """Nothing before the new tokens but perhaps a prefix, and layers that are computed twice in training."""

    recompute = True

    def __init__(self, prefix: Prefix | None = None) -> None:
        self._prefix = prefix

    def join(self, layer_id: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, Hkv, T, D) behind those of the prefix."""
        return (k, v) if self._prefix is None else self._prefix.join(layer_id, k, v)


class Joining(Protocol):
    """Whatever holds earlier keys and values and puts them in front of new ones, as ``Prefix.join`` does."""

    def join(self, layer_id: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, Hkv, S, D) of all columns, given the new ones (B, Hkv, T, D)."""


# None: there are no earlier tokens.
Past = KVCache | RunningRows | Prefix | Joining | None
