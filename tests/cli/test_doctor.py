"""``glm-int4 doctor`` on machines with every fault that can be provoked: a line with its cure, and exit code 1."""

import copy
import errno
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer

from glm_int4.cli import doctor
from glm_int4.diagnosis import examination, folders, isolated, machine, packages, probes, verdicts
from glm_int4.quantization.cpu import compiled, instructions
from glm_int4.quantization.cpu.integer import IntegerMatrix
from glm_int4.quantization.gpu.kernel_faults import cure_of
from tests.cli.test_commands import ROOT, glm
from tests.read_only import in_read_only_system

NOWHERE = "/dev/null/folder"  # none can be made there, whoever asks


@pytest.fixture(scope="module")
def healthy():
    """The report of the machine that runs the tests, as the command prints it."""
    result = glm("doctor", "--json")
    assert (result.returncode, result.stderr) == (0, b""), result.stdout
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def found(healthy):
    """What the probes found there."""
    return {
        "packages": {"errors": dict.fromkeys(probes._IMPORTED), "hub_cache": healthy["folders"]["hub"]["path"]},
        "torch": healthy["torch"] | {"gpus": []},
        "loop": healthy["loop"],
    }


@pytest.fixture
def facts(found):
    """A copy that a test may change."""
    return copy.deepcopy(found)


@pytest.fixture
def examined(facts, monkeypatch, capsys):
    """Examine with some variables set: one probe anew in a process of its own, the others as on the healthy machine."""

    def examine(expected_code=0, *, probe=None, **variables):
        ask = isolated.ask
        known = copy.deepcopy(facts)
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            if "PYTHONPATH" in variables:
                patch.syspath_prepend(variables["PYTHONPATH"])
            patch.setattr(isolated, "ask", lambda name: ask(name) if name == probe else known[name])
            try:
                doctor.run(as_json=True)
                code = 0
            except typer.Exit as left:
                code = left.exit_code
        report = json.loads(capsys.readouterr().out)
        assert code == expected_code, report["faults"]
        assert report["ok"] == (code == 0)
        return report

    return examine


def only_fault(report):
    (fault,) = report["faults"]
    assert fault.keys() == {"check", "fault", "consequence", "cure"}
    assert fault["fault"].startswith("expected ")
    assert ", got " in fault["fault"]
    return fault


def shadow(folder, name, content):
    """A package that is found before the installed one of this name."""
    (folder / f"{name}.py").write_text(content)
    return {"PYTHONPATH": str(folder)}


def test_a_healthy_machine_has_no_faults(healthy):
    assert healthy["ok"]
    assert healthy["faults"] == []
    assert list(healthy) == [
        "ok", "glm_int4", "system", "processor", "memory", "packages", "torch", "gpus", "auto", "loop", "kernel",
        "folders", "faults", "notes",
    ]  # fmt: skip
    assert healthy["loop"]["ran"]
    assert healthy["loop"]["kept"]
    assert 0 < healthy["loop"]["relative_error"] < 1e-3
    assert healthy["auto"]["backend"] in ("integer", "float32", "triton", "cublas", "reference")
    assert healthy["auto"]["why"]
    assert healthy["packages"].keys() >= {"torch", "triton", "numba", "transformers", "numpy"}
    assert healthy["folders"].keys() == {"compiled_code", "triton", "chats", "temporary", "hub"}
    assert healthy["memory"]["free_bytes"] <= healthy["memory"]["total_bytes"]


def test_people_get_facts_and_faults_with_their_cures_in_lines(healthy):
    result = glm("doctor", env={"XDG_STATE_HOME": NOWHERE, "HF_HOME": NOWHERE})
    assert (result.returncode, result.stderr) == (1, b"")
    output = result.stdout.decode()
    *lines, one, two, last = output.splitlines()
    for word in ("glm-int4", "processor", "memory", "torch", "GPU", "auto takes", "loop", "kernel"):
        assert any(line.startswith(word) for line in lines), word
    assert any(line.endswith(healthy["folders"]["temporary"]["path"]) for line in map(str.rstrip, lines))
    assert healthy["processor"]["name"] in output
    assert one.startswith("fault (folders): expected a folder that can be written for the chat's history")
    assert f"got {NOWHERE}/glm-int4 (Not a directory), so a chat is not kept" in one
    assert one.endswith("set XDG_STATE_HOME to one that can")
    assert two.endswith("so only local folders can be loaded; set HF_HOME to one that can")
    assert last == "2 faults"


