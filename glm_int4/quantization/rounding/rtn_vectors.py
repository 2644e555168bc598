"""Sums over a group of weights in vector instructions, written in LLVM's language for Numba.

Numba's loops vectorize a sum of floats only where they may reorder it, and LLVM then orders it anew each time it
optimizes: the process that compiles a parallel loop got other sums, and in the end other integers, than those
that load it. Here every sum has one order, on every processor. ``rtn_loops.py`` calls this.

A group is given by the address of its values, float32, and their number, a multiple of ``STEP``; behind a group
that ends before stand zeros, which add nothing to any sum.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from glm_int4.quantization.cpu.vectors import splat

STEP = 32
_LANES, _VECTORS = 16, 2  # whatever the processor's registers hold

_I8, _I32, _I64, _FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_BYTES, _INTS, _FLOATS = (ir.VectorType(kind, _LANES) for kind in (_I8, _I32, _FLOAT))


def _fma(b: ir.IRBuilder, x: Any, y: Any, z: Any) -> Any:
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
    return b.call(cgutils.get_or_insert_function(b.module, kind, f"llvm.fma.v{_LANES}f32"), [x, y, z])


def _add_up(b: ir.IRBuilder, values: Any) -> Any:
    """The sum of a vector's lanes, the upper half to the lower one until one is left."""
    lanes = _LANES
    while lanes > 1:
        lanes //= 2
        halves = [
            b.shuffle_vector(values, values, ir.Constant(ir.VectorType(_I32, lanes), list(range(first, first + lanes))))
            for first in (0, lanes)
        ]
        values = b.fadd(*halves)
    return b.extract_element(values, ir.Constant(_I32, 0))


def _sums(
    b: ir.IRBuilder, address: Any, count: Any, num_sums: int, step: Callable[[Any, Any, list[Any]], list[Any]]
) -> list[Any]:
    """Go through a group; ``step(values, index, sums)`` returns what the sums of a vector's lanes become."""
    zeros = ir.Constant(_FLOATS, [0.0] * _LANES)
    chains = [[cgutils.alloca_once_value(b, zeros) for _ in range(num_sums)] for _ in range(_VECTORS)]
    with cgutils.for_range(b, b.udiv(count, ir.Constant(_I64, STEP))) as loop:
        for i, chain in enumerate(chains):
            index = b.add(b.mul(loop.index, ir.Constant(_I64, STEP)), ir.Constant(_I64, i * _LANES))
            place = b.add(address, b.mul(index, ir.Constant(_I64, 4)))
            values = b.load(b.inttoptr(place, _FLOATS.as_pointer()), align=4)
            for total, value in zip(chain, step(values, index, [b.load(total) for total in chain]), strict=True):
                b.store(value, total)
    return [_add_up(b, b.fadd(b.load(first), b.load(second))) for first, second in zip(*chains, strict=True)]


def _round(b: ir.IRBuilder, values: Any, inverse: Any, shift: Any, most: Any) -> Any:
    """Integers from 0 to ``most - 0.5``: adding a half and cutting off rounds to nearest, as no sum is negative."""
    least = ir.Constant(_FLOATS, [0.5] * _LANES)
    shifted = _fma(b, values, inverse, shift)
    shifted = b.select(b.fcmp_ordered(">", shifted, least), shifted, least)
    return b.fptosi(b.select(b.fcmp_ordered("<", shifted, most), shifted, most), _INTS)


@intrinsic
def sum_of_squares(typing_context, address, count):
    """Of a group's values, float32."""

    def generate(context, builder, signature, arguments):
        return _sums(builder, arguments[0], arguments[1], 1, lambda x, index, sums: [_fma(builder, x, x, sums[0])])[0]

    return types.float32(types.intp, types.intp), generate


@intrinsic
def try_range(typing_context, address, count, inverse, shift, most, zero):
    """Sums of values times integers and of squared integers, the integers as ``round_group`` finds them, less zero."""

    def generate(context, builder, signature, arguments):
        b = builder
        inverse, shift, most, zero = (splat(b, value, _FLOATS) for value in arguments[2:])

        def step(values, index, sums):
            q = b.fsub(b.sitofp(_round(b, values, inverse, shift, most), _FLOATS), zero)
            return [_fma(b, values, q, sums[0]), _fma(b, q, q, sums[1])]

        return context.make_tuple(b, signature.return_type, _sums(b, arguments[0], arguments[1], 2, step))

    return types.UniTuple(types.float32, 2)(types.intp, types.intp, *[types.float32] * 4), generate


@intrinsic
def round_group(typing_context, address, count, inverse, shift, most, zero, scale, out):
    """Write a group's integers, a byte each, and return the squared error of ``(integer - zero) * scale``.

    Integers are ``value * inverse + shift``, cut off between 0 and ``most``; ``shift`` is the zero point and a half.
    """

    def generate(context, builder, signature, arguments):
        b, out = builder, arguments[7]
        inverse, shift, most, zero, scale = (splat(b, value, _FLOATS) for value in arguments[2:7])

        def step(values, index, sums):
            q = _round(b, values, inverse, shift, most)
            b.store(b.trunc(q, _BYTES), b.inttoptr(b.add(out, index), _BYTES.as_pointer()), align=1)
            difference = b.fsub(b.fmul(b.fsub(b.sitofp(q, _FLOATS), zero), scale), values)
            return [_fma(b, difference, difference, sums[0])]

        return _sums(b, arguments[0], arguments[1], 1, step)[0]

    return types.float32(types.intp, types.intp, *[types.float32] * 5, types.intp), generate
