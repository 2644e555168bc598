"""Weights of the "integer" backend to tiles and back to float32; the tiles' layout is in ``integer.py``."""

import numba
import numpy as np

from glm_int4.quantization.cpu.compiled import loop
from glm_int4.quantization.cpu.integer_loops import LOOP
from glm_int4.quantization.cpu.integer_vectors import TILE_ROWS
from glm_int4.quantization.cpu.vectors import float_of_half


@loop(**LOOP)
def _sort_word(word, bits):
    """Weights 0, 2, 4, 6 of a word into its lower half and 1, 3, 5, 7 into the upper; of four bytes 0 and 1
    into the even bytes, 2 and 3 into the odd ones. Shifted and masked, neighbours then lie side by side."""
    if bits == 8:
        return (
            (word & np.uint32(0xFF0000FF))
            | (word >> np.uint32(8) & np.uint32(0xFF00))
            | (word & np.uint32(0xFF00)) << np.uint32(8)
        )
    even, odd = word & np.uint32(0x0F0F0F0F), word >> np.uint32(4) & np.uint32(0x0F0F0F0F)
    even = (even | even >> np.uint32(4)) & np.uint32(0x00FF00FF)
    odd = (odd | odd >> np.uint32(4)) & np.uint32(0x00FF00FF)
    even, odd = (even | even >> np.uint32(8)) & np.uint32(0xFFFF), (odd | odd >> np.uint32(8)) & np.uint32(0xFFFF)
    return even | odd << np.uint32(16)


@loop(**LOOP)
def _unsort_word(word, bits):
    """The inverse of ``_sort_word``."""
    if bits == 8:
        return _sort_word(word, 8)
    even, odd = word & np.uint32(0xFFFF), word >> np.uint32(16)
    even = (even | even << np.uint32(8)) & np.uint32(0x00FF00FF)
    odd = (odd | odd << np.uint32(8)) & np.uint32(0x00FF00FF)
    even, odd = (
        (even | even << np.uint32(4)) & np.uint32(0x0F0F0F0F),
        (odd | odd << np.uint32(4)) & np.uint32(0x0F0F0F0F),
    )
    return even | odd << np.uint32(4)


@loop(parallel=True, **LOOP)
def pack_tiles(words, bits, out):
    """Words (N, W) uint32 of the file layout as tiles (N / 32, W, 32)."""
    for tile in numba.prange(out.shape[0]):
        for first in range(0, words.shape[1], 16):  # 16 words are a cache line of every row
            for row in range(TILE_ROWS):
                source = words[tile * TILE_ROWS + row]
                for i in range(first, min(first + 16, words.shape[1])):
                    out[tile, i, row] = _sort_word(source[i], bits)


@loop(**LOOP)
def _dequantize_row(tiles, scales, zeros, index, bits, group_size, target):
    """One row of ``dequantize_rows``, which has the arguments."""
    weights, mask = 32 // bits, np.uint32((1 << bits) - 1)
    tile, row = index // TILE_ROWS, index % TILE_ROWS
    for group in range(scales.shape[1]):
        scale = float_of_half(scales[tile, group, row])
        zero = np.float32(zeros[tile, group, row])
        for j in range(group * group_size // weights, (group + 1) * group_size // weights):
            word = _unsort_word(tiles[tile, j, row], bits)
            for k in range(weights):
                q = np.float32(np.int32(word >> np.uint32(k * bits) & mask))
                target[j * weights + k] = (q - zero) * scale


@loop(**LOOP)
def dequantize_rows_here(tiles, scales, zeros, rows, bits, group_size, out):
    """As ``dequantize_rows``, in this thread alone: for what takes less time than waking another one."""
    for i in range(rows.size):
        _dequantize_row(tiles, scales, zeros, rows[i], bits, group_size, out[i])


@loop(parallel=True, **LOOP)
def dequantize_rows(tiles, scales, zeros, rows, bits, group_size, out):
    """out[i] = (q - zero) * scale of the chosen rows, float32; tiles as of ``pack_tiles``, scales and zeros
    (N / 32, K / G, 32) float16 bits and uint8."""
    for i in numba.prange(rows.size):
        _dequantize_row(tiles, scales, zeros, rows[i], bits, group_size, out[i])
