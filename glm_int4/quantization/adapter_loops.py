"""Low-rank products beside the matrices of a compiled step: the phases behind an adapted matrix's own.

A row of a batch may have an adapter or none; what it gets does not depend on the rows beside it.
"""

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from glm_int4.quantization.cpu.compiled import loop
from glm_int4.quantization.cpu.integer_loops import LOOP, PLAIN, activate
from glm_int4.quantization.cpu.phases import claim, finish, wait_for_all

# Columns of a matrix's entry in the table of adapters: addresses of float32, 0 for none, and the rank. ``down`` is
# (RANK, K), ``up`` (RANK, N), ``ratio`` and ``shift`` (N,).
DOWN, UP, RATIO, SHIFT, RANK = range(5)

# At most, behind an adapted matrix: its activated inputs, their product with ``down``, that with ``up``.
PHASES_OF_A_MATRIX = 3

_CHUNK = 1024  # outputs, or activated inputs, of a task


@intrinsic
def _pointer(typing_context, address):
    """A pointer to float32 numbers."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(types.int64), generate


@loop(**LOOP)
def _floats(address, size):
    return carray(_pointer(address), (size,))


@loop(**LOOP)
def largest_rank(adapters):
    """Of all adapters (A, L, 4, 5) in all matrices."""
    return adapters[:, :, :, RANK].max() if adapters.shape[0] else 0


@loop(**LOOP)
def _rank_to_run(entries, choices):
    """The largest rank among the adapters of a batch's rows; -1 where none of them changes this matrix."""
    rank = -1
    for row in range(choices.size):
        if choices[row] >= 0:
            entry = entries[choices[row]]
            if entry[RANK] or entry[RATIO] or entry[SHIFT]:
                rank = max(rank, entry[RANK])
    return rank


@loop(**LOOP)
def _activate_phase(board, phase, x, kind, activated):
    """activated = activation(x), by several threads."""
    width = activated.shape[1]
    num_tasks = (width + _CHUNK - 1) // _CHUNK
    task = claim(board, phase)
    while task < num_tasks:
        start, stop = task * _CHUNK, min((task + 1) * _CHUNK, width)
        for row in range(x.shape[0]):
            activate(x[row], start, stop, width, kind, activated[row, start:stop])
        finish(board, phase, num_tasks)
        task = claim(board, phase)
    wait_for_all(board, phase)


@loop(**LOOP)
def _down_phase(board, phase, x, entries, choices, rank, low):
    """low[b, r] = down[r] @ x[b], by several threads."""
    width, num_tasks = x.shape[1], max(rank, 1)
    task = claim(board, phase)
    while task < num_tasks:
        for row in range(choices.size):
            if choices[row] >= 0 and task < entries[choices[row], RANK]:
                down = _floats(entries[choices[row], DOWN] + 4 * task * width, width)
                values, total = x[row], np.float32(0.0)
                for i in range(width):
                    total += down[i] * values[i]
                low[row, task] = total
        finish(board, phase, num_tasks)
        task = claim(board, phase)
    wait_for_all(board, phase)


@loop(**LOOP)
def _up_chunk(entry, low, start, stop, num_outputs, out):
    """out = out * ratio + shift + low @ up, of one row's outputs from ``start`` to ``stop``."""
    size = stop - start
    if entry[RATIO]:
        ratio = _floats(entry[RATIO] + 4 * start, size)
        for i in range(size):
            out[i] *= ratio[i]
    if entry[SHIFT]:
        shift = _floats(entry[SHIFT] + 4 * start, size)
        for i in range(size):
            out[i] += shift[i]
    for r in range(entry[RANK]):
        up, factor = _floats(entry[UP] + 4 * (r * num_outputs + start), size), low[r]
        for i in range(size):
            out[i] += factor * up[i]


@loop(**LOOP)
def _up_phase(board, phase, entries, choices, low, out):
    """``_up_chunk`` for all rows with an adapter, by several threads."""
    num_outputs = out.shape[1]
    num_tasks = (num_outputs + _CHUNK - 1) // _CHUNK
    task = claim(board, phase)
    while task < num_tasks:
        start, stop = task * _CHUNK, min((task + 1) * _CHUNK, num_outputs)
        for row in range(choices.size):
            if choices[row] >= 0:
                _up_chunk(entries[choices[row]], low[row], start, stop, num_outputs, out[row, start:stop])
        finish(board, phase, num_tasks)
        task = claim(board, phase)
    wait_for_all(board, phase)


@loop(**LOOP)
def adapt(board, phase, x, kind, adapters, layer, matrix, choices, low, activated, out):
    """Add to a matrix's outputs (B, N) what each row's adapter adds; returns the phase that follows.

    x: (B, K) float32, the matrix's inputs before the activation ``kind``. adapters: (A, L, 4, 5) int64, an entry a
    matrix. choices: (B,) int64, a row's adapter, -1 for none. low: (B, largest rank), activated: (B, K of the last
    matrix).
    """
    if adapters.shape[0] == 0:
        return phase
    entries = adapters[:, layer, matrix]
    rank = _rank_to_run(entries, choices)
    if rank < 0:
        return phase
    if kind == PLAIN:
        _down_phase(board, phase, x, entries, choices, rank, low)
    else:
        _activate_phase(board, phase, x, kind, activated)
        phase += 1
        _down_phase(board, phase, activated, entries, choices, rank, low)
    _up_phase(board, phase + 1, entries, choices, low, out)
    return phase + 2
