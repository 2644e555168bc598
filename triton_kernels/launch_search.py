"""Measures launches of the linears on the GPU at hand: which block sizes, splits and switch points suit it.

A row of the launch table serves all shapes, so the candidates of a row are compared by the sum of their times
over the shapes given. First block sizes, warps and stages, then into how many parts K is split.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import triton
from torch import Tensor

from triton_kernels import gpu, launch
from triton_kernels.graph_capture import GraphRecorder
from triton_kernels.launch import Launch
from triton_kernels.operands import Epilogue, Matrix

# Rows of x from which on a kernel may lose against dequantizing; the last one a table is asked for.
SWITCH_ROWS = (48, 64, 96, 128, 192, 256, 384, 512)
_PROGRAMS_PER_SM = (1, 2, 3, 4, 6)
_REPLAYS = 5
# Copies of a matrix are rotated beyond so many times the cache.
_CACHE_FACTOR = 4

_recorder = GraphRecorder()


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Microseconds of one launch for one matrix (N, K); ``launch`` None is dequantize + cuBLAS."""

    bits: int
    rows: int
    shape: tuple[int, int]
    launch: Launch | None
    microseconds: float


def candidates(row: Launch, architecture: int) -> Iterator[Launch]:
    """What is tried in the place of a row, itself first.

    On sm_90 weights are never scaled before a product of 16 rows: such products run one by one, or worse, their
    operands are overwritten too early (``benchmarks/kernels/kernel_gate.py`` looks for both).
    """
    yield row
    tried = {row}
    if row.kernel == "dot":
        sizes = [(n, w) for n, w in ((64, 4), (128, 4), (128, 8), (256, 8)) if n < 256 or row.block_m <= 16]
        options = [replace(row, block_n=n, num_warps=w, num_stages=s) for n, w in sizes for s in (2, 3, 4)]
        if row.block_m >= 16 and architecture // 10 != 9:
            options.append(replace(row, scale_after=not row.scale_after))
    else:
        options = [replace(row, block_n=n, num_warps=w) for n in (16, 32, 64, 128) for w in (1, 2, 4)]
    for option in options:
        if option not in tried:
            tried.add(option)
            yield option


def search(
    bits: int,
    device: torch.device,
    shapes: Sequence[tuple[int, int]],
    *,
    group_size: int | None = None,
    report: Callable[[str], None],
    deadline: float = math.inf,
    timer: "Callable[[Callable[[], object]], float] | None" = None,
    architecture: int | None = None,
    num_copies: int | None = None,
) -> tuple[tuple[Launch, ...], list[Timing]]:
    """The fastest rows of the launch table for a GPU, and every time that was measured.

    Args:
        bits: 4 or 8. shapes: (N, K). group_size: None for a scale a row.
        report: called with a line on every row. deadline: of ``time.monotonic``; then rows stay as they are.
        timer: seconds that a function takes, by default from a CUDA graph. architecture, num_copies: other than
            the device's, for a trial without one.
    """
    timer = timer or graph_seconds
    if architecture is None:
        major, minor = torch.cuda.get_device_capability(device)
        architecture = 10 * major + minor
    sets = [_copies(bits, shape, group_size or shape[1], device, num_copies) for shape in shapes]
    rows, timings = [], []
    source, least = measured_source(device), 1
    for row in launch.searched(bits, architecture):
        x_rows = min(row.block_m, row.max_rows) if row.kernel == "dot" else least
        times: dict[Launch, float] = {}

        def total(candidate: Launch, x_rows: int = x_rows, times: dict[Launch, float] = times) -> float:
            if candidate not in times:
                found = _times(candidate, x_rows, sets, timer)
                times[candidate] = sum(timing.microseconds for timing in found)
                timings.extend(found)
            return times[candidate]

        best = row
        for candidate in candidates(row, architecture):
            if time.monotonic() < deadline and total(candidate) < total(best):
                best = candidate
        for programs in _PROGRAMS_PER_SM:
            candidate = replace(best, programs_per_sm=programs)
            if time.monotonic() < deadline and total(candidate) < total(best):
                best = candidate
        if times:
            report(f"INT{bits}, up to {row.max_rows} rows: {total(row):.0f} -> {total(best):.0f} us, {describe(best)}")
            best = replace(best, source=source)
        rows.append(best)
        least = row.max_rows + 1
    return _switch(rows, sets, timer, timings, report, deadline, source), timings


