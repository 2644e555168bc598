"""Layers with heavy-tailed weights, correlated inputs and outlier channels, as in models of 6 billion parameters."""

import functools

import pytest
import torch

from glm_int4.quantization.rounding.gptq import Hessian, quantize_gptq
from glm_int4.quantization.rounding.rtn import dequantize, quantize_official, quantize_rtn
from glm_int4.quantization.scheme import QuantizationScheme

WIDTH, OUTLIERS, FACTOR = 2048, 3, 40.0


@pytest.fixture(scope="module")
def layer():
    """Weights, inputs to calibrate on, and inputs that nobody has seen."""
    randn = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
    weight = 0.02 * randn(128, WIDTH) / randn(5, 128, WIDTH).square().mean(0).sqrt()
    directions = randn(WIDTH // 8, WIDTH) / (WIDTH // 8) ** 0.5
    sizes = (0.5 * randn(WIDTH)).exp()
    sizes[:OUTLIERS] *= FACTOR  # the norm's gain grows, the weights shrink: the function is the same
    weight[:, :OUTLIERS] /= FACTOR

    def inputs(count):
        return (randn(count, len(directions)) @ directions + randn(count, WIDTH)) * sizes

    return weight, inputs(2 * WIDTH), inputs(256)


def output_error(quantized, weight, x):
    return (((dequantize(quantized) - weight) @ x.T).square().sum() / (weight @ x.T).square().sum()).item()


@pytest.fixture(scope="module")
def official(layer):
    weight, _, unseen = layer
    quantized, *_ = quantize_official(weight, QuantizationScheme(bits=4, group_size=None, symmetric=True))
    return output_error(quantized, weight, unseen)


def test_the_default_loses_less_than_half_of_the_official_layout(layer, official):
    weight, _, unseen = layer
    quantized, *_ = quantize_rtn(weight, QuantizationScheme(bits=4, group_size=128, symmetric=False))
    assert output_error(quantized, weight, unseen) < official / 2


def test_gptq_loses_less_than_a_third(layer, official):
    weight, seen, unseen = layer
    hessian = Hessian(WIDTH)
    hessian.add(seen)
    scheme = QuantizationScheme(bits=4, group_size=128, symmetric=False)
    quantized, *_ = quantize_gptq(weight, scheme, hessian.factor())
    assert output_error(quantized, weight, unseen) < official / 3


def test_int8_loses_next_to_nothing(layer, official):
    weight, _, unseen = layer
    quantized, *_ = quantize_rtn(weight, QuantizationScheme(bits=8, group_size=None, symmetric=True))
    assert output_error(quantized, weight, unseen) < official / 50
