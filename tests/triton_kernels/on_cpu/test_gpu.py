"""Every kernel of the launch table computes what float64 gives."""

import dataclasses
import itertools

import pytest
import torch

from tests.tolerances import FLOAT16_RELATIVE_RMS, FLOAT32_RELATIVE_RMS, relative_rms
from tests.triton_kernels.matrices import guarded, linear64, poison, quantized, weights64
from tests.triton_kernels.on_cpu import ARCHITECTURE, QUICK
from triton_kernels import gpu, launch
from triton_kernels.operands import Epilogue

ARCHITECTURES = [ARCHITECTURE] if QUICK else [75, ARCHITECTURE]  # what runs on sm_75 runs everywhere
LAUNCHES = list({row: None for sm in ARCHITECTURES for bits in (4, 8) for row in launch.launches(bits, sm)})
FEW_ROWS = next(row for row in reversed(LAUNCHES) if row.max_rows <= 8)
SCHEMES = list(itertools.product((4, 8), (32, 64, 128, 256, None), (False, True)))  # bits, group size, asymmetric
# (N, K) and splits of K: tails of N in every block size; splits of 2 and 3 blocks of K; one split.
SHAPES = [((176, 640), 2), ((72, 256), 1)]
if QUICK:
    SCHEMES = [(4, 128, True), (4, None, False), (8, 128, False), (8, None, True)]
    SHAPES = SHAPES[:1]
EPILOGUES = ["bias", "gelu", "swiglu", "residual", "all"]


def name(row):
    return f"{row.kernel}{row.block_m}x{row.block_n}"


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    check = poison(monkeypatch)
    yield
    check()


def inputs(num_rows, in_features):
    x = torch.randn(2 * num_rows, in_features, generator=torch.Generator().manual_seed(num_rows)).half()
    return guarded(x)[::2]  # rows are not contiguous


