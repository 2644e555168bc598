"""Perplexity against a plain computation, token by token."""

import math

import pytest
import torch

import glm_int4
from glm_int4.errors import GLMError, InputError
from glm_int4.generation.scoring import measure, score_tokens
from tests.conftest import MINI

IDS = torch.randint(0, 140, (53,), generator=torch.Generator().manual_seed(3)).tolist()


def plain(engine, ids, window, stride):
    """Loss of every token: the last window that begins early enough to give it its context."""
    losses = []
    for position in range(len(ids)):
        start = 0
        while position >= start + window:
            start += stride
        context = [*engine.text_prefix, *ids[start:position]]
        losses.append(-engine.logits(context)[0, -1].double().log_softmax(-1)[ids[position]].item())
    return losses


@pytest.mark.parametrize(("window", "stride"), [(64, 16), (16, 16), (16, 5), (8, 1), (1, 1)])
def test_it_equals_the_plain_computation(tiny, window, stride):
    result = measure(tiny, IDS, window=window, stride=stride)
    losses = torch.tensor(plain(tiny, IDS, window, stride), dtype=torch.float64)
    assert result.tokens == len(IDS)
    assert math.log(result.perplexity) == pytest.approx(losses.mean().item(), abs=1e-4)
    error = losses.std().item() / math.sqrt(len(IDS))
    assert result.standard_error / result.perplexity == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("version", ["2", "3"])
def test_versions_2_and_3_equal_the_plain_computation(small_checkpoints, version):
    engine = glm_int4.load(small_checkpoints[version], device="cpu", dtype=torch.float32)
    text = "你好 the weather, price 12 345! tool call"
    ids = engine.tokenizer.encode(text)
    assert engine.text_prefix == [engine.tokenizer.gmask_id, engine.tokenizer.bos_id]
    losses = torch.tensor(plain(engine, ids, 12, 5), dtype=torch.float64)
    result = measure(engine, text, window=12, stride=5)
    assert result.tokens == len(ids)
    assert math.log(result.perplexity) == pytest.approx(losses.mean().item(), abs=1e-4)


def test_divergence_and_agreement_equal_the_plain_computation(tiny):
    other = glm_int4.load(MINI.parent.parent / "tests" / "fixtures" / "v1_tiny_int4", device="cpu", dtype=torch.float32)
    logits = [engine.logits([*engine.text_prefix, *IDS[:-1]])[0, 1:].double() for engine in (tiny, other)]
    p, q = (x.log_softmax(-1) for x in logits)
    result = measure(other, IDS, window=64, reference=tiny)
    assert result.kl == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), abs=1e-6)
    assert result.top1 == (p.argmax(-1) == q.argmax(-1)).double().mean().item()
    assert result.kl > 1e-3


def test_scores_come_token_by_token_and_in_order(tiny):
    scores = list(score_tokens(tiny, IDS, window=16, stride=5))
    assert [len(part.losses) for part in scores[:3]] == [16, 5, 5]
    losses = torch.cat([part.losses for part in scores])
    assert losses.tolist() == pytest.approx(plain(tiny, IDS, 16, 5), abs=1e-4)


def test_an_int8_cache_shows_in_the_perplexity():
    eight = glm_int4.load(MINI, device="cpu", dtype=torch.float32, kv_bits=8)
    sixteen = glm_int4.load(MINI, device="cpu", dtype=torch.float32)
    ids = eight.tokenizer.encode("3加5等于8。法国的首都是巴黎。Today is Monday, tomorrow is Tuesday.")
    result = measure(eight, ids, reference=sixteen)
    assert 1e-8 < result.kl < 1e-2


def test_weights_that_overflow_are_told(tiny, monkeypatch):
    monkeypatch.setattr(tiny.model, "head", lambda x: torch.full((len(x), 160), torch.nan))
    with pytest.raises(GLMError, match="expected finite losses"):
        measure(tiny, IDS)


def test_a_reference_gives_divergence_and_agreement(tiny, mini):
    same = measure(tiny, IDS, window=16, stride=8, reference=tiny)
    assert same.kl == pytest.approx(0, abs=1e-6)
    assert same.top1 == 1
    with pytest.raises(InputError, match="reference with a vocabulary"):
        measure(tiny, IDS, window=16, stride=8, reference=mini)


def test_without_a_reference_there_is_no_divergence(tiny):
    result = measure(tiny, IDS, window=16, stride=8)
    assert result.kl is None
    assert result.top1 is None


def test_rows_of_the_head_do_not_show(tiny, monkeypatch):
    whole = measure(tiny, IDS, window=32, stride=8)
    monkeypatch.setattr("glm_int4.generation.scoring._HEAD_ROWS", 5)
    assert measure(tiny, IDS, window=32, stride=8).perplexity == pytest.approx(whole.perplexity, rel=1e-6)


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        ([], {}, "at least one token"),
        (IDS, {"window": 0}, "a window of 1 token or more"),
        (IDS, {"window": 5000}, "at most 2048 tokens"),
        (IDS, {"stride": 0}, "a stride of 1 token or more"),
    ],
)
def test_requests_that_make_no_sense_are_refused(tiny, ids, options, message):
    with pytest.raises(InputError, match=message):
        measure(tiny, ids, **options)


def test_progress_counts_every_token(tiny):
    seen = []
    measure(tiny, IDS, window=16, stride=8, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(IDS), len(IDS))
    assert seen == sorted(seen)
