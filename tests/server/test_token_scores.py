"""Log-probabilities, biases and the best of several answers, beside the engine's own logits."""

import httpx
import pytest
import torch

from glm_int4.generation.sampling import SamplingParams
from glm_int4.text.continued import decoder_behind
from tests.server.conftest import run_server

# Sums are rounded in another order where the tokens are read at once.
TOLERANCE = 1e-3
TEXT = "a b"


@pytest.fixture(scope="module")
def running(v2_engine):
    with run_server(v2_engine) as running:
        yield running


def complete(running, **fields):
    body = {"prompt": TEXT, "max_tokens": 6, "temperature": 0, "ignore_eos": True} | fields
    response = running.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def chat(running, **fields):
    status, answer = running.ask(TEXT, **{"max_tokens": 6, "ignore_eos": True} | fields)
    assert status == 200, answer
    return answer["choices"]


def own_scores(engine, prompt, ids):
    """(T, V) log-probabilities of the engine, each behind the ids before."""
    return engine.logits([*prompt, *ids])[0, len(prompt) - 1 : -1].log_softmax(-1)


def test_a_chats_log_probabilities_are_the_engines(running, v2_engine, monkeypatch):
    sequences = []
    make = running.batcher.sequence
    monkeypatch.setattr(running.batcher, "sequence", lambda *given: sequences.append(make(*given)) or sequences[-1])
    (choice,) = chat(running, logprobs=True, top_logprobs=3, temperature=1.5, seed=1, presence_penalty=1)
    (sequence,) = sequences
    scores = own_scores(v2_engine, sequence.prompt, sequence.ids)
    entries = choice["logprobs"]["content"]
    assert len(entries) == len(sequence.ids) == 6
    decoded = v2_engine.tokenizer.decode([*v2_engine.tokenizer.encode("a"), *sequence.ids])
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode("utf-8", "replace") == decoded[1:]
    for entry, row, token in zip(entries, scores, sequence.ids, strict=True):
        assert entry["logprob"] == pytest.approx(row[token].item(), abs=TOLERANCE)
        top = [other["logprob"] for other in entry["top_logprobs"]]
        assert top == pytest.approx(row.topk(3).values.tolist(), abs=TOLERANCE)
        assert bytes(entry["bytes"]).decode("utf-8", "replace") == entry["token"]


def test_a_stream_has_the_same_log_probabilities(running):
    (whole,) = chat(running, logprobs=True)
    fields = {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 6, "ignore_eos": True, "temperature": 0}
    entries = []
    with httpx.stream(
        "POST", f"{running.url}/v1/chat/completions", json=fields | {"logprobs": True, "stream": True}, timeout=60
    ) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                found = httpx.Response(200, text=line[6:]).json()["choices"][0]["logprobs"]
                entries += found["content"] if found else []
    assert entries == whole["logprobs"]["content"]
    assert all(entry["top_logprobs"] == [] for entry in entries)


def test_a_completions_log_probabilities_have_their_places_in_the_text(running, v2_engine):
    (choice,) = complete(running, logprobs=2)["choices"]
    written = choice["logprobs"]
    prompt = v2_engine.tokenizer.encode_prompt(TEXT)
    ids = v2_engine.generate(prompt, 6, sampling=SamplingParams(temperature=0), stop_ids=[])
    scores = own_scores(v2_engine, prompt, ids)
    expected = [row[token].item() for row, token in zip(scores, ids, strict=True)]
    assert written["token_logprobs"] == pytest.approx(expected, abs=TOLERANCE)
    for token, value, top in zip(written["tokens"], written["token_logprobs"], written["top_logprobs"], strict=True):
        assert top[token] == value == max(top.values())  # greedy
    decoder = decoder_behind(v2_engine.tokenizer, prompt)
    ends = [len(decoder.push(token)) for token in ids]
    assert written["text_offset"] == [sum(ends[:i]) for i in range(6)]


def test_a_bias_makes_a_token_certain_or_impossible(running, v2_engine):
    prompt = v2_engine.tokenizer.encode_prompt(TEXT)
    first, second = torch.topk(v2_engine.logits(prompt)[0, -1], 2).indices.tolist()
    fields = {"logprobs": 1, "max_tokens": 1}
    plain = complete(running, **fields)["choices"][0]["logprobs"]
    banned = complete(running, **fields, logit_bias={str(first): -100})["choices"][0]["logprobs"]
    forced = complete(running, logit_bias={str(second): 100}, logprobs=0, max_tokens=4)["choices"][0]["logprobs"]
    assert banned["tokens"] == [forced["tokens"][0]] != plain["tokens"]
    assert len(set(forced["tokens"])) == 1
    # What is told is the model's own, whatever the bias.
    (top,) = banned["top_logprobs"]
    assert max(top.values()) == pytest.approx(plain["token_logprobs"][0], abs=TOLERANCE)
    assert banned["token_logprobs"][0] == top[banned["tokens"][0]] < plain["token_logprobs"][0]
    assert len(top) == 2


def test_the_id_that_ends_a_completion_is_told_and_counts(running, v2_engine):
    """As of OpenAI: who asks for one token, to have the prompt scored, finds one behind it."""
    eos = v2_engine.tokenizer.eos_id
    fields = {"logit_bias": {str(eos): 100}, "ignore_eos": False}
    (choice,) = complete(running, logprobs=1, **fields)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")
    written = choice["logprobs"]
    score = own_scores(v2_engine, v2_engine.tokenizer.encode_prompt(TEXT), [eos])[0, eos].item()
    assert (written["tokens"], written["text_offset"]) == (["</s>"], [0])
    assert written["token_logprobs"] == pytest.approx([score], abs=TOLERANCE)
    (choice,) = chat(running, logprobs=True, **fields)
    assert choice["logprobs"] is None


def test_the_best_of_several_answers_are_given_in_order(running):
    fields = {"temperature": 1.5, "prompt": [TEXT, "c"]}
    every = complete(running, **fields, seed=3, n=5, logprobs=0)
    best = complete(running, **fields, seed=3, n=2, best_of=5)

    def mean(choice):
        values = choice["logprobs"]["token_logprobs"]
        return sum(values) / len(values)

    expected = []
    for first in (0, 5):
        expected += sorted(every["choices"][first : first + 5], key=mean, reverse=True)[:2]
    assert [choice["text"] for choice in best["choices"]] == [choice["text"] for choice in expected]
    assert [choice["index"] for choice in best["choices"]] == [0, 1, 2, 3]
    assert all(choice["logprobs"] is None for choice in best["choices"])
    assert best["usage"] == every["usage"]