def rows_up_to(row):
    return [num_rows for num_rows in (1, 2, 5, 17, 33) if num_rows <= row.max_rows and num_rows > row.block_m // 4]


@pytest.mark.parametrize(("bits", "group_size", "asymmetric"), SCHEMES)
@pytest.mark.parametrize("row", LAUNCHES, ids=name)
def test_every_launch_computes_the_product(row, bits, group_size, asymmetric):
    for shape, splits in SHAPES:
        if group_size and shape[1] % group_size:
            continue
        matrix = quantized(bits, shape, group_size, asymmetric)
        for num_rows in rows_up_to(row):
            x = inputs(num_rows, shape[1])
            out = gpu.run(row, splits, x, matrix, Epilogue())
            assert out.shape == (num_rows, shape[0])
            assert relative_rms(out, linear64(x, matrix)) < FLOAT16_RELATIVE_RMS


def epilogue_of(kind, num_rows, columns):
    generator = torch.Generator().manual_seed(columns)
    width = columns // 2 if kind in ("swiglu", "all") else columns
    bias = guarded(torch.randn(columns, generator=generator))
    residual = guarded(torch.randn(num_rows, width, generator=generator).half())
    return {
        "bias": Epilogue(bias=bias),
        "gelu": Epilogue(bias=bias.half(), activation="gelu"),
        "swiglu": Epilogue(activation="swiglu"),
        "residual": Epilogue(residual=residual, alpha=7.5),
        "all": Epilogue(bias=bias, activation="swiglu", residual=residual, alpha=0.5),
    }[kind]


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("kind", EPILOGUES)
@pytest.mark.parametrize("row", [LAUNCHES[1], FEW_ROWS], ids=name)
def test_what_follows_the_product_is_fused(row, kind, splits):
    matrix, x = quantized(4, (176, 384), 128, True), inputs(2, 384)
    epilogue = epilogue_of(kind, 2, 176)
    out = gpu.run(row, splits, x, matrix, epilogue)
    assert relative_rms(out, linear64(x, matrix, epilogue)) < FLOAT16_RELATIVE_RMS


@pytest.mark.parametrize("kind", EPILOGUES)
def test_what_follows_a_dequantized_product_is_fused(kind):
    matrix, x = quantized(8, (176, 384), 128, True), inputs(40, 384)
    epilogue = epilogue_of(kind, 40, 176)
    out = gpu.multiply_dequantized(x, matrix, epilogue)
    assert relative_rms(out, linear64(x, matrix, epilogue)) < FLOAT16_RELATIVE_RMS


@pytest.mark.parametrize("splits", [1, 3])
def test_a_float32_result_is_not_rounded_to_fp16(splits):
    matrix, x = quantized(8, (72, 384), None, False), inputs(3, 384)
    out = gpu.run(FEW_ROWS, splits, x, matrix, Epilogue(dtype=torch.float32))
    assert out.dtype == torch.float32
    assert relative_rms(out, linear64(x, matrix)) < FLOAT32_RELATIVE_RMS
    out = gpu.multiply_dequantized(x, matrix, Epilogue(dtype=torch.float32))
    assert relative_rms(out, linear64(x, matrix)) < FLOAT16_RELATIVE_RMS


def test_gelu_holds_at_both_ends():
    x = torch.tensor([[-3e4, -20, -3, -0.5, 0, 0.5, 3, 20, 3e4]])
    out = gpu.finish(x[None], Epilogue(activation="gelu"), torch.float32)
    assert torch.allclose(out, torch.nn.functional.gelu(x, approximate="tanh"), atol=1e-6)


@pytest.mark.parametrize(("bits", "group_size", "asymmetric"), SCHEMES)
def test_dequantized_weights_are_rounded_once(bits, group_size, asymmetric):
    matrix = quantized(bits, (72, 512), group_size, asymmetric)
    out = gpu.dequantize(matrix, slice(7, 66), torch.empty(59, 512, dtype=torch.float16))
    assert torch.equal(out, weights64(matrix)[7:66].half())


@pytest.mark.parametrize("bits", [4, 8])
def test_chunks_of_scratch_do_not_show(bits, monkeypatch):
    matrix, x = quantized(bits, (72, 256), 128, True), inputs(3, 256)
    whole = gpu.multiply_dequantized(x, matrix, Epilogue())
    monkeypatch.setattr(gpu, "SCRATCH_BYTES", 2 * 256 * 11)
    assert relative_rms(gpu.multiply_dequantized(x, matrix, Epilogue()), whole) < FLOAT16_RELATIVE_RMS
    grad_out = torch.randn(3, 72).half()
    expected = grad_out.double() @ weights64(matrix)
    assert relative_rms(gpu.multiply_transposed(grad_out, matrix), expected) < FLOAT16_RELATIVE_RMS


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("row", LAUNCHES, ids=name)
def test_a_row_has_the_same_bits_whatever_its_neighbours(row, splits):
    matrix, x = quantized(4, (72, 384), 128, True), inputs(min(row.max_rows, 9), 384)
    together = gpu.run(row, splits, x, matrix, Epilogue())
    for m in range(0, x.shape[0], 3):
        assert torch.equal(gpu.run(row, splits, x[m : m + 1], matrix, Epilogue())[0], together[m])


def test_a_split_without_weights_adds_nothing():
    matrix, x = quantized(4, (72, 256), 128, True), inputs(2, 256)  # two blocks of K
    out = gpu.run(FEW_ROWS, 5, x, matrix, Epilogue())
    assert relative_rms(out, linear64(x, matrix)) < FLOAT16_RELATIVE_RMS


@pytest.mark.parametrize("row", LAUNCHES, ids=name)
def test_sums_of_a_group_may_leave_the_range_of_fp16(row):
    matrix = quantized(4, (72, 512), 128, False)
    matrix = dataclasses.replace(matrix, scales=matrix.scales / 256)
    x = torch.full((1, 512), 6e4).half() * torch.tensor([1, -1]).repeat(256).half()
    assert relative_rms(gpu.run(row, 1, x, matrix, Epilogue()), linear64(x, matrix)) < FLOAT16_RELATIVE_RMS
