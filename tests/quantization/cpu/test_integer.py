"""The backend of processors with AVX2 or more against the reference."""

import contextlib

import pytest
import torch
import torch.nn.functional as F

from glm_int4.quantization.activation import linear_of_activation
from glm_int4.quantization.cpu import integer
from glm_int4.quantization.cpu.instructions import instruction_set
from glm_int4.quantization.cpu.threads import numba_threads
from glm_int4.quantization.embedding import QuantizedEmbedding
from glm_int4.quantization.linear import QuantizedLinear
from glm_int4.quantization.scheme import QuantizedWeight
from tests.quantization.test_linear import SCHEMES, quantized
from tests.tolerances import FLOAT32_RELATIVE_RMS, INT16_RELATIVE_RMS, relative_rms

pytestmark = pytest.mark.skipif(instruction_set() is None, reason="needs a CPU with AVX2, and Numba")

SHAPES = [(256, 256), (96, 384), (32, 128 * 107)]  # (N, K); the last as wide as ChatGLM2's 13696 inputs
ROWS = (1, 2, 3, 5, 8, 17, 33)


def pair(shape, scheme, bias=True):
    weight, bias = quantized(shape, scheme), torch.randn(shape[0]) if bias else None
    return QuantizedLinear(weight, bias, "integer"), QuantizedLinear(weight, bias, "reference")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_products_agree_with_the_reference(scheme, shape):
    fast, reference = pair(shape, scheme)
    for num_rows in ROWS:
        x = torch.randn(2 * num_rows, shape[1])[::2]  # not contiguous
        out = fast(x[None])[0]
        assert out.shape == (num_rows, shape[0])
        assert relative_rms(out, reference(x)) < INT16_RELATIVE_RMS


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_row_of_a_batch_is_bit_for_bit_the_row_alone(scheme):
    fast, _ = pair((96, 384), scheme)
    x = torch.randn(33, 384)
    alone = torch.cat([fast(row[None]) for row in x])
    for num_rows in ROWS:
        assert torch.equal(fast(x[:num_rows]), alone[:num_rows])


@pytest.mark.parametrize("tiles", [1, 2, 7, 64])
@pytest.mark.parametrize("num_rows", [1, 9])
def test_any_number_of_threads_computes_every_tile_to_the_same_bits(monkeypatch, tiles, num_rows):
    linear, _ = pair((32 * tiles, 384), SCHEMES[0])
    x, outputs = torch.randn(num_rows, 384), []
    for threads in (1, 2, 3, 100):  # more than run: one of them takes the shares of others

        @contextlib.contextmanager
        def so_many(threads=threads):
            with numba_threads():
                yield threads

        monkeypatch.setattr(integer, "numba_threads", so_many)
        monkeypatch.setattr(torch, "empty", lambda *size, **kind: torch.zeros(*size, **kind) + 123)
        outputs.append(linear(x))
        monkeypatch.undo()
    assert all(torch.equal(out, outputs[0]) for out in outputs)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_dequantized_rows_are_the_references(scheme):
    fast, reference = (linear.matrix for linear in pair((96, 384), scheme))
    for rows in (slice(None), slice(5, 70), torch.tensor([95, 3, 3, 40])):
        assert torch.equal(fast.dequantize(rows), reference.dequantize(rows))
    assert torch.equal(torch.cat([piece for _, piece in fast.pieces()]), reference.dequantize(slice(None)))


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("num_rows", [1, 5, 70])
def test_activations_on_the_way_in_are_torchs(activation, num_rows):
    fast, reference = pair((96, 384), SCHEMES[0])
    x = 5 * torch.randn(2, num_rows, 768 if activation == "swiglu" else 384)
    a = F.gelu(x, approximate="tanh") if activation == "gelu" else F.silu(x[..., :384]) * x[..., 384:]
    for linear in (fast, reference):
        out = linear_of_activation(linear, x, activation)
        assert relative_rms(out, reference(a)) < INT16_RELATIVE_RMS


@pytest.mark.parametrize("value", [1e-38, 0.0, 1e30])
def test_very_small_and_very_large_inputs_are_numbers(value):
    fast, reference = pair((96, 384), SCHEMES[0])
    x = torch.full((1, 384), value)
    torch.testing.assert_close(fast(x), reference(x), rtol=1e-3, atol=1e-6 + 1e-3 * value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("num_rows", [1, 9])
def test_what_is_not_finite_does_not_pass_for_a_number(value, num_rows):
    fast, _ = pair((96, 384), SCHEMES[0])
    x = torch.randn(num_rows, 384)
    x[0, 200] = value
    out = fast(x)
    assert out[0].isnan().all()
    assert out[1:].isfinite().all()


@pytest.mark.parametrize("bits", [4, 8])
def test_the_largest_weights_and_inputs_do_not_overflow(bits):
    scheme = next(s for s in SCHEMES if s.bits == bits and s.group_size is None)
    packed = torch.full((32, 512 * bits // 8), 255, dtype=torch.uint8)
    weight = QuantizedWeight(scheme=scheme, packed=packed, scales=torch.ones(32, 1).half(), zero_points=None)
    out = QuantizedLinear(weight, None, "integer")(torch.full((1, 512), 3.0))
    torch.testing.assert_close(out, torch.full((1, 32), 512 * 3.0 * ((1 << bits - 1) - 1)), rtol=1e-5, atol=0)


def test_an_embedding_and_its_tied_head_share_the_tiles():
    weight = quantized((96, 384), SCHEMES[3])
    embedding = QuantizedEmbedding(weight, "integer", torch.float32)
    exact = QuantizedEmbedding(weight, "reference", torch.float32)
    ids, x = torch.tensor([[95, 0, 33]]), torch.randn(3, 384)
    assert torch.equal(embedding(ids), exact(ids))
    assert relative_rms(embedding.project(x), exact.project(x)) < INT16_RELATIVE_RMS


def test_gradients_pass_through():
    fast, reference = pair((96, 384), SCHEMES[0])
    x = torch.randn(5, 384, requires_grad=True)
    grad = torch.randn(5, 96)
    fast(x).backward(grad)
    assert relative_rms(x.grad, grad @ reference.matrix.dequantize(slice(None))) < FLOAT32_RELATIVE_RMS


def test_weights_take_their_packed_bytes_and_no_more():
    fast, _ = pair((256, 256), SCHEMES[0])
    stored = sum(buffer.numel() * buffer.element_size() for buffer in fast.buffers())
    assert stored == 256 * 256 // 2 + 256 * 2 * 3 + 256 * 4  # nibbles; scale and zero point a group; a bias


def test_other_shapes_run_on_the_rows():
    weight = quantized((48, 384), SCHEMES[0])
    assert not isinstance(QuantizedLinear(weight, None, "integer").matrix, integer.IntegerMatrix)
    embedding = QuantizedEmbedding(weight, "integer", torch.float32)
    assert not isinstance(embedding.matrix, integer.IntegerMatrix)
