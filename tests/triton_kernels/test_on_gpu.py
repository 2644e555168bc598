"""The kernels on a GPU, at the models' real shapes: ``pytest -m gpu``. Skips where there is none."""

import pytest
import torch

from tests.tolerances import FLOAT16_RELATIVE_RMS, relative_rms
from tests.triton_kernels.matrices import linear64, poison, quantized, weights64
from tests.triton_kernels.test_autograd import run
from tests.triton_kernels.test_launch import SHAPES
from triton_kernels import dispatch, launch
from triton_kernels.operands import Epilogue

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or dispatch.obstacle(torch.device("cuda")) is not None,
        reason="needs a CUDA device of sm_75 or newer, and Triton",
    ),
]
SMALL = (4096, 1040)  # (K, N) with a tail of N


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    check = poison(monkeypatch)
    yield
    check()


def on_gpu(bits, shape, group_size, asymmetric):
    return quantized(bits, (shape[1], shape[0]), group_size, asymmetric, device="cuda")


def inputs(num_rows, in_features):
    generator = torch.Generator("cuda").manual_seed(num_rows)
    return torch.randn(num_rows, in_features, generator=generator, device="cuda").half()


@pytest.mark.parametrize(("bits", "group_size"), [(4, 128), (4, None), (8, None)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_real_shapes_at_every_number_of_rows(shape, bits, group_size):
    matrix = on_gpu(bits, shape, group_size, asymmetric=bits == 4)
    for num_rows in (0, 1, 2, 3, 8, 9, 16, 17, 32, 33, 64, 65, 129, 256, 257, 2048):
        x = inputs(num_rows, shape[0])
        out = run(x, matrix, Epilogue())
        assert (out.shape, out.dtype) == ((num_rows, shape[1]), torch.float16)
        if num_rows:
            assert relative_rms(out, linear64(x, matrix)) < FLOAT16_RELATIVE_RMS


@pytest.mark.parametrize("asymmetric", [False, True], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("group_size", [32, 64, 128, 256, None])
@pytest.mark.parametrize("bits", [4, 8])
def test_every_scheme_and_launch(bits, group_size, asymmetric):
    from triton_kernels import gpu

    matrix = on_gpu(bits, SMALL, group_size, asymmetric)
    major, minor = torch.cuda.get_device_capability()
    # The dot-free kernel runs everywhere and is a second opinion where there are tensor cores.
    for row in {*launch.launches(bits, 75), *launch.launches(bits, 10 * major + minor)}:
        for num_rows in {1, min(5, row.max_rows), row.max_rows}:
            x = inputs(2 * num_rows, SMALL[0])[::2]
            for splits in (1, 7):
                out = gpu.run(row, splits, x, matrix, Epilogue())
                assert relative_rms(out, linear64(x, matrix)) < FLOAT16_RELATIVE_RMS


@pytest.mark.parametrize("num_rows", [1, 20, 300])
@pytest.mark.parametrize("activation", [None, "gelu", "swiglu"])
def test_what_follows_the_product(activation, num_rows):
    matrix, x = on_gpu(4, SMALL, 128, True), inputs(num_rows, SMALL[0])
    width = SMALL[1] // 2 if activation == "swiglu" else SMALL[1]
    bias, residual = torch.randn(SMALL[1], device="cuda"), inputs(num_rows, width)
    epilogue = Epilogue(bias=bias, activation=activation, residual=residual, alpha=7.5)
    assert relative_rms(run(x, matrix, epilogue), linear64(x, matrix, epilogue)) < FLOAT16_RELATIVE_RMS


@pytest.mark.parametrize("num_rows", [1, 5, 33, 300])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_hundred_runs_give_the_same_bits(bits, num_rows):
    matrix, x = on_gpu(bits, (4096, 4096), 128, True), inputs(num_rows, 4096)
    first = run(x, matrix, Epilogue())
    for _ in range(99):
        assert torch.equal(run(x, matrix, Epilogue()), first)


def test_a_row_has_the_same_bits_whatever_its_neighbours_in_a_bucket():
    matrix, x = on_gpu(4, (4096, 4096), 128, True), inputs(8, 4096)
    major, minor = torch.cuda.get_device_capability()
    buckets = [row.max_rows for row in launch.launches(4, 10 * major + minor)]
    for most in (limit for limit in buckets if limit <= 8):
        together = run(x[:most], matrix, Epilogue())
        fewest = max((limit + 1 for limit in buckets if limit < most), default=1)
        assert torch.equal(run(x[:fewest], matrix, Epilogue()), together[:fewest])


@pytest.mark.parametrize("bits", [4, 8])
def test_the_gradient_of_x(bits):
    matrix, x = on_gpu(bits, (4096, 16384), 128, True), inputs(40, 4096).requires_grad_()
    grad_out = inputs(40, 16384)
    run(x, matrix, Epilogue()).backward(grad_out)
    assert relative_rms(x.grad, grad_out.double() @ weights64(matrix)) < FLOAT16_RELATIVE_RMS


def test_offsets_beyond_two_to_the_31_weights():
    rows = (1 << 31) // 4096 + 200
    if torch.cuda.get_device_properties(0).total_memory < 8 << 30:
        pytest.skip("needs 8 GiB of GPU memory")
    qweight = torch.full((rows, 4096), 128, dtype=torch.uint8, device="cuda")
    qweight[-1] = 129
    scales = torch.ones(1, rows, dtype=torch.float16, device="cuda")
    for num_rows in (1, 300):
        out = dispatch.int8_linear(torch.ones(num_rows, 4096, device="cuda").half(), qweight, scales, group_size=4096)
        assert out[:, -1].eq(4096).all()
        assert out[:, :-1].eq(0).all()


def test_each_kernel_once():
    """For compute-sanitizer (``make sanitize``): small, and every kernel."""
    for bits in (4, 8):
        matrix = on_gpu(bits, (256, 176), 128, True)
        for num_rows in (1, 5, 33, 300):
            x = inputs(num_rows, 256).requires_grad_()
            run(x, matrix, Epilogue()).sum().backward()
            assert x.grad.isfinite().all()
            with torch.no_grad():
                assert run(x, matrix, Epilogue(activation="swiglu")).isfinite().all()


def test_rows_on_another_device_are_refused():
    matrix = on_gpu(8, (256, 176), 128, True)
    with pytest.raises(ValueError, match="qweight must be on cpu as x is, got cuda:0"):
        run(torch.zeros(1, 256), matrix, Epilogue())
