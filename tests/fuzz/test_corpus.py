"""What the fuzzer found once stays found: every saved input is used again, in a child under its limits."""

import json
import re
import subprocess
import sys

import pytest

from tests.fuzz.fuzzer import CORPUS, HANG_SECONDS, TARGETS, saved_files

FILES = [path.relative_to(CORPUS).as_posix() for path in saved_files()]


@pytest.fixture(scope="module")
def faults():
    command = [sys.executable, "-m", "tests.fuzz.fuzzer", "--replay"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240 + HANG_SECONDS)
    return dict(json.loads(line) for line in result.stdout.splitlines()), result


@pytest.mark.parametrize("name", FILES)
def test_an_input_that_was_found_once_ends_with_one_line(faults, name):
    answers, result = faults
    assert name in answers, f"the child ended with status {result.returncode} before or at this file: {result.stderr}"
    assert answers[name] is None


@pytest.mark.parametrize("seconds", [1, pytest.param(45, marks=pytest.mark.slow(170))])
def test_a_short_run_finds_nothing(tmp_path, seconds):
    """The fuzzer itself works: every target takes its first inputs, and others."""
    command = [sys.executable, "-m", "tests.fuzz.fuzzer", "--seconds", str(seconds), "--seed", "1"]
    result = subprocess.run([*command, "--corpus", str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    executions = dict(re.findall(r"^(\w+): (\d+) executions", result.stdout, re.MULTILINE))
    assert executions.keys() == set(TARGETS)
    assert all(int(number) > 20 for number in executions.values()), result.stdout
    assert list(tmp_path.iterdir()) == []
