"""Prompts and post-processing of v1."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_int4.errors import InputError
from glm_int4.text.chat.prompts_v1 import ResponseStream, build_prompt, process_response


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_a_first_question_stands_alone():
    assert build_prompt([user("你好")]) == "你好"


def test_rounds_count_from_zero():
    messages = [user("你好"), assistant("你好!"), user("晚上睡不着应该怎么办")]
    assert build_prompt(messages) == "[Round 0]\n问：你好\n答：你好!\n[Round 1]\n问：晚上睡不着应该怎么办\n答："


def test_system_text_goes_in_front():
    assert build_prompt([{"role": "system", "content": "请简短回答。"}, user("你好")]) == "请简短回答。\n你好"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "last message"),
        ([user("a"), assistant("b")], "last message"),
        ([user("a"), user("b")], "in turn"),
        ([assistant("a")], "in turn"),
        ([{"role": "tool", "content": "a"}], "in turn"),
        ([user("  ")], "empty prompt"),
        ([user("\ufeff\u2060")], "empty prompt"),
        ([{"role": "user"}], "a text as content"),
    ],
)
def test_conversations_out_of_order_are_refused(messages, message):
    with pytest.raises(InputError, match=message):
        build_prompt(messages)


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("  你好!  ", "你好！"),
        ("好,好:好;好?", "好，好：好；好？"),
        (",好", "，好"),
        ("a, b! c", "a, b! c"),
        ("1,000元,2", "1,000元，2"),
        ("[[训练时间]],", "2023年，"),
        ("好,,好", "好，，好"),
        ("", ""),
    ],
)
def test_answers_are_cleaned_as_officially(raw, cleaned):
    assert process_response(raw) == cleaned


@given(st.lists(st.text(alphabet="好a ,!?:;[训练时间]\n", max_size=5), max_size=12))
def test_streamed_cleaning_adds_up_to_the_whole(pieces):
    stream = ResponseStream()
    streamed = [stream.push(piece) for piece in pieces] + [stream.finish()]
    assert "".join(streamed) == process_response("".join(pieces))
