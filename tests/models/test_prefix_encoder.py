"""Prefixes against what the official code computes with them on the tiny models."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import glm_int4
from glm_int4.generation.engine import Engine
from glm_int4.generation.sampling import SamplingParams
from glm_int4.models.prefix_encoder import PrefixEncoder, split_prefix
from tests.conftest import FIXTURES
from tests.tolerances import FLOAT16_RELATIVE_RMS, INT8_CACHE_RELATIVE_RMS, ORACLE_ABSOLUTE, relative_rms

GREEDY = SamplingParams(temperature=0)
P = 8


def close(value, expected):
    torch.testing.assert_close(value, expected, atol=ORACLE_ABSOLUTE, rtol=0)


@pytest.fixture(scope="module", params=["1", "2", "3"], ids=lambda v: f"v{v}")
def version(request):
    return request.param


@pytest.fixture(scope="module", params=[0, 1], ids=["embedding", "projection"])
def kind(request):
    return f"prefix_proj{request.param}"


@pytest.fixture(scope="module")
def folder(version):
    return FIXTURES / f"v{version}_tiny"


@pytest.fixture(scope="module")
def load(version, folder, kind):
    """Load the tiny model with its prefix and other arguments."""
    file = folder / f"{kind}.safetensors"

    def load(model=folder, **arguments):
        return glm_int4.load(model, **{"device": "cpu", "prefix": file, "model_version": version} | arguments)

    return load


@pytest.fixture(scope="module")
def engine(load):
    return load(dtype=torch.float32)


@pytest.fixture(scope="module")
def cases(folder):
    return load_file(folder / "cases.safetensors")


@pytest.fixture
def ids(cases, version):
    return cases["gmask_prompt.input_ids" if version == "1" else "prompt.input_ids"][0].tolist()


@pytest.fixture
def rows(cases, ids):
    return [ids, cases["short.input_ids"][0].tolist()]


def test_the_parameters_have_their_official_names_and_shapes(engine, folder, kind):
    stored = load_file(folder / f"{kind}.safetensors")
    encoder = PrefixEncoder(engine.config, P, kind.endswith("1"))
    shapes = {f"transformer.prefix_encoder.{name}": p.shape for name, p in encoder.named_parameters()}
    assert shapes == {name: tensor.shape for name, tensor in stored.items()}


def test_keys_values_and_logits_are_the_official_ones(engine, cases, kind, ids):
    for i in range(engine.config.num_layers):
        close(engine.prefix.k[i].transpose(0, 1)[:, None], cases[f"{kind}.prompt_k_{i}"])
        close(engine.prefix.v[i].transpose(0, 1)[:, None], cases[f"{kind}.prompt_v_{i}"])
    close(engine.logits(ids), cases[f"{kind}.logits"])


def test_greedy_tokens_are_the_official_ones_alone_and_in_a_batch(engine, cases, kind, ids, rows):
    assert engine.generate(ids, 20, GREEDY, stop_ids=[]) == cases[f"{kind}.greedy"][0].tolist()
    assert engine.generate(rows, 20, GREEDY, stop_ids=[]) == cases[f"{kind}.batch_greedy"].tolist()


def test_cached_steps_have_the_official_logits(engine, cases, kind, ids):
    tokens = cases[f"{kind}.greedy"][0].tolist()
    logits = engine.logits([*ids, *tokens[:-1]])[:, len(ids) - 1 :]
    close(logits, cases[f"{kind}.greedy_logits"])


def test_left_padding_changes_nothing(engine, rows):
    together = engine.logits(rows)
    for row, logits in zip(rows, together, strict=True):
        close(logits[-len(row) :], engine.logits(row)[0])
    assert engine.generate(rows, 20, GREEDY, stop_ids=[]) == [
        engine.generate(row, 20, GREEDY, stop_ids=[]) for row in rows
    ]


def test_max_length_counts_real_tokens_alone(load, ids):
    engine = load(dtype=torch.float32, max_length=len(ids) + 4)
    assert len(engine.generate(ids, 100, GREEDY, stop_ids=[])) == 4


def test_a_prompt_runs_in_chunks_and_a_second_turn_reads_only_what_is_new(engine, ids):
    expected = engine.generate(ids, 20, GREEDY, stop_ids=[])
    for num_rows in (1, 7):
        setup = replace(engine.setup, prompt_rows=num_rows)
        fresh = Engine(engine.model, engine.info, setup, None, 128, engine.prefix)
        assert fresh.generate(ids, 20, GREEDY, stop_ids=[]) == expected
    second = [*ids, *expected[:6], 9, 30, 31]
    reused = engine.generate(second, 12, GREEDY, stop_ids=[])
    engine.generate(ids, 20, GREEDY, stop_ids=[])
    assert engine.generate(second, 12, GREEDY, stop_ids=[]) == reused
    assert engine._decoder.num_reused == (len(ids) + 6 if engine.config.is_causal else 0)
    fresh = Engine(engine.model, engine.info, engine.setup, None, 128, engine.prefix)
    assert fresh.generate(second, 12, GREEDY, stop_ids=[]) == reused


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near_the_official_logits(load, cases, kind, ids, dtype):
    exact = cases[f"{kind}.logits"]
    plain = load(dtype=dtype, prefix=None).logits(ids)
    error = relative_rms(load(dtype=dtype).logits(ids), exact)
    # The tiny models amplify rounding; what tells is that another prefix, or none, is far away.
    assert error < 0.1 * relative_rms(plain, exact)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kv_bits", [16, 8])
def test_quantized_weights_and_caches_take_a_prefix(load, folder, version, bits, kv_bits, rows):
    quantized = folder.with_name(f"v{version}_tiny_int{bits}")
    exact = load(quantized, dtype=torch.float32)
    fast = load(quantized, kv_bits=kv_bits)
    assert fast.prefix.k.dtype == torch.float16
    assert relative_rms(fast.logits(rows[0]), exact.logits(rows[0])) < 10 * FLOAT16_RELATIVE_RMS
    # A cached step equals the whole sequence but for the cache's rounding.
    for row, tokens in zip(rows, fast.generate(rows, 8, GREEDY, stop_ids=[]), strict=True):
        logits = fast.logits([*row, *tokens])[0, len(row) - 1 : -1]
        chosen = logits.gather(-1, torch.tensor(tokens)[:, None])[:, 0]
        spread = logits.std()
        assert (logits.amax(-1) - chosen).max() < 10 * INT8_CACHE_RELATIVE_RMS * spread


def test_without_a_prefix_nothing_is_in_front(engine, cases, ids, version):
    plain = Engine(engine.model, engine.info, engine.setup, None, 64)
    close(plain.logits(ids), cases["gmask_prompt.logits" if version == "1" else "prompt.logits"])


def test_a_prefix_is_split_into_keys_and_values_in_turns():
    states = torch.arange(2 * 6 * 1 * 4).view(2, 6, 1, 4)
    prefix = split_prefix(states)
    assert prefix.k.shape == (3, 1, 2, 4)
    assert torch.equal(prefix.k[1, 0], states[:, 2, 0])
    assert torch.equal(prefix.v[2, 0], states[:, 5, 0])
