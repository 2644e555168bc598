"""Triton's cache: where its own folder cannot be written, kernels are compiled and kept elsewhere."""

import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from glm_int4.quantization import kernels
from glm_int4.quantization.gpu import gpu_probe, kernel_cache
from tests.read_only import in_read_only_system

NOWHERE = "/dev/null/home"  # no folder can be made there, whoever asks

# Compiles a kernel for a GPU that need not be here, behind the call that precedes the first kernel.
PROGRAM = """
import logging, os, sys
import triton
import triton.language as tl
from glm_int4.system import name_a_temporary_folder
name_a_temporary_folder()
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from glm_int4.quantization import kernels

@triton.jit
def store(out_ptr):
    tl.store(out_ptr + tl.arange(0, 32), tl.arange(0, 32))

logging.basicConfig(level=logging.INFO, format="%(message)s")
environment = dict(os.environ)
kernels.prepare_kernel_cache()
assert os.environ == environment
try:
    triton.compile(ASTSource(fn=store, signature={"out_ptr": "*i32"}, constexprs={}), target=GPUTarget("cuda", 80, 32))
except OSError as error:
    print("cannot be compiled:", error.strerror)
else:
    print("compiled into", triton.knobs.cache.dir)
"""


def compile_somewhere(tmp_path, **variables):
    """Run the program with no folders but those of the variables; returns its last line and its log."""
    pytest.importorskip("triton")
    (tmp_path / "program.py").write_text(PROGRAM)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("XDG", "TRITON"))}
    result = subprocess.run(
        [sys.executable, tmp_path / "program.py"],
        env=inherited | {"HOME": NOWHERE, "PYTHONPATH": str(kernel_cache.Path(__file__).parents[3])} | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip(), result.stderr.splitlines()


def test_kernels_are_kept_in_the_users_cache_where_the_home_cannot_be_written(tmp_path):
    last, log = compile_somewhere(tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert last == f"compiled into {tmp_path}/cache/glm-int4/kernels"
    assert list((tmp_path / "cache" / "glm-int4" / "kernels").rglob("store.cubin"))
    assert log == [f"compiled kernels are kept in {tmp_path}/cache/glm-int4/kernels ({NOWHERE}/.triton/cache: "
                   "Not a directory)"]  # fmt: skip


def test_kernels_are_kept_in_a_temporary_folder_where_there_is_no_other(tmp_path):
    last, _ = compile_somewhere(tmp_path, TMPDIR=str(tmp_path))
    assert last == f"compiled into {tmp_path}/glm-int4-{os.getuid()}/kernels"


@pytest.mark.parametrize("variable", ["TRITON_HOME", "TRITON_CACHE_DIR"])
def test_a_folder_that_is_named_is_taken(tmp_path, variable):
    last, log = compile_somewhere(tmp_path, **{variable: str(tmp_path / "named")})
    assert last == f"compiled into {tmp_path}/named" + ("/.triton/cache" if variable == "TRITON_HOME" else "")
    assert log == []


def test_a_named_folder_that_cannot_be_written_is_no_fault(tmp_path):
    last, log = compile_somewhere(tmp_path, TRITON_CACHE_DIR="/dev/null/named", XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert last == f"compiled into {tmp_path}/cache/glm-int4/kernels"
    assert log == [f"compiled kernels are kept in {tmp_path}/cache/glm-int4/kernels (/dev/null/named: Not a directory)"]


def test_a_read_only_system_is_said_in_one_line(tmp_path):
    pytest.importorskip("triton")
    (tmp_path / "program.py").write_text(PROGRAM)
    result = in_read_only_system([sys.executable, tmp_path / "program.py"])
    assert result.returncode == 0, result.stderr
    assert result.stdout == "cannot be compiled: Read-only file system\n"
    (line,) = result.stderr.splitlines()
    assert "compiled kernels cannot be kept (/nonexistent/.triton/cache: Read-only file system)" in line
    assert "set TRITON_CACHE_DIR to a folder that can be written" in line


@pytest.fixture
def knobs(monkeypatch):
    """Triton's settings as this test finds them."""
    found = SimpleNamespace(cache=SimpleNamespace(), propagate_env=True)
    monkeypatch.setattr(kernel_cache, "import_module", lambda name: SimpleNamespace(knobs=found))
    for variable in ("TRITON_CACHE_DIR", "TRITON_HOME"):
        monkeypatch.delenv(variable, raising=False)
    return found


def test_a_user_without_a_home_gets_no_folder_of_that_name_in_the_working_folder(knobs, monkeypatch, tmp_path):
    """Python leaves ~ as it is where no home is known, and Triton makes a folder that is called so."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(kernel_cache, "other_folder", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    kernel_cache.prepare_kernel_cache.__wrapped__()
    assert knobs.cache.dir == str(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_a_program_has_set_stays(knobs, monkeypatch):
    monkeypatch.setenv("HOME", NOWHERE)
    knobs.cache.dir = "/dev/null/set"
    kernel_cache.prepare_kernel_cache.__wrapped__()
    assert knobs.cache.dir == "/dev/null/set"


def test_a_broken_triton_is_not_this_modules_matter(monkeypatch, caplog):
    def fail(name):
        raise ImportError(name)

    monkeypatch.setattr(kernel_cache, "import_module", fail)
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    kernel_cache.prepare_kernel_cache.__wrapped__()
    assert not caplog.records


@pytest.mark.parametrize("way", ["the probe", "one token", "the launch search"])
def test_the_folder_is_chosen_before_the_first_kernel(monkeypatch, way):
    asked = []
    for module in (kernels, gpu_probe):
        monkeypatch.setattr(module, "prepare_kernel_cache", lambda: asked.append(way))
        monkeypatch.setattr(module, "obstacle", lambda device: None)
    if way == "the probe":
        monkeypatch.setattr(gpu_probe, "_run", lambda *arguments: asked == [way] and pytest.fail("compiled"))
        with pytest.raises(pytest.fail.Exception, match="compiled"):
            gpu_probe.kernel_fault.__wrapped__(torch.device("cpu"))
    else:
        pytest.importorskip("triton")
        kernels.decode_kernels(torch.device("cpu")) if way == "one token" else kernels.launch_search()
    assert asked == [way]


def test_the_choice_is_made_once(monkeypatch, caplog):
    monkeypatch.setattr(kernel_cache, "triton_folder", lambda: None)
    monkeypatch.setattr(kernel_cache, "other_folder", lambda: None)
    monkeypatch.setattr(
        kernel_cache, "import_module", lambda name: SimpleNamespace(knobs=SimpleNamespace(cache=SimpleNamespace()))
    )
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    kernel_cache.prepare_kernel_cache.cache_clear()
    with caplog.at_level(logging.WARNING):
        kernel_cache.prepare_kernel_cache()
        kernel_cache.prepare_kernel_cache()
    assert len(caplog.records) == 1
    kernel_cache.prepare_kernel_cache.cache_clear()
