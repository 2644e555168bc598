"""Every backend computes what the reference computes."""

import os
import pickle
import subprocess
import sys

import pytest
import torch

from glm_int4.errors import InputError
from glm_int4.quantization.cpu import instructions
from glm_int4.quantization.cpu.float32 import Float32Matrix
from glm_int4.quantization.embedding import QuantizedEmbedding
from glm_int4.quantization.linear import QuantizedLinear
from glm_int4.quantization.rounding import rtn
from glm_int4.quantization.scheme import QuantizationScheme, QuantizedWeight
from tests.tolerances import FLOAT32_RELATIVE_RMS, relative_rms

SCHEMES = [
    QuantizationScheme(bits=4, group_size=128, symmetric=False),
    QuantizationScheme(bits=4, group_size=32, symmetric=True),
    QuantizationScheme(bits=4, group_size=None, symmetric=True),
    QuantizationScheme(bits=8, group_size=None, symmetric=True),
    QuantizationScheme(bits=8, group_size=128, symmetric=True),
]
# (N, K)
SHAPES = [(256, 256), (112, 384), (16, 128)]


def quantized(shape, scheme):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))
    return rtn.quantize_rtn(weight, scheme)[0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_rows_agree_with_the_reference_on_both_sides_of_the_switch(scheme, shape):
    weight, bias = quantized(shape, scheme), torch.randn(shape[0])
    fast, reference = QuantizedLinear(weight, bias, "float32"), QuantizedLinear(weight, bias, "reference")
    for num_rows in (1, 2, 5, 17, 33, 65):
        x = torch.randn(2 * num_rows, shape[1])[::2]  # not contiguous
        out = fast(x[None])[0]
        assert out.shape == (num_rows, shape[0])
        assert relative_rms(out, reference(x)) < FLOAT32_RELATIVE_RMS


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("backend", ["float32", "reference"])
def test_an_embedding_looks_up_and_projects_the_same_rows(scheme, backend):
    weight = quantized((112, 384), scheme)
    embedding = QuantizedEmbedding(weight, backend, torch.float32)
    rows = embedding(torch.arange(112)[None])
    assert rows.shape == (1, 112, 384)
    exact = QuantizedEmbedding(weight, "reference", torch.float32)(torch.arange(112)[None])
    assert relative_rms(rows, exact) < FLOAT32_RELATIVE_RMS
    for num_rows in (1, 3, 20):
        x = torch.randn(num_rows, 384)
        assert relative_rms(embedding.project(x), x @ rows[0].T) < FLOAT32_RELATIVE_RMS


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend must be one of"):
        QuantizedLinear(quantized((16, 128), SCHEMES[0]), None, "fpga")


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="needs a CPU with AVX2")
def test_held_to_avx2_the_integers_agree_too():
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    code = (
        "import torch\n"
        "from glm_int4.quantization.cpu.instructions import choose_backend\n"
        "from tests.quantization import test_linear as t\n"
        "from tests.quantization.cpu import test_integer as i\n"
        "assert torch.backends.cpu.get_cpu_capability() == 'AVX2'\n"
        "assert choose_backend() == 'integer'\n"
        "assert i.instruction_set().lanes == 8\n"
        "for scheme in t.SCHEMES:\n"
        "    i.test_products_agree_with_the_reference(scheme, (96, 384))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_held_to_less_than_avx2_rows_are_multiplied():
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    code = "from glm_int4.quantization.cpu.instructions import choose_backend; assert choose_backend() == 'float32'"
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("changes", [{"CPU_NAME": "generic"}, {"CPU_FEATURES": "+avx2"}])
def test_a_processor_that_numba_was_told_of_is_not_trusted_with_vectors(monkeypatch, changes):
    import numba

    for name, value in changes.items():
        monkeypatch.setattr(numba.config, name, value)
    assert instructions.instruction_set.__wrapped__() is None


def test_without_numba_the_reference_runs(monkeypatch):
    monkeypatch.setattr(instructions, "has_numba", lambda: False)
    assert instructions.choose_backend.__wrapped__() == "reference"


def test_foreign_kernels_are_refused_with_their_path(tmp_path):
    package = tmp_path / "triton_kernels"
    package.mkdir()
    (package / "__init__.py").write_text("")
    result = subprocess.run(
        [sys.executable, "-c", "import glm_int4.quantization.kernels"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "virtual environment of its own" in result.stderr
    assert str(package) in result.stderr


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("scale", [2.0**-24, 2.0**-15, 0.001, 60.0])
def test_large_sums_before_scaling_do_not_overflow(bits, scale):
    scheme = QuantizationScheme(bits=bits, group_size=None, symmetric=True)
    packed = torch.full((32, 256 * bits // 8), 255, dtype=torch.uint8)
    scales = torch.full((32, 1), scale, dtype=torch.float16)
    matrix = Float32Matrix(QuantizedWeight(scheme=scheme, packed=packed, scales=scales, zero_points=None))
    x = torch.full((1, 256), 1000.0)
    expected = 256 * 1000.0 * ((1 << bits) - 1 - scheme.zero) * scales[0, 0].float()
    torch.testing.assert_close(matrix(x), expected.expand(1, 32), rtol=1e-5, atol=0)
    torch.testing.assert_close(x @ matrix.dequantize(slice(None)).T, expected.expand(1, 32), rtol=1e-5, atol=0)


@pytest.mark.parametrize("backend", ["integer", "float32", "reference"])
def test_other_packages_see_shape_and_device_of_a_weight_and_cannot_use_it(backend):
    linear = QuantizedLinear(quantized((64, 128), SCHEMES[0]), torch.randn(64), backend)
    assert isinstance(linear, torch.nn.Linear)
    assert (linear.weight.shape, linear.weight.dtype, linear.weight.device.type) == ((64, 128), torch.float32, "cpu")
    assert "in_features=128, out_features=64, INT4 group 128 asymmetric" in repr(linear)
    for use in (
        lambda: linear.weight + 1,
        lambda: linear.weight.norm(),
        lambda: linear.weight.data.copy_(torch.ones(64, 128)),
        lambda: torch.nn.functional.linear(torch.ones(1, 128), linear.weight),
    ):
        with pytest.raises(InputError, match="load the unquantized checkpoint"):
            use()
    with pytest.raises(InputError, match="leave biases out of adapters"):
        linear.bias  # noqa: B018
    with pytest.raises(AttributeError, match="offset"):
        linear.offset  # noqa: B018


@pytest.mark.parametrize("backend", ["integer", "float32", "reference"])
def test_a_pickled_layer_multiplies_as_before(backend):
    linear, x = QuantizedLinear(quantized((64, 128), SCHEMES[0]), torch.randn(64), backend), torch.randn(3, 128)
    assert torch.equal(pickle.loads(pickle.dumps(linear))(x), linear(x))
