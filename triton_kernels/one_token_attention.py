"""Attention of one new token to a cache, split over the cache's columns.

Splits have the same columns whatever the length, and are merged in their order: the same cache gives the same
bits, from run to run and whatever bound of the length a launch was made for.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_splits", "prefix_length", "softmax_scale", "max_length"])
def attend_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    k_scales_ptr,
    v_scales_ptr,
    slots_ptr,
    lengths_ptr,
    padding_ptr,
    parts_ptr,
    stats_ptr,
    num_kv_heads,
    max_length,
    num_splits,
    prefix_length,
    softmax_scale,
    HEADS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_S: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    INT8: tl.constexpr,
):
    """One program computes one split of BLOCK_S columns, for one query head or for all that share a key head.

    q: (B, Hkv * HEADS, D) of any float, of 16 bits on tensor cores. k, v: (slots, Hkv, max_length, D) of the same
    float, or int8 with scales (slots, Hkv, max_length) fp16. slots, lengths: (B,) int64, where a row's cache is and
    its valid columns. padding: (B,) int64, columns that a row does not see, behind the first prefix_length ones.
    parts: (B, H, num_splits, D) and stats: (B, H, num_splits, 2) fp32 receive the weighted values, the largest score
    and the sum of weights; not of splits behind the row's length. The grid is (B, Hkv, num_splits), HEADS query heads
    on tensor cores, where BLOCK_H >= 16; with BLOCK_H 1 it is (B, H, num_splits). The caller guarantees contiguous
    tensors, D a power of two of 16 or more.
    """
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(2)
    length = tl.load(lengths_ptr + row).to(tl.int32)
    offs_s = split * BLOCK_S + tl.arange(0, BLOCK_S)
    if split * BLOCK_S < length:
        offs_d = tl.arange(0, HEAD_DIM)
        kv_head = tl.program_id(1) if BLOCK_H > 1 else tl.program_id(1) // HEADS
        padding = tl.load(padding_ptr + row).to(tl.int32)
        visible = (offs_s < length) & ((offs_s < prefix_length) | (offs_s >= prefix_length + padding))
        entry = (tl.load(slots_ptr + row) * num_kv_heads + kv_head) * max_length + offs_s
        k = tl.load(k_ptr + entry[:, None] * HEAD_DIM + offs_d[None, :], mask=visible[:, None], other=0)
        v = tl.load(v_ptr + entry[:, None] * HEAD_DIM + offs_d[None, :], mask=visible[:, None], other=0)
        score_scale = tl.zeros([BLOCK_S], tl.float32) + softmax_scale
        if INT8:
            score_scale *= tl.load(k_scales_ptr + entry, mask=visible, other=0).to(tl.float32)
            v_scale = tl.load(v_scales_ptr + entry, mask=visible, other=0).to(tl.float32)
        first_head = row * num_kv_heads * HEADS
        if BLOCK_H == 1:
            head = first_head + tl.program_id(1)
            q = tl.load(q_ptr + head * HEAD_DIM + offs_d).to(tl.float32)
            scores = tl.sum(k.to(tl.float32) * q[None, :], axis=1) * score_scale
            scores = tl.where(visible, scores, -float("inf"))
            largest = tl.max(scores, axis=0)
            weights = tl.exp(scores - tl.where(largest > -float("inf"), largest, 0))
            total = tl.sum(weights, axis=0)
            if INT8:
                weights *= v_scale
            out = tl.sum(weights[:, None] * v.to(tl.float32), axis=0)
            part = head * num_splits + split
            tl.store(parts_ptr + part * HEAD_DIM + offs_d, out)
            tl.store(stats_ptr + 2 * part, largest)
            tl.store(stats_ptr + 2 * part + 1, total)
        else:
            offs_h = tl.arange(0, BLOCK_H)
            mask_h = offs_h < HEADS
            head = first_head + kv_head * HEADS + offs_h
            q = tl.load(q_ptr + head[:, None] * HEAD_DIM + offs_d[None, :], mask=mask_h[:, None], other=0)
            scores = tl.dot(q, tl.trans(k.to(q.dtype))) * score_scale[None, :]
            scores = tl.where(visible[None, :], scores, -float("inf"))
            largest = tl.max(scores, axis=1)
            weights = tl.exp(scores - tl.where(largest > -float("inf"), largest, 0)[:, None])
            total = tl.sum(weights, axis=1)
            if INT8:
                weights *= v_scale[None, :]
            out = tl.dot(weights.to(q.dtype), v.to(q.dtype))
            part = head * num_splits + split
            tl.store(parts_ptr + part[:, None] * HEAD_DIM + offs_d[None, :], out, mask=mask_h[:, None])
            tl.store(stats_ptr + 2 * part, largest, mask=mask_h)
            tl.store(stats_ptr + 2 * part + 1, total, mask=mask_h)


@triton.jit(do_not_specialize=["num_splits", "num_heads"])
def merge_kernel(
    parts_ptr,
    stats_ptr,
    lengths_ptr,
    out_ptr,
    num_splits,
    num_heads,
    BLOCK_S: tl.constexpr,
    BLOCK_P: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """One program merges the splits of one head, BLOCK_P at a time: out (B, H, D), a float; see ``attend_kernel``."""
    head = tl.program_id(0).to(tl.int64)
    offs_d = tl.arange(0, HEAD_DIM)
    offs_p = tl.arange(0, BLOCK_P)
    used = tl.cdiv(tl.load(lengths_ptr + head // num_heads).to(tl.int32), BLOCK_S)
    stats_ptr += head * num_splits * 2
    parts_ptr += head * num_splits * HEAD_DIM
    largest = tl.full([BLOCK_P], -float("inf"), tl.float32)
    for start in range(0, used, BLOCK_P):
        mask = start + offs_p < used
        largest = tl.maximum(largest, tl.load(stats_ptr + 2 * (start + offs_p), mask=mask, other=-float("inf")))
    top = tl.max(largest, axis=0)
    total = tl.zeros([BLOCK_P], tl.float32)
    acc = tl.zeros([BLOCK_P, HEAD_DIM], tl.float32)
    for start in range(0, used, BLOCK_P):
        mask = start + offs_p < used
        weight = tl.exp(tl.load(stats_ptr + 2 * (start + offs_p), mask=mask, other=-float("inf")) - top)
        total += weight * tl.load(stats_ptr + 2 * (start + offs_p) + 1, mask=mask, other=0)
        part_ptrs = parts_ptr + (start + offs_p)[:, None] * HEAD_DIM + offs_d[None, :]
        acc += weight[:, None] * tl.load(part_ptrs, mask=mask[:, None], other=0)
    out = tl.sum(acc, axis=0) / tl.sum(total, axis=0)
    tl.store(out_ptr + head * HEAD_DIM + offs_d, out.to(out_ptr.dtype.element_ty))
