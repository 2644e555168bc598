"""Dequantized products: the reference's weights, few bytes a weight, and no more memory than is planned for."""

from types import SimpleNamespace

import pytest
import torch

from tests.tolerances import BFLOAT16_RELATIVE_RMS, FLOAT16_RELATIVE_RMS, relative_rms
from tests.triton_kernels.matrices import guarded, linear64, quantized, weights64
from tests.triton_kernels.test_launch import SHAPES as REAL_SHAPES_KN
from tests.triton_kernels.traffic import Traffic
from triton_kernels import cublas, dispatch, reference
from triton_kernels.operands import Epilogue, Matrix

# (N, K): whole runs of 128; runs of 64, and of 4; pieces that are not all equal.
SHAPES = [(48, 256), (72, 640), (16, 192), (16, 212)]
GROUPS = (32, 64, 128, 256, None)
REAL_SHAPES = [(n, k) for k, n in REAL_SHAPES_KN]
# (bits, group size, asymmetric) of what checkpoints have -> most bytes a weight.
MOVED = {(4, 128, True): 7.5, (4, 64, True): 8, (4, 32, True): 8.2, (4, None, False): 7.2, (8, None, False): 5.2}


def cases():
    for shape in SHAPES:
        for bits in (4, 8):
            for group_size in GROUPS:
                for asymmetric in (False, True):
                    if group_size is None or shape[1] % group_size == 0:
                        yield quantized(bits, shape, group_size, asymmetric)


def test_the_weights_are_those_of_the_reference_rounded_once(monkeypatch):
    monkeypatch.setattr(cublas, "_PIECE_WEIGHTS", 5000)
    for matrix in cases():
        assert cublas.takes(matrix)
        pieces = [weight.clone() for _, weight in cublas._pieces(matrix)]
        assert len(pieces) > 1 or matrix.qweight.numel() < 5000
        assert torch.equal(cublas._in_order(torch.cat(pieces), matrix), weights64(matrix).half())


def test_products_and_gradients_are_those_of_float64(monkeypatch):
    monkeypatch.setattr(cublas, "_PIECE_WEIGHTS", 5000)
    for matrix in cases():
        x, grad = torch.randn(3, matrix.in_features).half(), 1e-6 * torch.randn(3, matrix.out_features)
        out = cublas.multiply(guarded(x), matrix, Epilogue())
        assert out.dtype == torch.float16
        assert relative_rms(out, linear64(x, matrix)) < FLOAT16_RELATIVE_RMS
        expected = grad.double() @ weights64(matrix)
        assert relative_rms(cublas.multiply_transposed(grad, matrix), expected) < FLOAT16_RELATIVE_RMS


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, BFLOAT16_RELATIVE_RMS), (torch.float32, FLOAT16_RELATIVE_RMS)], ids=str
)
@pytest.mark.parametrize("activation", [None, "swiglu"])
def test_products_of_wider_rows_do_not_overflow(activation, dtype, tolerance):
    for matrix in (quantized(4, (48, 256), 128, True), quantized(8, (48, 256), None, False)):
        x = torch.tensor([[1e7], [1e-7]]) * torch.randn(2, 256)
        epilogue = Epilogue(bias=torch.randn(48), activation=activation)
        out = cublas.multiply(x.to(dtype), matrix, epilogue)
        assert out.dtype == dtype
        for ours, expected in zip(out, linear64(x.to(dtype), matrix, epilogue), strict=True):
            assert relative_rms(ours, expected) < tolerance * (2 if activation else 1)  # a product of two sums


@pytest.mark.parametrize("activation", [None, "gelu", "swiglu"])
def test_what_follows_a_product_is_done_some_rows_at_a_time(activation, monkeypatch):
    monkeypatch.setattr(cublas, "_FINISHED_VALUES", 100)
    matrix, x = quantized(4, (48, 256), 128, True), torch.randn(7, 256).half()
    residual = torch.randn(7, 24 if activation == "swiglu" else 48).half()
    epilogue = Epilogue(bias=torch.randn(48), activation=activation, residual=residual, alpha=7.5)
    assert relative_rms(cublas.multiply(x, matrix, epilogue), linear64(x, matrix, epilogue)) < FLOAT16_RELATIVE_RMS


