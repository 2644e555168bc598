"""Numba loops over packed weights: matrix times vector, and dequantizing into scratch.

They read the file layout: rows of bytes, even k in the low nibble; scales as float16 bits. Inner loops count from 0
over slices: with any other start Numba allows for negative indices, and LLVM turns the loads into gathers
(on an AMD EPYC, two threads, a 16384 x 4096 INT4 matrix times a vector took 12.7 ms instead of 3.1).
"""

import numba
import numpy as np

from glm_int4.quantization.cpu.compiled import loop
from glm_int4.quantization.cpu.vectors import float_of_half


@numba.njit(inline="always")
def _low(byte):
    return np.float32(np.int32(byte & np.uint8(15)))


@numba.njit(inline="always")
def _high(byte):
    return np.float32(np.int32(byte >> np.uint8(4)))


@loop(parallel=True, fastmath=True)
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
            total += (acc - np.float32(zeros[row, group]) * sums[group]) * float_of_half(scales[row, group])
        out[row] = total


@loop(parallel=True, fastmath=True)
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
            total += (acc - np.float32(zeros[row, group]) * sums[group]) * float_of_half(scales[row, group])
        out[row] = total


@loop(parallel=True, fastmath=True)
def dequantize_rows(packed, scales, zeros, group_size, bits, out):
    """out[n, k] = (q[n, k] - zero) * scale, float32; arguments as ``gemv_int4`` or ``gemv_int8``."""
    num_rows, num_groups = scales.shape
    for row in numba.prange(num_rows):
        for group in range(num_groups):
            scale, zero = float_of_half(scales[row, group]), np.float32(zeros[row, group])
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
