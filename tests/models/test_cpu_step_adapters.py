"""Adapters inside of the compiled step: what the layers compute one by one, and nothing for rows without one."""

import copy

import pytest
import torch

from glm_int4.models.cpu_step import FusedLayers
from glm_int4.models.past import AttentionMask
from glm_int4.quantization.adapted import AdaptedLinear
from glm_int4.quantization.cpu.instructions import instruction_set
from tests.models.test_cpu_step import V1, V2, build, cache_for
from tests.tolerances import INT16_RELATIVE_RMS, relative_rms

pytestmark = pytest.mark.skipif(instruction_set() is None, reason="needs a CPU with AVX2, and Numba")

CONFIGS = pytest.mark.parametrize("config", [V1, V2], ids=["v1", "v2"])
# For every matrix of a layer: rank, and whether there are a ratio and a shift. None: no adapter.
WHOLE = [(8, False, False), (0, True, True), (3, True, False), (5, False, True)]
PARTS = [
    [(8, False, False), None, None, None],
    [None, None, (2, False, False), None],
    [None, None, None, (4, True, True)],
]


def adapted(config, plans):
    """A random model with random adapters; ``plans`` come in turn, a layer each."""
    model = build(config)
    generator = torch.Generator().manual_seed(7)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    for index, layer in enumerate(model.layers):
        parts = layer.parts
        for holder, name, plan in zip(
            [parts.attention, parts.attention, parts.mlp, parts.mlp],
            ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
            plans[index % len(plans)],
            strict=True,
        ):
            if plan is not None:
                base, (rank, has_ratio, has_shift) = getattr(holder, name), plan
                n, k = base.out_features, base.in_features
                ratio = 1 + 0.2 * random(n) if has_ratio else None
                down, up = random(rank, k) / k**0.5, 0.3 * random(rank, n)
                setattr(holder, name, AdaptedLinear(base, down, up, ratio, random(n) if has_shift else None))
    return model


def step(model, config):
    tokens = torch.tensor([5, 9])
    positions = torch.tensor([[7, 2], [4, 1]])[:, : config.position_kinds]
    torch.manual_seed(1)
    cache = cache_for(config, torch.float16)
    return model.step(tokens, positions, cache), cache


@CONFIGS
@pytest.mark.parametrize("plans", [[WHOLE], PARTS], ids=["every matrix", "some"])
@pytest.mark.parametrize("shared", [False, pytest.param(True, marks=pytest.mark.slow(60))], ids=["here", "shared"])
def test_a_fused_step_is_the_adapted_layers_one_by_one(config, plans, shared, monkeypatch):
    """In one thread, and shared among several, which is another function to compile."""
    model = adapted(config, plans)
    if shared:
        monkeypatch.setattr("glm_int4.models.cpu_step_loops.SERIAL_LAYER_BYTES", 0)
    out, cache = step(model, config)
    assert model._fused_layers is not None
    assert len(model._fused_layers._adapters) == 1
    monkeypatch.setattr(FusedLayers, "take", staticmethod(lambda *arguments: False))
    expected, other = step(model, config)
    assert relative_rms(out, expected) < 10 * INT16_RELATIVE_RMS  # of three layers
    assert relative_rms(out, step(build(config), config)[0]) > 0.1
    for layer_id in range(config.num_layers):
        for mine, theirs in zip(cache.read(layer_id, 8, out.dtype), other.read(layer_id, 8, out.dtype), strict=True):
            assert relative_rms(mine, theirs) < 10 * INT16_RELATIVE_RMS


def fused_rows(model, config, choices):
    """Outputs (4, hidden) of the layers for four rows, the first and last of which are the same."""
    torch.manual_seed(1)
    cache = cache_for(config, torch.float16, 4)
    for part in (cache.k, cache.v):
        part[:, 3] = part[:, 0]
    x = model.embedding(torch.tensor([5, 9, 11, 5]))[:, None]
    positions = torch.tensor([[7, 2], [4, 1], [6, 3], [7, 2]])[:, : config.position_kinds, None]
    choices = None if choices is None else torch.tensor(choices)
    return model._fused_layers.decode(x, model.rotary(positions), AttentionMask(), cache, choices)[:, 0]


@CONFIGS
def test_a_row_gets_its_own_adapter_or_none_bit_for_bit_whatever_is_beside_it(config):
    model, plain = adapted(config, [WHOLE]), build(config)
    with_it, without = fused_rows(model, config, None), fused_rows(plain, config, None)
    assert torch.equal(fused_rows(model, config, [-1] * 4), without)
    mixed = fused_rows(model, config, [0, -1, 0, -1])
    assert torch.equal(mixed[[0, 2]], with_it[[0, 2]])
    assert torch.equal(mixed[[1, 3]], without[[1, 3]])
    assert not torch.equal(mixed[0], mixed[3])


def test_a_model_without_adapters_has_an_empty_table():
    model = build(V2)
    assert model._fused_layers._adapters.shape == (0, V2.num_layers, 4, 5)


def test_a_copy_of_an_adapted_model_reads_its_own_adapters():
    model = adapted(V2, [WHOLE])
    expected = step(model, V2)[0]
    other = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, AdaptedLinear):
            module.up.zero_()
    assert torch.equal(step(other, V2)[0], expected)
    assert not torch.equal(step(model, V2)[0], expected)


def test_modules_that_are_exchanged_are_seen_by_the_next_step():
    model = build(V2)
    before = step(model, V2)[0]
    layer = next(iter(model.layers)).parts.attention
    n, k = layer.dense.out_features, layer.dense.in_features
    layer.dense = AdaptedLinear(layer.dense, torch.ones(1, k), torch.ones(1, n))
    model.forget_fused()
    assert not torch.equal(step(model, V2)[0], before)
