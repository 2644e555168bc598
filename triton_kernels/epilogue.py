"""What follows a product: the sum of its splits, bias, activation and residual, in float32 until the store.

``apply_epilogue`` is inlined by the kernels that finish a product themselves; ``finish_kernel`` does the
same for one that was split along K, always summing in the same order.
"""

import triton
import triton.language as tl


@triton.jit
def gelu(x):
    """The tanh approximation, through a sigmoid: (1 + tanh(u)) / 2 = sigmoid(2 u)."""
    u = 0.7978845608028654 * x * (1 + 0.044715 * x * x)
    return x / (1 + tl.exp(-2 * u))


@triton.jit
def apply_epilogue(acc, bias, residual, alpha, ACTIVATION: tl.constexpr):
    """``alpha * residual + activation(acc + bias)``; bias and residual may be None."""
    if bias is not None:
        acc += bias
    if ACTIVATION == "gelu":
        acc = gelu(acc)
    if residual is not None:
        acc += alpha * residual
    return acc


@triton.jit
def sum_splits(parts_ptr, offsets, mask, split_size, num_splits):
    """The sum over (num_splits, split_size) parts at some offsets, first split first."""
    acc = tl.load(parts_ptr + offsets, mask=mask, other=0).to(tl.float32)
    for split in range(1, num_splits):
        acc += tl.load(parts_ptr + split * split_size + offsets, mask=mask, other=0).to(tl.float32)
    return acc


@triton.jit(do_not_specialize=["M", "num_splits", "alpha"])
def finish_kernel(
    parts_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    M,
    N,
    num_splits,
    alpha,
    ACTIVATION: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program finishes BLOCK_N columns of one row.

    parts: (num_splits, M, N). bias: (N,) or None. out and residual (or None): (M, N); with the activation
    "swiglu", whose gate is the first half of the columns, (M, N // 2).
    """
    row = tl.program_id(0).to(tl.int64)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    width = N // 2 if ACTIVATION == "swiglu" else N
    mask_n = offs_n < width
    split_size = M.to(tl.int64) * N
    bias = None
    residual = None
    acc = sum_splits(parts_ptr, row * N + offs_n, mask_n, split_size, num_splits)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + offs_n, mask=mask_n, other=0).to(tl.float32)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + row * width + offs_n, mask=mask_n, other=0).to(tl.float32)
    if ACTIVATION == "swiglu":
        up = sum_splits(parts_ptr, row * N + width + offs_n, mask_n, split_size, num_splits)
        if bias_ptr is not None:
            acc += bias
            up += tl.load(bias_ptr + width + offs_n, mask=mask_n, other=0).to(tl.float32)
        acc = apply_epilogue(acc / (1 + tl.exp(-acc)) * up, None, residual, alpha, None)
    else:
        acc = apply_epilogue(acc, bias, residual, alpha, ACTIVATION)
    tl.store(out_ptr + row * width + offs_n, acc.to(out_ptr.dtype.element_ty), mask=mask_n)
