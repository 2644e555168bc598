"""The GPU backend, on a CPU: what it computes, and what happens when the kernels fail."""

import logging

import pytest
import torch

from glm_int4.quantization import kernels
from glm_int4.quantization.backends import BACKENDS
from glm_int4.quantization.embedding import QuantizedEmbedding
from glm_int4.quantization.gpu import matrix
from glm_int4.quantization.linear import QuantizedLinear
from glm_int4.quantization.rounding import rtn
from glm_int4.quantization.scheme import QuantizationScheme
from tests.quantization.test_linear import SCHEMES, SHAPES, quantized
from tests.tolerances import FLOAT16_RELATIVE_RMS, FLOAT32_RELATIVE_RMS, relative_rms


@pytest.fixture(autouse=True)
def healthy(monkeypatch):
    monkeypatch.setattr(matrix, "_kernels_failed", False)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_backend_agrees_with_the_reference(scheme, shape):
    weight, bias = quantized(shape, scheme), torch.randn(shape[0])
    x = torch.randn(2, 5, shape[1])
    out = QuantizedLinear(weight, bias, "triton")(x)
    assert out.dtype == torch.float16
    assert relative_rms(out, QuantizedLinear(weight, bias, "reference")(x)) < FLOAT16_RELATIVE_RMS


def test_logits_are_float32():
    weight = quantized((112, 384), SCHEMES[3])
    embedding = QuantizedEmbedding(weight, "triton", torch.float16)
    rows = embedding(torch.arange(112)[None])
    assert rows.dtype == torch.float16
    x = torch.randn(3, 384).half()
    expected = QuantizedEmbedding(weight, "reference", torch.float32).project(x)
    assert embedding.project(x).dtype == torch.float32
    assert relative_rms(embedding.project(x), expected) < FLOAT32_RELATIVE_RMS


def test_kernels_that_fail_are_replaced_and_named_once(monkeypatch, caplog):
    def fail(*arguments, **options):
        raise RuntimeError("ptxas exited with code 1\nand a long log")

    weight, bias = quantized((112, 384), SCHEMES[0]), torch.randn(112)
    linear, x = QuantizedLinear(weight, bias, "triton"), torch.randn(3, 384).half()
    expected = linear(x)
    monkeypatch.setattr(kernels, "int4_linear", fail)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(linear(x), expected)
        assert torch.equal(linear(x), expected)
    assert [record.getMessage() for record in caplog.records] == [
        "GPU backend: reference (dequantize + cuBLAS), because Triton failed: RuntimeError: ptxas exited with code 1"
    ]


def test_faults_that_are_not_the_kernels_are_raised(monkeypatch):
    def fail(*arguments, **options):
        raise torch.OutOfMemoryError("no")

    linear = QuantizedLinear(quantized((112, 384), SCHEMES[0]), None, "triton")
    with pytest.raises(ValueError, match="x must be floating point"):
        linear(torch.randn(3, 383))
    monkeypatch.setattr(kernels, "int4_linear", fail)
    with pytest.raises(torch.OutOfMemoryError):
        linear(torch.randn(3, 384))
    assert not matrix._kernels_failed


def test_a_device_without_kernels_gets_the_reference(caplog):
    with caplog.at_level(logging.WARNING):
        assert matrix.choose_gpu_backend.__wrapped__(torch.device("cpu")) == "reference"
    assert "because cpu is no CUDA device" in caplog.text


def test_a_gpu_that_is_not_here_is_not_asked_for_its_capability(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        matrix, "obstacle", lambda device: pytest.fail("torch's CUDA build would raise without a driver")
    )
    with caplog.at_level(logging.WARNING):
        assert matrix.choose_gpu_backend.__wrapped__(torch.device("cuda")) == "reference"
    assert "because there is no CUDA device here" in caplog.text


def test_the_probe_decides(monkeypatch):
    monkeypatch.setattr(matrix, "obstacle", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    device = torch.device("cpu")
    assert matrix.choose_gpu_backend.__wrapped__(device) == "triton"
    monkeypatch.setattr(kernels, "int8_linear", None)
    assert matrix.choose_gpu_backend.__wrapped__(device) == "reference"


def test_the_gradient_is_the_kernels_own_and_runs_the_reference_where_they_failed(monkeypatch):
    weight = quantized((112, 384), SCHEMES[0])
    linear, grad = QuantizedLinear(weight, torch.randn(112), "triton"), torch.randn(5, 112).half()
    dense = QuantizedLinear(weight, None, "reference").matrix.dequantize(slice(None))
    differentiable = kernels.int4_linear
    calls = []
    monkeypatch.setattr(kernels, "int4_linear", lambda *a, **o: calls.append(1) or differentiable(*a, **o))
    for failed, num_calls in ((False, 1), (True, 1)):
        monkeypatch.setattr(matrix, "_kernels_failed", failed)
        x = torch.randn(5, 384).half().requires_grad_()
        linear(x).backward(grad)
        assert len(calls) == num_calls
        assert x.grad.dtype == torch.float16
        assert relative_rms(x.grad, grad.float() @ dense) < FLOAT16_RELATIVE_RMS


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_that_are_no_multiple_of_4_weights(bits, backend):
    scheme = QuantizationScheme(bits=bits, group_size=None, symmetric=True)
    weight = rtn.quantize_rtn(torch.randn(16, 214), scheme)[0]
    linear, x = QuantizedLinear(weight, torch.randn(16), backend), torch.randn(3, 214, requires_grad=True)
    dense = rtn.dequantize(weight)
    out = linear(x)
    out.float().sum().backward()
    tolerance = FLOAT16_RELATIVE_RMS if backend == "triton" else FLOAT32_RELATIVE_RMS
    assert relative_rms(out, x @ dense.T + linear.matrix.bias) < tolerance
    assert relative_rms(x.grad, dense.sum(0).expand(3, -1)) < tolerance
    assert relative_rms(linear.matrix.dequantize(torch.tensor([2, 5])), dense[[2, 5]]) < FLOAT32_RELATIVE_RMS
