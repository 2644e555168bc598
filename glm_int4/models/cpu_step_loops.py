"""One new token through all layers in compiled code, on the "integer" backend; ``cpu_step.py`` calls this.

Between the matrices, which read their weights at the memory's speed, nothing is left to Python: what a
few small operations of torch take per layer adds up to a tenth of a token's time.
"""

import numba
import numpy as np
from numba import types
from numba.extending import overload

from glm_int4.quantization.adapter_loops import PHASES_OF_A_MATRIX, adapt, largest_rank
from glm_int4.quantization.cpu.compiled import loop
from glm_int4.quantization.cpu.integer_loops import (
    GELU,
    LOOP,
    PLAIN,
    SERIAL_BYTES,
    SWIGLU,
    exp,
    multiply_phase,
    quantize_phase,
)
from glm_int4.quantization.cpu.phases import claim, finish, new_board, wait_for_all
from glm_int4.quantization.cpu.vectors import float_of_half, half_of_float

# Columns of the table of matrices.
PACKED, SCALES, ZEROS, BIAS, BITS, GROUPS, RUN, INPUTS = range(8)

PHASES_OF_A_LAYER = 12

# Bytes of weights in a layer, times rows, that one thread runs in less time than waking another one takes.
SERIAL_LAYER_BYTES = 2 * SERIAL_BYTES

_LOWEST = np.float32(-3.0e38)


@loop(**LOOP)
def norm_row(x, weight, bias, epsilon, rms, out):
    """RMSNorm, or LayerNorm with a bias, of one row."""
    size = np.float32(x.size)
    mean = np.float32(0.0)
    if not rms:
        for i in range(x.size):
            mean += x[i]
        mean /= size
    squares = np.float32(0.0)
    for i in range(x.size):
        squares += (x[i] - mean) * (x[i] - mean)
    factor = np.float32(1.0) / np.sqrt(squares / size + epsilon)
    if rms:
        for i in range(x.size):
            out[i] = x[i] * factor * weight[i]
    else:
        for i in range(x.size):
            out[i] = (x[i] - mean) * factor * weight[i] + bias[i]


@loop(**LOOP)
def rotate(x, cos, sin, paired, out):
    """Rotate one head. paired: neighbours of its first half turn (versions 2 and 3); otherwise elements a
    quarter apart in both halves (version 1). cos, sin: (1 or 2, D / 4)."""
    quarter = x.size // 4
    if paired:
        for i in range(quarter):
            even, odd = x[2 * i], x[2 * i + 1]
            out[2 * i] = even * cos[0, i] - odd * sin[0, i]
            out[2 * i + 1] = odd * cos[0, i] + even * sin[0, i]
        for i in range(2 * quarter, x.size):
            out[i] = x[i]
    else:
        for half in range(2):
            first = x[2 * half * quarter : (2 * half + 1) * quarter]
            second = x[(2 * half + 1) * quarter : (2 * half + 2) * quarter]
            first_out = out[2 * half * quarter : (2 * half + 1) * quarter]
            second_out = out[(2 * half + 1) * quarter : (2 * half + 2) * quarter]
            for i in range(quarter):
                first_out[i] = first[i] * cos[half, i] - second[i] * sin[half, i]
                second_out[i] = second[i] * cos[half, i] + first[i] * sin[half, i]


def _store(x, values, scales, column):
    raise TypeError("only for compiled loops")  # pragma: no cover


@overload(_store)
def _overload_store(x, values, scales, column):
    """Write one head of one token to the cache, as ``KVCache.append`` does."""
    if values.dtype == types.uint16:

        def store_half(x, values, scales, column):
            target = values[column]
            for d in range(x.size):
                target[d] = half_of_float(x[d])

        return store_half

    def store_int8(x, values, scales, column):
        largest = np.float32(0.0)
        for d in range(x.size):
            largest = max(largest, abs(x[d]))
        bits = half_of_float(max(largest / np.float32(127.0), np.float32(2.0**-24)))
        scales[column] = bits
        scale, target = float_of_half(bits), values[column]
        for d in range(x.size):
            target[d] = np.int8(min(max(np.rint(x[d] / scale), np.float32(-127.0)), np.float32(127.0)))

    return store_int8


