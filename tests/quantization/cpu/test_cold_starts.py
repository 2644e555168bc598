"""Several processes that begin at once without compiled code: they answer the same, and what they keep is whole."""

import os
import subprocess
import sys

import pytest

from glm_int4.quantization.cpu import compiled
from tests.conftest import EXAMPLES

pytestmark = pytest.mark.concurrency


def start(cache, *words):
    """A process whose compiled code lies in a folder."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", *map(str, words)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, cwd=EXAMPLES.parent, text=True, **pipes)


def output(process, given=""):
    shown, errors = process.communicate(given, timeout=300)
    assert process.returncode == 0, errors
    return shown.split(), errors


def kept(cache):
    """What is kept, with every file checked."""
    files = {path.name: path.read_bytes() for path in (cache / "glm-int4").iterdir()}
    assert all(name.endswith(".code") for name in files), "a file that is not finished"
    assert all(content[:32] == compiled._digest(content[32:]) for content in files.values())
    return files


def test_three_cold_starts_at_once_keep_one_whole_loop(tmp_path):
    processes = [start(tmp_path, "tests.quantization.cpu.cold_start") for _ in range(3)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    found = [output(process) for process in processes]
    assert {words[0] for words, _ in found} == {"10.0"}
    assert "compiled" in {words[1] for words, _ in found}
    assert not any(errors for _, errors in found)
    files = kept(tmp_path)
    assert len(files) == 1
    assert output(start(tmp_path, "tests.quantization.cpu.cold_start"), "\n")[0] == ["ready", "10.0", "loaded"]
    assert kept(tmp_path) == files
