"""Numba loops of the "integer" backend: inputs to 16-bit integers, and their product with packed weights.

Rows of x are taken in *panels* of 8, then 4, 2 and 1: one product reads a tile of weights once for all rows of a
panel. Other layouts are in ``integer.py``. Nothing here assumes finite numbers: a nan or inf in x comes out as nan.
"""

from typing import Any

import numba
import numpy as np

from glm_int4.quantization.cpu.compiled import loop
from glm_int4.quantization.cpu.instructions import AVX2, instruction_set
from glm_int4.quantization.cpu.integer_vectors import TILE_ROWS, tile_product
from glm_int4.quantization.cpu.phases import claim, finish, new_board, wait_for_all

# Sums may be reordered and multiplications fused, but nan and inf stay what they are.
SAFE = {"reassoc", "contract", "nsz", "arcp"}
LOOP: Any = {"fastmath": SAFE, "error_model": "numpy"}

PLAIN, GELU, SWIGLU = 0, 1, 2

# Values that one thread converts, and bytes of weights times rows of x that it multiplies, in less time than waking
# another one takes.
SERIAL_VALUES, SERIAL_BYTES = 8192, 512 * 1024

_RUNS_OF_A_TASK = 8

# Threads do not run equally fast, on a shared machine or on processors of two kinds. Three quarters of a matrix's tiles
# are tasks of one stretch for every thread. The last quarter is cut into small tasks, which whoever is done first
# takes; a task is so large that its bytes of weights times the rows of x come to _TASK_BYTES.
_OWN_SHARE, _TASK_BYTES = 0.75, 512 * 1024

_NAN = np.float32(np.nan)
_INFINITE_BITS = np.uint32(0x7F800000)

# Numba's cache of compiled loops looks at this file alone: a change of tile_product needs one here.
# Last one, 2026-11-28: lines are asked into L2.
_SET = instruction_set() or AVX2  # where there is none, nothing of this is compiled
_int4_by_1, _int4_by_2, _int4_by_4, _int4_by_8 = (tile_product(4, rows, _SET) for rows in (1, 2, 4, 8))
_int8_by_1, _int8_by_2, _int8_by_4, _int8_by_8 = (tile_product(8, rows, _SET) for rows in (1, 2, 4, 8))


@loop(**LOOP)
def panel_rows(remaining):
    """Rows of the next panel when so many are left."""
    if remaining >= 8:
        return 8
    if remaining >= 4:
        return 4
    return 2 if remaining >= 2 else 1


@loop(**LOOP)
def _float_of_bits(bits):
    return np.uint32(bits).view(np.float32)


@loop(**LOOP)
def _panel(num_rows, index):
    """A panel's first row, and how many rows it has."""
    full = num_rows // 8
    if index < full:
        return index * 8, 8
    row = full * 8
    for _ in range(index - full):
        row += panel_rows(num_rows - row)
    return row, panel_rows(num_rows - row)


@loop(**LOOP)
def exp(x):
    """e ** x of a float32 to 2e-7, in arithmetic that vectorizes; libm's function does not."""
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    scaled = x * np.float32(1.4426950408889634)
    n = np.int32(scaled + (np.float32(0.5) if scaled >= 0 else np.float32(-0.5)))
    r = x - np.float32(n) * np.float32(0.693359375) + np.float32(n) * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return p * np.uint32(np.uint32(n + np.int32(127)) << np.uint32(23)).view(np.float32)


@loop(**LOOP)
def activate(x, start, stop, half, kind, out):
    """out = activation(x[start:stop]); SwiGLU's second factor lies ``half`` columns further."""
    part = x[start:stop]
    if kind == GELU:
        for i in range(stop - start):
            v = part[i]
            u = np.float32(1.5957691216057308) * v * (np.float32(1.0) + np.float32(0.044715) * v * v)
            out[i] = v - v / (exp(u) + np.float32(1.0))
    elif kind == SWIGLU:
        up = x[half + start : half + stop]
        for i in range(stop - start):
            out[i] = part[i] / (np.float32(1.0) + exp(-part[i])) * up[i]
    else:
        for i in range(stop - start):
            out[i] = part[i]


