"""Answers of GLM-4 taken apart: calls are JSON of a tool that was given."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_int4.text.chat.chat_format import chat_format
from glm_int4.text.chat.replies import MAX_CALL_CHARACTERS, ToolCall
from tests.text.chat.test_replies import JSON_VALUES

V4 = chat_format("4")
TRACK = {"name": "track", "parameters": {"type": "object", "properties": {"symbol": {}, "n": {}}}}
ANY = {"name": "any", "parameters": {"type": "object", "properties": {name: {} for name in "abc"}}}


def test_arguments_are_read_as_json():
    reply = V4.parse_reply('track\n{"symbol": "10111", "n": 3}', [TRACK])
    assert reply.tool_call == ToolCall(name="track", arguments={"symbol": "10111", "n": 3})
    assert (reply.metadata, reply.content, reply.fault) == ("track", '{"symbol": "10111", "n": 3}', None)
    assert reply.as_message() == {"role": "assistant", "metadata": "track", "content": '{"symbol": "10111", "n": 3}'}
    assert V4.parse_reply(' track \n \n {"symbol": "1"} \n', [TRACK]).tool_call.arguments == {"symbol": "1"}


@pytest.mark.parametrize(
    ("text", "tools"),
    [
        ('track\n{"symbol": "1"}', None),
        ('track\n{"symbol": "1"}', [ANY]),
        ("track", [TRACK]),
        ("track\nthe parcel", [TRACK]),
        ('\ntrack\n{"symbol": "1"}', [TRACK]),
        ('Track\n{"symbol": "1"}', [TRACK]),
    ],
)
def test_a_call_needs_a_known_name_and_a_second_line_of_json(text, tools):
    reply = V4.parse_reply(text, tools)
    assert (reply.tool_call, reply.metadata, reply.fault, reply.content) == (None, "", None, text.strip())


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        ('{"symbol": "1"', "expected arguments in JSON"),
        ('{"symbol": "1"} and more', "expected arguments in JSON"),
        ("{'symbol': '1'}", "expected arguments in JSON"),
        ('{"symbol": NaN}', "expected arguments in JSON"),
        ('{"symbol": "1", "symbol": "2"}', "expected arguments in JSON"),
        ('{"symbol": "\\ud800"}', "expected arguments in JSON"),
        ('{"symbol": 1' + "0" * 5000 + "}", "expected arguments in JSON"),
        ('{"symbol": ' + "[" * 40 + "]" * 40 + "}", "expected arguments in JSON"),
        ('{"symbol": ' + "[" * 10000, "expected arguments in JSON"),
        ('{"symbol": "' + "x" * MAX_CALL_CHARACTERS + '"}', "expected a call of at most"),
        ('{"stock": "1"}', "expected arguments of symbol, n, got 'stock'"),
    ],
)
def test_calls_that_cannot_be_read_are_a_fault(call, fault):
    reply = V4.parse_reply(f"track\n{call}", [TRACK])
    assert reply.tool_call is None
    assert reply.fault.startswith(fault)
    assert "\n" not in reply.fault
    assert (reply.metadata, reply.content) == ("track", call)


def test_code_for_the_models_python_is_told_from_calls():
    reply = V4.parse_reply("python\nprint(2**10)\n", [{"type": "python"}])
    assert (reply.code, reply.tool_call, reply.metadata) == ("print(2**10)", None, "python")
    assert V4.parse_reply("python\nprint(2**10)", [TRACK]).content == "python\nprint(2**10)"
    search = V4.parse_reply('simple_browser\nsearch("news")', [{"type": "simple_browser"}])
    assert (search.code, search.tool_call, search.metadata, search.content) == (
        None, None, "simple_browser", 'search("news")',
    )  # fmt: skip


def test_several_messages_of_an_answer():
    reply = V4.parse_reply('\nlet me see<|assistant|>track\n{"symbol": "<|assistant|>"}', [TRACK])
    assert [part.content for part in (*reply.earlier, reply)] == ["let me see", '{"symbol": "<|assistant|>"}']
    assert reply.tool_call.arguments == {"symbol": "<|assistant|>"}
    assert [message.get("metadata") for message in reply.as_messages()] == [None, "track"]


PARTS = [*'track\n{"a": 1}[]<|>x', "<|assistant|>", "track\n{", '{"symbol": "1"}']


@given(st.lists(st.sampled_from(PARTS), max_size=30).map("".join))
def test_any_answer_can_be_read_and_is_what_the_streams_show(text):
    reply = V4.parse_reply(text, [TRACK])
    parts = (*reply.earlier, reply)
    stream = V4.content_stream(["track"])
    assert stream.push(text) + stream.finish() == "\n".join(
        part.content for part in parts if not part.metadata and part.content
    )
    if not any(part.metadata for part in parts):
        stream = V4.response_stream()
        assert stream.push(text) + stream.finish() == "\n".join(filter(None, (part.content for part in parts)))


@given(st.dictionaries(st.sampled_from("abc"), JSON_VALUES))
def test_a_call_reads_back_as_it_was_written(arguments):
    message = V4.call_message(ToolCall(name="any", arguments=arguments))
    reply = V4.parse_reply(f"{message['metadata']}\n{message['content']}", [ANY])
    assert reply.fault is None
    assert json.dumps(reply.tool_call.arguments, sort_keys=True) == json.dumps(arguments, sort_keys=True)
    assert reply.as_message() == message
