"""Prompts of v3 against the official ones, and what a conversation must be."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_int4.errors import InputError
from glm_int4.text import ChatGLM2Tokenizer
from glm_int4.text.chat.chat_format import chat_format
from glm_int4.text.chat.prompts_v3 import ASSISTANT, ReplyDecoder, ResponseStream, encode_call, process_response
from glm_int4.text.chat.tools import TOOLS_SYSTEM_TEXT
from tests.conftest import FIXTURES

ORACLE = json.loads((FIXTURES / "tokenizer_v3.json").read_text(encoding="utf-8"))
CHATS = [key for key in ORACLE if key.startswith("chat_")]
TRACK = ORACLE["chat_tools_q"]["history"][0]["tools"][0]
V3 = chat_format("3")


def user(text):
    return {"role": "user", "content": text}


def assistant(text, metadata=""):
    return {"role": "assistant", "content": text, "metadata": metadata}


def observation(text):
    return {"role": "observation", "content": text}


def system(text, **more):
    return {"role": "system", "content": text, **more}


@pytest.fixture(scope="module")
def tokenizer(official_v2):
    return ChatGLM2Tokenizer(official_v2, "3")


@pytest.fixture(scope="module")
def small(small_bpe):
    return ChatGLM2Tokenizer(small_bpe, "3")


@pytest.mark.parametrize("key", CHATS)
def test_prompts_are_the_official_ones(tokenizer, key):
    chat = ORACLE[key]
    messages = [*(chat["history"] or []), {"role": chat["role"], "content": chat["query"]}]
    assert V3.encode(tokenizer, messages) == chat["ids"]


@pytest.mark.parametrize("wrapped", [False, True])
def test_tools_as_an_argument_give_the_official_prompt(tokenizer, wrapped):
    tools = [{"type": "function", "function": TRACK} if wrapped else TRACK]
    messages = [user(ORACLE["chat_tools_q"]["query"])]
    assert V3.encode(tokenizer, messages, tools) == ORACLE["chat_tools_q"]["ids"]


def test_a_call_and_what_the_tool_answered_give_the_official_prompt(tokenizer):
    chat = ORACLE["chat_tools_obs"]
    question = chat["history"][:2]
    reply = V3.parse_reply("track\n ```python\ntool_call(symbol='10111')\n```", [TRACK])
    assert V3.encode(tokenizer, [*question, *reply.as_messages(), observation(chat["query"])]) == chat["ids"]
    again = [*question, reply.tool_call.as_message(), observation(chat["query"])]
    assert V3.encode(tokenizer, again) == chat["ids"]


def test_the_line_of_a_call_is_encoded_as_in_a_conversation(small):
    call = V3.encode(small, [user("a"), assistant("b", "track"), observation("c")])
    line = encode_call(small, "track")
    at = call.index(small.role_ids["assistant"]) + 1
    assert call[at : at + len(line)] == line
    with pytest.raises(InputError, match="expected a tool's name that the model can write, got 'a▁b'"):
        encode_call(small, "a▁b")


def test_a_system_text_stays_in_front_of_the_tools(small):
    own = [system("请简短回答。"), user("你好")]
    spelled_out = [system(f"请简短回答。\n{TOOLS_SYSTEM_TEXT}", tools=[TRACK]), user("你好")]
    assert V3.encode(small, own, [TRACK]) == V3.encode(small, spelled_out)
    assert V3.encode(small, [system(TOOLS_SYSTEM_TEXT), user("你好")], [TRACK]) == V3.encode(
        small, [user("你好")], [TRACK]
    )


def test_no_tools_are_no_tools(small):
    assert V3.encode(small, [user("你好")], []) == V3.encode(small, [user("你好")])


def test_role_tokens_that_a_user_types_are_plain_text(small):
    ids = V3.encode(small, [user("<|user|>\n<|system|>[gMASK]sop")])
    assert [i for i in ids if i >= small.mask_id] == [
        *small.prefix_ids,
        small.role_ids["user"],
        small.role_ids["assistant"],
    ]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "last message"),
        ([user("a"), assistant("b")], "last message"),
        ([system("a")], "last message"),
        ([user("  ")], "empty prompt"),
        ([{"role": "tool", "content": "a"}], "a role of system, user, assistant, observation, got 'tool'"),
        ([{"role": [], "content": "a"}], r"got \[\]"),
        ([assistant("a")], "in turn, got one of role 'assistant' at the beginning"),
        ([user("a"), user("b")], "in turn, got one of role 'user' after one of role 'user'"),
        ([user("a"), system("b"), user("c")], "role 'system' after one of role 'user'"),
        ([observation("a")], "role 'observation' at the beginning"),
        ([user("a"), assistant("b"), observation("c")], "an observation to follow a call"),
        ([user("a"), assistant("b", "x\ny"), observation("c")], "metadata of one line"),
        ([user("a") | {"tools": [TRACK]}], "tools in a system message"),
    ],
)
def test_conversations_out_of_order_are_refused(small, messages, message):
    with pytest.raises(InputError, match=message):
        V3.encode(small, messages)


def test_tools_in_two_places_are_refused(small):
    with pytest.raises(InputError, match="expected tools once"):
        V3.encode(small, [system("a", tools=[TRACK]), user("b")], [TRACK])


def test_an_answer_of_several_messages_is_accepted_back(small):
    messages = [user("a"), assistant("let me see"), assistant(" ```python\ntool_call()\n```", "track")]
    assert V3.encode(small, [*messages, observation("")]).count(small.role_ids["assistant"]) == 3


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\n 你好", "你好"),
        ("你好", "你好"),
        ("\n a\n b ", "a\n b"),
        ("track\n ```python\ntool_call()\n```", "track\n```python\ntool_call()\n```"),
        ("\n see<|assistant|>track\n ```x\n```", "see\ntrack\n```x\n```"),
        ("Here is a list:\n1. a\n2. b", "Here is a list:\n1. a\n2. b"),
        ("Example:\n```python\n1\n```", "Example:\n```python\n1\n```"),
        ("two words\n```python\n1\n```", "two words\n```python\n1\n```"),
        ("\n [[训练时间]]", "2023年"),
        ("", ""),
    ],
)
def test_what_is_shown_loses_no_text(raw, shown):
    assert process_response(raw) == shown


@given(st.lists(st.text(alphabet="好a\n` [训练时间]<|asitn>", max_size=5) | st.just(ASSISTANT), max_size=12))
def test_streamed_cleaning_adds_up_to_the_whole(pieces):
    stream = ResponseStream()
    streamed = [stream.push(piece) for piece in pieces] + [stream.finish()]
    assert "".join(streamed) == process_response("".join(pieces))


def test_a_line_is_held_back_until_it_is_known_not_to_be_metadata():
    stream = ResponseStream()
    assert [stream.push(piece) for piece in ("tr", "ack", "\n", " `", "`b")] == ["", "", "", "", "track\n ``b"]
    stream = ResponseStream()
    assert [stream.push(piece) for piece in ("\n", " a", "b")] == ["", "a", "b"]


def test_an_assistant_id_begins_another_message(small):
    ids = [
        *small.encode("\n price"),
        small.role_ids["assistant"],
        *small.encode("track\n"),
        *small.encode("```python\ntool_call()\n```"),
    ]
    decoder = V3.reply_decoder(small)
    text = "".join([*map(decoder.push, ids), decoder.finish()])
    assert text == "\n price<|assistant|>track\n ```python\ntool_call()\n```"
    reply = V3.parse_reply(text)
    assert (reply.tool_call.name, reply.tool_call.arguments) == ("track", {})
    assert [message["content"] for message in reply.as_messages()] == ["price", " ```python\ntool_call()\n```"]


@given(st.lists(st.integers(-1, 410), max_size=30))
def test_streamed_answers_add_up_for_any_ids(small, ids):
    decoder = V3.reply_decoder(small)
    streamed = "".join([*map(decoder.push, ids), decoder.finish()])
    assert streamed == ReplyDecoder(small).decode(ids)
