"""The inner product of packed weights in vector instructions, written in LLVM's language for Numba.

Numba's own types have no vectors, and its loops do not reach ``vpdpwssd`` and ``vpmaddwd``, which multiply pairs of
16-bit integers and add them up exactly. Layouts are in ``integer.py``; who calls this is ``integer_loops.py``.
"""

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from glm_int4.quantization.cpu.instructions import InstructionSet
from glm_int4.quantization.cpu.vectors import splat

binding.initialize_native_asmparser()  # Numba itself has no use for one

TILE_ROWS = 32  # output features that one call computes

# So few rows take less time than their weights take from memory, and the processor looks too few cache lines
# ahead by itself: asking for them 8 KiB early made one row 17 to 20 % faster on one thread of an AMD EPYC
# (INT4, 27392 x 4096; 4 KiB 13 %, 2 KiB 4 %), 16 % on two; 44 % on two threads of an Intel Xeon.
_FEW_ROWS, _AHEAD_BYTES, _LINE_BYTES = 4, 8192, 64


def _fetch_locality(processor: str) -> int:
    """LLVM's number of the cache that lines are asked into, L1 (3) or L2 (2), by LLVM's name of a processor.

    Into L2 the Xeon read 3 to 4 % more: its L1 can wait for few lines at a time. EPYCs were measured with L1.
    """
    return 3 if processor.startswith("znver") else 2


_LOCALITY = _fetch_locality(binding.get_host_cpu_name())

_I8, _I16, _I32, _I64, _FLOAT, _HALF = (
    ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.HalfType()
)  # fmt: skip


def _int(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


def _load(builder: ir.IRBuilder, address: Any, kind: Any, align: int) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=align)


