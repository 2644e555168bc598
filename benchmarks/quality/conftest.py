"""Options of the quality benchmarks: which model and which texts."""

from pathlib import Path

import pytest

from benchmarks.machine import EXAMPLES, MINI


def pytest_addoption(parser):
    group = parser.getgroup("quality")
    group.addoption("--model", type=Path, default=MINI, help="half-precision checkpoint")
    group.addoption("--text", type=Path, default=EXAMPLES / "heldout.txt", help="text to predict")
    group.addoption("--calibration", type=Path, default=None, help="text for gptq; without one those rows skip")
    group.addoption("--questions", type=Path, default=None, help="JSON lines to answer; of the mini model by default")


@pytest.fixture(scope="module")
def one_thread():
    """Torch on one thread: sums have one order, and a small model is no slower."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
