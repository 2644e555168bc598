"""What a GPU's kernels are found to be at load, and which backend follows."""

import logging

import pytest
import torch

from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.opening import open_checkpoint
from glm_int4.generation.gpu.probed_matrices import probed_matrices
from glm_int4.quantization.gpu import gpu_probe
from glm_int4.quantization.gpu.gpu_probe import ProbedMatrix, choose_gpu_backend, kernel_fault
from glm_int4.quantization.scheme import QuantizationScheme
from tests.conftest import TINY

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
    assert gpu.calls == ["dot 8x128", "dot 8x128", "transposed"] * 2  # as in an answer, and with a gradient


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


def probed(bits=4, group_size=128, symmetric=False, shape=(192, 256), has_bias=False):
    scheme = QuantizationScheme(bits=bits, group_size=group_size, symmetric=symmetric)
    return ProbedMatrix(scheme, *shape, has_bias=has_bias)


def test_matrices_are_probed_as_a_model_has_them(gpu, monkeypatch):
    seen = []
    multiply = gpu.multiply

    def note(x, matrix, epilogue):
        seen.append((matrix.bits, matrix.group_size, matrix.zero_points is None, matrix.out_features, epilogue.bias))
        return multiply(x, matrix, epilogue)

    monkeypatch.setattr(gpu, "multiply", note)
    matrices = (probed(has_bias=True), probed(8, None, symmetric=True, shape=(128, 384)), probed(shape=(64, 130)))
    assert kernel_fault(CPU, matrices) is None
    answers = [case for case in seen[::2]]
    assert [case[:4] for case in answers] == [(4, 128, False, 192), (8, 384, True, 128)]  # no kernel takes 130 columns
    assert answers[0][4].shape == (192,)
    assert answers[1][4] is None


def test_memory_that_does_not_suffice_is_no_fault_of_the_kernels(gpu):
    gpu.failing["dot 8x128"] = torch.OutOfMemoryError("CUDA out of memory")
    assert kernel_fault(CPU, (probed(),)) is None


def test_every_scheme_of_a_checkpoint_is_probed_once(mini_int4):
    assert probed_matrices(open_checkpoint(TINY)[1]) == ()
    info = open_checkpoint(mini_int4)[1]
    first = next(layout.linears(info.config))
    (matrix,) = probed_matrices(info)
    assert (matrix.scheme, matrix.out_features, matrix.in_features) == (
        info.schemes[first.name], first.out_features, first.in_features
    )  # fmt: skip
