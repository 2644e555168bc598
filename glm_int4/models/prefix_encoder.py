"""P-Tuning v2: keys and values of a trained prefix, which every token of every sequence sees.

``PrefixEncoder`` is what is trained and stored; the network takes the ``Prefix`` that it computes.
Prefix keys are not rotated, and the positions of real tokens start at 0 as without a prefix.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from glm_int4.models.config import ChatGLM2Config, Config
from glm_int4.models.kv_cache import KVCache
from glm_int4.models.slots import RunningRows

if TYPE_CHECKING:
    from glm_int4.models.attention import AttentionMask


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
        return self.k.shape[2]

    @property
    def num_bytes(self) -> int:
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


class Joining(Protocol):
    """Whatever holds earlier keys and values and puts them in front of new ones, as ``Prefix.join`` does."""

    def join(self, layer_id: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]: ...


# What a layer finds before the tokens that it is given: nothing, a prefix alone, a cache, slots of one, or the
# cache of another package.
Past = KVCache | RunningRows | Prefix | Joining | None


class PrefixEncoder(nn.Module):
    """The parameters of a prefix, under their official names and in their official shapes.

    Args:
        config: of the model that the prefix is for.
        pre_seq_len: columns of the prefix, P.
        prefix_projection: whether a two-layer MLP computes keys and values from a smaller embedding.
        device: of the parameters; "meta" makes them without memory.
    """

    def __init__(
        self, config: Config, pre_seq_len: int, prefix_projection: bool = False, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        self.pre_seq_len, self.prefix_projection = pre_seq_len, prefix_projection
        self._shape = (2 * config.num_layers, config.num_kv_heads, config.head_dim)
        width, hidden = prefix_width(config), config.hidden_size
        self.trans: nn.Sequential | None = None
        if not prefix_projection:
            self.embedding = nn.Embedding(pre_seq_len, width, device=device)
            return
        # Version 1 embeds in the hidden size, versions 2 and 3 in the full width.
        inner = width if isinstance(config, ChatGLM2Config) else hidden
        self.embedding = nn.Embedding(pre_seq_len, inner, device=device)
        self.trans = nn.Sequential(
            nn.Linear(inner, hidden, device=device), nn.Tanh(), nn.Linear(hidden, width, device=device)
        )

    def forward(self) -> Tensor:
        """Keys and values in turns, layer by layer: (P, 2 * num_layers, Hkv, D)."""
        x = self.embedding.weight
        return (x if self.trans is None else self.trans(x)).unflatten(-1, self._shape)


def prefix_width(config: Config) -> int:
    """Elements that a column of a prefix has in all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim


def split_prefix(states: Tensor, *, recompute: bool = False) -> Prefix:
    """The prefix of what a ``PrefixEncoder`` returned."""
    layers = states.permute(1, 2, 0, 3)  # (2 * num_layers, Hkv, P, D)
    return Prefix(k=layers[0::2], v=layers[1::2], recompute=recompute)


def run_layer(layer: nn.Module, x: Tensor, rotary: tuple[Tensor, Tensor], mask: "AttentionMask", past: Past) -> Tensor:
    """Run one layer, keeping no more of it for a backward pass than its input where the prefix says so."""
    if isinstance(past, Prefix) and past.recompute and torch.is_grad_enabled():
        out: Tensor = checkpoint(layer, x, rotary, mask, past, use_reentrant=False, preserve_rng_state=False)
        return out
    return layer(x, rotary, mask, past)
