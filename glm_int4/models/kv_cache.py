"""Keys and values of the tokens seen so far, in one allocation made up front.

Not here: which rows may look at which columns (the model's mask), and when to start over (the
engine).
"""

import torch
from torch import Tensor


class KVCache:
    """Static key/value cache of all layers.

    ``k`` and ``v`` are (num_layers, B, Hkv, max_length, D); columns ``[0, length)`` are valid. Keys
    are stored after the rotary embedding.
    """

    def __init__(
        self,
        num_layers: int,
        batch_size: int,
        num_kv_heads: int,
        head_dim: int,
        max_length: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (num_layers, batch_size, num_kv_heads, max_length, head_dim)
        self.k = torch.empty(shape, dtype=dtype, device=device)
        self.v = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    @property
    def max_length(self) -> int:
        return self.k.shape[3]

    def append(self, layer_id: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write ``k``, ``v`` (B, T, Hkv, D) of one layer behind the valid columns.

        Returns:
            Keys and values of all tokens so far, each (B, Hkv, length + T, D), as views. The new
            columns count as valid only after ``advance``.
        Raises:
            ValueError: the cache is full.
        """
        end = self.length + k.shape[1]
        if end > self.max_length:
            raise ValueError(f"the cache holds {self.max_length} tokens, {end} were asked for")
        self.k[layer_id, :, :, self.length : end] = k.transpose(1, 2)
        self.v[layer_id, :, :, self.length : end] = v.transpose(1, 2)
        return self.k[layer_id, :, :, :end], self.v[layer_id, :, :, :end]

    def advance(self, num_tokens: int) -> None:
        """Count the columns that every layer has just written as valid."""
        self.length += num_tokens

    def truncate(self, length: int) -> None:
        """Forget all tokens from column ``length`` on."""
        self.length = min(self.length, length)
