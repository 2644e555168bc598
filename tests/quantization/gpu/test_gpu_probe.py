"""What a GPU's kernels are found to be at load, and which backend follows."""

import logging

import pytest
import torch

from glm_int4.quantization.gpu import gpu_probe
from glm_int4.quantization.gpu.gpu_probe import choose_gpu_backend, kernel_fault

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def anew():
    kernel_fault.cache_clear()
    yield
    kernel_fault.cache_clear()


def test_kernels_that_run_are_taken(gpu, caplog):
    with caplog.at_level(logging.INFO):
        assert choose_gpu_backend(CPU) == "triton"
    assert caplog.messages == ["GPU backend: triton (a GPU)"]
    assert gpu.calls == ["dot 8x128", "transposed"] * 2


@pytest.mark.parametrize("kernel", ["dot 8x128", "transposed"])
def test_a_kernel_that_fails_is_named_with_its_cure(gpu, caplog, kernel):
    gpu.failing[kernel] = RuntimeError("Failed to find C compiler. Please specify via CC environment variable")
    for _ in range(2):
        assert choose_gpu_backend(CPU) == "cublas"
    assert gpu.calls.count(kernel) == 1  # tried once
    assert caplog.messages[0] == (
        "GPU backend: cublas (dequantizes all weights for every product), because Triton failed: RuntimeError: Failed "
        "to find C compiler. Please specify via CC environment variable; install a C compiler and Python's headers, on "
        "Debian and Ubuntu: apt install gcc python3-dev; or name a compiler with CC"
    )


def test_a_device_without_kernels_dequantizes(caplog):
    assert choose_gpu_backend(CPU) == "cublas"
    assert "because cpu is no CUDA device" in caplog.text


def test_a_gpu_that_is_not_here_is_not_asked_for_its_capability(monkeypatch, caplog):
    monkeypatch.setattr(gpu_probe, "has_cuda", lambda: False)
    monkeypatch.setattr(
        gpu_probe, "obstacle", lambda device: pytest.fail("torch's CUDA build would raise without a driver")
    )
    assert choose_gpu_backend(torch.device("cuda")) == "cublas"
    assert "because there is no CUDA device here" in caplog.text
