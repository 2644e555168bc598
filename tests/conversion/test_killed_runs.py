"""Runs that are killed, and two runs at once: what is there is always a whole checkpoint."""

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import glm_int4
from glm_int4.errors import ConfigError, OutputError
from tests.conftest import TINY

PHASES = ("shard", "progress", "config.json", "index.json", "rename partial", "exchange", "unlink", "rmdir")


@pytest.fixture
def quick_folder(tmp_path):
    """A folder in memory where there is one: thousands of syncs wait long for a busy disk, and a kill loses none."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.mark.parametrize("num_random", [3, pytest.param(120, marks=pytest.mark.slow(60))])
def test_runs_killed_at_many_moments_leave_whole_checkpoints_and_resume_to_the_same_bytes(quick_folder, num_random):
    seed = int(os.environ.get("GLM_INT4_KILL_SEED", random.randrange(10**6)))
    command = [sys.executable, "-m", "tests.conversion.kill_runs", "--work", str(quick_folder), "--seed", str(seed)]
    command += ["--random", str(num_random)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    print(f"replay with GLM_INT4_KILL_SEED={seed}\n{result.stdout}")
    assert result.returncode == 0, result.stderr[-3000:]
    for phase in PHASES:
        assert phase in result.stdout, f"no run was killed in the phase {phase}"


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_to_the_same_output_is_refused_and_the_first_goes_on(tmp_path, resume):
    refused = []

    def start_another(done, total, name):
        with pytest.raises(OutputError, match="another run that is writing it") as caught:
            glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=32, resume=resume)
        refused.append(str(caught.value))

    glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=32, progress=start_another)
    assert refused
    assert not any("\n" in message for message in refused)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    glm_int4.load(tmp_path / "out", device="cpu")


def test_an_output_that_appears_during_a_run_is_not_replaced_unasked(tmp_path):
    def put_something_there(done, total, name):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "mine").write_text("mine")

    with pytest.raises(OutputError, match="pass --overwrite"):
        glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=32, progress=put_something_there)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    (tmp_path / "out" / "mine").unlink()
    glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=32, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_complete_output_is_left_alone_when_a_run_is_resumed_again(tmp_path):
    first = glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=32)
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=32, resume=True) == first
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == written
    with pytest.raises(OutputError, match="pass --overwrite"):
        glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=64, resume=True)
    shard = tmp_path / "out" / "model-00001-of-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(OutputError, match="pass --overwrite"):
        glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=32, resume=True)


def test_an_unfinished_folder_says_how_to_go_on(tmp_path):
    def stop(done, total, name):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=32, progress=stop)
    with pytest.raises(ConfigError, match=r"unfinished .* --resume"):
        glm_int4.load(tmp_path / "out.partial")


def test_what_a_killed_run_had_half_deleted_is_not_put_back(tmp_path):
    glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=32)
    doomed = tmp_path / ".out.replaced-1234" / "out.deleted"
    doomed.parent.mkdir()
    (tmp_path / "out").rename(doomed)
    (doomed / "model-00001-of-00001.safetensors").unlink()
    glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    glm_int4.load(tmp_path / "out", device="cpu")
