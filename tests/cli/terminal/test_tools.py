"""Conversations in which ChatGLM3 calls tools. A small random model that says what the test gives it."""

import pytest
import torch

import glm_int4
from glm_int4.cli.terminal import saved, status
from glm_int4.cli.terminal.conversation import Conversation
from glm_int4.errors import InputError
from glm_int4.text.chat.prompts_v3 import ASSISTANT

TRACK = {"name": "track", "parameters": {"type": "object", "properties": {"symbol": {}}, "required": ["symbol"]}}
CALL = "track\n ```python\ntool_call(symbol='10111')\n```"


@pytest.fixture(scope="module")
def glm(small_checkpoints):
    return glm_int4.load(small_checkpoints["3"], device="cpu", dtype=torch.float32)


@pytest.fixture
def chat(glm, monkeypatch):
    """Ask a question that gets a given answer."""
    conversation = Conversation(glm, glm_int4.SamplingParams(), name="three", tools=[TRACK])

    def answer(text):
        first, *others = text.split(ASSISTANT)
        ids = glm.tokenizer.encode(first)
        for other in others:
            ids += [glm.tokenizer.role_ids["assistant"], *glm.tokenizer.encode(other)]
        monkeypatch.setattr(glm, "_decode", lambda *arguments: ([token] for token in ids))

    def ask(question, text):
        answer(text)
        return "".join(conversation.ask(question))

    ask.conversation, ask.answer = conversation, answer
    return ask


def roles(chat):
    return [message["role"] for message in chat.conversation.messages]


def note(chat):
    return status.after_answer(chat.conversation, chat.conversation.turns[-1])


def test_what_is_typed_after_a_call_is_its_result(chat):
    assert chat("price", CALL) == "track\n```python\ntool_call(symbol='10111')\n```"
    assert "(the model calls track(symbol='10111'); what you type next is its result)" in note(chat)
    assert chat('{"price": 12}', "\n It is 12.") == "It is 12."
    assert roles(chat) == ["user", "assistant", "observation", "assistant"]
    chat("thanks", "\n bye")
    assert roles(chat)[-2:] == ["user", "assistant"]


@pytest.mark.parametrize(
    "answer", ["track\n rm -rf", "track\n ```python\ntool_call(", "track\n ```python\ntool_call(stock=1)\n```"]
)
def test_after_a_call_that_cannot_be_read_the_next_question_is_a_question(chat, answer):
    chat("price", answer)
    assert "that cannot be read: expected " in note(chat)
    chat("what is 1+1?", "\n 2")
    assert roles(chat) == ["user", "assistant", "user", "assistant"]


def test_retry_replaces_an_answer_of_several_messages(chat):
    chat("price", f"\n I will look.{ASSISTANT}{CALL}")
    assert roles(chat) == ["user", "assistant", "assistant"]
    before = chat.conversation.messages
    assert "track" in "".join(chat.conversation.retry())
    assert chat.conversation.messages == before
    chat('{"price": 12}', "\n It is 12.")
    chat.answer("\n Twelve.")
    "".join(chat.conversation.retry())
    assert chat.conversation.messages[-2:] == [
        {"role": "observation", "content": '{"price": 12}'},
        {"role": "assistant", "content": "Twelve."},
    ]


def test_a_saved_conversation_is_retried_as_it_was(chat, tmp_path):
    chat("price", CALL)
    chat('{"price": 12}', "\n It is 12.")
    messages = chat.conversation.messages
    saved.save(chat.conversation, tmp_path / "chat.json")
    chat.conversation.clear()
    saved.load(chat.conversation, tmp_path / "chat.json")
    assert chat.conversation.messages == messages
    chat.answer("\n It is 12.")
    "".join(chat.conversation.retry())
    assert chat.conversation.messages == messages


def test_a_full_context_keeps_the_call_that_waits(chat):
    for _ in range(3):
        chat("hello world " * 3, "\n hello world")
    chat("price", CALL)
    kept = chat.conversation.messages[-2:]
    tools = chat.conversation.glm.count_tokens([{"role": "user", "content": "x"}], [TRACK])
    chat.conversation.glm.max_length, length = tools + 70, chat.conversation.glm.max_length
    try:
        assert chat.conversation.make_room("12") > 0
        assert chat.conversation.messages == kept
        with pytest.raises(InputError, match="expected a result and tools and the call that it answers"):
            chat.conversation.make_room("12 " * 200)
    finally:
        chat.conversation.glm.max_length = length
