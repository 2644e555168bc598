"""The thread count that was asked for stays."""

import subprocess
import sys

import pytest

CODE = """
import torch
from glm_int4.quantization.cpu.float32 import Float32Matrix
from glm_int4.quantization.rounding.rtn import quantize_rtn
from glm_int4.quantization.scheme import QuantizationScheme
scheme = QuantizationScheme(bits=8, group_size=None, symmetric=True)
if {by_torch}:
    torch.set_num_threads(1)
Float32Matrix(quantize_rtn(torch.randn(32, 64), scheme)[0])(torch.randn(1, 64))
assert torch.get_num_threads() == 1, torch.get_num_threads()
"""


@pytest.mark.parametrize("by_torch", [True, False], ids=["set_num_threads", "OMP_NUM_THREADS"])
def test_the_first_numba_loop_leaves_torchs_threads_alone(by_torch, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if not by_torch:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
    result = subprocess.run([sys.executable, "-c", CODE.format(by_torch=by_torch)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