@loop(**LOOP)
def _panels_and_tasks(num_rows, num_runs):
    """Panels, and tasks of each."""
    num_panels = num_rows // 8 + (num_rows >> 2 & 1) + (num_rows >> 1 & 1) + (num_rows & 1)
    return num_panels, (num_runs + _RUNS_OF_A_TASK - 1) // _RUNS_OF_A_TASK


@loop(**LOOP)
def _quantize_run(values, integers, rows, target):
    """Write one run of a row to its panel; returns the scale and the scaled sum of its integers."""
    bits, pairs, largest = values.view(np.uint32), integers.view(np.int32), np.uint32(0)
    for i in range(values.size):
        largest = max(largest, np.uint32(bits[i] & np.uint32(0x7FFFFFFF)))
    if largest >= _INFINITE_BITS:
        return _NAN, _NAN
    peak = max(np.float32(_float_of_bits(largest)), np.float32(1e-30))
    scale, inverse = peak / np.float32(32767.0), np.float32(32767.0) / peak
    total = np.int32(0)
    for i in range(values.size):
        v = values[i] * inverse
        q = np.int32(v + (np.float32(0.5) if v >= 0 else np.float32(-0.5)))
        total += q
        integers[i] = np.int16(q)
    if rows == 1:
        target[: pairs.size] = pairs
    else:
        for i in range(pairs.size):
            target[i * rows] = pairs[i]
    return scale, np.float32(total) * scale


