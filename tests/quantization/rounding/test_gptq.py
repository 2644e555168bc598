"""GPTQ: the smallest case by hand, its feedback against a plain definition, and what it gains."""

import pytest
import torch

from glm_int4.quantization.rounding.gptq import Hessian, quantize_gptq
from glm_int4.quantization.rounding.rtn import dequantize, quantize_rtn
from glm_int4.quantization.scheme import QuantizationScheme

SCHEMES = [
    QuantizationScheme(bits=bits, group_size=size, symmetric=symmetric)
    for bits in (4, 8)
    for size in (32, 64, 128, None)
    for symmetric in (False, True)
]


def layer(rows=64, columns=256, tokens=512):
    """Heavy-tailed weights, correlated inputs whose columns differ in size."""
    generator = torch.Generator().manual_seed(1)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    weight = 0.02 * randn(rows, columns) / randn(5, rows, columns).square().mean(0).sqrt()
    x = randn(tokens, columns) * randn(columns).exp()
    return weight, x @ (torch.eye(columns) + randn(columns, columns) / columns**0.5)


def factor_of(x, damping=0.01):
    hessian = Hessian(x.shape[1])
    for part in x.split(100):
        hessian.add(part)
    return hessian.factor(damping)


def output_error(weight, quantized, x):
    return ((dequantize(quantized) - weight) @ x.T).square().sum().item()


def test_the_factor_belongs_to_the_damped_moments():
    _, x = layer()
    factor = factor_of(x).flip(0, 1)  # upper triangular, columns in order
    moments = x.T @ x
    moments.diagonal().add_(0.01 * moments.diagonal().mean())
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor @ factor.T, moments, rtol=1e-4, atol=1e-3 * moments.diagonal().mean().item())


def test_panels_of_the_moments_do_not_show(monkeypatch):
    _, x = layer()
    whole = factor_of(x)
    monkeypatch.setattr("glm_int4.quantization.rounding.gptq._HESSIAN_ROWS", 48)
    torch.testing.assert_close(factor_of(x), whole, rtol=1e-4, atol=1e-3)


def test_moments_are_mean_squares_in_the_order_of_the_columns():
    _, x = layer()
    hessian = Hessian(256)
    hessian.add(x.view(2, 256, 256))
    torch.testing.assert_close(hessian.moments(), x.square().mean(0))


def test_the_second_of_two_equal_inputs_takes_up_the_error_of_the_first():
    x = torch.ones(8, 1).repeat(1, 32)
    x[:, 2:] = 0
    weight = torch.zeros(1, 32)
    weight[0, :2] = torch.tensor([0.4, 0.4])
    weight[0, 2:4] = torch.tensor([-8.0, 7.0])  # the range: steps of 1, and 0.1 % that keep the length
    scheme = QuantizationScheme(bits=4, group_size=32, symmetric=False)
    plain, *_ = quantize_rtn(weight, scheme)
    quantized, *_ = quantize_gptq(weight, scheme, factor_of(x, 1e-4))
    assert dequantize(plain)[0, :2].tolist() == [0, 0]
    assert dequantize(quantized)[0, :2].tolist() == pytest.approx([0, 1], rel=2e-3)


def test_column_by_column_it_is_the_plain_definition():
    weight, x = layer(rows=8, columns=160)
    scheme = QuantizationScheme(bits=4, group_size=32, symmetric=False)
    factor = factor_of(x)
    quantized, *_ = quantize_gptq(weight, scheme, factor)
    upper = factor.flip(0, 1).double()
    scales = quantized.scales.double().repeat_interleave(32, 1)
    zeros = quantized.zero_points.double().repeat_interleave(32, 1)
    errors = torch.zeros(8, 160, dtype=torch.double)
    for j in range(160):
        aim = weight[:, j].double() + errors[:, :j] @ (upper[:j, j] / upper[j, j])
        q = ((aim / scales[:, j]).round() + zeros[:, j]).clamp(0, 15)
        errors[:, j] = weight[:, j] - (q - zeros[:, j]) * scales[:, j]
    same = (weight - errors - dequantize(quantized)).abs() < 1e-6
    assert same.float().mean() > 0.97, "float32 may break ties otherwise, and later columns follow"


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_outputs_error_is_a_fraction_of_that_of_rounding(scheme):
    weight, x = layer()
    rounded, *_ = quantize_rtn(weight, scheme)
    quantized, error, norm = quantize_gptq(weight, scheme, factor_of(x))
    assert (quantized.zero_points is None) == scheme.symmetric
    assert error == pytest.approx((dequantize(quantized) - weight).square().sum().item(), rel=1e-4)
    assert norm == pytest.approx(weight.square().sum().item(), rel=1e-5)
    assert output_error(weight, quantized, x) < 0.5 * output_error(weight, rounded, x)


def test_widths_that_are_no_multiple_of_a_block_work():
    weight, x = layer(columns=176)
    scheme = QuantizationScheme(bits=4, group_size=None, symmetric=False)
    rounded, *_ = quantize_rtn(weight, scheme)
    assert output_error(weight, quantize_gptq(weight, scheme, factor_of(x))[0], x) < output_error(weight, rounded, x)


def test_inputs_that_are_always_zero_leave_rounding():
    weight, x = layer()
    scheme = QuantizationScheme(bits=4, group_size=128, symmetric=False)
    quantized, *_ = quantize_gptq(weight, scheme, factor_of(torch.zeros_like(x)))
    rounded, error, _ = quantize_rtn(weight, scheme)
    # Sums in another order may break a tie between two ranges; the error stays the same.
    assert output_error(weight, quantized, torch.eye(256)) == pytest.approx(error, rel=1e-4)
    assert (quantized.packed == rounded.packed).float().mean() > 0.9


def test_moments_without_full_rank_are_damped():
    weight, x = layer()
    few = x[:3]
    scheme = QuantizationScheme(bits=4, group_size=128, symmetric=False)
    rounded, *_ = quantize_rtn(weight, scheme)
    assert output_error(weight, quantize_gptq(weight, scheme, factor_of(few))[0], few) < 0.2 * output_error(
        weight, rounded, few
    )


@pytest.mark.parametrize("fault", [torch.inf, torch.nan])
def test_inputs_that_are_not_finite_are_refused(fault):
    _, x = layer()
    x[3, 5] = fault
    with pytest.raises(ValueError, match="inputs must be finite"):
        factor_of(x)