def _stored(value):
    raise TypeError("only for compiled loops")  # pragma: no cover


@overload(_stored)
def _overload_stored(value):
    """Float32 of a stored float16's bits, or of an int8."""
    if value == types.uint16:
        return lambda value: float_of_half(value)
    return lambda value: np.float32(np.int32(value))


@loop(**LOOP)
def _attend_head(
    task, q, k, v, k_scales, v_scales, slots, columns, padding, prefix_length, softmax_scale, out
):  # fmt: skip
    """One row's head of ``attend_to_cache``, which has the other arguments."""
    num_heads, head_dim = q.shape[1], q.shape[2]
    heads_per_kv_head = num_heads // k.shape[1]
    scaled = k_scales.shape[2] > 0
    row, head = task // num_heads, task % num_heads
    slot, kv_head, hidden = slots[row], head // heads_per_kv_head, padding[row]
    query, count = q[row, head], columns[row] + 1 - hidden
    keys, values = k[slot, kv_head], v[slot, kv_head]
    weights = np.empty(count, dtype=np.float32)
    largest = _LOWEST
    for i in range(count):
        column = i if i < prefix_length else i + hidden
        key, score = keys[column], np.float32(0.0)
        for d in range(head_dim):
            score += _stored(key[d]) * query[d]
        score *= softmax_scale
        if scaled:
            score *= float_of_half(k_scales[slot, kv_head, column])
        weights[i] = score
        largest = max(largest, score)
    total = np.float32(0.0)
    for i in range(count):
        weights[i] = exp(weights[i] - largest)
        total += weights[i]
    acc = np.zeros(head_dim, dtype=np.float32)
    for i in range(count):
        column = i if i < prefix_length else i + hidden
        weight, value = weights[i], values[column]
        if scaled:
            weight *= float_of_half(v_scales[slot, kv_head, column])
        for d in range(head_dim):
            acc[d] += weight * _stored(value[d])
    target = out[row, head * head_dim : (head + 1) * head_dim]
    for d in range(head_dim):
        target[d] = acc[d] / total


@loop(parallel=True, **LOOP)
def attend_to_cache(q, k, v, k_scales, v_scales, slots, columns, padding, prefix_length, softmax_scale, out):
    """out[b, h] = softmax(q[b, h] . k[s, g] * softmax_scale) @ v[s, g], with g the head's key/value head.

    q, out: (B, H, D) float32. k, v: (slots, Hkv, S, D), float16 bits or int8. k_scales, v_scales: (slots,
    Hkv, S) float16 bits, or (slots, Hkv, 0) where k and v need none. slots: (B,) the slot s of each row.
    columns: (B,) the last one that counts. padding: (B,) columns that are hidden, the leading ones behind the
    first ``prefix_length``.
    """
    for task in numba.prange(q.shape[0] * q.shape[1]):
        _attend_head(task, q, k, v, k_scales, v_scales, slots, columns, padding, prefix_length, softmax_scale, out)


@loop(**LOOP)
def _linear(board, phase, x, kind, matrix, q, scales, sums, threads, out):
    """Two phases: out = activation(x) @ weight.T + bias; ``matrix`` is a row of the table."""
    num_rows, run = x.shape[0], matrix[RUN]
    size = num_rows * matrix[INPUTS] // run
    scales, sums = scales[:size], sums[:size]
    weights = (matrix[PACKED], matrix[SCALES], matrix[ZEROS], matrix[BIAS])
    quantize_phase(board, phase, x, kind, run, q, scales, sums)
    multiply_phase(
        board, phase + 1, weights, matrix[BITS], matrix[GROUPS], q, scales, sums, num_rows, run, threads, out
    )


