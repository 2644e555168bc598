"""Half-quadratic fitting: its errors are those of what is stored, and it fits the small weights better."""

import pytest
import torch

from glm_int4.quantization.rounding.hqq import quantize_hqq
from glm_int4.quantization.rounding.rtn import dequantize, quantize_rtn
from glm_int4.quantization.scheme import QuantizationScheme

SCHEMES = [
    QuantizationScheme(bits=bits, group_size=size, symmetric=symmetric)
    for bits in (4, 8)
    for size in (32, 64, 128, None)
    for symmetric in (False, True)
]


def heavy_tailed(rows=48, columns=256):
    generator = torch.Generator().manual_seed(2)
    chi = torch.randn(5, rows, columns, generator=generator).square().mean(0)
    return 0.02 * torch.randn(rows, columns, generator=generator) / chi.sqrt()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_reported_errors_are_those_of_the_stored_weights(scheme):
    weight = heavy_tailed()
    quantized, error, norm = quantize_hqq(weight, scheme)
    assert quantized.scales.dtype == torch.float16
    assert quantized.scales.shape == (48, 256 // scheme.row_group_size(256))
    assert (quantized.zero_points is None) == scheme.symmetric
    assert error == pytest.approx((dequantize(quantized) - weight).square().sum().item(), rel=1e-4)
    assert norm == pytest.approx(weight.square().sum().item(), rel=1e-5)
    assert (error / norm) ** 0.5 < {4: 0.4, 8: 0.03}[scheme.bits]


@pytest.mark.parametrize("group_size", [32, 128, None])
def test_most_weights_err_less_than_with_the_full_range(group_size):
    scheme = QuantizationScheme(bits=4, group_size=group_size, symmetric=False)
    weight = heavy_tailed()
    groups = weight.unflatten(1, (-1, group_size or 256))
    step = (groups.amax(-1) - groups.amin(-1)) / 15
    full_range = (groups / step[..., None]).round() * step[..., None] - groups
    ours = (dequantize(quantize_hqq(weight, scheme)[0]) - weight).abs()
    assert ours.median() < full_range.abs().median()


def test_pieces_do_not_show(monkeypatch):
    scheme = SCHEMES[0]
    whole, *_ = quantize_hqq(heavy_tailed(), scheme)
    monkeypatch.setattr("glm_int4.quantization.rounding.hqq._PIECE_WEIGHTS", 7 * 256)
    pieces, *_ = quantize_hqq(heavy_tailed(), scheme)
    assert torch.equal(whole.packed, pieces.packed)
    assert torch.equal(whole.scales, pieces.scales)


@pytest.mark.parametrize("scheme", SCHEMES[::3], ids=str)
@pytest.mark.parametrize("magnitude", [0, 6e-8, 1e-4, 3e4])
def test_zeros_subnormals_and_large_weights_stay_near(scheme, magnitude):
    weight = (heavy_tailed() / 0.2 * magnitude).clamp(-6e4, 6e4).half().float()
    quantized, *_ = quantize_hqq(weight, scheme)
    assert (quantized.scales > 0).all()
    assert torch.isfinite(quantized.scales).all()
    errors = (dequantize(quantized) - weight).abs()
    assert errors.max() <= weight.abs().max()


def test_the_shape_must_fit():
    with pytest.raises(ValueError, match="multiple of 32, got 80"):
        quantize_hqq(torch.zeros(2, 80), SCHEMES[0])


def test_at_8_bits_it_is_as_good_as_rounding():
    scheme = QuantizationScheme(bits=8, group_size=None, symmetric=True)
    weight = heavy_tailed()
    assert quantize_hqq(weight, scheme)[1] < 1.05 * quantize_rtn(weight, scheme)[1]
