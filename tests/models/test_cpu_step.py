"""One token through all layers in compiled code against the same layers one by one."""

import copy
import pickle

import pytest
import torch

from glm_int4.models import make_model
from glm_int4.models.config import ChatGLM2Config, ChatGLMConfig
from glm_int4.models.cpu_step import FusedLayers
from glm_int4.models.kv_cache import KVCache
from glm_int4.quantization.cpu.instructions import instruction_set
from glm_int4.quantization.linear import QuantizedLinear
from glm_int4.quantization.rounding.rtn import quantize_rtn
from glm_int4.quantization.scheme import QuantizationScheme
from tests.tolerances import INT8_CACHE_RELATIVE_RMS, INT16_RELATIVE_RMS, relative_rms

pytestmark = pytest.mark.skipif(instruction_set() is None, reason="needs a CPU with AVX2, and Numba")

SHAPE = dict(num_layers=3, hidden_size=128, num_heads=4, vocab_size=64, max_sequence_length=64)
V1 = ChatGLMConfig(
    **SHAPE, ffn_size=256, layernorm_epsilon=1e-5, bos_token_id=60, eos_token_id=61, mask_token_id=62,
    gmask_token_id=63, pad_token_id=3,
)  # fmt: skip
V2 = ChatGLM2Config(
    **SHAPE, version="2", num_kv_heads=2, head_dim=32, ffn_size=192, layernorm_epsilon=1e-5, eos_token_id=2,
    pad_token_id=0,
)  # fmt: skip


def build(config):
    """A random model, its layers in INT4 and INT8 in turn."""
    torch.manual_seed(0)
    schemes = (
        QuantizationScheme(bits=4, group_size=64, symmetric=False),
        QuantizationScheme(bits=8, group_size=None, symmetric=True),
    )

    def linear(name, in_features, out_features, has_bias):
        scheme = schemes["dense" in name]
        weight = quantize_rtn(torch.randn(out_features, in_features) / in_features**0.5, scheme)[0]
        return QuantizedLinear(weight, torch.randn(out_features) if has_bias else None, "integer")

    model = make_model(config, linear).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            parameter.copy_(1 + 0.2 * torch.randn(parameter.shape))
    return model


def cache_for(config, dtype, batch_size=2):
    shape = (config.num_layers, batch_size, config.num_kv_heads, config.head_dim, 16)
    cache = KVCache(*shape, dtype=dtype)
    keys, values = torch.randn(2, batch_size, 7, config.num_kv_heads, config.head_dim)
    for layer_id in range(config.num_layers):
        cache.append(layer_id, keys, values)
    cache.advance(7)
    return cache


@pytest.mark.parametrize("config", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.int8], ids=str)
@pytest.mark.parametrize("padding", [None, [0, 3]])
def test_a_fused_step_is_the_layers_one_by_one(config, dtype, padding, monkeypatch):
    model = build(config)
    tokens, positions = torch.tensor([5, 9]), torch.tensor([[7, 2], [4, 1]])[:, : config.position_kinds]
    results = []
    for fused in (True, False):
        torch.manual_seed(1)
        cache = cache_for(config, dtype)
        cache.prefix_length, cache.padding = 2, None if padding is None else torch.tensor(padding)
        with monkeypatch.context() as patch:
            if not fused:
                patch.setattr(FusedLayers, "take", staticmethod(lambda *arguments: False))
            results.append((model.step(tokens, positions, cache), cache))
    (out, cache), (expected, other) = results
    bound = INT8_CACHE_RELATIVE_RMS if dtype == torch.int8 else 10 * INT16_RELATIVE_RMS  # of three layers
    assert cache.length == other.length == 8
    assert relative_rms(out, expected) < bound
    for layer_id in range(config.num_layers):
        for mine, theirs in zip(
            cache.read(layer_id, 8, torch.float32), other.read(layer_id, 8, torch.float32), strict=True
        ):
            assert relative_rms(mine, theirs) < bound


def test_a_full_cache_is_refused_before_anything_is_written():
    model, cache = build(V2), cache_for(V2, torch.float16)
    cache.length = 16
    with pytest.raises(ValueError, match="the cache holds 16 tokens, 17 were asked for"):
        model.step(torch.tensor([5, 9]), torch.tensor([[16], [16]]), cache)


def test_models_on_other_backends_are_not_fused():
    model = make_model(V2)
    assert model._fused_layers is None


def test_a_copy_of_a_model_reads_its_own_weights():
    model = build(V2)
    step = (torch.tensor([5, 9]), torch.tensor([[7], [4]]))
    torch.manual_seed(1)
    cache = cache_for(V2, torch.float16)
    cache.padding = torch.tensor([0, 3])
    expected = model.step(*step, copy.deepcopy(cache))
    assert model._fused_layers is not None
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.matrix.scales.zero_()
    for other in copies:
        assert torch.equal(other.step(*step, copy.deepcopy(cache)), expected)