@loop(**LOOP)
def _add_residual(out, residual, factor, x):
    for row in range(out.shape[0]):
        for i in range(out.shape[1]):
            x[row, i] = out[row, i] + factor * residual[row, i]


@loop(**LOOP)
def _norm(x, weight, bias, epsilon, rms, out):
    for row in range(x.shape[0]):
        norm_row(x[row], weight, bias, epsilon, rms, out[row])


@loop(**LOOP)
def _rotate_to_cache(qkv, rms, cos, sin, q, k, v, k_scales, v_scales, slots, columns):
    """Rotated queries, and rotated keys and values to the cache of a layer."""
    num_heads, head_dim, num_kv_heads = q.shape[1], q.shape[2], k.shape[1]
    step = head_dim if rms else 3 * head_dim
    k_start = num_heads * head_dim if rms else head_dim
    v_start = (num_heads + num_kv_heads) * head_dim if rms else 2 * head_dim
    rotated = np.empty(head_dim, dtype=np.float32)
    for row in range(qkv.shape[0]):
        for head in range(num_heads):
            rotate(qkv[row, head * step : head * step + head_dim], cos[row], sin[row], rms, q[row, head])
        for head in range(num_kv_heads):
            start = k_start + head * step
            rotate(qkv[row, start : start + head_dim], cos[row], sin[row], rms, rotated)
            _store(rotated, k[slots[row], head], k_scales[slots[row], head], columns[row])
            start = v_start + head * step
            _store(qkv[row, start : start + head_dim], v[slots[row], head], v_scales[slots[row], head], columns[row])


@loop(**LOOP)
def _decode_layers(
    x, matrices, adapters, choices, norm_weights, norm_biases, epsilon, alpha, cos, sin, k, v, k_scales, v_scales,
    slots, columns, padding, prefix_length, threads, buffers, board
):  # fmt: skip
    """What every thread runs; arguments as of ``decode_layers``, and what the threads share."""
    normed, out, qkv, wide, q, attended, integers, scales, sums, low, activated = buffers
    rms = alpha == 0
    factor = np.float32(1.0) if rms else alpha
    softmax_scale = np.float32(1.0 / np.sqrt(q.shape[2]))
    num_heads = q.shape[0] * q.shape[1]
    phase = 0
    for layer in range(matrices.shape[0]):
        qkv_matrix, dense, up, down = matrices[layer]
        if claim(board, phase) == 0:
            if layer:
                _add_residual(out, x if rms else normed, factor, x)
            _norm(x, norm_weights[layer, 0], norm_biases[layer, 0], epsilon, rms, normed)
            finish(board, phase, 1)
        wait_for_all(board, phase)
        _linear(board, phase + 1, normed, PLAIN, qkv_matrix, integers, scales, sums, threads, qkv)
        phase = adapt(board, phase + 3, normed, PLAIN, adapters, layer, 0, choices, low, activated, qkv)
        stored = (k[layer], v[layer], k_scales[layer], v_scales[layer])
        if claim(board, phase) == 0:
            _rotate_to_cache(qkv, rms, cos, sin, q, *stored, slots, columns)
            finish(board, phase, 1)
        wait_for_all(board, phase)
        task = claim(board, phase + 1)
        while task < num_heads:
            _attend_head(task, q, *stored, slots, columns, padding, prefix_length, softmax_scale, attended)
            finish(board, phase + 1, num_heads)
            task = claim(board, phase + 1)
        wait_for_all(board, phase + 1)
        _linear(board, phase + 2, attended, PLAIN, dense, integers, scales, sums, threads, out)
        phase = adapt(board, phase + 4, attended, PLAIN, adapters, layer, 1, choices, low, activated, out)
        if claim(board, phase) == 0:
            _add_residual(out, x if rms else normed, factor, x)
            _norm(x, norm_weights[layer, 1], norm_biases[layer, 1], epsilon, rms, normed)
            finish(board, phase, 1)
        wait_for_all(board, phase)
        _linear(board, phase + 1, normed, PLAIN, up, integers, scales, sums, threads, wide)
        phase = adapt(board, phase + 3, normed, PLAIN, adapters, layer, 2, choices, low, activated, wide)
        kind = SWIGLU if rms else GELU
        _linear(board, phase, wide, kind, down, integers, scales, sums, threads, out)
        phase = adapt(board, phase + 2, wide, kind, adapters, layer, 3, choices, low, activated, out)
    if claim(board, phase) == 0:
        _add_residual(out, x if rms else normed, factor, x)
        finish(board, phase, 1)
    wait_for_all(board, phase)


