"""A disk that fills up: one line that says how much is needed, and nothing half-written under a final name."""

import resource
import shutil
import subprocess
import sys

import pytest

import glm_int4
from glm_int4.errors import OutputError
from tests.conftest import TINY

OPTIONS = {"group_size": 32, "max_shard_bytes": 30_000}


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """Mount a file system of a given size, or change its size; the run is told that there is room."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(kilobytes, *flags):
        options = ",".join([f"size={kilobytes}k", *flags])
        result = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True
        )
        if result.returncode:
            pytest.skip(f"needs the right to mount a tmpfs: {result.stderr.strip()}")
        return folder

    if shutil.which("mount") is None:
        pytest.skip("needs the program mount")
    usage = shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True)


@pytest.mark.parametrize("kilobytes", [4, 8, 24, 48, 72, 88])
def test_a_disk_that_fills_up_is_named_and_left_empty(small_disk, kilobytes):
    disk = small_disk(kilobytes)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        glm_int4.quantize_checkpoint(TINY, disk / "a" / "out", **OPTIONS)
    assert "\n" not in str(caught.value)
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("kilobytes", [8, 48, 88])
def test_a_run_is_resumed_once_there_is_room(small_disk, tmp_path, kilobytes):
    glm_int4.quantize_checkpoint(TINY, tmp_path / "whole", **OPTIONS)
    disk = small_disk(kilobytes)
    with pytest.raises(OutputError, match="No space left on device"):
        glm_int4.quantize_checkpoint(TINY, disk / "out", resume=True, **OPTIONS)
    assert not (disk / "out").exists()
    small_disk(1000, "remount")
    glm_int4.quantize_checkpoint(TINY, disk / "out", resume=True, **OPTIONS)
    for path in (tmp_path / "whole").glob("*.safetensors"):
        assert (disk / "out" / path.name).read_bytes() == path.read_bytes()


def test_a_limit_on_file_sizes_ends_the_command_with_one_line(tmp_path):
    """As on a FAT disk; the signal SIGXFSZ is ignored by Python."""
    words = ["quantize", "--model", str(TINY), "--output", str(tmp_path / "out"), "--group-size", "32"]
    result = subprocess.run(
        [sys.executable, "-m", "glm_int4", *words],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert result.returncode == 2
    assert "expected to write 71.12 kB to" in result.stderr
    assert "File too large" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_what_an_earlier_run_finished_needs_no_more_room(tmp_path, monkeypatch):
    def stop(done, total, name):
        if name == "norms and biases":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        glm_int4.quantize_checkpoint(TINY, tmp_path / "out", progress=stop, **OPTIONS)
    usage = shutil.disk_usage(tmp_path)._replace(free=40_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match=r"expected 71\.12 kB free"):
        glm_int4.quantize_checkpoint(TINY, tmp_path / "other", **OPTIONS)
    glm_int4.quantize_checkpoint(TINY, tmp_path / "out", resume=True, **OPTIONS)
