"""64 clients at once, by the benchmark that also measures them; a smaller run."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import EXAMPLES

ROOT = EXAMPLES.parent


@pytest.mark.slow(8)
def test_of_64_clients_none_is_lost_and_every_answer_is_what_the_engine_says_alone(tmp_path):
    command = [sys.executable, "-m", "benchmarks.speed.bench_server", "--json", tmp_path / "server.json"]
    options = ["--clients", "64", "--requests", "64", "--max-tokens", "12"]
    here = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300, cwd=ROOT, env=here)
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "server.json").read_text())
    for way in ("one_by_one", "together"):
        assert (figures[way]["lost"], figures[way]["different"]) == (0, 0)
        assert figures[way]["tokens"] > 64 * 4
        assert 0 < figures[way]["ttft_p50_ms"] <= figures[way]["ttft_p95_ms"]
