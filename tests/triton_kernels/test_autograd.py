"""A quantized linear has a gradient with respect to x, and none with respect to the weights."""

import pytest
import torch

from tests.tolerances import FLOAT32_RELATIVE_RMS, relative_rms
from tests.triton_kernels.matrices import linear64, quantized
from triton_kernels import int4_linear, int8_linear, reference
from triton_kernels.operands import Epilogue


def run(x, matrix, epilogue):
    linear = int4_linear if matrix.bits == 4 else int8_linear
    return linear(
        x,
        matrix.qweight,
        matrix.scales,
        matrix.zero_points,
        epilogue.bias,
        group_size=matrix.group_size,
        activation=epilogue.activation,
        residual=epilogue.residual,
        alpha=epilogue.alpha,
    )


@pytest.mark.parametrize("activation", [None, "gelu", "swiglu"])
@pytest.mark.parametrize("group_size", [32, None])
@pytest.mark.parametrize("bits", [4, 8])
def test_gradients_are_those_of_float64(bits, group_size, activation, monkeypatch):
    monkeypatch.setattr(reference, "_CHUNK_WEIGHTS", 7 * 256)
    matrix = quantized(bits, (48, 256), group_size, True)
    width = 24 if activation == "swiglu" else 48
    learned = [torch.randn(2, 3, 256), torch.randn(48), torch.randn(2, 3, width)]
    grads = []
    for dtype, function in ((torch.float32, run), (torch.float64, linear64)):
        x, bias, residual = (tensor.to(dtype, copy=True).requires_grad_() for tensor in learned)
        epilogue = Epilogue(bias=bias, activation=activation, residual=residual, alpha=0.5)
        out = function(x, matrix, epilogue)
        out.backward(torch.ones_like(out).cumsum(0))
        grads.append((x.grad, bias.grad, residual.grad))
    for grad, expected in zip(*grads, strict=True):
        assert relative_rms(grad, expected) < FLOAT32_RELATIVE_RMS


def test_nothing_is_saved_for_the_backward_pass_but_the_matrix():
    matrix, saved = quantized(4, (48, 256), 128, True), []
    x = torch.randn(5, 256, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.shape), lambda tensor: tensor):
        run(x, matrix, Epilogue()).sum().backward()
    assert saved == []


def test_without_gradients_no_graph_is_built():
    matrix = quantized(8, (48, 256), 128, False)
    x = torch.randn(5, 256, requires_grad=True)
    assert not run(x.detach(), matrix, Epilogue()).requires_grad
    with torch.no_grad():
        assert not run(x, matrix, Epilogue(bias=torch.randn(48, requires_grad=True))).requires_grad
