"""Rows of a table by their numbers, also from page-locked memory of the host, which a GPU can read."""

import triton
import triton.language as tl


@triton.jit
def gather_kernel(table_ptr, ids_ptr, out_ptr, W, BLOCK_W: tl.constexpr):
    """One program copies BLOCK_W bytes of one row: ``out[i] = table[ids[i]]``.

    table: (V, W) uint8. ids: (M,) int64. out: (M, W) uint8. The grid is (M, W / BLOCK_W, rounded up). The caller
    guarantees contiguous tensors and ids of the table.
    """
    row = tl.program_id(0).to(tl.int64)
    offs_w = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    mask = offs_w < W
    values = tl.load(table_ptr + tl.load(ids_ptr + row) * W + offs_w, mask=mask, other=0)
    tl.store(out_ptr + row * W + offs_w, values, mask=mask)
