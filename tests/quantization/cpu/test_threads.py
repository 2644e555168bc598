"""The thread count that was asked for stays."""

import os
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


TIMES = """
import resource, time
import torch
from glm_int4.quantization.cpu.waiting import Sleepers
sleepers = Sleepers()
if {state!r} != "untouched":
    sleepers.start()
if {state!r} == "stopped":
    sleepers.stop()
torch.set_num_threads(2)
for _ in range(40):
    torch.ones(1 << 20).mul_(2.0)
    time.sleep(0.005)
usage = resource.getrusage(resource.RUSAGE_SELF)
before = usage.ru_utime + usage.ru_stime
for _ in range(40):
    torch.ones(1 << 20).mul_(2.0)
    time.sleep(0.005)
usage = resource.getrusage(resource.RUSAGE_SELF)
print(usage.ru_utime + usage.ru_stime - before, torch.get_num_threads())
"""


@pytest.mark.skipif(sys.platform != "linux" or (os.cpu_count() or 1) < 2, reason="needs Linux and two processors")
def test_threads_that_wait_for_work_leave_the_processor_to_others(monkeypatch):
    """While the sleepers are there, and no longer."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    seconds = {}
    for state in ("started", "untouched", "stopped"):
        command = [sys.executable, "-c", TIMES.format(state=state)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds[state], threads = float(result.stdout.split()[0]), int(result.stdout.split()[1])
        assert threads == 2
    assert seconds["started"] < 0.7 * min(seconds["untouched"], seconds["stopped"]), seconds
