"""The cache of compiled loops: damaged, stale, full, read-only or nowhere, the loop runs."""

import errno
import os
import sys

import numpy as np
import pytest

from glm_int4 import system
from glm_int4.quantization.cpu import compiled
from tests.read_only import in_read_only_system

NOWHERE = "/dev/null/cache"  # no folder can be made there, whoever asks


@pytest.fixture(autouse=True)
def forget_folders():
    functions = (compiled.writable_folder, compiled.cache_folders, compiled._fault, compiled._warn_once)
    for function in functions:
        function.cache_clear()
    yield
    for function in functions:
        function.cache_clear()


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Where compiled code may lie, in this test."""
    found = [tmp_path / "cache"]
    monkeypatch.setattr(compiled, "cache_folders", lambda: found)
    return found


def total():
    """A fresh loop that adds numbers, and how often it was compiled."""

    def add_all(values):
        result = 0.0
        for value in values:
            result += value
        return result

    return compiled.loop()(add_all)


def run():
    """Run it; returns whether it was loaded rather than compiled."""
    loop = total()
    assert loop(np.arange(5.0)) == 10
    return sum(loop.stats.cache_hits.values()) == 1


def test_cache_code_is_compiled_once(folders):
    assert not run()
    assert run()
    assert len(list(folders[0].iterdir())) == 1


@pytest.mark.parametrize("damage", ["empty", "half", "a bit", "a folder", "another file"])
def test_cache_files_that_are_damaged_are_compiled_anew_and_replaced(folders, damage):
    run()
    (file,) = folders[0].iterdir()
    whole = file.read_bytes()
    if damage == "empty":
        file.write_bytes(b"")
    elif damage == "half":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "a bit":
        file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    elif damage == "another file":
        file.write_bytes(b"\x80\x04}." * 100)
    else:
        file.unlink()
        file.mkdir()
    assert not run()
    assert run() == (damage != "a folder")  # which is not ours to remove


def test_cache_of_other_sources_is_stale(folders, monkeypatch):
    run()
    monkeypatch.setattr(compiled, "_sources", lambda: b"another digest")
    assert not run()
    assert run()
    assert len(list(folders[0].iterdir())) == 1


def test_cache_nowhere_is_said_in_one_line_and_the_loop_runs(folders, caplog):
    folders[:] = [compiled.Path(NOWHERE), compiled.Path("/dev/null")]
    assert not run()
    assert not run()
    (record,) = caplog.records
    assert NOWHERE in record.message
    assert "NUMBA_CACHE_DIR" in record.message


def test_cache_on_a_full_disk_is_named_and_the_loop_runs(folders, monkeypatch, caplog):
    def fail(path, content, mode):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(compiled, "write_whole", fail)
    assert not run()
    assert not run()
    (record,) = caplog.records
    assert f"{folders[0]} (No space left on device)" in record.message


def test_cache_that_can_only_be_read_is_read(folders, tmp_path, monkeypatch):
    run()
    folders.append(tmp_path / "user")
    monkeypatch.setattr(compiled, "writable_folder", lambda: tmp_path / "user")
    assert run()
    assert not (tmp_path / "user").exists()


def test_cache_folders_are_those_of_the_user_or_the_one_that_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiled.cache_folders()[1:] == [tmp_path / "glm-int4" / "loops"]  # none in the temporary folder
    compiled.cache_folders.cache_clear()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "named"))
    assert compiled.cache_folders() == [tmp_path / "named" / "glm-int4"]


def test_cache_is_in_the_temporary_folder_where_neither_package_nor_home_can_be_written(monkeypatch, tmp_path):
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(compiled, "_PACKAGE", compiled.Path(NOWHERE))
    monkeypatch.setattr(compiled, "user_cache_folder", lambda: None)
    monkeypatch.setattr(system.tempfile, "gettempdir", lambda: str(tmp_path))
    assert compiled.writable_folder() == system.own_temporary_folder() / "loops"


def test_cache_in_the_temporary_folder_is_not_taken_where_others_can_write_to_it(monkeypatch, tmp_path):
    monkeypatch.setattr(system.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = system.own_temporary_folder()
    assert folder.parent == tmp_path
    folder.chmod(0o777)
    assert system.own_temporary_folder() is None
    folder.rmdir()
    folder.symlink_to(tmp_path)
    assert system.own_temporary_folder() is None
    folder.unlink()
    monkeypatch.chdir(tmp_path)  # what Python falls back to: nobody wants a folder of ours there
    assert system.own_temporary_folder() is None


def test_cache_folder_of_a_user_without_a_home(monkeypatch):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)

    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(system.Path, "home", fail)
    assert system.user_cache_folder() is None


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_cache_and_home_of_a_read_only_system(mini_int4, command, tmp_path):
    # torch imports dill where it is installed, which asks for the temporary folder.
    (tmp_path / "dill.py").write_text("import tempfile\ntempfile.gettempdir()\ndef extend(use_dill): pass\n")
    options = ["--prompt", "3加5等于几?"] if command == "generate" else ["--greedy"]
    pipe = ["sh", "-c", 'echo "3加5等于几?" | "$@"', "sh"]
    result = in_read_only_system([*pipe, sys.executable, "-m", "glm_int4", command, mini_int4, *options], tmp_path)
    assert result.returncode == 0, result.stderr
    assert "8" in result.stdout.split()
    assert "Traceback" not in result.stderr
