"""Which kernel serves how many rows of x on which GPU, and with which block sizes.

A row of the table holds up to ``max_rows`` rows of x; beyond the last one, weights are dequantized in
chunks for a cuBLAS product. Every row says where its numbers come from. None was timed on a GPU yet:
they follow from instruction counts, registers and shared memory of the compiled kernels
(``make gpu-gate``, benchmarks/results/kernel_gate.json), and the row counts where one kernel hands over
to the next are estimates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

_COMPILED = "compiled kernel's instructions, registers and shared memory, Triton 3.7.1; not timed on a GPU"
_ESTIMATE = "estimate; not timed on a GPU"

# Rows of a program that dequantizes, and columns of one that finishes a product; neither was timed.
DEQUANTIZE_BLOCK = 32
FINISH_BLOCK = 1024

# Splits that are merged at a time by the second pass of attention; not timed.
MERGE_BLOCK = 16

# What a library's product computes at a time in one multiprocessor, rows of x by rows of weights; and how many of the
# latter a piece has at least. Estimates; not timed on a GPU.
_TILE, _LEAST_TILES = (128, 256), 4

# Elements of a row that a program scales at a time, 16 a thread; not timed.
SCALE_BLOCK = 4096

# Bytes of a row that a program fetches, 16 a thread; not timed.
GATHER_BLOCK = 2048

# Every split of K gets at least this many blocks of 128 weights.
_MIN_BLOCKS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How to run one kernel.

    kernel: "dot" or "gemv". max_rows: of x. scale_after: multiply the product of a group by its scale
    instead of the weights before it ("gemv" always does). apart: sum every 128 weights by themselves also where
    a whole row shares a scale. max_registers: 255 keeps ptxas from spilling a few registers to fit one more
    program on a multiprocessor. programs_per_sm: how many splits of K make.
    source: of the numbers; switch_source: of max_rows.
    """

    kernel: str
    max_rows: int
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    scale_after: bool = True
    apart: bool = False
    max_registers: int | None = 255
    programs_per_sm: int = 2
    source: str = _COMPILED
    switch_source: str = _ESTIMATE

    def constants(self, bits: int, group_size: int | None) -> dict[str, int | bool | None]:
        """The kernel's compile-time arguments; ``group_size`` None: a whole row shares a scale."""
        constants = {
            "BITS": bits,
            "GROUP_SIZE": group_size,
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "PLANE": 32 if self.kernel == "gemv" else plane(bits, group_size),
        }
        after = self.apart if group_size is None else self.scale_after
        return constants | ({"SCALE_AFTER": after} if self.kernel == "dot" else {})


# Triton >= 3.3 has no tensor-core product before sm_80.
_TURING = (
    Launch(kernel="gemv", max_rows=1, block_m=1, block_n=64, num_warps=2, num_stages=1, programs_per_sm=4),
    Launch(kernel="gemv", max_rows=2, block_m=2, block_n=32, num_warps=2, num_stages=1, programs_per_sm=4),
    Launch(kernel="gemv", max_rows=8, block_m=4, block_n=32, num_warps=2, num_stages=1, programs_per_sm=4),
)
_AMPERE = (
    Launch(kernel="dot", max_rows=8, block_m=8, block_n=128, num_warps=4, num_stages=3),
    Launch(kernel="dot", max_rows=16, block_m=16, block_n=128, num_warps=4, num_stages=3),
    Launch(kernel="dot", max_rows=32, block_m=32, block_n=128, num_warps=4, num_stages=3, scale_after=False),
    Launch(kernel="dot", max_rows=256, block_m=64, block_n=128, num_warps=8, num_stages=3, scale_after=False),
)
# Products on sm_90 are begun, and waited for later. Where the next turn of the loop adds to the same sums, or weights
# are scaled before, ptxas lets them run one by one (C7515) or writes to an operand too early: a turn has its own sums.
_HOPPER = (
    *(replace(row, apart=True) for row in _AMPERE[:2]),
    *(replace(row, apart=True, scale_after=True) for row in _AMPERE[2:]),
)
# From 16 rows on Triton takes another kind of product there, with up to 13 instructions a weight.
_BLACKWELL = _AMPERE[:1]
# (bits, first architecture) -> rows; a newer architecture without rows of its own takes the newest below it.
TABLE: dict[tuple[int, int], tuple[Launch, ...]] = {
    (4, 75): _TURING,
    (8, 75): (*_TURING[:2], replace(_TURING[2], num_warps=4)),  # with two, rows in float32 spill
    (4, 80): _AMPERE,
    (8, 80): _AMPERE,
    (4, 90): _HOPPER,
    (8, 90): _HOPPER,
    (4, 100): _BLACKWELL,
    (8, 100): _BLACKWELL,
    (4, 120): _AMPERE,
    (8, 120): _AMPERE,
}


