"""Log-probabilities of prompts, as programs that score texts ask for them, beside the engine's own logits."""

import httpx
import pytest

from glm_int4.generation import scoring
from tests.server.conftest import run_server

# A server's keys and values are those of its cache, in half precision.
TOLERANCE = 0.01
TEXT = "你好 the weather, price 12 345!"


@pytest.fixture(scope="module")
def second(v2_engine):
    with run_server(v2_engine) as running:
        yield running


@pytest.fixture(params=["mini_server", "second", "v3_server"])
def running(request):
    return request.getfixturevalue(request.param)


def complete(running, prompt, **fields):
    body = {"prompt": prompt, "max_tokens": 0, "temperature": 0, "echo": True, "logprobs": 2} | fields
    response = running.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def own_scores(running, ids):
    return running.server.engine.logits(ids)[0].log_softmax(-1)


def check(running, logprobs, ids, num_without=1):
    """Compare with the engine's logits for the ids, of which the first ones have no log-probability."""
    scores = own_scores(running, ids)
    assert len(logprobs["tokens"]) == len(ids)
    assert logprobs["token_logprobs"][:num_without] == logprobs["top_logprobs"][:num_without] == [None] * num_without
    for index in range(num_without, len(ids)):
        value, top = logprobs["token_logprobs"][index], logprobs["top_logprobs"][index]
        row = scores[index - 1]
        assert value == pytest.approx(row[ids[index]].item(), abs=TOLERANCE)
        assert max(top.values()) == pytest.approx(row.max().item(), abs=TOLERANCE)
        assert top[logprobs["tokens"][index]] >= value
        assert len(top) in (1, 2, 3)


def test_a_texts_log_probabilities_are_the_engines(running):
    engine = running.server.engine
    answer = complete(running, TEXT)
    (choice,) = answer["choices"]
    ids = [*engine.text_prefix, *engine.tokenizer.encode(TEXT)]
    check(running, choice["logprobs"], ids)
    assert (choice["text"], choice["finish_reason"]) == (TEXT, "length")
    assert answer["usage"] == {"prompt_tokens": len(ids), "completion_tokens": 0, "total_tokens": len(ids)}
    places = [*choice["logprobs"]["text_offset"], len(TEXT)]
    assert places[:3] == [0, 0, 0]  # two ids that are no text, and the first of the text
    for token, first, end in zip(choice["logprobs"]["tokens"], places[:-1], places[1:], strict=True):
        assert token.startswith("bytes:") or TEXT[first:end].strip() in token
    assert len({*places}) > 10


def test_ids_are_scored_as_they_are_and_answers_behind_them(running):
    ids = [*running.server.engine.text_prefix, *range(20, 40)]
    (choice,) = complete(running, ids, max_tokens=3, ignore_eos=True)["choices"]
    assert len(choice["logprobs"]["tokens"]) == len(ids) + 3
    prompt = {name: values[: len(ids)] for name, values in choice["logprobs"].items()}
    check(running, prompt, ids)
    echoed = complete(running, ids, logprobs=None)["choices"][0]
    assert echoed["logprobs"] is None
    assert choice["text"].startswith(echoed["text"])
    assert choice["logprobs"]["text_offset"][len(ids)] == len(echoed["text"])
    without = complete(running, ids, max_tokens=3, ignore_eos=True, echo=False)["choices"][0]
    for name in ("tokens", "token_logprobs", "top_logprobs"):
        assert choice["logprobs"][name][len(ids) :] == without["logprobs"][name]


def test_each_of_several_prompts_has_its_own(running):
    prefix = running.server.engine.text_prefix
    prompts = [[*prefix, *range(20, 30)], [*prefix, *range(50, 57)]]
    choices = complete(running, prompts, n=2, max_tokens=1, ignore_eos=True)["choices"]
    for index, choice in enumerate(choices):
        ids = prompts[index // 2]
        assert choice["index"] == index
        check(running, {name: values[: len(ids)] for name, values in choice["logprobs"].items()}, ids)
    alone = complete(running, prompts[0], max_tokens=1, ignore_eos=True)["choices"][0]
    assert alone["logprobs"] == choices[0]["logprobs"] == choices[1]["logprobs"]


def test_a_stream_has_the_same_in_its_first_event(running):
    ids = [*running.server.engine.text_prefix, *range(20, 40)]
    body = {"prompt": ids, "max_tokens": 2, "temperature": 0, "echo": True, "logprobs": 2, "ignore_eos": True}
    (whole,) = complete(running, **body)["choices"]
    parts = []
    with httpx.stream("POST", f"{running.url}/v1/completions", json=body | {"stream": True}, timeout=60) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                parts += httpx.Response(200, text=line[6:]).json()["choices"]
    assert len(parts[0]["logprobs"]["tokens"]) == len(ids)
    assert "".join(part["text"] for part in parts) == whole["text"]
    for name, values in whole["logprobs"].items():
        assert [value for part in parts if part["logprobs"] for value in part["logprobs"][name]] == values


def test_a_long_prompt_is_scored_in_pieces(v3_server, monkeypatch):
    """One that a slot has read already too."""
    monkeypatch.setattr(scoring, "_HEAD_ROWS", 100)
    ids = [*v3_server.server.engine.text_prefix, *(20 + i % 150 for i in range(1300))]
    complete(v3_server, ids, echo=False, logprobs=None)
    for _ in range(2):
        (choice,) = complete(v3_server, ids)["choices"]
        check(v3_server, choice["logprobs"], ids)


def test_a_prompt_may_fill_the_context_where_no_answer_is_wanted(second):
    limit = second.server.engine.max_length
    ids = [20 + i % 150 for i in range(limit)]
    (choice,) = complete(second, ids)["choices"]
    check(second, choice["logprobs"], ids)
    for more, fields in (([20], {}), ([], {"max_tokens": 1})):
        response = second.post("/v1/completions", json={"prompt": [*ids, *more], "max_tokens": 0} | fields)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_what_version_1_reads_in_both_directions_has_none(mini_server):
    tokenizer = mini_server.server.engine.tokenizer
    question = [*tokenizer.encode("3加5等于几?"), tokenizer.gmask_id, tokenizer.sop_id]
    ids = [*question, *tokenizer.encode("8")]
    (choice,) = complete(mini_server, ids)["choices"]
    check(mini_server, choice["logprobs"], ids, num_without=len(question) - 1)
    assert choice["logprobs"]["token_logprobs"][-1] > -0.1  # the model knows the answer
    for prompt in (question, question[:-1]):
        response = mini_server.post("/v1/completions", json={"prompt": prompt, "echo": True, "logprobs": 1})
        assert response.status_code == 400
        assert "begin with [gMASK] and <sop>, as a tokenizer with" in response.json()["error"]["message"]


def test_best_of_goes_by_the_answer_alone(second):
    fields = dict(max_tokens=4, temperature=1.5, seed=3, ignore_eos=True, best_of=4, n=1)
    ids = [20, 21, 22]
    best = complete(second, ids, **fields)["choices"][0]
    plain = complete(second, ids, **fields, echo=False)["choices"][0]
    assert best["text"].endswith(plain["text"])
    assert best["logprobs"]["token_logprobs"][3:] == plain["logprobs"]["token_logprobs"]
