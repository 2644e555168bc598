"""A cache whose batch is a row of slots: every sequence has one to itself, at its own length.

So sequences can come and go while others run. Which sequence gets which slot, and when, is decided in
``generation/continuous.py``.
"""

import numpy as np
import torch
from torch import Tensor

from glm_int4.models.kv_cache import KVCache, quantize_heads


class SlotCache(KVCache):
    """A ``KVCache`` of which every row of the batch is a slot; its own ``length`` means nothing."""

    def slot(self, index: int) -> KVCache:
        """One slot as a cache of one sequence, of length 0, in the same memory."""
        view = KVCache.__new__(KVCache)
        part = slice(index, index + 1)
        view.k, view.v = self.k[:, part], self.v[:, part]
        view.k_scales, view.v_scales = self.k_scales[:, part], self.v_scales[:, part]
        view.length = 0
        return view


class RunningRows:
    """Slots whose sequences take one new token together.

    Attributes:
        cache: all slots. slots: (B,) int64, the row's slot. columns: (B,) int64, the slot's column for the new
            token. ends: (B,) int64, columns that it holds with it. numbers: slots and ends as numbers, which
            need not wait for a device.
    """

    def __init__(self, cache: SlotCache, slots: list[int], lengths: list[int]) -> None:
        device = cache.k.device
        if max(lengths) >= cache.max_length:
            raise ValueError(f"a slot holds {cache.max_length} tokens, {max(lengths) + 1} were asked for")
        self.cache = cache
        self.numbers = [(slot, length + 1) for slot, length in zip(slots, lengths, strict=True)]
        self.slots = torch.tensor(slots, device=device)
        self.columns = torch.tensor(lengths, device=device)
        self.ends = self.columns + 1

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored keys and values."""
        return self.cache.dtype

    def places(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Of every row, its slot and the column of its new token."""
        return self.slots, self.columns

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """All slots' keys, values and scales; as of ``KVCache``."""
        return self.cache.arrays()

    def append(self, layer_id: int, k: Tensor, v: Tensor) -> None:
        """Write ``k``, ``v`` (B, 1, Hkv, D) of one layer behind each row's columns."""
        cache = self.cache
        for x, values, scales in ((k, cache.k, cache.k_scales), (v, cache.v, cache.v_scales)):
            x = x[:, 0]
            if cache.dtype == torch.int8:
                x, scales[layer_id][self.slots, :, self.columns] = quantize_heads(x)
            values[layer_id][self.slots, :, self.columns] = x.to(cache.dtype)
