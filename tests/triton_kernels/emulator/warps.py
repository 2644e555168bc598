"""Instructions that a warp or four of them carry out together; PTX ISA, sections 9.7.9, 9.7.14 and 9.7.15.

Registers come as (warps, 32 lanes) and go the same way. Matrices are fp16 or bf16, sums float32: products are exact in
float64, and each instruction rounds its sum once.
"""

import numpy as np

from tests.triton_kernels.emulator.arithmetic import from_bfloat16

LANES = 32
_LANE = np.arange(LANES)
_ROW, _PAIR = _LANE // 4, _LANE % 4  # in an 8 x 8 matrix, of which a lane holds two neighbours of a row


def shuffle(mode: str, values: np.ndarray, operand: np.ndarray) -> np.ndarray:
    """``shfl.sync`` over whole warps; operand (warps, 32)."""
    lane = np.broadcast_to(_LANE, values.shape)
    source = {"bfly": lane ^ operand, "idx": operand & 31, "up": lane - operand, "down": lane + operand}[mode]
    source = np.where((source < 0) | (source >= LANES), lane, source)
    return np.take_along_axis(values, source.astype(np.int64), axis=1)


def from_rows(rows: np.ndarray, transposed: bool) -> np.ndarray:
    """``ldmatrix``: (warps, 32, 8) fp16 rows that the lanes point to, as registers (count, warps, 32)."""
    matrices = rows.reshape(rows.shape[0], 4, 8, 8)
    if transposed:
        matrices = matrices.swapaxes(2, 3)
    pairs = matrices.reshape(rows.shape[0], 4, 8, 4, 2)[:, :, _ROW, _PAIR]
    return _as_register(pairs).swapaxes(0, 1)


def to_rows(registers: np.ndarray, transposed: bool) -> np.ndarray:
    """``stmatrix``: registers (count, warps, 32) as the 8 x 8 matrices (warps, count, 8, 8)."""
    count, num_warps, _ = registers.shape
    matrices = _as_halves(registers.swapaxes(0, 1)).reshape(num_warps, count, 8, 8)
    return matrices.swapaxes(2, 3) if transposed else matrices


def multiply(a: np.ndarray, b: np.ndarray, c: np.ndarray, kind: str) -> np.ndarray:
    """``mma.m16n8k16`` of f16 or bf16: registers (4, warps, 32) and (2, warps, 32), sums (4, warps, 32) float32."""
    weights = _as_numbers(_left(a), kind)
    # As A's quarters, B's hold a column each lane row: b[column, k].
    columns = _as_numbers(np.concatenate([_as_halves(part).reshape(-1, 8, 8) for part in b], axis=2), kind)
    return _to_lanes(_from_lanes(c) + np.einsum("wmk,wnk->wmn", weights, columns))


def multiply_group(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """``wgmma``: a (groups, 64, 16), b (groups, N, 16), sums (N / 2, warps, 32) float32."""
    tiles = np.stack([_from_lanes(part) for part in c.reshape(-1, 4, *c.shape[1:])], axis=2)
    sums = tiles.reshape(len(a), 64, -1) + np.einsum(
        "gmk,gnk->gmn", a.astype(np.float64), b.astype(np.float64), optimize=False
    )
    tiles = sums.reshape(-1, 16, c.shape[0] // 4, 8)
    return np.concatenate([_to_lanes(tiles[:, :, tile]) for tile in range(tiles.shape[2])])


def left_of_group(a: np.ndarray) -> np.ndarray:
    """The left operand of ``wgmma`` in registers (4, warps, 32) as (groups, 64, 16)."""
    return _left(a).reshape(-1, 64, 16)


def addresses(descriptor: int, rows: int, transposed: bool) -> np.ndarray:
    """Where a ``wgmma`` descriptor puts the elements (rows, 16 of K) of an fp16 matrix in shared memory.

    Neighbours in memory are those of K, or with ``transposed`` those of a column.
    """
    start, leading, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    mode = descriptor >> 62 & 3
    if mode == 0 or descriptor >> 49 & 7:
        raise NotImplementedError(f"wgmma descriptor {descriptor:#x}")
    width = {1: 128, 2: 64, 3: 32}[mode]  # bytes of a swizzled row
    row, k = np.arange(rows)[:, None], np.arange(16)[None, :]
    if transposed:
        per_row = width // 2
        logical = start + row // per_row * leading + k // 8 * stride + k % 8 * width + row % per_row * 2
    else:
        logical = start + row // 8 * stride + row % 8 * width + k * 2
    return logical ^ (logical >> 7 & width // 16 - 1) << 4


def _as_halves(registers: np.ndarray) -> np.ndarray:
    """(..., 32) registers as (..., 64) fp16."""
    return np.ascontiguousarray(registers, dtype=np.uint32).view(np.float16)


def _as_numbers(halves: np.ndarray, kind: str) -> np.ndarray:
    """What fp16 numbers are in float64, or what those are whose bits they hold."""
    if kind == "bf16":
        halves = from_bfloat16(np.ascontiguousarray(halves).view(np.uint16))
    return halves.astype(np.float64)


def _as_register(pairs: np.ndarray) -> np.ndarray:
    """(..., 2) fp16 as (...) registers."""
    return np.ascontiguousarray(pairs, dtype=np.float16).view(np.uint32)[..., 0]


def _left(a: np.ndarray) -> np.ndarray:
    """The left operand (warps, 16, 16) from registers (4, warps, 32): its quarters, column by column."""
    top_left, bottom_left, top_right, bottom_right = (_as_halves(part).reshape(-1, 8, 8) for part in a)
    left, right = (np.concatenate(pair, axis=1) for pair in ((top_left, bottom_left), (top_right, bottom_right)))
    return np.concatenate((left, right), axis=2)


def _from_lanes(c: np.ndarray) -> np.ndarray:
    """Sums (4, warps, 32) as (warps, 16, 8): two neighbours of a row, then two of the row eight below."""
    parts = c.reshape(2, 2, -1, 8, 4).transpose(2, 0, 3, 4, 1)
    return parts.reshape(-1, 16, 8).astype(np.float64)


def _to_lanes(sums: np.ndarray) -> np.ndarray:
    """The inverse of ``_from_lanes``, in float32."""
    parts = sums.reshape(-1, 2, 8, 4, 2).transpose(1, 4, 0, 2, 3)
    return parts.reshape(4, -1, LANES).astype(np.float32)
