"""The network against what the official code computes on the tiny model."""

import pytest
import torch
from safetensors.torch import load_file

from glm_int4.generation.sampling import SamplingParams
from glm_int4.models.attention import attention_mask_func
from glm_int4.models.chatglm import RotaryEmbedding
from glm_int4.models.config import ChatGLMConfig
from glm_int4.models.kv_cache import KVCache
from glm_int4.models.past import AttentionMask
from tests.conftest import FIXTURES
from tests.tolerances import ORACLE_ABSOLUTE, ORACLE_HIDDEN_SHARE

SINGLE = ["gmask_prompt", "gmask_with_answer", "mask_infill", "short"]
GREEDY = SamplingParams(temperature=0)


def close(value, expected):
    torch.testing.assert_close(value, expected, atol=ORACLE_ABSOLUTE, rtol=0)


def run(tiny, ids, hidden=None, cache=None):
    model = tiny.model
    positions = torch.tensor([model.get_position_ids(ids)])
    mask = AttentionMask(context_length=model.context_length(ids))
    with torch.inference_mode():
        return model(torch.tensor([ids]), positions, mask, cache, hidden_states=hidden)


def new_cache(tiny, length):
    config = tiny.config
    return KVCache(config.num_layers, 1, config.num_kv_heads, config.head_dim, length, dtype=torch.float32)


def padded_rows(cases):
    return [[token for token in row if token != 3] for row in cases["batch.input_ids"].tolist()]


@pytest.mark.parametrize("case", SINGLE)
def test_positions_and_masks_are_the_official_ones(tiny, cases, case):
    ids = cases[f"{case}.input_ids"][0].tolist()
    assert tiny.model.get_position_ids(ids) == cases[f"{case}.position_ids"][0].tolist()
    assert torch.equal(tiny.model.get_masks([ids]), cases[f"{case}.attention_mask"])


@pytest.mark.parametrize("case", SINGLE)
def test_logits_hidden_states_keys_and_values_are_the_official_ones(tiny, cases, case):
    ids = cases[f"{case}.input_ids"][0].tolist()
    hidden, cache = [], new_cache(tiny, len(ids))
    close(run(tiny, ids, hidden, cache), cases[f"{case}.logits"])
    for i, states in enumerate(hidden):
        expected = cases[f"{case}.hidden_{i}"]
        tolerance = max(ORACLE_ABSOLUTE, ORACLE_HIDDEN_SHARE * expected.abs().max().item())
        torch.testing.assert_close(states.transpose(0, 1), expected, atol=tolerance, rtol=0)
    for i in range(tiny.config.num_layers):
        close(cache.k[i].permute(2, 0, 1, 3), cases[f"{case}.past_k_{i}"])
        close(cache.v[i].permute(2, 0, 1, 3), cases[f"{case}.past_v_{i}"])


@pytest.mark.parametrize("case", ["gmask_prompt", "mask_infill", "short"])
def test_greedy_tokens_and_their_logits_step_by_step(tiny, cases, case):
    ids, expected = cases[f"{case}.input_ids"][0].tolist(), cases[f"{case}.greedy"][0].tolist()
    assert tiny.generate(ids, 20, GREEDY, stop_ids=[]) == expected
    cache = new_cache(tiny, len(ids) + 20)
    logits = [run(tiny, ids, cache=cache)[:, -1:]]
    for step, token in enumerate(expected[:-1]):
        block = len(ids) - tiny.model.context_length(ids) + 1 + step
        token_position = tiny.model.get_position_ids(ids)[0][-1]
        positions = torch.tensor([[[token_position], [block]]])
        with torch.inference_mode():
            logits.append(tiny.model(torch.tensor([[token]]), positions, AttentionMask(), cache))
    close(torch.cat(logits, dim=1), cases[f"{case}.greedy_logits"])


def test_a_left_padded_batch_has_the_official_positions_mask_and_logits(tiny, cases):
    rows = padded_rows(cases)
    mask = tiny.model.get_masks(rows)
    assert torch.equal(mask, cases["batch.attention_mask"])
    ids, positions = cases["batch.input_ids"], cases["batch.position_ids"]
    with torch.inference_mode():
        bias = AttentionMask(bias=attention_mask_func(mask, torch.float32))
        logits = tiny.model(ids, positions, bias)
    for i, row in enumerate(rows):
        close(logits[i, -len(row) :], cases["batch.logits"][i, -len(row) :])


def test_batch_rows_equal_single_rows(tiny, cases):
    rows = padded_rows(cases)
    together = tiny.logits(rows)
    for i, row in enumerate(rows):
        close(together[i, -len(row) :], tiny.logits(row)[0])
    assert tiny.generate(rows, 20, GREEDY, stop_ids=[]) == cases["batch.greedy"].tolist()


def test_prefill_equals_prefill_and_decode(tiny, cases):
    ids = cases["gmask_with_answer.input_ids"][0].tolist()
    cache = new_cache(tiny, len(ids))
    start = tiny.model.context_length(ids) + 1
    parts = [run(tiny, ids[:start], cache=cache)]
    positions = torch.tensor(tiny.model.get_position_ids(ids))
    mask = AttentionMask(context_length=start - 1)
    with torch.inference_mode():
        parts.append(tiny.model(torch.tensor([ids[start:]]), positions[None, :, start:], mask, cache))
    close(torch.cat(parts, dim=1), cases["gmask_with_answer.logits"])


def test_context_is_bidirectional_and_the_answer_is_causal(tiny):
    sop, gmask = tiny.config.bos_token_id, tiny.config.gmask_token_id
    ids = [7, 12, 33, gmask, sop, 20, 21]
    base = tiny.logits(ids)[0]
    later_context = tiny.logits([7, 12, 34, gmask, sop, 20, 21])[0]
    later_answer = tiny.logits([7, 12, 33, gmask, sop, 20, 22])[0]
    assert not torch.allclose(base[0], later_context[0])
    torch.testing.assert_close(base[:6], later_answer[:6])


def test_the_loss_is_the_official_one(tiny, cases):
    logits = run(tiny, cases["gmask_with_answer.input_ids"][0].tolist())
    labels = cases["gmask_with_answer.labels"]
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100)
    close(loss, cases["gmask_with_answer.loss"][0])


@pytest.mark.parametrize(("half_tables", "name"), [(True, "fp16"), (False, "fp32")])
def test_rotary_tables_are_the_official_ones_at_full_size(half_tables, name):
    tables = load_file(FIXTURES / "rope_tables.safetensors")
    cos, sin = RotaryEmbedding(64, half_tables=half_tables)(tables["rows"])
    # The official tables repeat the 32 angles; a float32 cosine may differ in its last bit.
    tolerance = {"atol": 0, "rtol": 0} if half_tables else {"atol": 1e-7, "rtol": 0}
    for table, function in ((cos, "cos"), (sin, "sin")):
        expected = tables[f"v1.{name}.{function}"].float()
        torch.testing.assert_close(torch.cat((table, table), dim=-1), expected, **tolerance)


def test_alpha_does_not_depend_on_the_depth(tiny):
    assert tiny.config.num_layers == 2
    assert ChatGLMConfig.residual_alpha**2 == pytest.approx(56)


def test_a_full_cache_is_an_error():
    cache = KVCache(1, 1, 2, 4, 3, dtype=torch.float32)
    with pytest.raises(ValueError, match="holds 3 tokens, 4 were asked for"):
        cache.append(0, torch.zeros(1, 4, 2, 4), torch.zeros(1, 4, 2, 4))