def _switch(
    rows: list[Launch],
    sets: list[list[Matrix]],
    timer: Callable[[Callable[[], object]], float],
    timings: list[Timing],
    report: Callable[[str], None],
    deadline: float,
    source: str,
) -> tuple[Launch, ...]:
    """Leave out what dequantizing is faster than, and set up to how many rows of x the last kernel left is not."""
    bits = sets[0][0].bits
    for last, kept in ((rows[i], rows[:i]) for i in reversed(range(len(rows)))):
        least, limit = kept[-1].max_rows if kept else 0, None
        counts = SWITCH_ROWS if last.kernel == "dot" else tuple(range(least + 1, 17))
        for count in counts if last is rows[-1] else (last.max_rows,):
            if time.monotonic() > deadline or count <= least:
                continue
            found = [_times(candidate, count, sets, timer) for candidate in (last, None)]
            for timing in found:
                timings.extend(timing)
            ours, dequantized = (sum(timing.microseconds for timing in times) for times in found)
            limit = limit or least
            if ours > dequantized:
                break
            limit = count
        if limit is None:  # no time is left
            return (*kept, last)
        if limit > least:
            report(f"INT{bits}: kernels up to {limit} rows, then dequantizing")
            return (*kept, replace(last, max_rows=limit, switch_source=source))
    return tuple(rows[:1])


def measured_source(device: torch.device) -> str:
    """Where a measured row's numbers come from."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a trial without a GPU"
    return f"measured on {name}, torch {torch.__version__}, Triton {triton.__version__}"


def describe(row: Launch) -> str:
    """A row's numbers in one line."""
    scale = "" if row.kernel == "gemv" else ", scale after" if row.scale_after else ", scale before"
    return (
        f"{row.kernel} {row.block_m}x{row.block_n}, {row.num_warps} warps, {row.num_stages} stages, "
        f"{row.programs_per_sm} programs{scale}"
    )


def _times(
    row: Launch | None, num_rows: int, sets: list[list[Matrix]], timer: Callable[[Callable[[], object]], float]
) -> list[Timing]:
    """What one launch takes for every shape; infinite where it does not run."""
    timings = []
    for copies in sets:
        first = copies[0]
        x = torch.randn(num_rows, first.in_features, device=first.qweight.device).half()
        try:
            seconds = timer(partial(_run_all, row, copies, x)) / len(copies)
        except Exception:  # too much memory of either kind, or whatever the compiler says: not a candidate
            seconds = math.inf
        shape = (first.out_features, first.in_features)
        microseconds = 1e6 * seconds
        timings.append(Timing(bits=first.bits, rows=num_rows, shape=shape, launch=row, microseconds=microseconds))
        if math.isinf(seconds):
            break
    return timings


def _run_all(row: Launch | None, matrices: list[Matrix], x: Tensor) -> list[Tensor]:
    return [_run(row, matrix, x) for matrix in matrices]


def _run(row: Launch | None, matrix: Matrix, x: Tensor) -> Tensor:
    if row is None:
        return gpu.multiply_dequantized(x, matrix, Epilogue())
    multiprocessors = 2
    if x.is_cuda:
        multiprocessors = torch.cuda.get_device_properties(x.device).multi_processor_count
    splits = launch.num_splits(row, matrix.in_features, matrix.out_features, multiprocessors)
    return gpu.run(row, splits, x, matrix, Epilogue())


def graph_seconds(function: Callable[[], object]) -> float:
    """Median time of a captured graph of a function."""
    function()  # compiles what is not compiled yet
    replay = _recorder.capture(function, _recorder.new_pool())
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(_REPLAYS + 1):
        start.record()
        replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return sorted(times[1:])[_REPLAYS // 2]


def _copies(
    bits: int, shape: tuple[int, int], group_size: int, device: torch.device, num_copies: int | None
) -> list[Matrix]:
    """Random matrices that together exceed the cache."""
    n, k = shape
    if num_copies is None:
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        num_copies = max(math.ceil(_CACHE_FACTOR * cache / (n * k * bits / 8)), 2)
    return [_random(bits, n, k, group_size, device) for _ in range(num_copies)]


def _random(bits: int, n: int, k: int, group_size: int, device: torch.device) -> Matrix:
    scales = torch.rand(k // group_size, n, device=device).half() / 64
    words = torch.randint(0, 256, (n, k * bits // 8), dtype=torch.uint8, device=device)
    zeros = torch.randint(0, 16, scales.shape, dtype=torch.uint8, device=device) if bits == 4 else None
    qweight = words.view(torch.int16) if bits == 4 else words
    return Matrix(bits=bits, qweight=qweight, scales=scales, zero_points=zeros, group_size=group_size)
