"""Where benchmarks that pytest runs keep what they find."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.machine import facts


def pytest_addoption(parser):
    parser.addoption("--results", type=Path, default=None, help="JSON file for the rows, the machine and the commit")


@pytest.fixture(scope="session")
def write_results(request):
    """Write a module's rows under its name into the --results file, beside what they were measured on."""
    path = request.config.getoption("--results")

    def write(module, rows):
        if path is None or not rows:
            return
        known, key = facts(), module.rpartition(".")[2]
        machine = {name: known[name] for name in ("cpu", "capability", "torch", "date", "commit")}
        result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        result[key] = {"rows": rows, "command": f"pytest {module.replace('.', '/')}.py", "machine": machine}
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    return write


@pytest.fixture(scope="module")
def rows(request, write_results):
    """What a module's benchmarks find, written in the end."""
    found: list[dict[str, Any]] = []
    yield found
    write_results(request.module.__name__, found)
