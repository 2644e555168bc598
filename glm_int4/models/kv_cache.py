"""Keys and values of the tokens seen so far, in one allocation made up front.

A batch is either rows that grow together (``KVCache``) or slots: every sequence has one to itself, at its own length,
so that sequences can come and go while others run (``SlotCache``). Not here: who may look at which columns of a prompt
(``attention.py``), when to start over (``generation/decoding.py``), and which sequence gets which slot
(``generation/continuous.py``).
"""

import numpy as np
import torch
from torch import Tensor


def kv_bytes_per_token(num_layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes that a token takes in a cache of ``dtype``; int8 has a float16 scale for every head."""
    scale_bytes = torch.float16.itemsize if dtype == torch.int8 else 0
    return 2 * num_layers * num_kv_heads * (head_dim * dtype.itemsize + scale_bytes)


def quantize_heads(x: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -127 to 127, of x's shape (..., D) and dtype, and their float16 scales (...)."""
    scale = (x.abs().amax(-1).float() / 127).clamp(min=2.0**-24).half()
    return (x / scale[..., None].float()).round_().clamp_(-127, 127), scale


class KVCache:
    """Static key/value cache of all layers.

    ``k`` and ``v`` are (num_layers, B, Hkv, max_length, D); columns ``[0, length)`` are valid. Keys
    are stored after the rotary embedding. With dtype int8, ``k_scales`` and ``v_scales`` hold a float16
    for every token and head, (num_layers, B, Hkv, max_length); otherwise max_length is 0 in them.
    ``prefix_length`` columns of a prefix come first, which every row sees; behind them, the leading ``padding``
    columns (B,) are hidden from a row, if it is not None.
    """

    prefix_length = 0
    padding: Tensor | None = None

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
        heads = (num_layers, batch_size, num_kv_heads)
        self.k = torch.empty(*heads, max_length, head_dim, dtype=dtype, device=device)
        self.v = torch.empty_like(self.k)
        num_scales = max_length if dtype == torch.int8 else 0
        self.k_scales = torch.empty(*heads, num_scales, dtype=torch.float16, device=device)
        self.v_scales = torch.empty_like(self.k_scales)
        self.length = 0

    @property
    def max_length(self) -> int:
        """Columns in all."""
        return self.k.shape[3]

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored keys and values."""
        return self.k.dtype

    def append(self, layer_id: int, k: Tensor, v: Tensor) -> int:
        """Write ``k``, ``v`` (B, T, Hkv, D) of one layer behind the valid columns.

        Returns:
            The number of columns written so far, ``length + T``. They count as valid only after
            ``advance``.
        Raises:
            ValueError: the cache is full.
        """
        end = self.check_room(k.shape[1])
        new = slice(self.length, end)
        for x, values, scales in ((k, self.k, self.k_scales), (v, self.v, self.v_scales)):
            x = x.transpose(1, 2)
            if self.dtype == torch.int8:
                x, scales[layer_id, :, :, new] = quantize_heads(x)
            values[layer_id, :, :, new] = x
        return end

    def check_room(self, num_tokens: int) -> int:
        """The length with so many tokens more; raises ValueError where they do not fit."""
        end = self.length + num_tokens
        if end > self.max_length:
            raise ValueError(f"the cache holds {self.max_length} tokens, {end} were asked for")
        return end

    def places(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Of every row, its place in the batch and the column of its next token; raises as ``check_room``."""
        self.check_room(1)
        rows = torch.arange(batch_size)
        return rows, torch.full_like(rows, self.length)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Keys, values and their scales as the memory of a CPU holds them; float16 as its bits."""
        k, v, k_scales, v_scales = (
            (x.view(torch.uint16) if x.dtype == torch.float16 else x).numpy()
            for x in (self.k, self.v, self.k_scales, self.v_scales)
        )
        return k, v, k_scales, v_scales

    def write_prefix(self, k: Tensor, v: Tensor) -> None:
        """Begin every sequence of an empty cache with a prefix (num_layers, Hkv, P, D)."""
        batch_size = self.k.shape[1]
        for layer_id, pair in enumerate(zip(k, v, strict=True)):
            keys, values = (x.transpose(0, 1).expand(batch_size, -1, -1, -1) for x in pair)
            self.append(layer_id, keys, values)
        self.advance(k.shape[2])
        self.prefix_length = k.shape[2]

    def read(self, layer_id: int, end: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer's first ``end`` columns, each (B, Hkv, end, D) of ``dtype``.

        They are views where the cache has this dtype, copies otherwise.
        """
        pairs = []
        for values, scales in ((self.k, self.k_scales), (self.v, self.v_scales)):
            x = values[layer_id, :, :, :end].to(dtype)
            if self.dtype == torch.int8:
                x *= scales[layer_id, :, :, :end, None]
            pairs.append(x)
        return pairs[0], pairs[1]

    def advance(self, num_tokens: int) -> None:
        """Count the columns that every layer has just written as valid."""
        self.length += num_tokens

    def truncate(self, length: int) -> None:
        """Forget all tokens from column ``length`` on."""
        self.length = min(self.length, length)


class SlotCache(KVCache):
    """A ``KVCache`` of which every row of the batch is a slot; its own ``length`` means nothing."""

    def slot(self, index: int) -> KVCache:
        """One slot as a cache of one sequence, of length 0, in the same memory."""
        view = KVCache.__new__(KVCache)
        part = slice(index, index + 1)
        view.k, view.v = self.k[:, part], self.v[:, part]
        view.k_scales, view.v_scales = self.k_scales[:, part], self.v_scales[:, part]
        view.length, view.prefix_length = 0, self.prefix_length
        return view


def copy_columns(source: KVCache, target: KVCache, length: int) -> None:
    """Give one slot the first ``length`` columns of another, and that length."""
    for name in ("k", "v", "k_scales", "v_scales"):
        getattr(target, name)[:, :, :, :length] = getattr(source, name)[:, :, :, :length]
    target.length = length


class RunningRows:
    """Slots whose sequences take one new token together.

    Attributes:
        cache: all slots. slots: (B,) int64, the row's slot. columns: (B,) int64, the slot's column for the new
            token. ends: (B,) int64, columns that it holds with it. numbers: slots and ends as numbers, which
            need not wait for a device. prefix_length: of the cache. padding: None, no row has any.
    """

    padding = None

    def __init__(self, cache: SlotCache, slots: list[int], lengths: list[int]) -> None:
        device = cache.k.device
        if max(lengths) >= cache.max_length:
            raise ValueError(f"a slot holds {cache.max_length} tokens, {max(lengths) + 1} were asked for")
        self.cache, self.prefix_length = cache, cache.prefix_length
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
