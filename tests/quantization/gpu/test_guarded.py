"""A kernel that fails is replaced by dequantized products: for that kernel and shape alone."""

import logging

import pytest
import torch

from glm_int4.quantization.activation import activation_of_linear
from glm_int4.quantization.linear import QuantizedLinear
from tests.quantization.test_linear import SCHEMES, quantized
from tests.tolerances import FLOAT16_RELATIVE_RMS, relative_rms
from triton_kernels import cublas, reference

PTXAS = RuntimeError("ptxas exited with code 1\nand a long log")


@pytest.fixture
def dequantized(monkeypatch):
    """Rows of x of every product that was dequantized."""
    rows, multiply = [], cublas.multiply
    monkeypatch.setattr(cublas, "multiply", lambda x, *rest: rows.append(len(x)) or multiply(x, *rest))
    return rows


def linear(shape=(112, 384), scheme=SCHEMES[0]):
    return QuantizedLinear(quantized(shape, scheme), torch.randn(shape[0]), "triton")


def test_one_failure_replaces_that_kernel_for_that_shape(gpu, dequantized, caplog):
    first, same_shape, other_shape = linear(), linear(), linear((96, 384))
    few, many = torch.randn(3, 384).half(), torch.randn(20, 384).half()
    expected = [first(few), same_shape(few), other_shape(few), first(many)]
    gpu.calls.clear()
    gpu.failing["dot 8x128"] = PTXAS
    with caplog.at_level(logging.INFO):
        results = [first(few), same_shape(few)]
        assert gpu.calls == ["dot 8x128"]  # the second did not try again
        gpu.failing.clear()
        results += [other_shape(few), first(many)]
    assert dequantized == [3, 3]
    assert gpu.calls == ["dot 8x128", "dot 8x128", "dot 64x128"]
    for out, right in zip(results, expected, strict=True):
        assert relative_rms(out, right) < FLOAT16_RELATIVE_RMS
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(
        "GPU backend: cublas (dequantizing) in place of kernel dot 8x128 for INT4 (group 128) of 112 x 384, because "
        "Triton failed: RuntimeError: ptxas exited with code 1; "
    )
    assert "glm-int4 doctor" in line


def test_the_same_cause_is_a_warning_once(gpu, caplog):
    gpu.failing["dot 8x128"] = PTXAS
    with caplog.at_level(logging.INFO):
        for shape in ((112, 384), (96, 384), (80, 384)):
            linear(shape)(torch.randn(3, 384).half())
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "INFO"]


def test_a_gradient_whose_kernel_fails_is_dequantized(gpu, monkeypatch):
    layer, grad = linear(), torch.randn(5, 112).half()
    dense = QuantizedLinear(quantized((112, 384), SCHEMES[0]), None, "reference").matrix.dequantize(slice(None))
    monkeypatch.setattr(reference, "multiply", cublas.multiply)
    for fails in (False, True, True):
        if fails:
            gpu.failing["transposed"] = PTXAS
        x = torch.randn(5, 384).half().requires_grad_()
        layer(x).backward(grad)
        assert x.grad.dtype == torch.float16
        assert relative_rms(x.grad, grad.float() @ dense) < FLOAT16_RELATIVE_RMS
    assert gpu.calls.count("transposed") == 2


def test_an_activation_behind_a_product_follows_it_all_the_same(gpu):
    layer, x = linear(), torch.randn(3, 384).half()
    expected = activation_of_linear(layer, x, "swiglu")
    gpu.failing["dot 8x128"] = PTXAS
    assert relative_rms(activation_of_linear(layer, x, "swiglu"), expected) < FLOAT16_RELATIVE_RMS


def test_faults_that_are_not_the_kernels_are_raised(gpu):
    layer = linear()
    with pytest.raises(ValueError, match="x must be floating point"):
        layer(torch.randn(3, 383))
    gpu.failing["dot 8x128"] = torch.OutOfMemoryError("no")
    with pytest.raises(torch.OutOfMemoryError):
        layer(torch.randn(3, 384))
    gpu.failing.clear()
    layer(torch.randn(3, 384))
    assert gpu.calls == ["dot 8x128"] * 2


def test_a_gpu_that_is_lost_is_not_taken_for_a_failed_kernel(gpu, monkeypatch, caplog):
    """After an illegal access nothing runs any more: the error comes out, and no kernel is blamed."""

    def lost(*arguments):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    gpu.failing["dot 8x128"] = RuntimeError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(cublas, "multiply", lost)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        linear()(torch.randn(3, 384))
    assert not caplog.records
