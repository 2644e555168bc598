"""Answers of a form over HTTP: streamed, together with others, and while somebody's schema is compiled."""

import json
import threading

import httpx

from glm_int4.generation.constraints.compiler import ConstraintCompiler

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "w": {"enum": ["中,文", "b"]}},
    "required": ["n", "w"],
}
FORM = {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}


def streamed(running, **fields):
    body = {"messages": [{"role": "user", "content": "3加5等于几?"}], "temperature": 0, "stream": True} | fields
    with httpx.stream("POST", f"{running.url}/v1/chat/completions", json=body, timeout=60) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: {")]
    choices = [json.loads(line)["choices"][0] for line in lines]
    return "".join(c["delta"].get("content", "") for c in choices), choices[-1]["finish_reason"]


def test_a_stream_says_what_the_whole_answer_says(mini_server):
    status, whole = mini_server.ask("3加5等于几?", **FORM)
    assert status == 200
    (choice,) = whole["choices"]
    text, end = streamed(mini_server, **FORM)
    assert (text, end) == (choice["message"]["content"], "stop") == (text, choice["finish_reason"])
    assert set(json.loads(text)) == {"n", "w"}


def test_answers_of_several_forms_run_together(mini_server):
    forms = [FORM, {"guided_regex": "[0-9]{3}元"}, {"guided_choice": ["是,否", "b"]}, {}]
    alone = [streamed(mini_server, **form) for form in forms]
    together = {}
    threads = [
        threading.Thread(target=lambda i=i, form=form: together.setdefault(i, streamed(mini_server, **form)))
        for i, form in enumerate(forms)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [together[i] for i in range(len(forms))] == alone


def test_log_probabilities_are_the_models_own(mini_server):
    fields = {"guided_choice": ["qq"], "logprobs": True, "top_logprobs": 1}
    _, answer = mini_server.ask("3加5等于几?", **fields)
    content = answer["choices"][0]["logprobs"]["content"]
    assert any(one["logprob"] < one["top_logprobs"][0]["logprob"] for one in content)


def test_nobody_waits_for_a_schema_that_is_compiled(mini_server, monkeypatch):
    begun, go_on, compile_one = threading.Event(), threading.Event(), ConstraintCompiler._compile

    def slow(vocabulary, constraint):
        begun.set()
        assert go_on.wait(60)
        return compile_one(vocabulary, constraint)

    monkeypatch.setattr(ConstraintCompiler, "_compile", staticmethod(slow))
    answers = []
    thread = threading.Thread(target=lambda: answers.append(mini_server.ask("你好", guided_regex="slow{3}")))
    thread.start()
    assert begun.wait(60)
    assert mini_server.ask("3加5等于几?")[1]["choices"][0]["message"]["content"] == "8"
    assert not answers
    go_on.set()
    thread.join(60)
    assert answers[0][1]["choices"][0]["message"]["content"] == "slowww"
