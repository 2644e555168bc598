"""What every operation means, in plain torch.

The definition that fast paths are tested against, and the path that runs where no fast one exists.
Weights are dequantized in chunks of rows, so that memory stays bounded.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from triton_kernels.autograd import finish, quantized_linear
from triton_kernels.operands import Epilogue, Matrix, check_attention, check_gather, check_norm, check_rotary
from triton_kernels.packing import unpack_planar

_CHUNK_WEIGHTS = 1 << 24


def int4_linear(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    group_size: int,
    activation: str | None = None,
    residual: Tensor | None = None,
    alpha: float = 1.0,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return ``alpha * residual + activation(x @ dequantize(qweight).T + bias)``, accumulated in float32.

    Differentiable with respect to x, bias and residual; the weights have no gradient.

    Args:
        x: (..., K) floating point; last dim contiguous.
        qweight: (N, K // 4) int16, planar; see packing.py.
        scales: (K // group_size, N) floating point; per channel: one row, group_size = K.
        zero_points: same shape, uint8, or None for symmetric (8).
        bias: (N,) or None.
        group_size: weights per scale; divides K.
        activation: None, "gelu" (the tanh approximation), or "swiglu" (silu of the first half of the
            columns times the second half).
        residual: shaped as the result, or None.
        out_dtype: of the result; None is x's.
    Returns:
        (..., N); (..., N // 2) after "swiglu".
    Raises:
        ValueError: shapes, dtypes, devices or strides do not agree.
    """
    matrix = Matrix(bits=4, qweight=qweight, scales=scales, zero_points=zero_points, group_size=group_size)
    epilogue = Epilogue(bias=bias, activation=activation, residual=residual, alpha=alpha, dtype=out_dtype)
    return quantized_linear(x, matrix, epilogue, multiply, multiply_transposed)