def test_without_faults_the_last_line_says_so(examined, healthy, capsys):
    doctor._print(healthy)
    assert capsys.readouterr().out.splitlines()[-1] == "no faults"


@pytest.mark.parametrize("why", ["Not a directory", "not loaded again"])
def test_compiled_code_that_cannot_be_kept(examined, facts, monkeypatch, tmp_path, why):
    """In no folder that there is, or on a disk that is full."""
    folder = Path(NOWHERE) if why == "Not a directory" else tmp_path

    def fail(path, content, mode):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(compiled, "cache_folders", lambda: [folder])
        patch.setattr(compiled, "writable_folder", compiled.writable_folder.__wrapped__)
        patch.setattr(compiled, "write_whole", fail)
        found = probes.compile_and_keep()
    assert found["right"]
    facts["loop"] = facts["loop"] | found
    fault = only_fault(examined(1))
    assert fault["fault"] == f"expected compiled code that is kept, got none ({folder}: {why})"
    assert "every start compiles" in fault["consequence"]
    assert "NUMBA_CACHE_DIR" in fault["cure"]


def test_a_loop_is_kept_and_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(compiled, "cache_folders", lambda: [tmp_path])
    monkeypatch.setattr(compiled, "writable_folder", lambda: tmp_path)
    found = probes.compile_and_keep()
    assert found["right"]
    assert found["kept"]
    assert found["code_folders"] == [[str(tmp_path), None]]
    assert not list(tmp_path.iterdir())


def test_compiled_code_that_is_damaged_is_replaced(examined, healthy, tmp_path):
    folder = tmp_path / "glm-int4"
    shutil.copytree(healthy["folders"]["compiled_code"]["path"], folder)
    name = "integer_tiles.pack_tiles" if healthy["loop"]["backend"] == "integer" else "float32_loops.gemv_int4"
    (file,) = folder.glob(f"{name}-*.code")
    file.write_bytes(b"damaged")
    report = examined(probe="loop", NUMBA_CACHE_DIR=str(tmp_path))
    assert report["loop"]["kept"]
    assert report["loop"]["relative_error"] == healthy["loop"]["relative_error"]
    assert file.read_bytes() != b"damaged"


def test_numba_that_is_broken(examined, tmp_path):
    report = examined(1, probe="loop", **shadow(tmp_path, "numba", "raise ImportError('Numba needs NumPy 1.0')"))
    assert report["auto"]["backend"] == "reference"
    fault = only_fault(report)
    assert "Numba needs NumPy 1.0" in fault["fault"]
    assert "plain torch, which is slow" in fault["consequence"]
    assert "--force-reinstall numba" in fault["cure"]


def test_numba_that_is_missing(examined, tmp_path):
    missing = "raise ModuleNotFoundError(\"No module named 'numba'\")"
    fault = only_fault(examined(1, probe="loop", **shadow(tmp_path, "numba", missing)))
    assert fault["cure"] == "install it: pip install numba"


def test_torch_that_is_broken(examined, tmp_path):
    broken = shadow(tmp_path, "torch", "raise OSError('libcudart.so.13: cannot open\\nmore')")
    report = examined(1, probe="torch", **broken)
    fault = only_fault(report)
    assert "OSError: libcudart.so.13: cannot open," not in fault["fault"]
    assert fault["fault"].endswith("got OSError: libcudart.so.13: cannot open")
    assert "reinstall it" in fault["cure"]
    assert not report["loop"]["ran"]
    assert report["folders"]["chats"]["writable"]
    doctor._print(report)


