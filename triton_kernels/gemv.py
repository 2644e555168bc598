"""A few rows times a quantized matrix without tensor cores: the small-M kernel where Triton has none (sm_75)."""

import triton
import triton.language as tl

from triton_kernels.epilogue import apply_epilogue
from triton_kernels.unpacking import split_words, widen_bytes


@triton.jit(do_not_specialize=["M", "alpha"])
def gemv_kernel(
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
    BITS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PLANE: tl.constexpr,
    USE_ASM: tl.constexpr,
):
    """One program computes BLOCK_M rows and BLOCK_N columns of one split of K; arguments as ``dot_kernel``.

    x may be of any float, since it is multiplied in fp32.

    Every thread keeps the sums of its own k; they are added up across threads once, at the end. Rows of x
    stay one-dimensional, so that each thread loads what it needs and nothing goes through shared memory.
    A row that M does not have repeats the last one and is not stored.
    """
    PLANES: tl.constexpr = 128 // PLANE
    split = tl.program_id(2)
    num_splits = tl.num_programs(2)
    first_m = tl.program_id(0) * BLOCK_M
    first_n = tl.program_id(1).to(tl.int64) * BLOCK_N
    offs_n = tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, PLANE)
    mask_n = offs_n < N - first_n.to(tl.int32)
    row_size = K // 4 if BITS == 4 else K
    offs_q = offs_n[:, None] * row_size + offs_k[None, :]
    qweight_ptr += first_n * row_size
    scales_ptr += first_n
    if zeros_ptr is not None:
        zeros_ptr += first_n
    zero = tl.full([BLOCK_N], 1 << (BITS - 1), tl.float16)
    if GROUP_SIZE is None and zeros_ptr is not None:
        zero = tl.load(zeros_ptr + offs_n, mask=mask_n, other=0).to(tl.float16)

    num_blocks = K // 128
    zeros = (tl.zeros([BLOCK_N, PLANE], tl.float32),) * BLOCK_M
    sums = zeros
    for block in range(split * num_blocks // num_splits, (split + 1) * num_blocks // num_splits):
        if BITS == 4:
            words = tl.load(qweight_ptr + block * 32 + offs_q, mask=mask_n[:, None], other=0)
            planes = split_words(words, USE_ASM)
        parts = sums if GROUP_SIZE is None else zeros
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
            w = (w - (zero + offset)[:, None]).to(tl.float32)
            new = ()
            for m in tl.static_range(BLOCK_M):
                row = tl.minimum(first_m + m, M - 1).to(tl.int64)
                x = tl.load(x_ptr + row * stride_xm + k + offs_k).to(tl.float32)
                new += (parts[m] + w * x[None, :],)
            parts = new
            if GROUP_SIZE is not None and (p == PLANES - 1 or (p + 1) * PLANE % GROUP_SIZE == 0):
                new = ()
                for m in tl.static_range(BLOCK_M):
                    new += (sums[m] + parts[m] * scale.to(tl.float32)[:, None],)
                sums = new
                parts = zeros
        if GROUP_SIZE is None:
            sums = parts

    column_scale = tl.full([BLOCK_N], 1, tl.float32)
    if GROUP_SIZE is None:
        column_scale = tl.load(scales_ptr + offs_n, mask=mask_n, other=0).to(tl.float32)
    bias = None
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + first_n + offs_n, mask=mask_n, other=0).to(tl.float32)
    out_ptr += split.to(tl.int64) * M * N
    for m in tl.static_range(BLOCK_M):
        offsets = (first_m + m).to(tl.int64) * N + first_n + offs_n
        mask = mask_n & (first_m + m < M)
        residual = None
        if residual_ptr is not None:
            residual = tl.load(residual_ptr + offsets, mask=mask, other=0).to(tl.float32)
        acc = apply_epilogue(tl.sum(sums[m], axis=1) * column_scale, bias, residual, alpha, ACTIVATION)
        tl.store(out_ptr + offsets, acc.to(out_ptr.dtype.element_ty), mask=mask)