def int8_linear(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    group_size: int,
    activation: str | None = None,
    residual: Tensor | None = None,
    alpha: float = 1.0,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """As ``int4_linear``, with qweight (N, K) uint8; without ``zero_points`` the zero is 128."""
    matrix = Matrix(bits=8, qweight=qweight, scales=scales, zero_points=zero_points, group_size=group_size)
    epilogue = Epilogue(bias=bias, activation=activation, residual=residual, alpha=alpha, dtype=out_dtype)
    return quantized_linear(x, matrix, epilogue, multiply, multiply_transposed)


def gather_rows(table: Tensor, ids: Tensor) -> Tensor:
    """Return ``table[ids]`` on the device of the ids.

    Here the host waits for the ids, gathers the rows in page-locked memory and goes on while they are copied.

    Args:
        table: (V, W) in the host's memory, page-locked where the ids are on a GPU; last dim contiguous.
        ids: (M,) int64.
    Returns:
        (M, W) of the table's dtype.
    Raises:
        ValueError: shapes, dtypes or devices do not agree.
    """
    check_gather(table, ids)
    rows = torch.empty(len(ids), table.shape[1], dtype=table.dtype, pin_memory=ids.is_cuda)
    torch.index_select(table, 0, ids.cpu(), out=rows)
    return rows.to(ids.device, non_blocking=True)


def scaled_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as float16 ones that neither overflow nor lose small elements beside a large one.

    Args:
        x: (M, K) floating point.
    Returns:
        (M, K) float16, each row x times the power of two that brings its largest element to 2**14 or more, below 2**15;
        and the powers' inverses (M,) float32.
    """
    exponents = (x.abs().amax(1).float().view(torch.int32) >> 23).clamp(min=15)  # as in a number's bits: 127 more
    factors, powers = ((bits << 23).view(torch.float32) for bits in (exponents - 14, 268 - exponents))
    return (x.float() * powers[:, None]).half(), factors


def add_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    alpha: float = 1.0,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Return ``total = x + alpha * residual`` and its norm, computed in float32.

    Args:
        x: (M, K) floating point. residual: as x, or None: total is x.
        weight: (K,). bias: (K,) of a layer norm; without it the norm is a root mean square norm.
    Returns:
        Both (M, K) of x's dtype; what is normalized is the rounded sum.
    Raises:
        ValueError: shapes, dtypes, devices or strides do not agree.
    """
    check_norm(x, weight, bias, residual)
    total = x if residual is None else torch.add(x.float(), residual.float(), alpha=alpha).to(x.dtype)
    if bias is None:
        out = F.rms_norm(total.float(), x.shape[1:], weight.float(), eps)
    else:
        out = F.layer_norm(total.float(), x.shape[1:], weight.float(), bias.float(), eps)
    return total, out.to(x.dtype)


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
    """Rotate the queries and keys of one new token a row, and write keys and values to the cache.

    Args:
        qkv: (B, (H + 2 Hkv) D); [q | k | v] head by head where ``two_dimensional``, else all queries, then all
            keys, then all values.
        cos, sin: (positions, D / 4) float32.
        positions: (B, P) int64. ``two_dimensional``: P = 2, the first half of a head turns by the first
            position, the second by the second, and inside a half element i pairs with i + D / 4. Otherwise
            P = 1, elements 2 i and 2 i + 1 of the first half are a pair, and the second half stays.
        slots, columns: (B,) int64, each row's place in the cache and the column that is written there. Rows that
            agree in all they are given may share a place.
        k_cache, v_cache: (slots, Hkv, S, D) of qkv's dtype; or int8, with k_scales and v_scales (slots, Hkv, S)
            float16, which are empty otherwise: an integer is a value over its head's largest one, times 127.
        num_heads: H.
    Returns:
        The rotated queries (B, H, D) of qkv's dtype.
    Raises:
        ValueError: shapes, dtypes, devices or strides do not agree.
    """
    check_rotary(qkv, cos, positions, slots, columns, k_cache, v_cache, k_scales, v_scales, num_heads, two_dimensional)
    num_kv_heads, head_dim = k_cache.shape[1], k_cache.shape[3]
    angles = [[table[positions[:, i]][:, None] for i in range(positions.shape[1])] for table in (cos, sin)]
    if two_dimensional:
        q, k, v = qkv.unflatten(1, (num_heads, 3, head_dim)).unbind(2)
    else:
        q, k, v = qkv.unflatten(1, (-1, head_dim)).split((num_heads, num_kv_heads, num_kv_heads), dim=1)

    def rotate(x: Tensor) -> Tensor:
        halves = list(x.float().chunk(2, dim=-1))
        for i, (c, s) in enumerate(zip(*angles, strict=True)):
            shape = (2, -1) if two_dimensional else (-1, 2)
            first, second = halves[i].unflatten(-1, shape).unbind(-2 if two_dimensional else -1)
            turned = (first * c - second * s, second * c + first * s)
            halves[i] = torch.stack(turned, dim=-2 if two_dimensional else -1).flatten(-2)
        return torch.cat(halves, dim=-1).to(x.dtype)

    for x, cache, scales in ((rotate(k), k_cache, k_scales), (v, v_cache, v_scales)):
        if cache.dtype == torch.int8:
            scale = (x.abs().amax(-1).float() / 127).clamp(min=2.0**-24).half()
            scales[slots, :, columns] = scale
            x = (x.float() / scale[..., None].float()).round().clamp(-127, 127).to(torch.int8)
        cache[slots, :, columns] = x
    return rotate(q)


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
    """Return ``softmax(q k / sqrt(D)) v`` over the visible columns of a cache, computed in float32.

    Args:
        q: (B, H, D), rotated; query head h uses key head ``h // (H / Hkv)``.
        k_cache, v_cache, k_scales, v_scales: as in ``rotary_to_cache``.
        slots, lengths: (B,) int64, each row's place in the cache and the columns that are valid there.
        max_columns: at least the largest of the lengths.
        padding: (B,) int64, columns that a row does not see, the leading ones behind ``prefix_length``.
    Returns:
        (B, H * D) of q's dtype.
    Raises:
        ValueError: shapes, dtypes, devices or strides do not agree.
    """
    check_attention(q, k_cache, v_cache, k_scales, v_scales, slots, lengths, padding, max_columns)
    num_kv_heads, head_dim = k_cache.shape[1], k_cache.shape[3]
    keys, values = (cache[slots, :, :max_columns].float() for cache in (k_cache, v_cache))
    if k_cache.dtype == torch.int8:
        keys, values = (
            x * scales[slots, :, :max_columns, None].float() for x, scales in ((keys, k_scales), (values, v_scales))
        )
    column = torch.arange(max_columns, device=q.device)
    visible = (column < prefix_length) | (column >= prefix_length + padding[:, None])
    visible = (visible & (column < lengths[:, None]))[:, None, None]  # (B, 1, 1, S)
    grouped = q.float().unflatten(1, (num_kv_heads, -1))
    scores = (grouped @ keys.transpose(-1, -2)) * head_dim**-0.5
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    values = values.masked_fill(~visible.transpose(-1, -2), 0)  # what was never written may be anything
    return (weights @ values).flatten(1).to(q.dtype)


def dequantize_int4(qweight: Tensor, scales: Tensor, zero_points: Tensor | None, group_size: int) -> Tensor:
    """Return the weights (N, K) in float32: ``(q - zero_point) * scale``; arguments as ``int4_linear``."""
    return _dequantize(unpack_planar(qweight), scales, zero_points, group_size, zero=8)


def dequantize_int8(qweight: Tensor, scales: Tensor, zero_points: Tensor | None, group_size: int) -> Tensor:
    """Return the weights (N, K) in float32: ``(q - zero_point) * scale``; arguments as ``int8_linear``."""
    return _dequantize(qweight, scales, zero_points, group_size, zero=128)


def _dequantize(q: Tensor, scales: Tensor, zero_points: Tensor | None, group_size: int, zero: int) -> Tensor:
    groups = q.unflatten(1, (-1, group_size)).float()  # (N, K / G, G)
    zeros = zero if zero_points is None else zero_points.T.float()[:, :, None]
    return ((groups - zeros) * scales.T.float()[:, :, None]).flatten(1)


def multiply(x: Tensor, matrix: Matrix, epilogue: Epilogue) -> Tensor:
    """x (M, K) times the matrix, and what follows: (M, N), or (M, N // 2) after "swiglu"."""
    dtype = _compute_dtype(x)
    out = torch.empty(x.shape[0], matrix.out_features, dtype=dtype, device=x.device)
    factor = x.to(dtype)
    for rows, weight in _weight_chunks(matrix, dtype):
        torch.mm(factor, weight.T, out=out[:, rows])
    return finish(out, epilogue, epilogue.dtype or x.dtype)


def multiply_transposed(grad_out: Tensor, matrix: Matrix) -> Tensor:
    """grad_out (M, N) times the weights (N, K), summed in float32 over chunks of N."""
    dtype = _compute_dtype(grad_out)
    grad_x = torch.zeros(grad_out.shape[0], matrix.in_features, device=grad_out.device)
    for rows, weight in _weight_chunks(matrix, dtype):
        grad_x += grad_out[:, rows].to(dtype) @ weight
    return grad_x.to(grad_out.dtype)


def _compute_dtype(x: Tensor) -> torch.dtype:
    """float16 where a GPU multiplies it with float32 sums, otherwise float32."""
    return torch.float16 if x.is_cuda and x.dtype == torch.float16 else torch.float32


def _weight_chunks(matrix: Matrix, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    dequantize = dequantize_int4 if matrix.bits == 4 else dequantize_int8
    step = max(_CHUNK_WEIGHTS // max(matrix.in_features, 1), 1)
    for start in range(0, matrix.out_features, step):
        rows = slice(start, start + step)
        zeros = None if matrix.zero_points is None else matrix.zero_points[:, rows]
        yield rows, dequantize(matrix.qweight[rows], matrix.scales[:, rows], zeros, matrix.group_size).to(dtype)
