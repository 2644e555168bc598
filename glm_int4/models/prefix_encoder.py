"""P-Tuning v2: keys and values of a trained prefix, which every token of every sequence sees.

``PrefixEncoder`` is what is trained and stored; the network takes the ``Prefix`` that it computes.
Prefix keys are not rotated, and the positions of real tokens start at 0 as without a prefix.
"""

import torch
from torch import Tensor, nn

from glm_int4.models.config import Config
from glm_int4.models.past import Prefix


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
        inner = width if config.has_wide_prefix else hidden
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
