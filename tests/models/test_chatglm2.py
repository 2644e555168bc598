"""ChatGLM2, ChatGLM3 and GLM-4 against what the official code computes on tiny models."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import glm_int4
from glm_int4.generation.sampling import SamplingParams
from glm_int4.models.attention import attention_mask_func
from glm_int4.models.chatglm2 import RotaryEmbedding
from glm_int4.models.config_file import parse_config
from glm_int4.models.kv_cache import KVCache
from glm_int4.models.past import AttentionMask
from glm_int4.models.presets import CONFIGS
from tests.conftest import FIXTURES
from tests.tolerances import ORACLE_ABSOLUTE, ORACLE_HIDDEN_SHARE

SINGLE = ["prompt", "short", "long"]
GREEDY = SamplingParams(temperature=0)


def close(value, expected):
    torch.testing.assert_close(value, expected, atol=ORACLE_ABSOLUTE, rtol=0)


@pytest.fixture(scope="module", params=["v2_tiny", "v3_tiny", "glm4_tiny", "glm4_tiny_1m", "glm4_0414_tiny"])
def folder(request):
    return FIXTURES / request.param


@pytest.fixture(scope="module")
def engine(folder):
    version = {"v2_tiny": "2", "v3_tiny": "3"}.get(folder.name, "auto")
    return glm_int4.load(folder, device="cpu", dtype=torch.float32, model_version=version)


@pytest.fixture(scope="module")
def cases(folder):
    return load_file(folder / "cases.safetensors")


def run(engine, ids, hidden=None, cache=None):
    positions = torch.tensor([engine.model.get_position_ids(ids)])
    with torch.inference_mode():
        return engine.model(torch.tensor([ids]), positions, AttentionMask(), cache, hidden_states=hidden)


def new_cache(engine, length):
    config = engine.config
    return KVCache(config.num_layers, 1, config.num_kv_heads, config.head_dim, length, dtype=torch.float32)


def padded_rows(cases):
    masks = cases["batch.attention_mask"].tolist()
    rows = cases["batch.input_ids"].tolist()
    return [[t for t, seen in zip(row, mask, strict=True) if seen] for row, mask in zip(rows, masks, strict=True)]


@pytest.mark.parametrize("case", SINGLE)
def test_logits_and_hidden_states_are_the_official_ones(engine, cases, case):
    ids = cases[f"{case}.input_ids"][0].tolist()
    hidden, cache = [], new_cache(engine, len(ids))
    close(run(engine, ids, hidden, cache), cases[f"{case}.logits"])
    for i, states in enumerate(hidden):
        expected = cases[f"{case}.hidden_{i}"]
        tolerance = max(ORACLE_ABSOLUTE, ORACLE_HIDDEN_SHARE * expected.abs().max().item())
        torch.testing.assert_close(states.transpose(0, 1), expected, atol=tolerance, rtol=0)
    close(engine.hidden_states(ids), cases[f"{case}.final"][:, 0])
    close(engine.logits(ids), cases[f"{case}.logits"])


@pytest.mark.parametrize("case", SINGLE)
def test_greedy_tokens_and_their_logits_step_by_step(engine, cases, case):
    ids = cases[f"{case}.input_ids"][0].tolist()
    expected = cases[f"{case}.greedy"][0].tolist()
    assert engine.generate(ids, len(expected), GREEDY, stop_ids=[]) == expected
    cache = new_cache(engine, len(ids) + len(expected))
    logits = [run(engine, ids, cache=cache)[:, -1:]]
    for step, token in enumerate(expected[:-1]):
        positions = torch.tensor([[engine.model.positions(ids).next]]) + step
        with torch.inference_mode():
            logits.append(engine.model(torch.tensor([[token]]), positions, AttentionMask(), cache))
    close(torch.cat(logits, dim=1), cases[f"{case}.greedy_logits"])


def test_left_padding_changes_nothing(engine, cases):
    rows = padded_rows(cases)
    logits = engine.logits(rows)
    for row, ids, expected in zip(logits, rows, cases["batch.logits"], strict=True):
        close(row[-len(ids) :], expected[-len(ids) :])
        close(row[-len(ids) :], engine.logits(ids)[0])
    assert engine.generate(rows, 20, GREEDY, stop_ids=[]) == cases["batch.greedy"].tolist()


def test_the_mask_of_a_batch_hides_padding_and_what_comes_later(engine):
    mask = engine.model.get_masks([[7, 8, 9], [7]])
    assert mask[0, 0].tolist() == [[False, True, True], [False, False, True], [False, False, False]]
    assert mask[1, 0, 2].tolist() == [True, True, False]
    assert torch.isfinite(attention_mask_func(mask, torch.float32)).all()


def test_earlier_tokens_do_not_see_later_ones(engine):
    a, b = list(range(10, 30)), [*range(10, 20), *range(40, 50)]
    close(engine.logits(a)[:, :10], engine.logits(b)[:, :10])


@pytest.mark.parametrize("name", ["v2", "v3", "v2_32k", "v3_32k"])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_rotary_tables_are_the_official_ones(name, precision):
    tables = load_file(FIXTURES / "rope_tables.safetensors")
    ratio = {"v2_32k": 16.0, "v3_32k": 50.0}.get(name, 1.0)
    config = replace(parse_config(CONFIGS["chatglm2-6b"]), version=name[1], rope_ratio=ratio)
    rotary = RotaryEmbedding(config, half_tables=precision == "fp16")
    cos, sin = rotary(tables["rows"])
    expected = tables[f"{name}.{precision}"]
    if precision == "fp16" and name.startswith("v3"):  # computed in float32, rounded by the official code alone
        cos, sin = cos.half(), sin.half()
    if precision == "fp16":
        assert torch.equal(torch.stack((cos, sin), -1).half(), expected)
    else:
        torch.testing.assert_close(torch.stack((cos, sin), -1), expected, atol=1e-6, rtol=0)


def test_a_long_prompt_runs_in_chunks_to_the_same_logits(engine, cases):
    ids = cases["long.input_ids"][0].tolist()
    expected = cases["long.greedy"][0].tolist()
    for rows in (1, 7, 61, 62):
        setup = replace(engine.setup, prompt_rows=rows)
        fresh = glm_int4.generation.engine.Engine(engine.model, engine.info, setup, None, 128)
        assert fresh.generate(ids, 20, GREEDY, stop_ids=[]) == expected


def test_a_second_turn_reads_only_what_is_new(engine, cases):
    first = cases["prompt.input_ids"][0].tolist()
    answer = engine.generate(first, 6, GREEDY, stop_ids=[])
    second = [*first, *answer, 9, 30, 31, 77]
    reused = engine.generate(second, 12, GREEDY, stop_ids=[])
    # The last token of an answer is never fed, so its keys are not there yet.
    assert engine._decoder.num_reused == len(first) + len(answer) - 1
    fresh = glm_int4.generation.engine.Engine(engine.model, engine.info, engine.setup, None, 128)
    assert fresh.generate(second, 12, GREEDY, stop_ids=[]) == reused
    assert fresh._decoder.num_reused == 0


def test_reuse_survives_other_questions_and_broken_streams(engine, cases):
    prompts = [cases[f"{case}.input_ids"][0].tolist() for case in SINGLE]
    expected = {case: cases[f"{case}.greedy"][0].tolist() for case in SINGLE}
    for case, ids in zip(SINGLE, prompts, strict=True):
        stream = engine.stream_ids([*ids[:-1], 55], 9, GREEDY, stop_ids=[])
        next(stream)
        stream.close()
        assert engine.generate(ids, 20, GREEDY, stop_ids=[]) == expected[case]
        assert engine.generate(ids, 20, GREEDY, stop_ids=[]) == expected[case]
        assert engine._decoder.num_reused == len(ids) - 1


def test_two_streams_at_once_do_not_share_a_cache(engine, cases):
    a, b = (cases[f"{case}.input_ids"][0].tolist() for case in ("prompt", "short"))
    streams = [engine.stream_ids(ids, 20, GREEDY, stop_ids=[]) for ids in (a, b)]
    pairs = list(zip(*streams, strict=True))
    assert [p[0] for p in pairs] == cases["prompt.greedy"][0].tolist()
    assert [p[1] for p in pairs] == cases["short.greedy"][0].tolist()
