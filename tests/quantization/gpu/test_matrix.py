"""The GPU's backends, on a CPU: what they compute."""

import pytest
import torch

from glm_int4.quantization.backends import BACKENDS
from glm_int4.quantization.embedding import QuantizedEmbedding
from glm_int4.quantization.linear import QuantizedLinear
from glm_int4.quantization.rounding import rtn
from glm_int4.quantization.scheme import QuantizationScheme
from tests.quantization.test_linear import SCHEMES, SHAPES, quantized
from tests.tolerances import BFLOAT16_RELATIVE_RMS, FLOAT16_RELATIVE_RMS, FLOAT32_RELATIVE_RMS, relative_rms


@pytest.mark.parametrize("backend", ["triton", "cublas"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_backends_agree_with_the_reference(scheme, shape, backend):
    weight, bias = quantized(shape, scheme), torch.randn(shape[0])
    linear, exact = (QuantizedLinear(weight, bias, name) for name in (backend, "reference"))
    for dtype, size, tolerance in (
        (torch.float16, 1, FLOAT16_RELATIVE_RMS),
        (torch.bfloat16, 1e7, BFLOAT16_RELATIVE_RMS),
        (torch.float32, 1e7, FLOAT16_RELATIVE_RMS),
    ):
        x = (size * torch.randn(2, 5, shape[1])).to(dtype).requires_grad_()
        out = linear(x)
        assert out.dtype == dtype
        assert relative_rms(out, exact(x.detach().float())) < tolerance
        out.sum().backward()
        grad = x.grad
        x = x.detach().float().requires_grad_()
        exact(x).sum().backward()
        assert relative_rms(grad, x.grad) < tolerance


@pytest.mark.parametrize(("backend", "tolerance"), [("triton", FLOAT32_RELATIVE_RMS), ("cublas", FLOAT16_RELATIVE_RMS)])
def test_logits_are_float32(backend, tolerance):
    weight = quantized((112, 384), SCHEMES[3])
    embedding = QuantizedEmbedding(weight, backend, torch.float16)
    rows = embedding(torch.arange(112)[None])
    assert rows.dtype == torch.float16
    x = torch.randn(3, 384).half()
    expected = QuantizedEmbedding(weight, "reference", torch.float32).project(x)
    assert embedding.project(x).dtype == torch.float32
    assert relative_rms(embedding.project(x), expected) < tolerance


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_that_are_no_multiple_of_4_weights(bits, backend):
    scheme = QuantizationScheme(bits=bits, group_size=None, symmetric=True)
    weight = rtn.quantize_rtn(torch.randn(16, 214), scheme)[0]
    linear, x = QuantizedLinear(weight, torch.randn(16), backend), torch.randn(3, 214, requires_grad=True)
    dense = rtn.dequantize(weight)
    out = linear(x)
    out.float().sum().backward()
    tolerance = FLOAT16_RELATIVE_RMS if backend in ("triton", "cublas") else FLOAT32_RELATIVE_RMS
    assert relative_rms(out, x @ dense.T + linear.matrix.bias) < tolerance
    assert relative_rms(x.grad, dense.sum(0).expand(3, -1)) < tolerance
    assert relative_rms(linear.matrix.dequantize(torch.tensor([2, 5])), dense[[2, 5]]) < FLOAT32_RELATIVE_RMS
