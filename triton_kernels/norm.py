"""What stands between two linears: the residual, and the norm of the sum."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["alpha", "eps"])
def add_norm_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    total_ptr,
    out_ptr,
    K,
    alpha,
    eps,
    BLOCK_K: tl.constexpr,
):
    """One program computes one row: ``total = x + alpha * residual``, rounded to its dtype, and its norm.

    x, residual (or None: then total is not written), total, out: (M, K), of one float. weight, bias: (K,); without bias
    the norm is a root mean square norm, otherwise a layer norm. The caller guarantees contiguous tensors and
    BLOCK_K >= K.
    """
    offs_k = tl.arange(0, BLOCK_K)
    mask = offs_k < K
    first = tl.program_id(0).to(tl.int64) * K
    x = tl.load(x_ptr + first + offs_k, mask=mask, other=0).to(tl.float32)
    if residual_ptr is not None:
        x += alpha * tl.load(residual_ptr + first + offs_k, mask=mask, other=0).to(tl.float32)
        total = x.to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + first + offs_k, total, mask=mask)
        x = total.to(tl.float32)
    weight = tl.load(weight_ptr + offs_k, mask=mask, other=0).to(tl.float32)
    if bias_ptr is None:
        out = x * tl.rsqrt(tl.sum(x * x, axis=0) / K + eps) * weight
    else:
        x = tl.where(mask, x - tl.sum(x, axis=0) / K, 0)
        bias = tl.load(bias_ptr + offs_k, mask=mask, other=0).to(tl.float32)
        out = x * tl.rsqrt(tl.sum(x * x, axis=0) / K + eps) * weight + bias
    tl.store(out_ptr + first + offs_k, out.to(out_ptr.dtype.element_ty), mask=mask)