@loop(**LOOP)
def _buffers(x, matrices, adapters, num_heads, head_dim, widths):
    """What the threads of ``decode_layers`` share between phases."""
    batch_size = x.shape[0]
    inputs, run = matrices[:, :, INPUTS].max(), matrices[:, :, RUN].min()
    scales = np.empty(batch_size * inputs // run, dtype=np.float32)
    return (
        np.empty_like(x),
        np.empty_like(x),
        np.empty((batch_size, widths[0]), dtype=np.float32),
        np.empty((batch_size, widths[1]), dtype=np.float32),
        np.empty((batch_size, num_heads, head_dim), dtype=np.float32),
        np.empty_like(x),
        np.empty(batch_size * inputs, dtype=np.int16),
        scales,
        np.empty_like(scales),
        np.empty((batch_size, largest_rank(adapters)), dtype=np.float32),
        np.empty((batch_size, matrices[0, 3, INPUTS]), dtype=np.float32),
    )


@loop(**LOOP)
def _new_board(matrices, adapters):
    """What the threads of ``decode_layers`` share to go through all phases."""
    num_phases = PHASES_OF_A_LAYER + (4 * PHASES_OF_A_MATRIX if adapters.shape[0] else 0)
    return new_board(matrices.shape[0] * num_phases + 1)


@loop(**LOOP)
def decode_layers_here(
    x, matrices, adapters, choices, norm_weights, norm_biases, epsilon, alpha, cos, sin, num_heads, k, v, k_scales,
    v_scales, slots, columns, padding, prefix_length, widths
):  # fmt: skip
    """As ``decode_layers``, in this thread alone: for models that are done before another one wakes."""
    _decode_layers(
        x, matrices, adapters, choices, norm_weights, norm_biases, epsilon, alpha, cos, sin, k, v, k_scales, v_scales,
        slots, columns, padding, prefix_length, 1, _buffers(x, matrices, adapters, num_heads, k.shape[4], widths),
        _new_board(matrices, adapters),
    )  # fmt: skip


@loop(parallel=True, **LOOP)
def decode_layers(
    x, matrices, adapters, choices, norm_weights, norm_biases, epsilon, alpha, cos, sin, num_heads, k, v, k_scales,
    v_scales, slots, columns, padding, prefix_length, widths, threads
):  # fmt: skip
    """Run every layer over one new token of each row; x becomes the last layer's output.

    x: (B, hidden) float32. matrices: (L, 4, 8) int64, the table of qkv, dense and both of the feed-forward
    part. adapters, choices: as of ``adapt``; a table of no adapters costs nothing. norm_weights, norm_biases:
    (L, 2, hidden). alpha: of version 1's residual, which is the normalized input; 0 for the others, whose residual
    is the input itself. cos, sin: (B, 1 or 2, D / 4). num_heads: of queries. k, v, k_scales, v_scales: the cache of
    all layers. slots, columns: (B,) where each row's new keys go. widths: outputs of qkv and of the feed-forward
    part's first matrix. threads: how many run.
    """
    buffers = _buffers(x, matrices, adapters, num_heads, k.shape[4], widths)
    board = _new_board(matrices, adapters)
    for _ in numba.prange(threads):
        _decode_layers(
            x, matrices, adapters, choices, norm_weights, norm_biases, epsilon, alpha, cos, sin, k, v, k_scales,
            v_scales, slots, columns, padding, prefix_length, threads, buffers, board,
        )  # fmt: skip
