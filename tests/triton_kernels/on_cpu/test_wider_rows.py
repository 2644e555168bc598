"""Products and steps in bfloat16 and float32, of numbers that float16 does not hold.

The interpreter is silently wrong about bfloat16: there, float32 stands for both.
"""

import itertools
import math

import pytest
import torch

from tests.tolerances import BFLOAT16_RELATIVE_RMS, FLOAT16_RELATIVE_RMS, relative_rms
from tests.triton_kernels.matrices import guarded, linear64, poison, quantized
from tests.triton_kernels.on_cpu import QUICK, WIDER
from tests.triton_kernels.on_cpu.test_gpu import FEW_ROWS, LAUNCHES, epilogue_of, name
from triton_kernels import gpu, launch, reference
from triton_kernels.operands import Epilogue


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    check = poison(monkeypatch)
    yield
    check()


def inputs(num_rows, in_features, dtype, outlier=30):
    """Rows of which each has an outlier and a size of its own, from 1e-6 to 1e9; not contiguous."""
    x = torch.randn(2 * num_rows, in_features, generator=torch.Generator().manual_seed(num_rows))
    x[:, -1] *= outlier
    x *= 10 ** torch.linspace(9, -6, 2 * num_rows)[:, None]
    return guarded(x.to(dtype))[::2]


@pytest.mark.parametrize("columns", [1, 100, 4096, 5000])
@pytest.mark.parametrize("dtype", WIDER, ids=str)
def test_rows_are_scaled_by_powers_of_two(dtype, columns):
    x = inputs(7, columns, dtype, outlier=1000)
    x[3] = 0
    x[4, 0], x[5, -1] = 2.0**127, -(2.0**-126)
    out, factors = gpu.scaled_rows(x)
    expected, expected_factors = reference.scaled_rows(x)
    assert torch.equal(out, expected)
    assert torch.equal(factors, expected_factors)
    assert torch.equal(factors.log2(), factors.log2().round())
    largest = out.abs().amax(1)
    assert (largest[[0, 1, 2, 4, 6]] >= 2.0**14).all()
    assert (largest <= 2.0**15).all()
    assert not out[3].any()
    few = slice(0, max(columns - 1, 1))  # beside the outlier
    assert relative_rms(out[0, few].double() * factors[0], x[0, few]) < FLOAT16_RELATIVE_RMS


def test_what_is_no_number_stays_none():
    x = torch.ones(2, 100)
    x[0, 7], x[1, 7] = math.inf, math.nan
    for scaled_rows in (gpu.scaled_rows, reference.scaled_rows):
        assert not scaled_rows(x)[0][:, 7].isfinite().any()


@pytest.mark.parametrize("splits", [2] if QUICK else [1, 2])
@pytest.mark.parametrize("dtype", WIDER, ids=str)
@pytest.mark.parametrize("row", [LAUNCHES[0], LAUNCHES[-1]] if QUICK else LAUNCHES, ids=name)
def test_every_launch_computes_products_of_wider_rows(row, dtype, splits):
    for bits, group_size in ((4, 128),) if QUICK else ((4, 128), (8, None)):
        matrix = quantized(bits, (176, 640), group_size, bits == 4)
        x = inputs(min(row.max_rows, 17), 640, dtype)
        out = gpu.run(row, splits, x, matrix, Epilogue(dtype=torch.float32))
        for ours, exact in zip(out, linear64(x, matrix), strict=True):
            assert relative_rms(ours, exact) < FLOAT16_RELATIVE_RMS


@pytest.mark.parametrize("dtype", WIDER, ids=str)
@pytest.mark.parametrize("kind", ["gelu", "swiglu", "residual"])
def test_what_follows_is_in_the_dtype_of_the_rows(kind, dtype):
    matrix, x = quantized(4, (176, 384), 128, True), inputs(2, 384, dtype)[:1]
    epilogue = epilogue_of(kind, 1, 176)
    for splits in (1, 3):
        out = gpu.run(FEW_ROWS, splits, x, matrix, epilogue)
        assert out.dtype == dtype
        assert out.abs().max() > torch.finfo(torch.float16).max
        assert relative_rms(out, linear64(x, matrix, epilogue)) < BFLOAT16_RELATIVE_RMS


@pytest.mark.parametrize(("dtype", "kind"), list(itertools.product(WIDER, [None, "bias", "swiglu"])), ids=str)
def test_dequantized_products_of_wider_rows(dtype, kind):
    matrix, x = quantized(8, (176, 384), 128, True), inputs(40, 384, dtype)
    epilogue = epilogue_of(kind, 40, 176) if kind else Epilogue()
    out = gpu.multiply_dequantized(x, matrix, epilogue)
    assert out.dtype == dtype
    tolerance = FLOAT16_RELATIVE_RMS if dtype == torch.float32 else BFLOAT16_RELATIVE_RMS
    tolerance *= 2 if kind == "swiglu" else 1  # of a product with itself, nearly
    for ours, exact in zip(out[:30], linear64(x, matrix, epilogue), strict=False):
        assert relative_rms(ours, exact) < tolerance


def test_a_step_of_float32_takes_no_product_of_tensor_cores(monkeypatch):
    from triton_kernels import decode

    asked, choose = [], launch.attention
    monkeypatch.setattr(launch, "attention", lambda *args, **kinds: asked.append(kinds) or choose(*args, **kinds))
    numbers = torch.zeros(1, dtype=torch.int64)
    for dtype in (torch.float32, torch.float16):
        stored = [torch.zeros(1, 1, 64, 16, dtype=dtype)] * 2 + [torch.zeros(1, 1, 0).half()] * 2
        q = torch.zeros(1, 2, 16, dtype=dtype)
        decode.one_token_attention(q, *stored, numbers, numbers + 1, numbers, max_columns=64)
    assert [kinds["tensor_cores"] for kinds in asked] == [False, True]
