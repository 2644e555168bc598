"""The clip search of ``rtn.py`` as Numba loops: six billion weights in seconds."""

import numba
import numpy as np
import torch
from torch import Tensor

from glm_int4.quantization.cpu.compiled import loop
from glm_int4.quantization.cpu.threads import numba_threads
from glm_int4.quantization.cpu.vectors import float_of_half
from glm_int4.quantization.rounding.rtn_vectors import STEP, round_group, sum_of_squares, try_range
from glm_int4.quantization.scheme import QuantizationScheme


def search(
    weight: Tensor, scheme: QuantizationScheme, group_size: int, shares: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor, float, float]:
    """As ``rounding.search_reference``, for a contiguous float32 or float16 weight on the CPU."""
    num_rows, in_features = weight.shape
    halves, floats = torch.empty(0, 0, dtype=torch.uint16), torch.empty(0, 0)  # one of them is the weight
    if weight.dtype == torch.float16:
        halves = weight.view(torch.uint16)  # Numba has no float16
    else:
        floats = weight
    packed = torch.empty(num_rows, in_features * scheme.bits // 8, dtype=torch.uint8)
    scales = torch.empty(num_rows, in_features // group_size, dtype=torch.float32)
    zeros = torch.empty(num_rows, in_features // group_size, dtype=torch.uint8)
    sums = np.empty((num_rows, 2), dtype=np.float64)  # squared errors, squared weights
    with numba_threads():
        _search_rows(
            halves.numpy(),
            floats.numpy(),
            group_size,
            np.array(shares, dtype=np.float32),
            scheme.symmetric,
            scheme.zero,
            packed.numpy(),
            scales.numpy(),
            zeros.numpy(),
            sums,
        )
    error, norm = sums.sum(axis=0)
    return packed, scales.half(), zeros, float(error), float(norm)


@numba.njit(inline="always")
def _round_to_half(x):
    """Nearest float16 of a positive number, as float32; ties to even, never zero."""
    if x < np.float32(2.0**-14):  # subnormal: a multiple of 2**-24
        return max(np.float32(np.rint(x * np.float32(2.0**24))), np.float32(1.0)) * np.float32(2.0**-24)
    bits = np.float32(x).view(np.uint32)
    odd = np.uint32(np.uint32(bits >> np.uint32(13)) & np.uint32(1))  # of the 10 bits that stay
    rounded = np.uint32(np.uint32(bits + np.uint32(0xFFF)) + odd)
    return np.uint32(rounded & np.uint32(0xFFFFE000)).view(np.float32)


@numba.njit(inline="always")
def _range(bits):
    """Least and greatest of 0 and float32 values, given as bits.

    The bits of floats of one sign are in the order of integers. LLVM vectorizes the maximum of integers, but not
    Numba's minimum and maximum of floats: a third of the time of the whole search.
    """
    low = high = np.int32(0)
    for j in range(len(bits)):
        high = max(high, bits[j])
        low = max(low, bits[j] ^ np.int32(-(2**31)))
    return -np.int32(low).view(np.float32), np.int32(high).view(np.float32)


@loop(parallel=True, error_model="numpy")
def _search_rows(halves, floats, group_size, shares, symmetric, middle, packed, scales, zeros, sums):
    num_rows, in_features = halves.shape if halves.size else floats.shape
    top = np.float32(2 * middle - 1)
    half = np.float32(0.5)
    num_trials = len(shares)
    if len(shares) > 1:  # then the scale fitted to the best integers, and the zero points beside the best one
        num_trials += 1 if symmetric else 3
    for row in numba.prange(num_rows):
        row_error = row_norm = 0.0
        count = (group_size + STEP - 1) // STEP * STEP  # more than group_size only where the row is one group
        q = np.empty(count, dtype=np.uint8)
        row_values = np.zeros(in_features + count - group_size, dtype=np.float32)
        row_bits = row_values.view(np.int32)
        if halves.size:
            for k in range(in_features):
                row_values[k] = float_of_half(halves[row, k])
        else:
            row_values[:in_features] = floats[row]
        for group in range(in_features // group_size):
            start = group * group_size
            values = row_values.ctypes.data + 4 * start
            low, high = _range(row_bits[start : start + group_size])
            norm = sum_of_squares(values, count)
            best_gain, best_product, best_square = np.float32(-1.0), np.float32(0.0), np.float32(0.0)
            best_scale, best_zero = np.float32(1.0), np.float32(middle)
            for trial in range(num_trials):
                scale, zero = best_scale, best_zero
                if trial >= len(shares):
                    if trial > len(shares):  # one below the best, then one above
                        step = np.float32(-1.0) if trial == len(shares) + 1 else np.float32(1.0)
                        zero = min(max(zero + step, np.float32(0.0)), top)
                    elif best_product > np.float32(0.0):
                        scale = _round_to_half(best_product / best_square)
                elif symmetric:
                    scale = _round_to_half(max(-low, high) * shares[trial] / np.float32(middle - 1))
                else:
                    scale = _round_to_half((high - low) * shares[trial] / top)
                    zero = min(max(np.float32(np.rint(-low * shares[trial] / scale)), np.float32(0.0)), top)
                inverse, shift = np.float32(1.0) / scale, zero + half
                product, square = try_range(values, count, inverse, shift, top + half, zero)
                gain = product * (product / square) if square > np.float32(0.0) else np.float32(0.0)
                if gain > best_gain:
                    best_gain, best_product, best_square = gain, product, square
                    best_scale, best_zero = scale, zero
            if num_trials > 1 and best_square > np.float32(0.0):
                best_scale = _round_to_half(np.float32(np.sqrt(norm / best_square)))
            inverse, shift = np.float32(1.0) / best_scale, best_zero + half
            row_error += round_group(values, count, inverse, shift, top + half, best_zero, best_scale, q.ctypes.data)
            if middle == 8:
                target = packed[row, start // 2 : (start + group_size) // 2]
                for j in range(group_size // 2):
                    target[j] = q[2 * j] | np.uint8(q[2 * j + 1] << np.uint8(4))
            else:
                packed[row, start : start + group_size] = q[:group_size]
            row_norm += norm
            scales[row, group] = best_scale
            zeros[row, group] = np.uint8(best_zero)
        sums[row, 0], sums[row, 1] = row_error, row_norm
