"""Runs the kernels of a one-token step that are no linears: norms, rotary embedding and cache, attention.

What they compute is defined by the functions of the same names in ``reference.py``. Slots, lengths and columns are
tensors on the GPU, so that a captured graph serves rows of any slots and of every length up to a bound.
"""

import torch
import triton
from torch import Tensor

from triton_kernels import launch
from triton_kernels.gather import gather_kernel
from triton_kernels.norm import add_norm_kernel
from triton_kernels.one_token_attention import attend_kernel, merge_kernel
from triton_kernels.operands import check_attention, check_gather, check_norm, check_rotary
from triton_kernels.rotary import rotary_kernel


def gather_rows(table: Tensor, ids: Tensor) -> Tensor:
    """Rows (M, W) of a table in page-locked memory; see ``reference.gather_rows``."""
    check_gather(table, ids)
    out = torch.empty(len(ids), table.shape[1], dtype=table.dtype, device=ids.device)
    source, target = table.view(torch.uint8), out.view(torch.uint8)
    width = source.shape[1]
    gather_kernel[(len(ids), triton.cdiv(width, launch.GATHER_BLOCK))](
        source, ids, target, width, BLOCK_W=launch.GATHER_BLOCK, num_warps=4
    )
    return out


def add_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    alpha: float = 1.0,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """The sum ``x + alpha * residual`` and its norm, each (M, K); see ``reference.add_norm``."""
    check_norm(x, weight, bias, residual)
    out = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    num_rows, columns = x.shape
    block = triton.next_power_of_2(columns)
    add_norm_kernel[(num_rows,)](
        x,
        weight,
        bias,
        residual,
        total,
        out,
        columns,
        float(alpha),
        float(eps),
        BLOCK_K=block,
        num_warps=launch.norm_warps(block),
    )
    return total, out


def rotary_to_cache(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    columns: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scales: Tensor,
    v_scales: Tensor,
    *,
    num_heads: int,
    two_dimensional: bool,
) -> Tensor:
    """Rotated queries (B, H, D); keys and values go to the cache; see ``reference.rotary_to_cache``."""
    check_rotary(qkv, cos, positions, slots, columns, k_cache, v_cache, k_scales, v_scales, num_heads, two_dimensional)
    num_kv_heads, max_length, head_dim = k_cache.shape[1:]
    batch_size = len(qkv)
    q = torch.empty(batch_size, num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    rotary_kernel[(batch_size, num_heads + 2 * num_kv_heads)](
        qkv,
        cos,
        sin,
        positions,
        slots,
        columns,
        q,
        k_cache,
        v_cache,
        k_scales,
        v_scales,
        num_heads,
        num_kv_heads,
        max_length,
        HEAD_DIM=head_dim,
        TWO_DIMENSIONAL=two_dimensional,
        INT8=k_cache.dtype == torch.int8,
        num_warps=1,
    )
    return q


def one_token_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scales: Tensor,
    v_scales: Tensor,
    slots: Tensor,
    lengths: Tensor,
    padding: Tensor,
    *,
    prefix_length: int = 0,
    max_columns: int,
) -> Tensor:
    """Attention (B, H * D) of one query a row to the cache; see ``reference.one_token_attention``.

    In float32, of which tensor cores have no product, heads that share keys are computed one by one.
    """
    check_attention(q, k_cache, v_cache, k_scales, v_scales, slots, lengths, padding, max_columns)
    batch_size, num_heads, head_dim = q.shape
    num_kv_heads, max_length = k_cache.shape[1:3]
    tensor_cores = not q.is_cuda or torch.cuda.get_device_capability(q.device) >= (8, 0)
    tensor_cores = tensor_cores and q.dtype != torch.float32
    row = launch.attention(num_heads // num_kv_heads, tensor_cores=tensor_cores)
    num_splits = triton.cdiv(max_columns, row.block_s)
    parts = torch.empty(batch_size, num_heads, num_splits, head_dim, dtype=torch.float32, device=q.device)
    stats = torch.empty(batch_size, num_heads, num_splits, 2, dtype=torch.float32, device=q.device)
    attend_kernel[(batch_size, num_kv_heads if row.block_h > 1 else num_heads, num_splits)](
        q,
        k_cache,
        v_cache,
        k_scales,
        v_scales,
        slots,
        lengths,
        padding,
        parts,
        stats,
        num_kv_heads,
        max_length,
        num_splits,
        prefix_length,
        head_dim**-0.5,
        HEADS=num_heads // num_kv_heads,
        BLOCK_H=row.block_h,
        BLOCK_S=row.block_s,
        HEAD_DIM=head_dim,
        INT8=k_cache.dtype == torch.int8,
        num_warps=row.num_warps,
    )
    out = torch.empty(batch_size, num_heads * head_dim, dtype=q.dtype, device=q.device)
    merge_kernel[(batch_size * num_heads,)](
        parts,
        stats,
        lengths,
        out,
        num_splits,
        num_heads,
        BLOCK_S=row.block_s,
        BLOCK_P=launch.MERGE_BLOCK,
        HEAD_DIM=head_dim,
        num_warps=4,
    )
    return out