@loop(**LOOP)
def quantize_task(x, kind, run, task, q, scales, sums):
    """Quantize some runs of a panel's rows; arguments as ``quantize_rows``, ``task`` of ``num_quantize_tasks``."""
    num_runs = scales.size // x.shape[0]
    in_features = num_runs * run
    tasks_a_panel = _panels_and_tasks(x.shape[0], num_runs)[1]
    panel, task = task // tasks_a_panel, task % tasks_a_panel
    row, rows = _panel(x.shape[0], panel)
    values, integers = np.empty(run, dtype=np.float32), np.empty(run, dtype=np.int16)
    pairs = q.view(np.int32)
    for index in range(task * _RUNS_OF_A_TASK, min((task + 1) * _RUNS_OF_A_TASK, num_runs)):
        start = index * run
        for m in range(rows):
            activate(x[row + m], start, start + run, in_features, kind, values)
            target = pairs[(row * in_features + start * rows) // 2 + m :]
            scale, total = _quantize_run(values, integers, rows, target)
            scales[row * num_runs + index * rows + m] = scale
            sums[row * num_runs + index * rows + m] = total


@loop(**LOOP)
def num_quantize_tasks(num_rows, num_runs):
    """Tasks of rows that have so many runs each."""
    num_panels, tasks_a_panel = _panels_and_tasks(num_rows, num_runs)
    return num_panels * tasks_a_panel


@loop(**LOOP)
def quantize_rows(x, kind, run, q, scales, sums):
    """Integers and scales of ``activation(x)``, panel by panel, in this thread alone.

    x: (M, K) float32, or (M, 2 * K) for SwiGLU, of which the first half is the gate. kind: PLAIN, GELU or
    SWIGLU. q: (M * K,) int16. scales, sums: (M * K / run,) float32; a sum is that of a run's scaled integers.
    """
    for task in range(num_quantize_tasks(x.shape[0], scales.size // x.shape[0])):
        quantize_task(x, kind, run, task, q, scales, sums)


@loop(**LOOP)
def quantize_phase(board, phase, x, kind, run, q, scales, sums):
    """``quantize_rows`` by several threads; as one task where that takes less time than sharing it."""
    small = x.size <= SERIAL_VALUES
    num_tasks = 1 if small else num_quantize_tasks(x.shape[0], scales.size // x.shape[0])
    task = claim(board, phase)
    while task < num_tasks:
        if small:
            quantize_rows(x, kind, run, q, scales, sums)
        else:
            quantize_task(x, kind, run, task, q, scales, sums)
        finish(board, phase, num_tasks)
        task = claim(board, phase)
    wait_for_all(board, phase)


@loop(**LOOP)
def _multiply_tile(tile, weights, bits, num_groups, q, x_scales, x_sums, num_rows, run, out):
    """One tile of ``multiply``, which has the arguments."""
    packed, scales, zeros, bias = weights
    num_runs = x_scales.size // num_rows
    in_features = run * num_runs
    run_words, group_step = run * bits // 32, 1 if num_groups > 1 else 0
    groups = tile * num_groups * TILE_ROWS
    row = 0
    while row < num_rows:
        rows = panel_rows(num_rows - row)
        arguments = (
            packed + tile * TILE_ROWS * in_features * bits // 8,
            scales + 2 * groups,
            zeros + groups,
            bias + tile * TILE_ROWS * 4,
            q.ctypes.data + row * in_features * 2,
            x_scales.ctypes.data + row * num_runs * 4,
            x_sums.ctypes.data + row * num_runs * 4,
            num_runs,
            run_words,
            group_step,
            out.ctypes.data + row * out.strides[0] + tile * TILE_ROWS * 4,
            out.strides[0],
        )
        if bits == 4:
            if rows == 8:
                _int4_by_8(*arguments)
            elif rows == 4:
                _int4_by_4(*arguments)
            elif rows == 2:
                _int4_by_2(*arguments)
            else:
                _int4_by_1(*arguments)
        elif rows == 8:
            _int8_by_8(*arguments)
        elif rows == 4:
            _int8_by_4(*arguments)
        elif rows == 2:
            _int8_by_2(*arguments)
        else:
            _int8_by_1(*arguments)
        row += rows


@loop(**LOOP)
def multiply_phase(board, phase, weights, bits, num_groups, q, x_scales, x_sums, num_rows, run, threads, out):
    """out[m, n] = sum_k x[m, k] * (q[n, k] - zero) * scale + bias[n], by several threads.

    weights: addresses of packed, scales, zeros and bias; layouts in ``integer.py``. q, x_scales, x_sums: of
    ``quantize_rows``. threads: how many will run. out: (M, N) float32, N whole tiles.
    """
    num_tiles, in_features = out.shape[1] // TILE_ROWS, run * (x_scales.size // num_rows)
    step = max(_TASK_BYTES // (TILE_ROWS * in_features * bits // 8 * num_rows), 1)
    own = int(num_tiles * _OWN_SHARE) // threads
    num_tasks = threads + (num_tiles - threads * own + step - 1) // step
    task = claim(board, phase)
    while task < num_tasks:
        start, stop = task * own, (task + 1) * own
        if task >= threads:
            start = threads * own + (task - threads) * step
            stop = min(start + step, num_tiles)
        for tile in range(start, stop):
            _multiply_tile(tile, weights, bits, num_groups, q, x_scales, x_sums, num_rows, run, out)
        finish(board, phase, num_tasks)
        task = claim(board, phase)
    wait_for_all(board, phase)


@loop(**LOOP)
def _linear(board, x, kind, weights, bits, num_groups, run, threads, q, x_scales, x_sums, out):
    quantize_phase(board, 0, x, kind, run, q, x_scales, x_sums)
    multiply_phase(board, 1, weights, bits, num_groups, q, x_scales, x_sums, x.shape[0], run, threads, out)


@loop(**LOOP)
def linear_here(x, kind, weights, bits, num_groups, run, in_features, out):
    """As ``linear``, in this thread alone: for what takes less time than waking another one."""
    num_runs = x.shape[0] * in_features // run
    q, x_scales = np.empty(x.shape[0] * in_features, dtype=np.int16), np.empty(num_runs, dtype=np.float32)
    _linear(new_board(2), x, kind, weights, bits, num_groups, run, 1, q, x_scales, np.empty_like(x_scales), out)


@loop(parallel=True, **LOOP)
def linear(x, kind, weights, bits, num_groups, run, in_features, threads, out):
    """out = activation(x) @ weight.T + bias; arguments as of ``quantize_rows`` and ``multiply_phase``."""
    num_runs = x.shape[0] * in_features // run
    q, x_scales = np.empty(x.shape[0] * in_features, dtype=np.int16), np.empty(num_runs, dtype=np.float32)
    x_sums, board = np.empty_like(x_scales), new_board(2)
    for _ in numba.prange(threads):
        _linear(board, x, kind, weights, bits, num_groups, run, threads, q, x_scales, x_sums, out)
