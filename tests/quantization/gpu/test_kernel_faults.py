"""Causes as Triton, compilers and drivers say them, and the cure of each."""

import subprocess
import sys
import sysconfig

import pytest

from glm_int4.quantization.gpu.kernel_faults import cure_of, fault_of
from triton_kernels import dispatch

GCC = ["/usr/bin/gcc", "/tmp/tmp1/cuda_utils.c", "-O3", "-shared", "-o", "/tmp/tmp1/cuda_utils.so"]


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        (RuntimeError("Failed to find C compiler. Please specify via CC"), "apt install gcc python3-dev"),
        (FileNotFoundError(2, "No such file or directory", "gcc"), "apt install gcc python3-dev"),
        (AssertionError("libcuda.so cannot found!\nPlease make sure GPU is set up"), "ldconfig"),
        (
            RuntimeError("PTXAS error: codegen\n`ptxas` stderr:\nptxas fatal   : Value 'sm_121a' is not defined for "
                         "option 'gpu-name'\n"),
            "newer torch, whose Triton knows this GPU",
        ),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), "newer torch"),
        (PermissionError(13, "Permission denied", "/x/triton/backends/nvidia/bin/ptxas"), "TRITON_PTXAS_PATH"),
        (PermissionError(13, "Permission denied", "/home/x/.triton"), "to a folder that can be written"),
        (ImportError("/x/cuda_utils.so: failed to map segment from shared object"), "to a folder whose files may"),
        (OSError(28, "No space left on device"), "make room"),
        (RuntimeError("out of resource: shared memory, Required: 200000, Hardware limit: 101376."), "bench --tune"),
        (RuntimeError("PassManager::run failed"), "reinstall triton in the version that torch asks for"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value)[:30],
)  # fmt: skip
def test_every_cause_has_its_cure(error, cure):
    fault = fault_of(error)
    assert cure in fault.cure
    assert fault.cause.startswith(f"Triton failed: {type(error).__name__}: ")
    assert "\n" not in str(fault)


def test_the_line_of_a_log_that_matters_is_shown():
    log = "PTXAS error: codegen\n`ptxas` stderr:\nptxas fatal   : Value 'sm_121a' is not defined\n"
    fault = fault_of(RuntimeError(log))
    assert "ptxas fatal   : Value 'sm_121a' is not defined" in fault.cause


@pytest.mark.parametrize(
    ("has_headers", "cause", "cure"),
    [(False, "there is no ", "apt install python3-dev"), (True, "the C compiler failed", "apt install gcc python3")],
)
def test_a_compiler_that_fails_says_why_to_the_terminal_alone(has_headers, cause, cure, monkeypatch, tmp_path):
    """Triton raises no more than the command that failed; missing headers are looked for."""
    (tmp_path / "Python.h").touch() if has_headers else None
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    fault = fault_of(subprocess.CalledProcessError(1, GCC))
    assert cause in fault.cause
    assert cure in fault.cure


@pytest.mark.parametrize(("platform", "package"), [("linux", "triton"), ("win32", "triton-windows")])
def test_a_triton_that_is_missing(platform, package):
    code = (
        f"import sys; sys.platform = {platform!r}\n"
        "from glm_int4.quantization.gpu.kernel_faults import cure_of\n"
        "print(cure_of(\"Triton cannot be imported: No module named 'triton'\"))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == f"install it: pip install {package}\n"


def test_cards_of_other_makers_and_old_ones_have_no_cure(monkeypatch):
    assert "GPUs of other makers" in cure_of("cuda is no CUDA device")
    monkeypatch.setattr(dispatch.torch.version, "cuda", "13.0")
    monkeypatch.setattr(dispatch, "gpu", object())
    monkeypatch.setattr(dispatch.torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert "--device cpu" in cure_of(dispatch.obstacle(dispatch.torch.device("cuda")))
