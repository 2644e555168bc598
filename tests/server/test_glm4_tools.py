"""GLM-4's tools through OpenAI's client, from a small random model: what a call is, and that one can be demanded."""

import json

import jsonschema
import pytest

from glm_int4.server.openai_messages import read_messages
from glm_int4.server.schemas import ChatMessage
from glm_int4.text.chat.chat_format import chat_format
from tests.server.conftest import client
from tests.server.test_openai_clients import TOOL, user
from tests.server.test_openai_clients import says as says
from tests.server.test_tool_choice import FUNCTIONS, NAMED, TOOLS

CALL = 'track\n{"symbol": "10111"}'


def ask(running, **fields):
    fields = {"model": "small-v4", "messages": user("北京天气"), "tools": TOOLS, "max_tokens": 600} | fields
    return client(running).chat.completions.create(**fields)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_goes_back(v4_server, says, stream):
    says(v4_server, CALL)
    reply = ask(v4_server, messages=user("price 10111"), tools=[TOOL], stream=stream)
    if stream:
        chunks = list(reply)
        assert not any(c.choices[0].delta.content for c in chunks)
        (call,) = next(c.choices[0].delta.tool_calls for c in chunks if c.choices[0].delta.tool_calls)
        end = chunks[-1].choices[0].finish_reason
    else:
        (call,) = reply.choices[0].message.tool_calls
        end = reply.choices[0].finish_reason
        assert reply.choices[0].message.content is None
    assert (end, call.function.name, json.loads(call.function.arguments)) == (
        "tool_calls",
        "track",
        {"symbol": "10111"},
    )
    called = {"role": "assistant", "content": None, "tool_calls": [call.model_dump(exclude={"index"})]}
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"price": 12412}'}
    says(v4_server, "\nthe price is 12412")
    reply = ask(v4_server, messages=[*user("price 10111"), called, result], tools=[TOOL])
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("the price is 12412", "stop")


def test_a_conversation_with_a_call_becomes_the_same_prompt_as_in_python(v4_server, v4_engine):
    call = {"id": "a", "type": "function", "function": {"name": "track", "arguments": '{"symbol":"北京"}'}}
    messages = [
        {"role": "system", "content": "Be brief."},
        *user("price 1"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "12"},
    ]
    ours = [
        {"role": "system", "content": "Be brief."},
        *user("price 1"),
        {"role": "assistant", "metadata": "track", "content": '{"symbol": "北京"}'},
        {"role": "observation", "content": "12"},
    ]
    read = read_messages([ChatMessage.model_validate(message) for message in messages], chat_format("4"))
    assert [message for message in read if message["content"]] == ours
    reply = ask(v4_server, messages=messages, tools=[TOOL], max_tokens=1)
    assert reply.usage.prompt_tokens == v4_engine.count_tokens(ours, [TOOL])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\nlet me look", "let me look"),
        ('trick\n{"symbol": "1"}', 'trick\n{"symbol": "1"}'),
        ('track\n{"symbol": ', 'track\n{"symbol":'),
        ('track\n{"stock": "1"}', 'track\n{"stock": "1"}'),
    ],
)
def test_what_is_no_call_is_text(v4_server, says, text, shown):
    for stream in (False, True):
        says(v4_server, text)
        reply = ask(v4_server, messages=user("price"), tools=[TOOL], stream=stream)
        if stream:
            content = "".join(chunk.choices[0].delta.content or "" for chunk in reply)
        else:
            content = reply.choices[0].message.content
        assert content == shown


@pytest.mark.parametrize("choice", [NAMED, "required"])
def test_a_call_that_is_demanded_has_arguments_that_fit(v4_server, choice):
    (whole,) = ask(v4_server, tool_choice=choice, seed=1, temperature=1).choices
    (call,) = whole.message.tool_calls
    assert (whole.finish_reason, whole.message.content) == ("tool_calls", None)
    (function,) = [function for function in FUNCTIONS if function["name"] == call.function.name]
    jsonschema.validate(json.loads(call.function.arguments), function["parameters"])
    chunks = [c.choices[0] for c in ask(v4_server, tool_choice=choice, seed=1, temperature=1, stream=True)]
    (streamed,) = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    assert streamed.function.arguments == call.function.arguments
    assert not any(chunk.delta.content for chunk in chunks)


def test_a_tool_that_takes_nothing_is_called_with_nothing(v4_server):
    (choice,) = ask(v4_server, tools=TOOLS[1:], tool_choice="required").choices
    assert choice.message.tool_calls[0].function.arguments == "{}"


def test_the_answer_is_begun_with_the_line_of_the_name(v4_server, monkeypatch):
    given, make = [], v4_server.batcher.sequence
    monkeypatch.setattr(
        v4_server.batcher, "sequence", lambda prompt, *more: given.append(list(prompt)) or make(prompt, *more)
    )
    for choice in ("auto", NAMED):
        ask(v4_server, tool_choice=choice, max_tokens=1)
    assert given[1] == [*given[0], *v4_server.server.engine.tokenizer.encode("weather\n")]
    assert given[0][-1] == v4_server.server.engine.tokenizer.role_ids["assistant"]