def test_a_package_that_kills_the_process(examined, tmp_path):
    """As a package does that was built for another processor."""
    killing = shadow(tmp_path, "torch", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    assert "the process was ended by SIGILL" in only_fault(examined(1, probe="torch", **killing))["fault"]


def test_a_package_that_cannot_be_imported(examined, tmp_path):
    missing = shadow(tmp_path, "sentencepiece", "raise ImportError('no sentencepiece')")
    fault = only_fault(examined(1, probe="packages", **missing))
    assert fault["fault"] == "expected sentencepiece that can be imported, got ImportError: no sentencepiece"
    assert "--force-reinstall sentencepiece" in fault["cure"]


def test_the_command_line_starts_without_what_only_models_need():
    blocked = "import sys; sys.modules |= dict.fromkeys({}); import glm_int4.cli.main"
    names = ["torch", "numba", "numpy", "sentencepiece", "safetensors", "huggingface_hub", "transformers"]
    result = subprocess.run([sys.executable, "-c", blocked.format(names)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("name", "version", "got"), [("transformers", None, "none"), ("torch", "2.4.1", "2.4.1"), ("rich", None, "none")]
)
def test_packages_that_are_missing_or_too_old(monkeypatch, facts, name, version, got):
    imports = {"errors": {key: value for key, value in facts["packages"]["errors"].items() if key != name}}
    (fault,) = packages.package_faults(packages.versions() | {name: version}, imports)
    assert fault.fault.endswith(f"got {got}")
    assert name in fault.cure
    assert ("glm_int4.hf" in fault.consequence) == (name == "transformers")


def test_the_packages_are_those_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(project["dependencies"]) == {packages._wanted(*each) for each in packages.REQUIRED.items()}
    extras = {name for part in ("serve", "finetune") for name in project["optional-dependencies"][part]}
    assert set(packages.OPTIONAL) == extras | {"triton"}


def test_a_foreign_package_of_the_kernels_name(examined, tmp_path):
    report = examined(1, probe="torch", **shadow(tmp_path, "triton_kernels", "PROJECT = 'another'"))
    fault = only_fault(report)
    assert "expected glm-int4's own package triton_kernels" in fault["fault"]
    assert "virtual environment of its own" in fault["cure"]


def test_instructions_that_are_held_down(examined, healthy):
    if healthy["loop"]["backend"] != "integer":
        pytest.skip("this processor has none to hold down")
    report = examined(1, probe="loop", ATEN_CPU_CAPABILITY="default")
    fault = only_fault(report)
    assert fault["fault"] == "expected all instructions of this processor, got ATEN_CPU_CAPABILITY=default"
    assert report["auto"]["backend"] == "float32"
    assert fault["cure"] == "unset it"


def test_a_setting_that_ends_the_process_is_the_cause(monkeypatch):
    """Without the instruction for half precision, LLVM ends the process that compiles."""
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    (fault,) = verdicts.loop_faults({"error": "the process was ended by SIGABRT (LLVM ERROR)"}, {})
    assert fault.cure == "unset NUMBA_CPU_NAME"


def test_a_processor_without_avx2_is_a_note(facts, tmp_path):
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name : Old Chip\nflags : sse2 avx\n")
    processor = machine.processor(tmp_path / "cpuinfo")
    assert (processor["name"], processor["instructions"]) == ("Old Chip", [])
    (note,) = verdicts.loop_faults(facts["loop"] | {"backend": "float32", "held_down": False}, processor)
    assert note.is_note
    assert "expected a processor with AVX2, got Old Chip" in note.fault


def test_loops_that_python_runs(examined):
    assert only_fault(examined(1, probe="loop", NUMBA_DISABLE_JIT="1"))["cure"] == "unset it"


def test_a_loop_that_gives_a_wrong_result(monkeypatch, facts):
    multiply = IntegerMatrix.forward
    monkeypatch.setattr(instructions, "choose_backend", lambda: "integer")
    assert probes.product_error("integer", torch.device("cpu")) < verdicts.MOST_RELATIVE_ERROR
    monkeypatch.setattr(IntegerMatrix, "forward", lambda self, x: multiply(self, x) * 1.01)
    error = probes.product_error("integer", torch.device("cpu"))
    assert error == pytest.approx(0.01, rel=0.01)
    for wrong in ({"relative_error": error}, {"relative_error": float("nan")}, {"right": False}):
        (fault,) = verdicts.loop_faults(facts["loop"] | wrong, {})
        assert "expected what plain torch gives from the compiled loops" in fault.fault
        assert fault.consequence == "answers on the CPU are wrong"
        assert not fault.is_note


def test_a_small_disk(examined, monkeypatch, healthy):
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000_000))
    report = examined(1)
    assert len(report["faults"]) == len(healthy["folders"])
    for fault in report["faults"]:
        assert "expected 64.00 MB for" in fault["fault"]
        assert "got 10.00 MB in" in fault["fault"]
        assert "make room, or set" in fault["cure"]
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000_000))
    assert "no checkpoint can be downloaded" in examined()["notes"][-1]["consequence"]


