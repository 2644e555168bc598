"""Numba loop of one-token attention over a half-precision or INT8 cache on a CPU.

Torch's attention takes 3 to 7 times as long for one token in float16 or bfloat16 as in float32, and a
float32 cache takes twice the memory. Float16 comes as its bits, which Numba has no type for.
"""

import numba
import numpy as np
from numba import types
from numba.extending import overload

from glm_int4.quantization.cpu.float32_loops import _half

_HALF_TO_FLOAT = np.float32(2.0**112)
_LOWEST = np.float32(-3.0e38)  # fastmath knows no infinity


def _to_float(value):
    raise TypeError("only for compiled loops")  # pragma: no cover


@overload(_to_float, inline="always")
def _overload_to_float(value):
    """Float32 of a float16's bits (shift the fields, then re-bias by scaling), or of an int8."""
    if value == types.uint16:

        def from_half(value):
            bits = np.uint32(value)
            magnitude = np.uint32(bits & np.uint32(0x7FFF)) << np.uint32(13)
            sign = np.uint32(bits & np.uint32(0x8000)) << np.uint32(16)
            return np.uint32(magnitude | sign).view(np.float32) * _HALF_TO_FLOAT

        return from_half
    return lambda value: np.float32(np.int32(value))


@numba.njit(parallel=True, cache=True, fastmath=True)
def one_token_attention(q, k, v, k_scales, v_scales, slots, ends, padding, prefix_length, softmax_scale, out):
    """out[b, h] = softmax(q[b, h] . k[s, g] * softmax_scale) @ v[s, g], with g the head's key/value head.

    q, out: (B, H, D) float32. k, v: (slots, Hkv, S, D) float16 bits or int8. k_scales, v_scales: (slots, Hkv,
    S) float16 bits, or (slots, Hkv, 0) where k and v need none. slots: (B,) the slot s of each row. ends: (B,)
    columns that are written. padding: (B,) columns that are hidden, the leading ones behind the first
    ``prefix_length``.
    """
    batch_size, num_heads, head_dim = q.shape
    heads_per_group = num_heads // k.shape[1]
    scaled = k_scales.shape[2] > 0
    for task in numba.prange(batch_size * num_heads):
        row, head = task // num_heads, task % num_heads
        slot, group, hidden = slots[row], head // heads_per_group, padding[row]
        query, count = q[row, head], ends[row] - hidden
        keys, values = k[slot, group], v[slot, group]
        weights = np.empty(count, dtype=np.float32)
        largest = _LOWEST
        for i in range(count):
            column = i if i < prefix_length else i + hidden
            key = keys[column]
            score = np.float32(0.0)
            for d in range(head_dim):
                score += _to_float(key[d]) * query[d]
            score *= softmax_scale
            if scaled:
                score *= _half(k_scales[slot, group, column])
            weights[i] = score
            largest = max(largest, score)
        total = np.float32(0.0)
        acc = np.zeros(head_dim, dtype=np.float32)
        for i in range(count):
            column = i if i < prefix_length else i + hidden
            weight = np.exp(weights[i] - largest)
            total += weight
            if scaled:
                weight *= _half(v_scales[slot, group, column])
            value = values[column]
            for d in range(head_dim):
                acc[d] += weight * _to_float(value[d])
        target = out[row, head]
        for d in range(head_dim):
            target[d] = acc[d] / total
