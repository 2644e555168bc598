"""A sample of the kernels compiles for every architecture and keeps the rules; ``make gpu-gate`` compiles all."""

import os
import subprocess
import sys

import pytest

from tests.conftest import EXAMPLES


def test_kernels_compile_without_spills_and_with_tensor_cores():
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.kernels.kernel_gate", "--quick"]
    result = subprocess.run(command, cwd=EXAMPLES.parent, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 faults" in result.stdout