def test_little_memory_is_a_note(examined, monkeypatch):
    monkeypatch.setattr(machine, "available_bytes", lambda: 10**9)
    assert "got 1.0 GB" in examined()["notes"][0]["fault"]


def test_a_gpu_that_torch_does_not_see(examined, healthy, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 3060, 550.54, 12288'\n")
    program.chmod(0o755)
    if healthy["gpus"]:
        pytest.skip("torch sees the GPU of this machine")
    fault = only_fault(examined(1, PATH=f"{tmp_path}:{os.environ['PATH']}"))
    assert "expected torch to see NVIDIA GeForce RTX 3060 (driver 550.54), got none: " in fault["fault"]
    if healthy["torch"]["build"] == "CPU":
        assert "install a CUDA build of torch" in fault["cure"]


@pytest.mark.parametrize(
    ("reason", "hidden", "cure"),
    [
        ("The NVIDIA driver on your system is too old (found version 11040)", None, "update NVIDIA's driver"),
        ("No CUDA GPUs are available", "", "unset CUDA_VISIBLE_DEVICES, which is ''"),
        ("CUDA unknown error", None, "nvidia-smi"),
    ],
)
def test_a_driver_that_torch_cannot_use(monkeypatch, reason, hidden, cure):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    (fault,) = verdicts.gpu_faults({"gpus": [], "no_gpu_because": reason}, [{"name": "RTX 3060", "driver": "470"}])
    assert reason in fault.fault
    assert cure in fault.cure


GPU = {"name": "Some GPU", "compute_capability": "8.6", "total_bytes": 8 * 10**9, "free_bytes": 10**9, "error": None}


def test_a_gpu_is_examined_with_a_kernel(monkeypatch, facts, capsys):
    """The probe of a GPU on the CPU, where plain torch stands in for the kernels."""
    from glm_int4.quantization.gpu import gpu_probe

    monkeypatch.setattr(gpu_probe, "obstacle", lambda device: None)
    monkeypatch.setattr(gpu_probe, "kernel_fault", gpu_probe.kernel_fault.__wrapped__)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    known = facts | {
        "torch": facts["torch"] | {"gpus": [GPU], "device": "cuda", "no_gpu_because": None},
        "kernel": probes.kernel(torch.device("cpu")),
    }
    monkeypatch.setattr(isolated, "ask", lambda name: copy.deepcopy(known[name]))
    report = examination.examine(lambda: Path("/tmp"))
    assert report["ok"], report["faults"]
    assert report["auto"] == {"device": "cuda", "backend": "triton", "why": ["GPU backend: triton (a GPU)"]}
    doctor._print(report)
    assert "Some GPU, compute capability 8.6, 8.00 GB, 1.00 GB free" in capsys.readouterr().out

    def fail(*arguments, **options):
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")

    monkeypatch.setattr(gpu_probe, "_run", fail)
    known["kernel"] = probes.kernel(torch.device("cpu"))
    (fault,) = verdicts.kernel_faults(known["kernel"])
    assert "got Triton failed: RuntimeError: Failed to find C compiler" in fault.fault
    assert "apt install gcc python3-dev" in fault.cure
    report = examination.examine(lambda: Path("/tmp"))
    assert (report["auto"]["device"], report["auto"]["backend"]) == ("cpu", facts["loop"]["backend"])
    assert "Failed to find C compiler" in report["auto"]["why"][0]


@pytest.mark.parametrize(
    ("cause", "cure", "is_note"),
    [
        ("the kernels need compute capability 7.5, cuda has less", "a newer GPU", True),
        ("cuda is no CUDA device", "other makers", True),
        ("Triton cannot be imported: No module named 'triton'", "pip install triton", False),
        ("Triton failed: OSError: [Errno 30] Read-only file system: '/x'", "set TRITON_CACHE_DIR", False),
        ("Triton failed: OSError: [Errno 28] No space left on device", "make room", False),
        ("Triton failed: CalledProcessError: fatal error: Python.h: No such file", "python3-dev", False),
        ("Triton failed: RuntimeError: PassManager::run failed", "reinstall triton", False),
    ],
)
def test_kernels_that_do_not_run(cause, cure, is_note):
    found = {"backend": "cublas", "why": [], "relative_error": 1e-4, "cause": cause, "cure": cure_of(cause)}
    (fault,) = verdicts.kernel_faults(found)
    assert cause in fault.fault
    assert cure in fault.cure
    assert fault.is_note == is_note


def test_a_kernel_that_fails_behind_the_probe():
    """The product of the examination can be the first that needs it."""
    why = ["GPU backend: triton (a GPU)", "GPU backend: cublas (dequantizing) in place of a kernel, because it failed"]
    (fault,) = verdicts.kernel_faults({"backend": "triton", "why": why, "relative_error": 1e-4})
    assert fault.fault == "expected all kernels to run, got it failed"


def test_kernels_that_give_a_wrong_result():
    (fault,) = verdicts.kernel_faults({"backend": "triton", "why": [], "relative_error": 0.5})
    assert "a relative error of 0.5" in fault.fault
    assert "--device cpu" in fault.cure


def test_triton_s_folder_is_a_fault_where_a_gpu_needs_it(monkeypatch):
    found = {"triton": folders.describe(Path(NOWHERE))}
    for named in (None, NOWHERE):
        monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
        if named:
            monkeypatch.setenv("TRITON_CACHE_DIR", named)
        (note,) = folders.folder_faults(found, has_gpu=True)
        assert note.is_note
        assert "is taken instead" in note.consequence
    monkeypatch.setattr(folders.kernel_cache, "other_folder", lambda: None)
    (fault,) = folders.folder_faults(found, has_gpu=True)
    assert not fault.is_note
    assert "set TRITON_CACHE_DIR" in fault.cure
    (note,) = folders.folder_faults(found, has_gpu=False)
    assert note.is_note


def test_a_probe_that_does_not_end():
    assert isolated.ask("packages", timeout_s=0.01) == {"error": "no end after 0 s"}


def test_a_process_that_cannot_be_started(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/dev/null/python")
    assert "NotADirectoryError" in isolated.ask("packages")["error"]


def test_a_check_that_fails_is_a_fault_and_the_others_go_on(examined, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("an odd machine")

    monkeypatch.setattr(machine, "available_bytes", fail)
    report = examined(1)
    assert "RuntimeError: an odd machine" in only_fault(report)["fault"]
    assert report["memory"] == {}
    assert report["folders"]["chats"]["writable"]
    doctor._print(report)


def test_nothing_is_made_where_folders_are_looked_for(tmp_path):
    found = folders.describe(tmp_path / "a" / "b")
    assert found["writable"]
    assert found["free_bytes"] > 0
    assert not list(tmp_path.iterdir())


def test_a_read_only_system(healthy, tmp_path):
    # torch imports dill where it is installed, which asks for the temporary folder.
    (tmp_path / "dill.py").write_text("import tempfile\ntempfile.gettempdir()\ndef extend(use_dill): pass\n")
    result = in_read_only_system([sys.executable, "-m", "glm_int4", "doctor"], tmp_path, env={"XDG_STATE_HOME": ""})
    assert result.returncode == 1
    assert result.stderr == ""
    faults = [line for line in result.stdout.splitlines() if line.startswith("fault")]
    for variable in ("NUMBA_CACHE_DIR", "XDG_STATE_HOME", "TMPDIR", "HF_HOME"):
        assert sum(f"set {variable}" in line for line in faults) == 1, (variable, faults)
    assert all("Read-only file system" in line for line in faults)


def test_the_issue_template_asks_for_it():
    assert "glm-int4 doctor" in (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8")