def test_groups_that_a_plane_crosses_are_left_to_the_reference():
    assert not cublas.takes(quantized(4, (48, 256), 16, False))
    assert cublas.takes(quantized(8, (48, 256), 16, False))


def without_data(bits, shape, group_size, asymmetric):
    """A Matrix (N, K) of the meta device."""
    (rows, columns), size = shape, group_size or shape[1]
    q = (rows, columns // 4) if bits == 4 else shape
    groups = (columns // size, rows)
    return Matrix(
        bits=bits,
        qweight=torch.empty(q, dtype=torch.int16 if bits == 4 else torch.uint8, device="meta"),
        scales=torch.empty(groups, dtype=torch.float16, device="meta"),
        zero_points=torch.empty(groups, dtype=torch.uint8, device="meta") if asymmetric else None,
        group_size=size,
    )


def traffic(path, matrix, num_rows, epilogue=Epilogue()):  # noqa: B008, immutable
    x = torch.empty(num_rows, matrix.in_features, dtype=torch.float16, device="meta")
    with Traffic() as counted:
        out = path.multiply(x, matrix, epilogue)
    return counted, out


@pytest.mark.parametrize("shape", REAL_SHAPES, ids=str)
@pytest.mark.parametrize(("bits", "group_size", "asymmetric"), MOVED)
def test_the_bytes_moved_for_a_weight_are_bounded(bits, group_size, asymmetric, shape):
    matrix = without_data(bits, shape, group_size, asymmetric)
    counted, _ = traffic(cublas, matrix, 1)
    weights = shape[0] * shape[1]
    assert counted.bytes / weights < MOVED[bits, group_size, asymmetric]
    assert counted.operations < 10 + 12 * -(-weights // (cublas._PIECE_WEIGHTS - shape[1]))


def test_the_count_is_right_for_the_reference():
    """INT4: 0.5 bytes read; shifted 2 + 2, masked 2 + 2, as bytes 2 + 1, as float32 1 + 4, two operations on those 16,
    and their product 4; the shifts read the words four times.
    """
    counted, _ = traffic(reference, without_data(4, (4096, 4096), None, False), 1)
    assert counted.bytes / 4096**2 == pytest.approx(0.5 + 2 + 4 + 3 + 5 + 16 + 4, rel=0.01)


@pytest.mark.parametrize("activation", [None, "swiglu"])
@pytest.mark.parametrize("shape", REAL_SHAPES, ids=str)
def test_a_prompt_takes_no_more_scratch_than_is_planned(shape, activation):
    matrix = without_data(4, shape, 128, True)
    bias = torch.empty(shape[0], device="meta")
    counted, out = traffic(cublas, matrix, 512, Epilogue(bias=bias, activation=activation))
    product = 512 * shape[0] * 2
    results = product + (out.numel() * 2 if activation == "swiglu" else 0)
    assert counted.peak_bytes - results <= cublas.SCRATCH_BYTES


def test_a_gpu_without_triton_dequantizes(monkeypatch):
    """Whatever the cause: the reference is for other dtypes and devices."""
    monkeypatch.setattr(dispatch, "gpu", None)
    matrix = quantized(4, (48, 256), 128, True)

    def x(dtype, is_cuda=True):
        return SimpleNamespace(dtype=dtype, is_cuda=is_cuda, device=torch.device("cuda" if is_cuda else "cpu"))

    assert dispatch.path(x(torch.float16), matrix) is cublas
    assert dispatch.path(x(torch.float16), quantized(4, (48, 256), 16, True)) is reference
    assert dispatch.path(x(torch.float32), matrix) is reference
    assert dispatch.path(x(torch.float16, is_cuda=False), matrix) is reference


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("bits", "group_size", "asymmetric"), MOVED)
def test_a_gpu_gives_the_same_weights(bits, group_size, asymmetric):
    matrix = quantized(bits, (1040, 4096), group_size, asymmetric, device="cuda")
    pieces = [weight.clone() for _, weight in cublas._pieces(matrix)]
    assert torch.equal(cublas._in_order(torch.cat(pieces), matrix), weights64(matrix).half())
    x = torch.randn(3, 4096, device="cuda").half()
    assert relative_rms(cublas.multiply(x, matrix, Epilogue()), linear64(x, matrix)) < FLOAT16_RELATIVE_RMS
