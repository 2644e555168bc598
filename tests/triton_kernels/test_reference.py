"""The reference means what its docstring says."""

import pytest
import torch

from tests.tolerances import FLOAT32_RELATIVE_RMS, relative_rms
from triton_kernels import int4_linear, int8_linear, packing


def operands(bits, group_size, asymmetric, rows=3, out_features=48, in_features=256):
    generator = torch.Generator().manual_seed(bits * 1000 + group_size + asymmetric)
    q = torch.randint(0, 1 << bits, (out_features, in_features), generator=generator).to(torch.uint8)
    scales = torch.rand(in_features // group_size, out_features, generator=generator) + 0.5
    zeros = torch.randint(0, 1 << bits, scales.shape, generator=generator).to(torch.uint8) if asymmetric else None
    return torch.randn(rows, in_features, generator=generator), q, scales, zeros, torch.randn(out_features)


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("group_size", [32, 128, 256])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_linear_is_the_matmul_of_dequantized_weights(bits, group_size, asymmetric):
    x, q, scales, zeros, bias = operands(bits, group_size, asymmetric)
    weight = torch.empty(q.shape, dtype=torch.float64)
    for n in range(q.shape[0]):
        for k in range(q.shape[1]):
            zero = (1 << (bits - 1)) if zeros is None else int(zeros[k // group_size, n])
            weight[n, k] = (int(q[n, k]) - zero) * float(scales[k // group_size, n])
    expected = x.double() @ weight.T + bias.double()
    qweight = packing.to_planar(packing.pack_int4(q), group_size) if bits == 4 else q
    linear = int4_linear if bits == 4 else int8_linear
    out = linear(x, qweight, scales, zeros, bias, group_size=group_size)
    assert out.dtype == x.dtype
    assert relative_rms(out, expected) < FLOAT32_RELATIVE_RMS


def test_chunks_of_rows_do_not_show(monkeypatch):
    from triton_kernels import reference

    x, q, scales, zeros, bias = operands(8, 32, True)
    whole = int8_linear(x, q, scales, zeros, bias, group_size=32)
    monkeypatch.setattr(reference, "_CHUNK_WEIGHTS", 7 * 256)
    assert relative_rms(int8_linear(x, q, scales, zeros, bias, group_size=32), whole) < FLOAT32_RELATIVE_RMS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 255)}, "x must be floating point"),
        ({"x": torch.zeros(2, 256, dtype=torch.int64)}, "x must be floating point"),
        ({"group_size": 48}, "group_size must divide 256"),
        ({"scales": torch.zeros(4, 48)}, r"scales must be \(8, 48\) for group_size=32, got \(4, 48\)"),
        ({"zero_points": torch.zeros(8, 48)}, "zero_points must be uint8"),
        ({"bias": torch.zeros(47)}, r"bias must be \(48,\)"),
    ],
)
def test_arguments_that_do_not_agree_are_named(change, message):
    x, q, scales, zeros, bias = operands(8, 32, True)
    arguments = {"x": x, "qweight": q, "scales": scales, "zero_points": zeros, "bias": bias, "group_size": 32}
    with pytest.raises(ValueError, match=message):
        int8_linear(**(arguments | change))
