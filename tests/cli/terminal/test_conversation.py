"""What the conversation remembers, drops and measures."""

import pytest

from glm_int4.errors import GLMError, InputError
from glm_int4.generation.engine import Engine


def roles(conversation):
    return [message["role"] for message in conversation.messages]


def test_an_answer_becomes_part_of_the_conversation(said):
    assert roles(said) == ["user", "assistant"]
    assert "小明" in "".join(said.ask("我叫什么名字?"))
    turn = said.turns[-1]
    assert turn.new_tokens > 1
    assert turn.limit is None
    # The end of the answer is a token too, which is not part of its text.
    assert abs(said.context_tokens() - turn.prompt_tokens - turn.new_tokens) <= 1


def test_retry_replaces_the_answer(said):
    first = said.messages
    assert "小明" in "".join(said.retry())
    assert said.messages == first
    assert len(said.turns) == 2


def test_retry_keeps_the_old_answer_if_there_is_no_new_one(said, monkeypatch):
    def fail(*arguments, **options):
        raise MemoryError
        yield

    before = said.messages
    monkeypatch.setattr(Engine, "stream_chat", fail)
    with pytest.raises(GLMError, match="enough memory"):
        "".join(said.retry())
    assert said.messages == before
    assert said.last_question == "我叫小明。"


def test_an_answer_that_is_broken_off_counts_with_what_was_said(conversation):
    answer = conversation.ask("我叫小明。")
    piece = next(answer)
    answer.close()
    assert roles(conversation) == ["user", "assistant"]
    assert conversation.messages[-1]["content"] == piece


def test_retry_needs_a_question(conversation):
    with pytest.raises(InputError, match="expected a question to ask again"):
        conversation.retry()


def test_the_oldest_rounds_are_dropped_whole(said):
    for _ in range(3):
        "".join(said.ask("3加5等于几?"))
    rounds = said.num_rounds
    dropped = said.make_room("hello " * 12)
    assert 0 < dropped < rounds
    assert said.num_rounds == rounds - dropped
    assert roles(said)[0] == "user"
    assert said.glm.count_tokens([*said.messages, {"role": "user", "content": "hello " * 12}]) <= 0.75 * 128


def test_rounds_of_more_than_two_messages_are_dropped_whole(said):
    said.messages = [{"role": role, "content": "x" * 30} for role in ("user", "assistant", "tool", "assistant")] * 2
    said.glm.count_tokens, count = (lambda messages, tools: 40 * len(messages)), said.glm.count_tokens
    try:
        said.make_room("y")
    finally:
        said.glm.count_tokens = count
    assert said.messages == []


def test_a_question_that_is_too_long_drops_nothing(said):
    with pytest.raises(InputError, match="a question of less than 128 tokens"):
        said.make_room("3加5" * 60)
    assert said.num_rounds == 1
    said.system = "be brief"
    with pytest.raises(InputError, match="question and system text of less than 128 tokens"):
        said.make_room("3加5" * 60)


@pytest.mark.parametrize(("limit", "name"), [(3, "max_new_tokens"), (None, "max_length"), (10**6, "max_length")])
def test_the_limit_that_cut_an_answer_is_named(conversation, limit, name, monkeypatch):
    monkeypatch.setattr(conversation.glm, "stop_ids", ())
    conversation.max_new_tokens = limit
    "".join(conversation.ask("hello"))
    turn = conversation.turns[-1]
    assert turn.limit == name
    assert turn.new_tokens == limit or turn.prompt_tokens + turn.new_tokens == 128


def test_clear_forgets_the_question_too(said):
    said.clear()
    assert (said.messages, said.last_question, said.context_tokens()) == ([], None, 0)
