"""A few rows times a quantized matrix on tensor cores (sm_80 and newer).

The weights are the left operand, so that rows of x fill the narrow side of the product: one row wastes no
more than the seven others of an 8-wide tile.
"""

import triton
import triton.language as tl

from triton_kernels.epilogue import apply_epilogue
from triton_kernels.unpacking import split_words, widen_bytes


@triton.jit(do_not_specialize=["M", "alpha"])
def dot_kernel(
    x_ptr,
    qweight_ptr,
    scales_ptr,
    zeros_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    M,
    N,
    K,
    stride_xm,
    alpha,
    factors_ptr,
    BITS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PLANE: tl.constexpr,
    SCALE_AFTER: tl.constexpr,
    USE_ASM: tl.constexpr,
):
    """One program computes a (BLOCK_M, BLOCK_N) tile of one split of K.

    x: (M, K) fp16. qweight: (N, K // 4) int16 or (N, K) uint8. scales, zeros (or None): (K // GROUP_SIZE, N),
    one row where GROUP_SIZE is None. bias: (N,) or None. residual: (M, N) or None. out: (splits, M, N).
    factors: (M,) fp32, what the product of each row is multiplied by, or None.
    The grid is (M tiles, N tiles, splits). PLANE weights go into a product at a time: 32 of 4 bits. SCALE_AFTER sums a
    group by itself, or 128 weights where GROUP_SIZE is None.
    The caller guarantees K % 128 == 0, a GROUP_SIZE that divides 128 or is a multiple of it, contiguous
    tensors but for the rows of x, and with more than one split no bias, residual or activation.
    """
    PLANES: tl.constexpr = 128 // PLANE
    split = tl.program_id(2)
    num_splits = tl.num_programs(2)
    # 64 bits for where a tile begins; inside a tile 32 suffice and take half the registers.
    first_m = tl.program_id(0).to(tl.int64) * BLOCK_M
    first_n = tl.program_id(1).to(tl.int64) * BLOCK_N
    offs_m = tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, PLANE)
    mask_m = offs_m < M - first_m.to(tl.int32)
    mask_n = offs_n < N - first_n.to(tl.int32)
    row_size = K // 4 if BITS == 4 else K
    offs_x = offs_m[None, :] * stride_xm + offs_k[:, None]
    offs_q = offs_n[:, None] * row_size + offs_k[None, :]
    x_ptr += first_m * stride_xm
    qweight_ptr += first_n * row_size
    scales_ptr += first_n
    if zeros_ptr is not None:
        zeros_ptr += first_n
    zero = tl.full([BLOCK_N], 1 << (BITS - 1), tl.float16)
    if GROUP_SIZE is None and zeros_ptr is not None:
        zero = tl.load(zeros_ptr + offs_n, mask=mask_n, other=0).to(tl.float16)

    num_blocks = K // 128
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for block in range(split * num_blocks // num_splits, (split + 1) * num_blocks // num_splits):
        if BITS == 4:
            words = tl.load(qweight_ptr + block * 32 + offs_q, mask=mask_n[:, None], other=0)
            planes = split_words(words, USE_ASM)
        part = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for p in tl.static_range(PLANES):
            k = block * 128 + p * PLANE
            if BITS == 4:
                w = planes[p]
                offset = 1024 if p % 2 == 0 else 64
            else:
                w = widen_bytes(tl.load(qweight_ptr + k + offs_q, mask=mask_n[:, None], other=0), USE_ASM)
                offset = 1024
            if GROUP_SIZE is not None and (p == 0 or p * PLANE % GROUP_SIZE == 0):
                group = k // GROUP_SIZE
                scale = tl.load(scales_ptr + group * N + offs_n, mask=mask_n, other=0)
                if zeros_ptr is not None:
                    zero = tl.load(zeros_ptr + group * N + offs_n, mask=mask_n, other=0).to(tl.float16)
            w -= (zero + offset)[:, None]
            x = tl.load(x_ptr + k + offs_x, mask=mask_m[None, :], other=0)
            if SCALE_AFTER:
                part = tl.dot(w, x, part)
                if GROUP_SIZE is None:
                    if p == PLANES - 1:
                        acc += part
                elif (p + 1) * PLANE % GROUP_SIZE == 0 or p == PLANES - 1:
                    acc += part * scale.to(tl.float32)[:, None]
                    part = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            elif GROUP_SIZE is None:
                acc = tl.dot(w, x, acc)
            else:
                acc = tl.dot(w * scale.to(tl.float16)[:, None], x, acc)
    if GROUP_SIZE is None:
        acc *= tl.load(scales_ptr + offs_n, mask=mask_n, other=0).to(tl.float32)[:, None]
    if factors_ptr is not None:
        acc *= tl.load(factors_ptr + first_m + offs_m, mask=mask_m, other=0)[None, :]

    mask = mask_n[:, None] & mask_m[None, :]
    bias = None
    residual = None
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + first_n + offs_n, mask=mask_n, other=0).to(tl.float32)[:, None]
    offsets = offs_m[None, :] * N + offs_n[:, None]
    first = first_m * N + first_n
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + first + offsets, mask=mask, other=0).to(tl.float32)
    acc = apply_epilogue(acc, bias, residual, alpha, ACTIVATION)
    out_ptr += split.to(tl.int64) * M * N + first
    tl.store(out_ptr + offsets, acc.to(out_ptr.dtype.element_ty), mask=mask)
