"""The inner product of packed weights in AVX-512 VNNI instructions, written in LLVM's language for Numba.

Numba's own types have no vectors, and its loops do not reach ``vpdpwssd``, which multiplies 32 pairs of
16-bit integers and adds them up exactly. Layouts are in ``vnni.py``; who calls this is ``vnni_loops.py``.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

TILE_ROWS = 32  # output features that one call computes: two vectors of 16 lanes
_LANES = 16
_TILES = TILE_ROWS // _LANES

# So few rows take less time than their weights take from memory, and the processor looks too few cache lines
# ahead by itself: asking for them 8 KiB early made one row 17 to 20 % faster on one thread of an AMD EPYC
# (INT4, 27392 x 4096; 4 KiB 13 %, 2 KiB 4 %), 16 % on two.
_FEW_ROWS, _AHEAD_BYTES = 4, 8192

_I8, _I32, _I64, _FLOAT, _HALF = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.HalfType()
_INTS, _FLOATS = ir.VectorType(_I32, _LANES), ir.VectorType(_FLOAT, _LANES)


def _int(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


def _load(builder: ir.IRBuilder, address: Any, kind: Any, align: int) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=align)


def _splat(builder: ir.IRBuilder, value: Any, kind: ir.VectorType) -> Any:
    empty = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(empty, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, empty, ir.Constant(_INTS, [0] * _LANES))


class _TileProduct:
    """Writes the body of one ``tile_product`` for ``rows`` rows of x."""

    def __init__(self, builder: ir.IRBuilder, bits: int, rows: int, arguments: list[Any]) -> None:
        self.b, self.rows = builder, rows
        self.planes = 16 // bits  # groups of weights that lie above each other in a 16-bit half of a word
        self.shift = bits
        self.mask = 0x000F000F if bits == 4 else 0x00FF00FF
        # Sums that depend on each other take 4 cycles each: few rows need more chains to keep the unit busy.
        self.chains = 2 if rows <= _FEW_ROWS else 1
        (self.packed, self.scales, self.zeros, self.bias, self.x, self.x_scales, self.x_sums,
         self.num_runs, self.run_blocks, self.group_step, self.out, self.out_stride) = arguments  # fmt: skip
        cells = [(m, t) for m in range(rows) for t in range(_TILES)]
        self.acc = {cell: [cgutils.alloca_once(builder, _INTS) for _ in range(self.chains)] for cell in cells}
        self.total = {cell: cgutils.alloca_once(builder, _FLOATS) for cell in cells}
        module = builder.module
        self.prefetch = cgutils.get_or_insert_function(
            module, ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32]), "llvm.prefetch.p0"
        )
        self.dot = cgutils.get_or_insert_function(
            module, ir.FunctionType(_INTS, [_INTS] * 3), "llvm.x86.avx512.vpdpwssd.512"
        )
        self.fma = cgutils.get_or_insert_function(module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), "llvm.fma.v16f32")

    def write(self) -> None:
        b = self.b
        for (_, t), total in self.total.items():
            b.store(_load(b, b.add(self.bias, _int(64 * t)), _FLOATS, 4), total)
        with cgutils.for_range(b, self.num_runs) as run:
            for chains in self.acc.values():
                for chain in chains:
                    b.store(ir.Constant(_INTS, [0] * _LANES), chain)
            first = b.mul(run.index, self.run_blocks)
            with cgutils.for_range(b, self.run_blocks) as block:
                self._multiply_block(b.add(first, block.index))
            self._scale_run(run.index)
        for (m, t), total in self.total.items():
            target = b.add(self.out, b.add(b.mul(self.out_stride, _int(m)), _int(64 * t)))
            b.store(b.load(total), b.inttoptr(target, _FLOATS.as_pointer()), align=4)

    def _multiply_block(self, block: Any) -> None:
        """One word of weights a lane: 2 * planes weights of each of the tile's rows."""
        b = self.b
        weights = b.add(self.packed, b.mul(block, _int(4 * TILE_ROWS)))
        x = b.add(self.x, b.mul(block, _int(self.planes * self.rows * 4)))
        if self.rows <= _FEW_ROWS:
            for t in range(_TILES):
                line = b.inttoptr(b.add(weights, _int(_AHEAD_BYTES + 64 * t)), _I8.as_pointer())
                b.call(self.prefetch, [line, *(ir.Constant(_I32, flag) for flag in (0, 3, 1))])
        words = [_load(b, b.add(weights, _int(64 * t)), _INTS, 64) for t in range(_TILES)]
        for plane in range(self.planes):
            shift = ir.Constant(_INTS, [self.shift * plane] * _LANES)
            mask = ir.Constant(_INTS, [self.mask] * _LANES)
            q = [b.and_(b.lshr(word, shift) if plane else word, mask) for word in words]
            for m in range(self.rows):
                pair = _load(b, b.add(x, _int((plane * self.rows + m) * 4)), _I32, 4)
                for t in range(_TILES):
                    chain = self.acc[m, t][plane % self.chains]
                    b.store(b.call(self.dot, [b.load(chain), _splat(b, pair, _INTS), q[t]]), chain)

    def _scale_run(self, run: Any) -> None:
        """total += scale * x_scale * acc - scale * zero * x_sum, of one run of weights."""
        b, group = self.b, self.b.mul(run, self.group_step)
        scales, offsets = [], []
        for t in range(_TILES):
            halves = b.add(self.scales, b.add(b.mul(group, _int(2 * TILE_ROWS)), _int(2 * _LANES * t)))
            scale = b.fpext(_load(b, halves, ir.VectorType(_HALF, _LANES), 32), _FLOATS)
            bytes_ = b.add(self.zeros, b.add(b.mul(group, _int(TILE_ROWS)), _int(_LANES * t)))
            zero = b.uitofp(b.zext(_load(b, bytes_, ir.VectorType(_I8, _LANES), 16), _INTS), _FLOATS)
            scales.append(scale)
            offsets.append(b.fneg(b.fmul(scale, zero)))
        for m in range(self.rows):
            at = b.mul(b.add(b.mul(run, _int(self.rows)), _int(m)), _int(4))
            x_scale = _splat(b, _load(b, b.add(self.x_scales, at), _FLOAT, 4), _FLOATS)
            x_sum = _splat(b, _load(b, b.add(self.x_sums, at), _FLOAT, 4), _FLOATS)
            for t in range(_TILES):
                acc = b.load(self.acc[m, t][0])
                for chain in self.acc[m, t][1:]:
                    acc = b.add(acc, b.load(chain))
                product = [b.sitofp(acc, _FLOATS), b.fmul(scales[t], x_scale), b.load(self.total[m, t])]
                b.store(b.call(self.fma, [offsets[t], x_sum, b.call(self.fma, product)]), self.total[m, t])


def tile_product(bits: int, rows: int) -> Any:
    """Make the function that multiplies ``rows`` rows of x by one tile of weights.

    Its arguments are addresses and counts: packed, scales, zeros and bias of the tile; x, x_scales and
    x_sums of the rows; runs in K; words of a run; 1 where every run has scales of its own, else 0; the
    tile's first output, and bytes from one row of outputs to the next.
    """

    @intrinsic
    def product(typing_context, packed, scales, zeros, bias, x, x_scales, x_sums,
                num_runs, run_blocks, group_step, out, out_stride):  # fmt: skip
        def generate(context, builder, signature, arguments):
            _TileProduct(builder, bits, rows, list(arguments)).write()
            return context.get_dummy_value()

        return types.void(*[types.intp] * 12), generate

    return product


@intrinsic
def float_of_half(typing_context, bits):
    """Float32 of a float16's bits (uint16), by the processor's own conversion."""

    def generate(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], _HALF), _FLOAT)

    return types.float32(types.uint16), generate


@intrinsic
def half_of_float(typing_context, value):
    """Bits (uint16) of the float16 nearest to a float32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(builder.fptrunc(arguments[0], _HALF), ir.IntType(16))

    return types.uint16(types.float32), generate
