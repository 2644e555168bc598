"""Perplexity against a plain computation, token by token."""

import math

import pytest
import torch

from glm_int4.errors import InputError
from glm_int4.generation.perplexity import measure

IDS = torch.randint(0, 140, (53,), generator=torch.Generator().manual_seed(3)).tolist()


def plain(engine, ids, window, stride):
    """Loss of every token: the last window that begins early enough to give it its context."""
    losses = []
    for position in range(len(ids)):
        start = 0
        while position >= start + window:
            start += stride
        context = [engine.config.gmask_token_id, engine.config.bos_token_id, *ids[start:position]]
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
    monkeypatch.setattr("glm_int4.generation.perplexity._HEAD_ROWS", 5)
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
