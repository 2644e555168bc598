"""``int4_linear`` and ``int8_linear`` take a path that their device has."""

import subprocess
import sys

import pytest
import torch

from tests.tolerances import FLOAT32_RELATIVE_RMS, relative_rms
from tests.triton_kernels.matrices import linear64, quantized
from tests.triton_kernels.test_autograd import run
from triton_kernels import dispatch
from triton_kernels.operands import Epilogue


@pytest.mark.parametrize("activation", [None, "gelu", "swiglu"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_cpu_runs_the_reference(bits, activation):
    matrix = quantized(bits, (48, 256), 32, True)
    x = torch.randn(2, 3, 256)
    width = 24 if activation == "swiglu" else 48
    epilogue = Epilogue(bias=torch.randn(48), activation=activation, residual=torch.randn(2, 3, width), alpha=7.5)
    assert dispatch.obstacle(x.device) == "cpu is no CUDA device"
    assert relative_rms(run(x, matrix, epilogue), linear64(x, matrix, epilogue)) < FLOAT32_RELATIVE_RMS


def test_without_triton_the_package_imports_and_runs():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; torch.version.cuda = '13.0'\n"
        "import triton_kernels\n"
        "from triton_kernels import dispatch\n"
        "assert dispatch.obstacle(torch.device('cuda')).startswith('Triton cannot be imported: ')\n"
        "q, scales = torch.zeros(16, 128, dtype=torch.uint8), torch.ones(1, 16)\n"
        "out = triton_kernels.int8_linear(torch.ones(1, 128), q, scales, group_size=128)\n"
        "assert (out == -128 * 128).all()\n"
    )
    run_python(code)


def test_a_cpu_build_of_torch_does_not_import_triton():
    run_python("import sys, torch, triton_kernels; assert torch.version.cuda or 'triton' not in sys.modules")


def run_python(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_fp16_on_a_gpu_runs_the_kernels_and_the_rest_the_reference(monkeypatch):
    gpu = pytest.importorskip("triton_kernels.gpu")
    taken = []
    monkeypatch.setattr(dispatch, "gpu", gpu)
    monkeypatch.setattr(dispatch, "obstacle", lambda device: None)
    monkeypatch.setattr(gpu, "multiply", lambda x, matrix, epilogue: taken.append(x.dtype) or x)
    matrix = quantized(8, (128, 128), None, False)
    for dtype in (torch.float16, torch.float32, torch.bfloat16):
        run(torch.zeros(1, 128, dtype=dtype), matrix, Epilogue())
    assert taken == [torch.float16]


@pytest.mark.parametrize(
    ("shape", "group_size", "dtype", "taken"),
    [
        ((48, 256), 32, torch.float16, True),
        ((48, 13696), None, torch.float16, True),
        ((48, 512), 256, torch.float16, True),
        ((48, 192), 64, torch.float16, False),  # no whole number of runs
        ((48, 256), 16, torch.float16, False),
        ((48, 256), 32, torch.float32, False),
    ],
    ids=str,
)
def test_the_kernels_say_what_they_take(shape, group_size, dtype, taken):
    gpu = pytest.importorskip("triton_kernels.gpu")
    matrix = quantized(8, shape, group_size, False)
    assert gpu.takes(dtype, matrix) == taken
