"""Tuning picks what its timer finds fastest. Kernels run on a CPU; the times are made up."""

import math
import time

import pytest
import torch

from triton_kernels import gpu, launch, launch_search

CPU = torch.device("cpu")
SHAPES = [(64, 128)]


@pytest.fixture
def timed(monkeypatch):
    """Times by launch: fewer columns a program are faster, four programs fastest, and 100 rows the switch point."""
    ran = []

    def run(row, matrix, x):
        if row is None:
            ran.append((None, x.shape[0]))
            return gpu.multiply_dequantized(x, matrix, launch_search.Epilogue())
        ran.append((row, x.shape[0]))
        return x

    def timer(function):
        function()
        row, num_rows = ran[-1]
        if row is None:
            return 0.01
        if row.block_n == 256:
            raise RuntimeError("out of resource: shared memory")
        speed = row.block_n + 100 * abs(row.programs_per_sm - 4)
        return num_rows / 100 * 0.01 if num_rows > 32 and row.programs_per_sm == 4 else speed

    monkeypatch.setattr(launch_search, "_run", run)
    return timer


def tune(timer, architecture, **options):
    lines = []
    rows, timings = launch_search.search(
        4,
        CPU,
        SHAPES,
        group_size=128,
        report=lines.append,
        timer=timer,
        architecture=architecture,
        num_copies=1,
        **options,
    )
    return rows, timings, lines


def test_the_fastest_launches_are_taken_and_say_where_they_come_from(timed):
    rows, timings, lines = tune(timed, 90)
    assert [row.block_n for row in rows[:3]] == [64] * 3
    assert all(row.programs_per_sm == 4 for row in rows)
    assert all(row.source.startswith("measured on a trial without a GPU") for row in rows)
    assert [row.max_rows for row in rows] == [8, 16, 32, 96]
    assert "measured" in rows[-1].switch_source
    assert any(math.isinf(timing.microseconds) for timing in timings)
    assert len(lines) == 5


def test_after_its_deadline_rows_stay_as_they_are(timed):
    rows, timings, _ = tune(timed, 90, deadline=time.monotonic() - 1)
    assert rows == launch.launches(4, 90)
    assert timings == []


@pytest.mark.parametrize("architecture", [75, 80, 90, 100])
def test_every_candidate_is_a_launch_that_the_kernels_take(architecture):
    for row in launch.searched(4, architecture):
        found = list(launch_search.candidates(row, architecture))
        assert found[0] == row
        assert len(found) == len(set(found)) >= 8
        wide = row.kernel == "dot" and row.block_m >= 16
        assert len({each.scale_after for each in found}) == (2 if wide and architecture != 90 else 1)
        assert architecture != 90 or all(each.scale_after for each in found)


def test_where_the_table_dequantizes_early_wider_launches_are_tried(timed):
    assert [row.max_rows for row in launch.launches(4, 100)] == [8]
    rows, _, lines = tune(timed, 100)
    assert [row.max_rows for row in rows] == [8, 16, 32, 96]
    assert len(lines) == 5


def test_kernels_that_lose_against_dequantizing_are_left_out(timed, monkeypatch):
    """From 16 rows of x on, whatever the launch."""

    def slow(function):
        function()
        row, num_rows = slow.ran[-1]
        return 1.0 if row is None else 2.0 if num_rows >= 16 else 0.5

    slow.ran = []
    monkeypatch.setattr(launch_search, "_run", lambda row, matrix, x: slow.ran.append((row, x.shape[0])) or x)
    rows, _, _ = tune(slow, 100)
    assert [row.max_rows for row in rows] == [8]


def test_a_trial_without_a_gpu_runs_the_kernels():
    def timer(function):
        started = time.perf_counter()
        function()
        return time.perf_counter() - started

    rows, timings, _ = tune(timer, 90, deadline=time.monotonic() + 0.5)
    assert len(rows) == 4
    assert any(math.isfinite(timing.microseconds) for timing in timings)
