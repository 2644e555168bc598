"""Rows of any float as fp16 ones: what a product with fp16 weights is given where the stream is wider."""

import triton
import triton.language as tl


@triton.jit
def scale_rows_kernel(x_ptr, out_ptr, factors_ptr, K, stride_xm, BLOCK_K: tl.constexpr):
    """One program handles one row: a power of two brings its largest element to 2**14 or more, below 2**15.

    x: (M, K) of any float. out: (M, K) fp16. factors: (M,) fp32 powers of two: ``out * factor`` is x, rounded to fp16's
    11 bits. The caller guarantees contiguous tensors but for the rows of x.
    """
    row = tl.program_id(0).to(tl.int64)
    offs_k = tl.arange(0, BLOCK_K)
    x_ptr += row * stride_xm
    out_ptr += row * K
    largest = tl.zeros([BLOCK_K], tl.float32)
    for start in range(0, K, BLOCK_K):
        x = tl.load(x_ptr + start + offs_k, mask=start + offs_k < K, other=0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(x))
    # As the number's bits have it, 127 more; of what is smaller than 2**-112, neither power would be a normal number.
    exponent = tl.maximum(tl.max(largest, axis=0).to(tl.int32, bitcast=True) >> 23, 15)
    tl.store(factors_ptr + row, ((exponent - 14) << 23).to(tl.float32, bitcast=True))
    power = ((268 - exponent) << 23).to(tl.float32, bitcast=True)
    for start in range(0, K, BLOCK_K):
        mask = start + offs_k < K
        x = tl.load(x_ptr + start + offs_k, mask=mask, other=0).to(tl.float32)
        tl.store(out_ptr + start + offs_k, (x * power).to(tl.float16), mask=mask)
