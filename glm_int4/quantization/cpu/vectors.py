"""LLVM instructions that Numba has no function for, shared by the loops of a CPU: float16, vectors, shared counters.

float16 comes as its bits (uint16), since Numba has no such type.
"""

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

_I16, _I32, _I64, _FLOAT, _HALF = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.HalfType()

# An x86 without F16C would call a function of the compiler's own library, which Numba does not link.
_HAS_HALF = not binding.get_process_triple().startswith(("x86_64", "i686")) or bool(
    binding.get_host_cpu_features().get("f16c")
)


def splat(builder: ir.IRBuilder, value: Any, kind: ir.VectorType) -> Any:
    """A vector with a value in every lane."""
    empty = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(empty, value, ir.Constant(_I32, 0))
    lanes = ir.Constant(ir.VectorType(_I32, kind.count), [0] * kind.count)
    return builder.shuffle_vector(first, empty, lanes)


@intrinsic
def float_of_half(typing_context, bits):
    """Float32 of a finite float16's bits (uint16)."""

    def generate(context, builder, signature, arguments):
        bits = arguments[0]
        if _HAS_HALF:
            return builder.fpext(builder.bitcast(bits, _HALF), _FLOAT)
        # Exponent and fraction in their places of a float32; the exponents' biases differ by 112.
        fields = builder.shl(builder.zext(builder.and_(bits, ir.Constant(_I16, 0x7FFF)), _I32), ir.Constant(_I32, 13))
        sign = builder.shl(builder.zext(builder.and_(bits, ir.Constant(_I16, 0x8000)), _I32), ir.Constant(_I32, 16))
        size = builder.fmul(builder.bitcast(fields, _FLOAT), ir.Constant(_FLOAT, 2.0**112))
        return builder.bitcast(builder.or_(builder.bitcast(size, _I32), sign), _FLOAT)

    return types.float32(types.uint16), generate


@intrinsic
def half_of_float(typing_context, value):
    """Bits (uint16) of the float16 nearest to a float32; only where the processor converts by itself."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(builder.fptrunc(arguments[0], _HALF), _I16)

    return types.uint16(types.float32), generate


@intrinsic
def fetch_add(typing_context, address, value):
    """Add to an int64 that several threads share; returns what it was."""

    def generate(context, builder, signature, arguments):
        shared = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.atomic_rmw("add", shared, arguments[1], "seq_cst")

    return types.int64(types.intp, types.int64), generate
