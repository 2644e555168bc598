"""Numba loops over packed weights: matrix times vector, and dequantizing into scratch.

Row-major loops read the file layout (rows of bytes, even k in the low nibble); tile loops read the
layout that torch's packed INT4 operation keeps on this machine (see ``aten_layout.py``). Scales are
passed as the bits of float16 or bfloat16, which Numba has no type for. Inner loops count from 0 over
slices: with any other start Numba allows for negative indices, and LLVM turns the loads into gathers
(on an AMD EPYC, two threads, a 16384 x 4096 INT4 matrix times a vector took 12.7 ms instead of 3.1).
"""

import numba
import numpy as np

_REBIAS = np.uint32((127 - 15) << 23)
_SMALLEST = np.float32(2.0**-24)


@numba.njit(inline="always")
def _half(bits):
    """Float32 of a positive, finite float16.

    The exponent is re-biased as an integer: a factor of 2**112 would be merged with what it multiplies
    (fastmath), which then overflows from 65536 on.
    """
    if bits < np.uint16(0x400):
        return np.float32(bits) * _SMALLEST
    return np.uint32((np.uint32(bits) << np.uint32(13)) + _REBIAS).view(np.float32)


@numba.njit(inline="always")
def _from_bfloat16(bits):
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@numba.njit(inline="always")
def _to_bfloat16(value):
    """Bits of the nearest bfloat16, ties to even."""
    bits = np.float32(value).view(np.uint32)
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    return np.uint16(np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + odd) >> np.uint32(16))


@numba.njit(inline="always")
def _low(byte):
    return np.float32(np.int32(byte & np.uint8(15)))


@numba.njit(inline="always")
def _high(byte):
    return np.float32(np.int32(byte >> np.uint8(4)))


@numba.njit(parallel=True, cache=True, fastmath=True)
def gemv_int4(x, packed, scales, zeros, group_size, out):
    """out[n] = sum_k x[k] * (q[n, k] - zero) * scale.

    x: (K,) float32. packed: (N, K // 2) uint8. scales: (N, K // G) float16 bits. zeros: (N, K // G)
    uint8. out: (N,) float32.
    """
    num_rows, num_groups = scales.shape
    half_group = group_size // 2
    even, odd = x[0::2].copy(), x[1::2].copy()
    sums = np.empty(num_groups, dtype=np.float32)
    for group in range(num_groups):
        sums[group] = x[group * group_size : (group + 1) * group_size].sum()
    for row in numba.prange(num_rows):
        total = np.float32(0.0)
        for group in range(num_groups):
            start, stop = group * half_group, (group + 1) * half_group
            part, x_even, x_odd = packed[row, start:stop], even[start:stop], odd[start:stop]
            acc = np.float32(0.0)
            for j in range(half_group):
                acc += _low(part[j]) * x_even[j] + _high(part[j]) * x_odd[j]
            total += (acc - np.float32(zeros[row, group]) * sums[group]) * _half(scales[row, group])
        out[row] = total


@numba.njit(parallel=True, cache=True, fastmath=True)
def gemv_int8(x, packed, scales, zeros, group_size, out):
    """As ``gemv_int4``, with packed (N, K) uint8."""
    num_rows, num_groups = scales.shape
    sums = np.empty(num_groups, dtype=np.float32)
    for group in range(num_groups):
        sums[group] = x[group * group_size : (group + 1) * group_size].sum()
    for row in numba.prange(num_rows):
        total = np.float32(0.0)
        for group in range(num_groups):
            start, stop = group * group_size, (group + 1) * group_size
            part, x_part = packed[row, start:stop], x[start:stop]
            acc = np.float32(0.0)
            for k in range(group_size):
                acc += np.float32(np.int32(part[k])) * x_part[k]
            total += (acc - np.float32(zeros[row, group]) * sums[group]) * _half(scales[row, group])
        out[row] = total