class _TileProduct:
    """Writes the body of one ``tile_product`` for ``rows`` rows of x.

    A tile's 32 outputs fill 2 or 4 vectors. Sums of all rows and vectors stay in registers while a run of weights is
    multiplied; where they are more than the registers hold, the run is gone through in several passes.
    """

    def __init__(
        self, builder: ir.IRBuilder, bits: int, rows: int, instructions: InstructionSet, arguments: list[Any]
    ) -> None:
        self.b, self.bits, self.rows, self.has_dot = builder, bits, rows, instructions.has_dot
        self.lanes, self.vectors = instructions.lanes, TILE_ROWS // instructions.lanes
        self.ints, self.floats = ir.VectorType(_I32, self.lanes), ir.VectorType(_FLOAT, self.lanes)
        self.words = ir.VectorType(_I16, 2 * self.lanes)
        self.planes = 16 // bits  # groups of weights that lie above each other in a 16-bit half of a word
        # Sums that depend on each other wait for each other: few rows need more chains to keep the units busy.
        self.sums = instructions.registers // 2
        self.chains = 2 if rows * self.vectors * 2 <= self.sums else 1
        (self.packed, self.scales, self.zeros, self.bias, self.x, self.x_scales, self.x_sums,
         self.num_runs, self.run_words, self.group_step, self.out, self.out_stride) = arguments  # fmt: skip
        cells = [(m, t) for m in range(rows) for t in range(self.vectors)]
        self.acc = {cell: [cgutils.alloca_once(builder, self.ints) for _ in range(self.chains)] for cell in cells}
        self.total = {cell: cgutils.alloca_once(builder, self.floats) for cell in cells}
        self.prefetch = self._function(
            "llvm.prefetch.p0", ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
        )
        self.fma = self._function(f"llvm.fma.v{self.lanes}f32", ir.FunctionType(self.floats, [self.floats] * 3))
        if self.has_dot:
            # As assembly: LLVM takes its own intrinsic apart into vpmaddwd and vpaddd for Intel's processors.
            kind = ir.FunctionType(self.ints, [self.ints] * 3)
            self.dot = ir.InlineAsm(kind, "vpdpwssd $2, $1, $0", "=v,v,v,0")
        else:
            self.dot = self._function("llvm.x86.avx2.pmadd.wd", ir.FunctionType(self.ints, [self.words] * 2))

    def _function(self, name: str, kind: ir.FunctionType) -> Any:
        return cgutils.get_or_insert_function(self.b.module, kind, name)

    def write(self) -> None:
        b = self.b
        for (_, t), total in self.total.items():
            b.store(_load(b, b.add(self.bias, _int(4 * self.lanes * t)), self.floats, 4), total)
        with cgutils.for_range(b, self.num_runs) as run:
            first = b.mul(run.index, self.run_words)
            for index, (rows, vectors) in enumerate(self._passes()):
                for m in rows:
                    for t in vectors:
                        for chain in self.acc[m, t]:
                            b.store(ir.Constant(self.ints, [0] * self.lanes), chain)
                with cgutils.for_range(b, self.run_words) as word:
                    if index == 0 and self.rows <= _FEW_ROWS:
                        self._ask_ahead(b.add(first, word.index))
                    self._multiply_word(b.add(first, word.index), rows, vectors)
                self._scale_run(run.index, rows, vectors)
        for (m, t), total in self.total.items():
            target = b.add(self.out, b.add(b.mul(self.out_stride, _int(m)), _int(4 * self.lanes * t)))
            b.store(b.load(total), b.inttoptr(target, self.floats.as_pointer()), align=4)

    def _passes(self) -> list[tuple[range, range]]:
        """Rows and vectors of each pass."""
        if self.rows * self.vectors <= self.sums:
            return [(range(self.rows), range(self.vectors))]
        m_step, t_step = 4, 2
        return [
            (range(m, m + m_step), range(t, t + t_step))
            for t in range(0, self.vectors, t_step)
            for m in range(0, self.rows, m_step)
        ]

    def _word_weights(self, word: Any) -> Any:
        return self.b.add(self.packed, self.b.mul(word, _int(4 * TILE_ROWS)))

    def _ask_ahead(self, word: Any) -> None:
        """Have the cache lines fetched that are read 8 KiB later."""
        b, weights = self.b, self._word_weights(word)
        for line in range(0, 4 * TILE_ROWS, _LINE_BYTES):
            address = b.inttoptr(b.add(weights, _int(_AHEAD_BYTES + line)), _I8.as_pointer())
            b.call(self.prefetch, [address, *(ir.Constant(_I32, flag) for flag in (0, _LOCALITY, 1))])

    def _multiply_word(self, word: Any, rows: range, vectors: range) -> None:
        """One word of weights a lane: 2 * planes weights of each of the tile's rows."""
        b, weights = self.b, self._word_weights(word)
        x = b.add(self.x, b.mul(word, _int(self.planes * self.rows * 4)))
        words = [_load(b, b.add(weights, _int(4 * self.lanes * t)), self.words, 32) for t in vectors]
        for plane in range(self.planes):
            q = [self._plane(word, plane) for word in words]
            for m in rows:
                pair = splat(b, _load(b, b.add(x, _int((plane * self.rows + m) * 4)), _I32, 4), self.ints)
                for t, weight in zip(vectors, q, strict=True):
                    chain = self.acc[m, t][plane % self.chains]
                    b.store(self._add_product(b.load(chain), pair, weight), chain)

    def _plane(self, words: Any, plane: int) -> Any:
        """One of the weights that lie above each other in every 16-bit half."""
        b, count = self.b, 2 * self.lanes
        if plane:
            words = b.lshr(words, ir.Constant(self.words, [self.bits * plane] * count))
        if plane < self.planes - 1:
            words = b.and_(words, ir.Constant(self.words, [(1 << self.bits) - 1] * count))
        return words

    def _add_product(self, acc: Any, pair: Any, weight: Any) -> Any:
        if self.has_dot:
            return self.b.call(self.dot, [self.b.bitcast(weight, self.ints), pair, acc])
        return self.b.add(acc, self.b.call(self.dot, [self.b.bitcast(pair, self.words), weight]))

    def _scale_run(self, run: Any, rows: range, vectors: range) -> None:
        """total += scale * x_scale * acc - scale * zero * x_sum, of one run of weights."""
        b, group = self.b, self.b.mul(run, self.group_step)
        scales, offsets = {}, {}
        for t in vectors:
            halves = b.add(self.scales, b.add(b.mul(group, _int(2 * TILE_ROWS)), _int(2 * self.lanes * t)))
            scales[t] = b.fpext(_load(b, halves, ir.VectorType(_HALF, self.lanes), 16), self.floats)
            bytes_ = b.add(self.zeros, b.add(b.mul(group, _int(TILE_ROWS)), _int(self.lanes * t)))
            zero = b.uitofp(b.zext(_load(b, bytes_, ir.VectorType(_I8, self.lanes), 8), self.ints), self.floats)
            offsets[t] = b.fneg(b.fmul(scales[t], zero))
        for m in rows:
            at = b.mul(b.add(b.mul(run, _int(self.rows)), _int(m)), _int(4))
            x_scale = splat(b, _load(b, b.add(self.x_scales, at), _FLOAT, 4), self.floats)
            x_sum = splat(b, _load(b, b.add(self.x_sums, at), _FLOAT, 4), self.floats)
            for t in vectors:
                acc = b.load(self.acc[m, t][0])
                for chain in self.acc[m, t][1:]:
                    acc = b.add(acc, b.load(chain))
                product = [b.sitofp(acc, self.floats), b.fmul(scales[t], x_scale), b.load(self.total[m, t])]
                b.store(b.call(self.fma, [offsets[t], x_sum, b.call(self.fma, product)]), self.total[m, t])


def tile_product(bits: int, rows: int, instructions: InstructionSet) -> Any:
    """Make the function that multiplies ``rows`` rows of x by one tile of weights.

    Its arguments are addresses and counts: packed, scales, zeros and bias of the tile; x, x_scales and
    x_sums of the rows; runs in K; words of a run; 1 where every run has scales of its own, else 0; the
    tile's first output, and bytes from one row of outputs to the next. All instruction sets add up the same
    integers, and the same floats in the same order.
    """

    @intrinsic
    def product(typing_context, packed, scales, zeros, bias, x, x_scales, x_sums,
                num_runs, run_words, group_step, out, out_stride):  # fmt: skip
        def generate(context, builder, signature, arguments):
            _TileProduct(builder, bits, rows, instructions, list(arguments)).write()
            return context.get_dummy_value()

        return types.void(*[types.intp] * 12), generate

    return product
