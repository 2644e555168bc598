"""Threads that go through phases of work together, inside of one parallel loop.

A phase is a number of tasks. Threads claim them one by one, whoever is free; the last one done opens the next phase.
So a thread that the system has taken off its core holds up the others by its own task alone, and one that never came
by nothing. Who waits spins briefly, since on a quiet machine the others are nearly done, and then sleeps, so that other
programs, or a thread of ours on the same core, get on. (OpenMP's threads spin for milliseconds.)
"""

import platform
import sys

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from glm_int4.quantization.cpu.compiled import loop
from glm_int4.quantization.cpu.vectors import fetch_add

# Ticks of the processor's clock, about 0.1 ms: longer than a task of ours takes, much shorter than the system's turns.
_SPIN_TICKS = 250_000

# Numbers of int64, each with a cache line to itself.
_LINE = 8
_OPEN, _SLEEPERS, _FIRST = 0, _LINE, 2 * _LINE

_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine(), 0) if sys.platform == "linux" else 0
_WAIT, _WAKE, _EVERYBODY = 128, 129, 2**31 - 1  # among the threads of a process
_syscall = types.ExternalFunction("syscall", types.int64(*[types.int64] * 7))

_I64 = ir.IntType(64)


@intrinsic
def _load(typing_context, address):
    """An int64 that other threads change."""

    def generate(context, builder, signature, arguments):
        return builder.load_atomic(builder.inttoptr(arguments[0], _I64.as_pointer()), "acquire", 8)

    return types.int64(types.intp), generate


@intrinsic
def _pause(typing_context):
    """Tell an x86 that this is a loop that waits."""

    def generate(context, builder, signature, arguments):
        if platform.machine().lower() in ("x86_64", "amd64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", fnty=kind), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _ticks(typing_context):
    """The processor's clock."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(_I64, [])
        return builder.call(builder.module.declare_intrinsic("llvm.readcyclecounter", fnty=kind), [])

    return types.int64(), generate


@loop()
def new_board(num_phases):
    """What threads share to go through so many phases."""
    return np.zeros(_FIRST + 2 * _LINE * num_phases, dtype=np.int64)


@loop()
def claim(board, phase):
    """The number of a task that nobody has claimed; there may be no such task any more."""
    return fetch_add(board.ctypes.data + 8 * (_FIRST + 2 * _LINE * phase), 1)


@loop()
def finish(board, phase, num_tasks):
    """Note that a claimed task is done."""
    if fetch_add(board.ctypes.data + 8 * (_FIRST + 2 * _LINE * phase + _LINE), 1) == num_tasks - 1:
        fetch_add(board.ctypes.data + 8 * _OPEN, 1)
        if _FUTEX and fetch_add(board.ctypes.data + 8 * _SLEEPERS, 0):
            _syscall(_FUTEX, board.ctypes.data + 8 * _OPEN, _WAKE, _EVERYBODY, 0, 0, 0)


@loop()
def wait_for_all(board, phase):
    """Return when all tasks of a phase are done."""
    shared = board.ctypes.data + 8 * _OPEN
    started = _ticks()
    while _load(shared) <= phase:
        if _FUTEX and _ticks() - started > _SPIN_TICKS:
            break
        _pause()
    while _load(shared) <= phase:
        fetch_add(board.ctypes.data + 8 * _SLEEPERS, 1)
        _syscall(_FUTEX, shared, _WAIT, phase, 0, 0, 0)
        fetch_add(board.ctypes.data + 8 * _SLEEPERS, -1)
