"""What the fuzzer found once stays found: every saved input is read again, in a child under its limits."""

import json
import subprocess
import sys

import pytest

from tests.fuzz import targets
from tests.fuzz.fuzz_checkpoint import CORPUS, HANG_SECONDS

FILES = sorted(path.name for path in CORPUS.iterdir())


@pytest.fixture(scope="module")
def faults():
    command = [sys.executable, "-m", "tests.fuzz.fuzz_checkpoint", "--replay"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60 + HANG_SECONDS)
    return dict(json.loads(line) for line in result.stdout.splitlines()), result


@pytest.mark.parametrize("name", FILES)
def test_an_input_that_was_found_once_ends_with_one_line(faults, name):
    answers, result = faults
    assert name in answers, f"the child ended with status {result.returncode} before or at this file"
    assert answers[name] is None


def test_every_seed_is_taken(tmp_path):
    """A seed that is refused would hide everything behind the refusal."""
    for kind, (_, files) in targets.seeds(tmp_path / "seeds").items():
        targets.write_folder(tmp_path / kind, files)
        targets.use(tmp_path / kind)


@pytest.mark.parametrize("seconds", [3, pytest.param(45, marks=pytest.mark.slow(50))])
def test_a_short_run_finds_nothing(tmp_path, seconds):
    """The fuzzer itself works: it reads thousands of inputs and answers."""
    command = [
        sys.executable,
        "-m",
        "tests.fuzz.fuzz_checkpoint",
        "--seconds",
        str(seconds),
        "--seed",
        "1",
        "--corpus",
        str(tmp_path),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(result.stdout.split(" executions")[0].split()[-1]) > 100
