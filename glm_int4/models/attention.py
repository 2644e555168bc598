"""Masked attention, with and without a cache, for all versions.

Scores are never materialized, keys and values never repeated for the heads that share them.
"""

import math
import threading
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends import cuda

from glm_int4.models.kv_cache import KVCache, RunningRows
from glm_int4.models.past import AttentionMask, Past
from glm_int4.quantization.cpu.threads import has_numba, numba_threads

# The official value for scores of invisible columns; finite, so that a fully masked row stays a number.
MASKED_SCORE = -10000.0


def attention_mask_func(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn an official mask (True = masked) into additive scores of ``dtype``, same shape."""
    return torch.zeros(attention_mask.shape, dtype=dtype, device=attention_mask.device).masked_fill_(
        attention_mask, MASKED_SCORE
    )


def attention_fn(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
    """Masked attention with scale ``1 / sqrt(D)``.

    Args:
        q: (B, H, T, D), the last T tokens.
        k, v: (B, Hkv, S, D), all tokens; query head h uses key/value head ``h // (H / Hkv)``.
        mask: who sees whom.
    Returns:
        (B, T, H * D).
    """
    num_new, num_all = q.shape[2], k.shape[2]
    if mask.bias is not None:
        out = _attend(q, k, v, mask.bias)
    elif num_new == 1:
        visible = None
        if mask.padding is not None:
            column = torch.arange(num_all, device=q.device) - mask.prefix_length
            visible = (column < 0) | (column >= mask.padding[:, None, None, None])
        out = _attend(q, k, v, visible)
    else:
        out = _prefix_attention(q, k, v, first_row=num_all - num_new, context_length=mask.context_length)
    return out.transpose(1, 2).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, past: Past, layer_id: int) -> Tensor:
    """Attention of new tokens to what came before them and to themselves.

    Args:
        q: (B, T, H, D). k, v: (B, T, Hkv, D), after the rotary embedding.
        past: a cache, or slots of one, which are extended; or a prefix alone, whose keys stay unrotated.
    Returns:
        (B, T, H * D) of q's dtype.
    """
    if isinstance(past, RunningRows):
        return running_attention(q, k, v, past, layer_id)
    if isinstance(past, KVCache):
        return cached_attention(q, k, v, mask, past, layer_id)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if past is not None:
        k, v = past.join(layer_id, k, v)
    return attention_fn(q, k, v, mask)


def cached_attention(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, cache: KVCache, layer_id: int) -> Tensor:
    """Write new keys and values to the cache and attend to all of it.

    Args:
        q: (B, T, H, D). k, v: (B, T, Hkv, D), after the rotary embedding.
    Returns:
        (B, T, H * D) of q's dtype.
    """
    end = cache.append(layer_id, k, v)
    if _has_loop(q, cache):
        slots = torch.arange(q.shape[0])
        return _one_token_attention(q[:, 0], cache, layer_id, slots, torch.full_like(slots, end - 1), mask)[:, None]
    keys, values = cache.read(layer_id, end, q.dtype)
    return attention_fn(q.transpose(1, 2), keys, values, mask)


def running_attention(q: Tensor, k: Tensor, v: Tensor, rows: RunningRows, layer_id: int) -> Tensor:
    """Attention of one new token a row, each row to its own slot; arguments as of ``cached_attention``."""
    rows.append(layer_id, k, v)
    mask = AttentionMask()
    if _has_loop(q, rows.cache):
        return _one_token_attention(q[:, 0], rows.cache, layer_id, rows.slots, rows.columns, mask)[:, None]
    parts = []
    for query, (slot, end) in zip(q.transpose(1, 2), rows.numbers, strict=True):
        keys, values = rows.cache.slot(slot).read(layer_id, end, q.dtype)
        parts.append(attention_fn(query[None], keys, values, mask))
    return torch.cat(parts)


def _one_token_attention(
    q: Tensor, cache: KVCache, layer_id: int, slots: Tensor, columns: Tensor, mask: AttentionMask
) -> Tensor:
    """Attention (B, H, D) to (B, H * D) in a Numba loop that reads the cache as it is stored.

    Args:
        slots: (B,) int64, each row's place in the cache's batch. columns: (B,) int64, the new token's column there.
    """
    from glm_int4.models import cpu_step_loops

    out = torch.empty(q.shape[0], q.shape[1] * q.shape[2])
    padding = torch.zeros(q.shape[0], dtype=torch.int64) if mask.padding is None else mask.padding
    stored = (part[layer_id] for part in cache.arrays())
    places = (slots.numpy(), columns.numpy(), padding.numpy(), mask.prefix_length)
    softmax_scale = np.float32(1 / math.sqrt(q.shape[-1]))
    with numba_threads():
        cpu_step_loops.attend_to_cache(q.contiguous().numpy(), *stored, *places, softmax_scale, out.numpy())
    return out


def _has_loop(q: Tensor, cache: KVCache) -> bool:
    """Whether the Numba loop of one-token attention takes this."""
    small = cache.dtype in (torch.float16, torch.int8) and q.device.type == "cpu"
    return q.shape[1] == 1 and small and q.dtype == torch.float32 and has_numba()


def _prefix_attention(q: Tensor, k: Tensor, v: Tensor, *, first_row: int, context_length: int) -> Tensor:
    """Context rows attend to the whole context, later rows causally: two calls, no mask for the first."""
    num_context_rows = min(max(context_length - first_row, 0), q.shape[2])
    parts = []
    if num_context_rows:
        context = slice(0, context_length)
        parts.append(_attend(q[:, :, :num_context_rows], k[:, :, context], v[:, :, context]))
    if num_context_rows < q.shape[2]:
        parts.append(_causal_attention(q[:, :, num_context_rows:], k, v))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The last T rows of a causal triangle over S columns."""
    num_rows, num_columns = q.shape[2], k.shape[2]
    if num_rows == num_columns:
        return _attend(q, k, v, is_causal=True)
    if q.device.type != "cpu" and num_rows > 1:
        return _lower_right_attention(q, k, v)
    bias = None
    if num_rows > 1:  # as numbers: torch takes 3 times as long on a CPU for the same mask as booleans
        hidden = torch.ones(num_rows, num_columns, dtype=torch.bool, device=q.device).triu(num_columns - num_rows + 1)
        bias = attention_mask_func(hidden, q.dtype)
    return _attend(q, k, v, bias)


def _lower_right_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As ``_causal_attention`` without a mask, which only the slower one of a GPU's kernels takes."""
    # Here, because it imports torch's compiler and Triton: a second and 0.1 GB that nothing else needs.
    from torch.nn.attention.bias import causal_lower_right

    return _attend(q, k, v, causal_lower_right(q.shape[2], k.shape[2]), flash_takes_mask=True)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    flash_takes_mask: bool = False,
) -> Tensor:
    """Attention (B, H, T, D); the mask's third dimension may be 1 or T."""
    if q.shape[1] == k.shape[1]:
        return _torch_attention(q, k, v, mask, is_causal=is_causal)
    if q.device.type == "cpu" or ((mask is None or flash_takes_mask) and _flash_takes(q, k, v)):
        return _torch_attention(q, k, v, mask, is_causal=is_causal, enable_gqa=True)
    return _attend_by_key_head(q, k, v, mask, is_causal=is_causal)