# What was measured on a GPU of this machine takes the place of the table's rows: (bits, architecture) -> rows.
_measured: dict[tuple[int, int], tuple[Launch, ...]] = {}


def adopt(measured: Mapping[tuple[int, int], tuple[Launch, ...]]) -> None:
    """Take these rows instead of the table's, until others are adopted; an empty mapping goes back to the table.

    Raises:
        ValueError: rows that no kernel could serve.
    """
    for (bits, _), rows in measured.items():
        limits = [row.max_rows for row in rows]
        if bits not in (4, 8) or not rows or limits != sorted(set(limits)):
            raise ValueError(f"launches must be for 4 or 8 bits with rising max_rows, got {bits} bits and {limits}")
        for row in rows:
            sizes = (row.block_m, row.block_n, row.num_warps)
            known = row.kernel in ("dot", "gemv") and row.num_stages >= 1 and row.programs_per_sm >= 1
            if not known or any(size < 1 or size & (size - 1) for size in sizes):
                raise ValueError(f"a launch must be of dot or gemv in powers of two, got {row}")
    _measured.clear()
    _measured.update(measured)


def launches(bits: int, architecture: int) -> tuple[Launch, ...]:
    """The rows of the table for a GPU, by rising number of rows of x."""
    if (bits, architecture) in _measured:
        return _measured[bits, architecture]
    known = [first for table_bits, first in TABLE if table_bits == bits and first <= architecture]
    return TABLE[bits, max(known)] if known else ()


def searched(bits: int, architecture: int) -> tuple[Launch, ...]:
    """The rows that a launch search begins with: those of the table, and wider ones where it dequantizes early."""
    rows = launches(bits, architecture)
    if not rows or rows[-1].kernel != "dot":
        return rows
    return (*rows, *(row for row in _HOPPER if row.block_m > rows[-1].block_m))


def choose(bits: int, architecture: int, num_rows: int) -> Launch | None:
    """The launch for ``num_rows`` rows of x, or None: dequantize, then multiply."""
    return next((row for row in launches(bits, architecture) if num_rows <= row.max_rows), None)


def row_counts(bits: int, architecture: int) -> list[int]:
    """A number of rows of x for every launch of the table, and the least one that is dequantized for."""
    limits = [row.max_rows for row in launches(bits, architecture)]
    return [*limits, limits[-1] + 1] if limits else [1]


def num_splits(launch: Launch, in_features: int, out_features: int, num_multiprocessors: int) -> int:
    """Into how many parts K is split.

    Does not depend on the rows of x, so that a row's result does not depend on its neighbours.
    """
    tiles = -(-out_features // launch.block_n)
    wanted = launch.programs_per_sm * num_multiprocessors // tiles
    return max(1, min(wanted, in_features // 128 // _MIN_BLOCKS))


def piece_rows(num_rows: int, num_multiprocessors: int) -> int:
    """Rows of weights to dequantize at a time for so many rows of x: what fills the GPU once, or a few times."""
    tall = max(-(-num_rows // _TILE[0]), 1)
    waves = max(-(-_LEAST_TILES * tall // num_multiprocessors), 1)
    return waves * num_multiprocessors // tall * _TILE[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionLaunch:
    """How to run one-token attention.

    block_h: query heads that share a key head and go into one product on tensor cores; 1 where a program handles a
    single head without them. block_s: columns of the cache in a split.
    """

    block_h: int
    block_s: int
    num_warps: int
    source: str = _COMPILED


def attention(heads_per_kv_head: int, *, tensor_cores: bool) -> AttentionLaunch:
    """The launch for so many query heads that share a key head. A product has 16 rows at least."""
    if heads_per_kv_head == 1 or not tensor_cores:
        return AttentionLaunch(block_h=1, block_s=64, num_warps=4)
    block_h = max(16, 1 << (heads_per_kv_head - 1).bit_length())
    return AttentionLaunch(block_h=block_h, block_s=64, num_warps=4)


def norm_warps(columns: int) -> int:
    """Warps of a program that normalizes a row: 16 elements a thread."""
    return min(max(columns // 512, 1), 16)


def plane(bits: int, group_size: int | None) -> int:
    """Weights of a row that go into one product: never across a group, 32 where nibbles are planar.

    The dot-free kernel always takes 32, since it spills registers with 64 and four rows of x (Triton 3.6, 3.9).
    """
    return 32 if bits == 4 or group_size == 32 else 64
