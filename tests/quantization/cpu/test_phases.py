"""Threads that go through phases together: every task once, in the order of phases, however many threads come."""

import subprocess
import sys

import numba
import numpy as np
import pytest

from glm_int4.quantization.cpu.phases import claim, finish, new_board, wait_for_all
from glm_int4.quantization.cpu.threads import numba_threads


@numba.njit
def go(board, num_phases, num_tasks, counts):
    for phase in range(num_phases):
        task = claim(board, phase)
        while task < num_tasks:
            if phase == 0 or counts[phase - 1].sum() == num_tasks:  # all of the phase before
                counts[phase, task] += 1
            finish(board, phase, num_tasks)
            task = claim(board, phase)
        wait_for_all(board, phase)


@numba.njit(parallel=True)
def go_together(comers, num_phases, num_tasks, counts):
    board = new_board(num_phases)
    for _ in numba.prange(comers):
        go(board, num_phases, num_tasks, counts)


@pytest.mark.parametrize("comers", [1, 2, 5])
@pytest.mark.parametrize("num_tasks", [1, 3, 40])
def test_every_task_is_done_once_behind_those_of_the_phase_before(comers, num_tasks):
    counts = np.zeros((300, num_tasks), dtype=np.int64)
    with numba_threads():
        go_together(comers, 300, num_tasks, counts)
    assert (counts == 1).all()


def test_threads_that_do_not_come_are_not_waited_for():
    """OpenMP may give fewer threads than were asked for."""
    code = "import numba; numba.set_num_threads(1)\nfrom tests.quantization.cpu.test_phases import go_together, np\n"
    code += "counts = np.zeros((50, 7), dtype=np.int64); go_together(4, 50, 7, counts); assert (counts == 1).all()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
