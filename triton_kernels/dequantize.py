"""From a quantized matrix to fp16 or bfloat16 weights, for products that a library does better."""

import triton
import triton.language as tl

from triton_kernels.unpacking import split_words, widen_bytes


@triton.jit(do_not_specialize=["first_row", "num_rows"])
def dequantize_kernel(
    qweight_ptr,
    scales_ptr,
    zeros_ptr,
    out_ptr,
    first_row,
    num_rows,
    N,
    K,
    BITS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PLANE: tl.constexpr,
    USE_ASM: tl.constexpr,
):
    """One program writes BLOCK_N rows of 128 weights, rounded to fp16 once (and from there to bfloat16).

    qweight, scales, zeros, GROUP_SIZE, PLANE and what the caller guarantees: as ``dot_kernel``.
    out: (num_rows, K), which are the rows of the matrix from first_row on.
    """
    block = tl.program_id(0)
    first = tl.program_id(1).to(tl.int64) * BLOCK_N
    offs_n = tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, PLANE)
    mask_n = first + offs_n < num_rows
    mask = mask_n[:, None]
    row_size = K // 4 if BITS == 4 else K
    q_ptrs = qweight_ptr + (first_row + first) * row_size + offs_n[:, None] * row_size + offs_k[None, :]
    column = first_row + first + offs_n
    if BITS == 4:
        planes = split_words(tl.load(q_ptrs + block * 32, mask=mask, other=0), USE_ASM)
    for p in tl.static_range(128 // PLANE):
        k = block * 128 + p * PLANE
        if BITS == 4:
            w = planes[p]
            offset = 1024 if p % 2 == 0 else 64
        else:
            w = widen_bytes(tl.load(q_ptrs + k, mask=mask, other=0), USE_ASM)
            offset = 1024
        group = 0 if GROUP_SIZE is None else k // GROUP_SIZE
        scale = tl.load(scales_ptr + group * N + column, mask=mask_n, other=0).to(tl.float16)
        zero = tl.full([BLOCK_N], 1 << (BITS - 1), tl.float16)
        if zeros_ptr is not None:
            zero = tl.load(zeros_ptr + group * N + column, mask=mask_n, other=0).to(tl.float16)
        w = (w - (zero + offset)[:, None]) * scale[:, None]
        tl.store(out_ptr + first * K + offs_n[:, None] * K + k + offs_k[None, :], w, mask=mask)
