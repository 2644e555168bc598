"""The gradient through frozen quantized matrices."""

import pytest
import torch

from glm_int4.quantization.cpu import float32
from glm_int4.quantization.embedding import QuantizedEmbedding
from glm_int4.quantization.linear import QuantizedLinear
from tests.quantization.test_linear import SCHEMES, SHAPES, quantized
from tests.tolerances import FLOAT32_RELATIVE_RMS, relative_rms


@pytest.fixture
def small_pieces(monkeypatch):
    """Several pieces even for small matrices."""
    monkeypatch.setattr(float32, "SCRATCH_BYTES", 1 << 15)
    monkeypatch.setattr("triton_kernels.reference._CHUNK_WEIGHTS", 1 << 14)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("backend", ["float32", "reference"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_gradient_is_that_of_the_dequantized_matrix(scheme, shape, backend):
    weight, bias = quantized(shape, scheme), torch.randn(shape[0])
    linear = QuantizedLinear(weight, bias, backend)
    dense = QuantizedLinear(weight, None, "reference").matrix.dequantize(slice(None))
    for num_rows in (1, 5, 65):
        x = torch.randn(2, num_rows, shape[1], requires_grad=True)
        out = linear(x)
        grad = torch.randn(out.shape)
        out.backward(grad.to(out.dtype))
        assert relative_rms(x.grad, grad @ dense) < FLOAT32_RELATIVE_RMS
        with torch.no_grad():
            assert torch.equal(linear(x), out)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("backend", ["float32", "reference"])
def test_the_gradient_passes_through_a_tied_head(backend):
    embedding = QuantizedEmbedding(quantized((112, 384), SCHEMES[3]), backend, torch.float32)
    dense = embedding(torch.arange(112))
    x = torch.randn(3, 384, requires_grad=True)
    grad = torch.randn(3, 112)
    embedding.project(x).backward(grad)
    assert relative_rms(x.grad, grad @ dense) < FLOAT32_RELATIVE_RMS


def test_inference_keeps_nothing_for_a_gradient():
    linear = QuantizedLinear(quantized((112, 384), SCHEMES[0]), None, "reference")
    assert linear(torch.randn(3, 384)).grad_fn is None
    with torch.no_grad():
        assert linear(torch.randn(3, 384, requires_grad=True)).grad_fn is None
