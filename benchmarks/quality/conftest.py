"""Options of the quality benchmarks: which model, which texts, and where the results go."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.machine import EXAMPLES, MINI, facts


def pytest_addoption(parser):
    group = parser.getgroup("quality")
    group.addoption("--model", type=Path, default=MINI, help="half-precision checkpoint")
    group.addoption("--text", type=Path, default=EXAMPLES / "heldout.txt", help="text to predict")
    group.addoption("--calibration", type=Path, default=None, help="text for gptq; without one those rows skip")
    group.addoption("--questions", type=Path, default=None, help="JSON lines to answer; of the mini model by default")
    group.addoption("--results", type=Path, default=None, help="JSON file for the rows, the machine and the commit")


@pytest.fixture(scope="session")
def write_results(request):
    """Write rows under a key of the --results file, beside what they were measured on."""
    path = request.config.getoption("--results")

    def write(key, rows):
        if path is None or not rows:
            return
        known = facts()
        machine = {name: known[name] for name in ("cpu", "capability", "torch", "date", "commit")}
        result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        result[key] = {"rows": rows, "command": f"pytest benchmarks/quality/{key}.py", "machine": machine}
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    return write


@pytest.fixture(scope="module")
def rows(request, write_results):
    """What a module's benchmarks find, written under the module's name in the end."""
    found: list[dict[str, Any]] = []
    yield found
    write_results(request.module.__name__.rpartition(".")[2], found)


@pytest.fixture(scope="module")
def one_thread():
    """Torch on one thread: sums have one order, and a small model is no slower."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
