"""From the projection of a new token to its query and to the cache: rotary embedding and write in one."""

import triton
import triton.language as tl


@triton.jit
def store_head(x, cache_ptr, scales_ptr, entry, offs_d, HEAD_DIM: tl.constexpr, INT8: tl.constexpr):
    """Write a head (HEAD_DIM,) to a cache, as it is or as integers with a scale of its own."""
    if INT8:
        wide = x.to(tl.float32)
        scale = tl.maximum(tl.div_rn(tl.max(tl.abs(wide), axis=0), 127.0), 5.9604644775390625e-08).to(tl.float16)
        tl.store(scales_ptr + entry, scale)
        # Adding and taking away 1.5 * 2**23 leaves the nearest integer, ties to even.
        quotient = tl.div_rn(wide, tl.zeros_like(wide) + scale.to(tl.float32))
        nearest = (quotient + 12582912.0) - 12582912.0
        tl.store(cache_ptr + entry * HEAD_DIM + offs_d, tl.minimum(tl.maximum(nearest, -127), 127).to(tl.int8))
    else:
        tl.store(cache_ptr + entry * HEAD_DIM + offs_d, x)


@triton.jit(do_not_specialize=["num_heads", "num_kv_heads", "max_length"])
def rotary_kernel(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    positions_ptr,
    slots_ptr,
    columns_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    k_scales_ptr,
    v_scales_ptr,
    num_heads,
    num_kv_heads,
    max_length,
    HEAD_DIM: tl.constexpr,
    TWO_DIMENSIONAL: tl.constexpr,
    INT8: tl.constexpr,
):
    """One program handles one head of one row: a query is rotated, a key rotated and kept, a value kept.

    qkv: (B, (H + 2 Hkv) D), a float; [q | k | v] head by head where TWO_DIMENSIONAL, else all queries, keys, values.
    cos, sin: (positions, D / 4) fp32. positions: (B, 2 or 1) int64, where TWO_DIMENSIONAL one for each half of
    a head. slots, columns: (B,) int64, where a row's cache is and where it is written. q: (B, H, D).
    k, v: (slots, Hkv, max_length, D) of the same float, or int8 with scales (slots, Hkv, max_length) fp16. The grid is
    (B, H + 2 Hkv). The caller guarantees contiguous tensors, D a power of two, and slots, columns and positions
    that exist.
    """
    QUARTER: tl.constexpr = HEAD_DIM // 4
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    is_query = part < num_heads
    is_value = part >= num_heads + num_kv_heads
    head = tl.where(is_query, part, tl.where(is_value, part - num_heads - num_kv_heads, part - num_heads))
    offs_d = tl.arange(0, HEAD_DIM)
    if TWO_DIMENSIONAL:  # element i of a half pairs with i + D / 4; each half has a position of its own
        kind = tl.where(is_query, 0, tl.where(is_value, 2, 1))
        start = (3 * head + kind) * HEAD_DIM
        angle = offs_d % QUARTER
        second = offs_d // QUARTER % 2
        partner = offs_d + QUARTER * (1 - 2 * second)
        position = tl.load(positions_ptr + 2 * row + offs_d // (2 * QUARTER))
        rotated = offs_d >= 0
    else:  # neighbours of the first half are pairs; the second half stays
        start = part * HEAD_DIM
        angle = offs_d // 2 % QUARTER
        second = offs_d % 2
        partner = offs_d + 1 - 2 * second
        position = tl.load(positions_ptr + row + tl.zeros_like(offs_d))
        rotated = offs_d < 2 * QUARTER
    source_ptr = qkv_ptr + row * (num_heads + 2 * num_kv_heads) * HEAD_DIM + start
    x = tl.load(source_ptr + offs_d)
    entry = (tl.load(slots_ptr + row) * num_kv_heads + head) * max_length + tl.load(columns_ptr + row)
    if is_value:
        store_head(x, v_ptr, v_scales_ptr, entry, offs_d, HEAD_DIM, INT8)
    else:
        cos = tl.load(cos_ptr + position * QUARTER + angle, mask=rotated, other=1)
        sin = tl.load(sin_ptr + position * QUARTER + angle, mask=rotated, other=0)
        other = tl.load(source_ptr + partner).to(tl.float32)
        turned = (x.to(tl.float32) * cos + other * sin * (2 * second - 1).to(tl.float32)).to(x.dtype)
        if is_query:
            tl.store(q_ptr + (row * num_heads + head) * HEAD_DIM + offs_d, turned)
        else:
            store_head(turned, k_ptr, k_scales_ptr, entry, offs_d, HEAD_DIM, INT8)
