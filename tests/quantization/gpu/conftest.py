"""A GPU's kernels on a CPU."""

import pytest
import torch

from glm_int4.quantization.gpu import gpu_probe, guarded
from tests.quantization.gpu.stand_in import Kernels
from triton_kernels import dispatch


@pytest.fixture
def gpu(monkeypatch):
    """Kernels that CPU tensors take, none of which has failed yet."""
    kernels = Kernels()
    monkeypatch.setattr(dispatch, "gpu", kernels)
    for module in (dispatch, gpu_probe):
        monkeypatch.setattr(module, "obstacle", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a GPU")
    monkeypatch.setattr(guarded, "_failed", set())
    monkeypatch.setattr(guarded, "_causes", set())
    gpu_probe.kernel_fault.cache_clear()
    yield kernels
    gpu_probe.kernel_fault.cache_clear()
