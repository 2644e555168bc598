"""The reference means what its docstring says."""

import pytest
import torch

from tests.tolerances import FLOAT32_RELATIVE_RMS, relative_rms
from triton_kernels import packing, reference
from triton_kernels.reference import int4_linear, int8_linear


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
    qweight = packing.to_planar(packing.pack_int4(q)) if bits == 4 else q
    linear = int4_linear if bits == 4 else int8_linear
    out = linear(x, qweight, scales, zeros, bias, group_size=group_size)
    assert out.dtype == x.dtype
    assert relative_rms(out, expected) < FLOAT32_RELATIVE_RMS


def test_chunks_of_rows_do_not_show(monkeypatch):
    x, q, scales, zeros, bias = operands(8, 32, True)
    whole = int8_linear(x, q, scales, zeros, bias, group_size=32)
    monkeypatch.setattr(reference, "_CHUNK_WEIGHTS", 7 * 256)
    assert relative_rms(int8_linear(x, q, scales, zeros, bias, group_size=32), whole) < FLOAT32_RELATIVE_RMS
