"""``chat`` and ``stream_chat``: arguments, histories and what is returned, as in the official code of each version."""

import threading

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from glm_int4.errors import InputError
from tests.conftest import MINI

TOOL = {
    "name": "track",
    "description": "tracks a price",
    "parameters": {"type": "object", "properties": {"symbol": {"type": "string"}}, "required": ["symbol"]},
}
CODE = "```python\ntool_call(symbol='12')\n```"


@pytest.fixture(scope="module")
def loaded(small_checkpoints):
    """Models and tokenizers by version."""
    folders = {"1": MINI, **small_checkpoints}
    return {
        version: (AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
        for version, folder in folders.items()
    }


@pytest.fixture
def generated(loaded, monkeypatch):
    """Let ``generate`` of a version answer a text; returns what it was called with."""

    def answer(version, text):
        model, tokenizer = loaded[version]
        calls = []

        def generate(**options):
            calls.append(options)
            inner = tokenizer.inner
            lines = text.split("\n", 1)
            new = inner.encode(lines[0] + "\n") + inner.encode(lines[1]) if version == "3" else inner.encode(text)
            return torch.cat((options["input_ids"], torch.tensor([[*new, tokenizer.inner.stop_ids[-1]]])), dim=1)

        monkeypatch.setattr(model, "generate", generate)
        return model, tokenizer, calls

    return answer


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1", {"max_length": 2048, "top_p": 0.7, "temperature": 0.95}),
        ("2", {"max_length": 8192, "top_p": 0.8, "temperature": 0.8}),
        ("3", {"max_length": 8192, "top_p": 0.8, "temperature": 0.8}),
    ],
)
def test_answers_are_sampled_as_the_official_code_does(generated, version, expected):
    model, tokenizer, calls = generated(version, "\n你好")
    assert model.chat(tokenizer, "你好")[0] == "你好"
    assert {key: calls[0][key] for key in expected} == expected
    assert calls[0]["do_sample"] is True


@pytest.mark.parametrize(("version", "role"), [("1", ()), ("2", ()), ("3", ("user",))])
def test_arguments_without_names_are_those_of_the_version(generated, version, role):
    model, tokenizer, calls = generated(version, "\n你好")
    model.chat(tokenizer, "你好", [], *role, 77, 1, False, 0.5, 0.6, None, repetition_penalty=1.1)
    assert calls[0]["max_length"] == 77
    assert calls[0]["num_beams"] == 1
    assert calls[0]["do_sample"] is False
    assert "top_p" not in calls[0]
    assert calls[0]["repetition_penalty"] == 1.1
    with pytest.raises(InputError, match="arguments of chat"):
        model.chat(tokenizer, "你好", [], *role, 77, 1, False, 0.5, 0.6, None, 8)


def test_the_call_of_a_tool_is_returned_as_officially(generated):
    model, tokenizer, _ = generated("3", f"track\n{CODE}")
    system = {"role": "system", "content": "x", "tools": [TOOL]}
    response, history = model.chat(tokenizer, "你好", history=[system])
    assert response == {"name": "track", "parameters": {"symbol": "12"}}
    question = {"role": "user", "content": "你好"}
    call = {
        "role": "assistant",
        "metadata": "track",
        "content": f" {CODE}",
    }  # officially too: a text begins with a space
    assert history == [system, question, call]
    assert model.chat(tokenizer, "345", history=history, role="observation")[1][:4] == [
        *history,
        {"role": "observation", "content": "345"},
    ]
    response, _ = model.chat(tokenizer, "你好")
    assert response == {"name": "track", "content": f" {CODE}"}


def test_a_history_may_be_of_lists_and_is_never_changed(generated):
    model, tokenizer, calls = generated("2", "\n你好")
    history = [["world", "Hello"]]
    assert model.chat(tokenizer, "你好", history)[1] == [["world", "Hello"], ("你好", "你好")]
    assert history == [["world", "Hello"]]
    text = tokenizer.decode(calls[0]["input_ids"][0], skip_special_tokens=True)
    assert text == tokenizer.build_prompt("你好", history)


@pytest.mark.parametrize("version", ["2", "3"])
def test_keys_and_values_are_taken_and_returned_as_none(loaded, version):
    model, tokenizer = loaded[version]
    options = {"do_sample": False, "max_length": 60, "past_key_values": None, "return_past_key_values": True}
    steps = list(model.stream_chat(tokenizer, "你好", **options))
    assert {step[2] for step in steps} == {None}
    assert steps[-1][:2] == model.chat(tokenizer, "你好", do_sample=False, max_length=60)


def test_a_stream_that_is_left_ends_what_it_began(loaded):
    model, tokenizer = loaded["2"]
    running = threading.active_count()
    stream = model.stream_chat(tokenizer, "你好", do_sample=False, max_length=250)
    next(stream)
    assert threading.active_count() == running + 1
    stream.close()
    assert threading.active_count() == running


def test_an_error_on_the_way_reaches_who_reads_the_stream(loaded):
    model, tokenizer = loaded["1"]
    with pytest.raises(ValueError, match="top_p"):
        list(model.stream_chat(tokenizer, "你好", top_p=-1.0))


def test_other_tokenizers_and_histories_are_refused(loaded):
    model, tokenizer = loaded["1"]
    for other in (None, loaded["2"][1]):
        with pytest.raises(InputError, match="expected the tokenizer of version 1"):
            model.chat(other, "你好")
    with pytest.raises(InputError, match=r"expected a history of \(question, answer\) for version 1"):
        model.chat(tokenizer, "你好", history=[{"role": "user", "content": "x"}])
    with pytest.raises(InputError, match="expected a history of messages for version 3"):
        loaded["3"][0].chat(loaded["3"][1], "你好", history=[("a", "b")])


def test_an_adapter_takes_part_in_the_chat():
    peft = pytest.importorskip("peft", reason="needs peft: pip install peft")
    tokenizer = AutoTokenizer.from_pretrained(MINI)
    model = AutoModelForCausalLM.from_pretrained(MINI)
    question = "3加5等于几?"
    plain = model.chat(tokenizer, question, do_sample=False, max_length=40)[0]
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=64, init_lora_weights=False)).eval()
    answer = adapted.chat(tokenizer, question, do_sample=False, max_length=40)[0]
    assert answer != plain
    inputs = tokenizer(question, return_tensors="pt")
    ids = adapted.generate(**inputs, max_length=40)[0, inputs["input_ids"].shape[1] :]
    assert answer == model._engine._format.parse_reply(tokenizer.decode(ids, skip_special_tokens=True)).content


def test_the_official_names_of_a_tokenizers_methods_are_there(loaded):
    v3 = loaded["3"][1]
    assert v3.get_prefix_tokens() == [v3.get_command("[gMASK]"), v3.get_command("sop")]
    message = v3.build_single_message("user", "", "你好")
    assert [*v3.get_prefix_tokens(), *message, v3.get_command("<|assistant|>")] == (
        v3.build_chat_input("你好")["input_ids"][0].tolist()
    )
    with pytest.raises(InputError, match="expected a role of system"):
        v3.build_single_message("robot", "", "你好")
    with pytest.raises(InputError, match="expected version 3 or 4 for build_single_message"):
        loaded["2"][1].build_single_message("user", "", "你好")