def _attend_by_key_head(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, is_causal: bool) -> Tensor:
    """As ``_attend``, for kernels that know no shared keys: the heads that share some are given them as views.

    Otherwise torch would write keys and values out for every head, and all scores in float32.
    """
    num_heads = q.shape[1] // k.shape[1]
    parts = []
    for query, keys, values in zip(q.split(num_heads, dim=1), k.split(1, dim=1), v.split(1, dim=1), strict=True):
        keys, values = (x.expand(-1, num_heads, -1, -1) for x in (keys, values))
        parts.append(_torch_attention(query, keys, values, mask, is_causal=is_causal).transpose(1, 2))
    return torch.cat(parts, dim=2).transpose(1, 2)


def _flash_takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether flash attention, the one of a GPU's kernels that knows shared keys, runs here: from sm_80 on, in half."""
    return torch.backends.cuda.can_use_flash_attention(torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, False, True))


class _OtherThanCudnn:
    """Entered, a GPU's attention runs by any of torch's ways but cuDNN's.

    Which torch prefers on compute capability 9 and 10, and which makes a plan of some 0.4 s for every new shape.
    torch keeps the choice for the whole process: of threads that are in here together, the last one gives it back.
    """

    # What says whether a way may be taken, what changes that, and whether it may be here.
    _WAYS = (
        (cuda.flash_sdp_enabled, cuda.enable_flash_sdp, True),
        (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp, True),
        (cuda.math_sdp_enabled, cuda.enable_math_sdp, True),
        (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp, False),
    )

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, [False] * len(self._WAYS)

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = [enabled() for enabled, _, _ in self._WAYS]
                for _, enable, here in self._WAYS:
                    enable(here)
            self._inside += 1

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                for (_, enable, _), before in zip(self._WAYS, self._before, strict=True):
                    enable(before)


_other_than_cudnn = _OtherThanCudnn()


def _torch_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, is_causal: bool, enable_gqa: bool = False
) -> Tensor:
    """The one call of torch's attention."""
    with _other_than_cudnn if q.is_cuda else nullcontext():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=enable_gqa)