@numba.njit(parallel=True, cache=True, fastmath=True)
def dequantize_rows(packed, scales, zeros, group_size, bits, out):
    """out[n, k] = (q[n, k] - zero) * scale, float32; arguments as ``gemv_int4`` or ``gemv_int8``."""
    num_rows, num_groups = scales.shape
    for row in numba.prange(num_rows):
        for group in range(num_groups):
            scale, zero = _half(scales[row, group]), np.float32(zeros[row, group])
            start, stop = group * group_size, (group + 1) * group_size
            target = out[row, start:stop]
            if bits == 8:
                part = packed[row, start:stop]
                for k in range(group_size):
                    target[k] = (np.float32(np.int32(part[k])) - zero) * scale
            else:
                part = packed[row, start // 2 : stop // 2]
                for j in range(group_size // 2):
                    target[2 * j] = (_low(part[j]) - zero) * scale
                    target[2 * j + 1] = (_high(part[j]) - zero) * scale


@numba.njit(parallel=True, cache=True)
def pack_tiles(packed, low_rows, high_rows, out):
    """Repack rows of the file layout as tiles.

    packed: (tiles * width, K // 2) uint8. low_rows, high_rows: as ``dequantize_tiles``. out: (tiles, K,
    width // 2) uint8.
    """
    num_tiles, _, half = out.shape
    num_bytes = packed.shape[1]
    low_nibble, high_nibble = np.uint8(15), np.uint8(240)
    for tile in numba.prange(num_tiles):
        rows = packed[tile * 2 * half : (tile + 1) * 2 * half]
        for j in range(num_bytes):
            even, odd = out[tile, 2 * j], out[tile, 2 * j + 1]
            for d in range(half):
                low, high = rows[low_rows[d], j], rows[high_rows[d], j]
                even[d] = (low & low_nibble) | np.uint8(high << np.uint8(4))
                odd[d] = np.uint8(low >> np.uint8(4)) | (high & high_nibble)


@numba.njit(parallel=True, cache=True, fastmath=True)
def dequantize_tiles(packed, params, group_size, low_rows, high_rows, first_row, out):
    """out[k, n] = (q - 8) * scale + offset as bfloat16 bits, for whole tiles of rows.

    packed: (tiles, K, width // 2) uint8. params: (K // G, N, 2) bfloat16 bits, scale and offset.
    low_rows, high_rows: row inside the tile of each byte's low and high nibble. first_row: row of
    the matrix that ``packed`` begins with. out: (K, tiles * width) uint16.
    """
    num_tiles, in_features, half = packed.shape
    width, num_groups = 2 * half, in_features // group_size
    contiguous = True
    for d in range(half):
        contiguous = contiguous and low_rows[d] == d and high_rows[d] == d + half
    for task in numba.prange(num_tiles * num_groups):
        # Neighbouring tasks write to the same rows of out, which stay in the cache.
        group, tile = task // num_tiles, task % num_tiles
        column = tile * width
        scale_low, scale_high = np.empty(half, np.float32), np.empty(half, np.float32)
        offset_low, offset_high = np.empty(half, np.float32), np.empty(half, np.float32)
        tile_params = params[group, first_row + column : first_row + column + width]
        for d in range(half):
            scale_low[d] = _from_bfloat16(tile_params[low_rows[d], 0])
            offset_low[d] = _from_bfloat16(tile_params[low_rows[d], 1]) - np.float32(8.0) * scale_low[d]
            scale_high[d] = _from_bfloat16(tile_params[high_rows[d], 0])
            offset_high[d] = _from_bfloat16(tile_params[high_rows[d], 1]) - np.float32(8.0) * scale_high[d]
        for k in range(group * group_size, (group + 1) * group_size):
            part = packed[tile, k]
            if contiguous:
                low, high = out[k, column : column + half], out[k, column + half : column + width]
                for d in range(half):
                    low[d] = _to_bfloat16(_low(part[d]) * scale_low[d] + offset_low[d])
                for d in range(half):
                    high[d] = _to_bfloat16(_high(part[d]) * scale_high[d] + offset_high[d])
            else:
                target = out[k, column : column + width]
                for d in range(half):
                    target[low_rows[d]] = _to_bfloat16(_low(part[d]) * scale_low[d] + offset_low[d])
                    target[high_rows[d]] = _to_bfloat16(_high(part[d]) * scale_high[d] + offset_high[d])
