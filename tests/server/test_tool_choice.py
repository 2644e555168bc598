"""Answers that must call a tool, from a model of random weights: only the grammar makes them calls."""

import json

import jsonschema
import openai
import pytest
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

from tests.server.conftest import client
from tests.server.test_openai_clients import user

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 6},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"enum": ["C", "F", None]},
        "from": {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 0.5}, "maxItems": 1},
    },
    "required": ["city", "from"],
}
FUNCTIONS = [
    {"name": "weather", "description": "天气", "parameters": WEATHER},
    {"name": "now", "parameters": {"type": "object", "properties": {}}},
]
TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]
NAMED = {"type": "function", "function": {"name": "weather"}}


def ask(running, **fields):
    fields = {"model": "m", "messages": user("北京天气"), "tools": TOOLS, "max_tokens": 400, "temperature": 1} | fields
    return client(running).chat.completions.create(**fields)


@pytest.fixture
def prompts(v3_server, monkeypatch):
    """Ids of the prompts that the server's engine is given."""
    given, make = [], v3_server.batcher.sequence
    monkeypatch.setattr(
        v3_server.batcher, "sequence", lambda prompt, *more: given.append(list(prompt)) or make(prompt, *more)
    )
    return given


def checked(call):
    """The arguments of a call, which fit its tool's schema."""
    (function,) = [function for function in FUNCTIONS if function["name"] == call.name]
    arguments = json.loads(call.arguments)
    jsonschema.validate(arguments, function["parameters"])
    return arguments


@pytest.mark.parametrize("seed", range(2))
def test_a_named_tool_is_called_with_arguments_that_fit(v3_server, seed):
    (choice,) = ask(v3_server, tool_choice=NAMED, seed=seed).choices
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content, call.function.name) == ("tool_calls", None, "weather")
    assert checked(call.function)["city"] is not None


def test_the_answer_is_begun_with_the_line_of_the_name_as_in_a_conversation(v3_server, prompts):
    tokenizer = v3_server.server.engine.tokenizer
    for choice in ("auto", NAMED, {"type": "function", "name": "weather"}):
        ask(v3_server, tool_choice=choice, max_tokens=1)
    free, named, alone = prompts
    assert named == alone == [*free, *tokenizer.encode("weather\n")]
    ask(v3_server, tool_choice="required", max_tokens=1)
    ask(v3_server, tool_choice="required", max_tokens=1, tools=TOOLS[1:])
    assert prompts[3] == free
    assert prompts[4][-len(tokenizer.encode("now\n")) :] == tokenizer.encode("now\n")


def test_a_call_comes_behind_what_the_assistant_has_said(v3_server, prompts):
    tokenizer = v3_server.server.engine.tokenizer
    messages = [*user("a"), {"role": "assistant", "content": "b"}]
    (choice,) = ask(v3_server, messages=messages, tool_choice=NAMED).choices
    assert choice.finish_reason == "tool_calls"
    said = [*tokenizer.encode("\n"), *tokenizer.encode("b")]
    end = [*said, tokenizer.role_ids["assistant"], *tokenizer.encode("weather\n")]
    assert prompts[0][-len(end) :] == end


@pytest.mark.parametrize("choice", ["required", "any"])
def test_one_of_the_tools_is_called(v3_server, choice):
    tools = [*TOOLS, {"type": "function", "function": {"name": "noon"}}]
    varied = {"seed": 3, "temperature": 2, "top_p": 1, "extra_body": {"top_k": -1}}
    choices = ask(v3_server, tools=tools, tool_choice=choice, n=6, parallel_tool_calls=True, **varied).choices
    assert {(len(choice.message.tool_calls), choice.finish_reason) for choice in choices} == {(1, "tool_calls")}
    names = {choice.message.tool_calls[0].function.name for choice in choices}
    assert len(names) > 1
    assert names <= {"weather", "now", "noon"}


@pytest.mark.parametrize("choice", [NAMED, "required"])
def test_a_stream_has_the_call_of_the_whole_answer(v3_server, choice):
    whole = ask(v3_server, tool_choice=choice, seed=5).choices[0].message.tool_calls[0].function
    chunks = [chunk.choices[0] for chunk in ask(v3_server, tool_choice=choice, seed=5, stream=True)]
    (call,) = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    assert (call.index, call.type, call.function.name, call.function.arguments) == (
        0, "function", whole.name, whole.arguments,
    )  # fmt: skip
    assert call.id.startswith("call_")
    assert not any(chunk.delta.content for chunk in chunks)
    assert chunks[-1].finish_reason == "tool_calls"
    assert chunks[0].delta.role == "assistant"


def test_a_call_that_is_demanded_takes_the_place_of_another_form(v3_server):
    (choice,) = ask(v3_server, tool_choice=NAMED, response_format={"type": "json_object"}).choices
    assert choice.finish_reason == "tool_calls"
    checked(choice.message.tool_calls[0].function)


@pytest.mark.parametrize("stream", [True, False])
def test_a_function_is_called_in_the_form_that_came_before_tools(v3_server, stream):
    answer = ask(v3_server, tools=openai.NOT_GIVEN, functions=FUNCTIONS, function_call={"name": "now"}, stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
    (call,) = [call for c in choices if (call := (c.delta if stream else c.message).function_call)]
    assert (call.name, call.arguments, choices[-1].finish_reason) == ("now", "{}", "function_call")


def test_a_call_that_is_cut_is_text(v3_server):
    (choice,) = ask(v3_server, tool_choice=NAMED, max_tokens=12).choices
    assert (choice.finish_reason, choice.message.tool_calls) == ("length", None)
    assert choice.message.content.startswith("weather\n```python")


def test_without_a_choice_or_against_one_nothing_is_forced(v3_server, prompts):
    tokenizer = v3_server.server.engine.tokenizer
    for fields in ({"tool_choice": "none"}, {"tools": openai.NOT_GIVEN}):
        (choice,) = ask(v3_server, max_tokens=8, **fields).choices
        assert (choice.finish_reason, choice.message.tool_calls) == ("length", None)
    assert prompts[0] == prompts[1]
    assert tokenizer.role_ids["system"] not in prompts[0]


def test_some_of_the_tools_can_be_allowed(v3_server, prompts):
    some = {"mode": "required", "tools": [{"type": "function", "function": {"name": "now"}}]}
    (choice,) = ask(v3_server, tool_choice={"type": "allowed_tools", "allowed_tools": some}).choices
    assert [call.function.name for call in choice.message.tool_calls] == ["now"]
    ask(v3_server, tool_choice={"type": "allowed_tools", "allowed_tools": some | {"mode": "auto"}}, max_tokens=1)
    ask(v3_server, tools=TOOLS[1:], max_tokens=1)
    assert prompts[1] == prompts[2]


def test_calls_run_beside_answers_that_are_free(v3_server):
    answers = [None] * 2
    alone = ask(v3_server, tool_choice=NAMED, seed=9).choices[0].message.tool_calls[0].function.arguments
    with openai.OpenAI(base_url=f"{v3_server.url}/v1", api_key="none").with_options(timeout=60) as shared:
        streams = [
            shared.chat.completions.create(
                model="m", messages=user("北京天气"), tools=TOOLS, seed=9, max_tokens=400 if index % 2 else 40,
                tool_choice=NAMED if index % 2 else "none", stream=True, temperature=1,
            )
            for index in range(2)
        ]  # fmt: skip
        for index, stream in enumerate(streams):
            answers[index] = [chunk.choices[0] for chunk in stream]
    for index, chunks in enumerate(answers):
        calls = [call.function.arguments for chunk in chunks for call in chunk.delta.tool_calls or ()]
        assert calls == ([alone] if index % 2 else [])


class Trip(BaseModel):
    """A trip to plan."""

    goal: str = Field(max_length=5)
    nights: int = Field(ge=1, le=9)
    by_train: bool = True
    next_trip: "Trip | None" = None


def test_langchain_gets_an_object_of_its_class(v3_server):
    model = ChatOpenAI(
        base_url=f"{v3_server.url}/v1", model="m", api_key="none", max_retries=0, timeout=60, max_tokens=400, seed=4
    )
    trip = model.with_structured_output(Trip, method="function_calling").invoke("plan")
    assert isinstance(trip, Trip)
    (call,) = model.bind_tools(TOOLS, tool_choice="any").invoke("天气").tool_calls
    assert call["name"] in ("weather", "now")


def test_log_probabilities_and_biases_leave_a_call_a_call(v3_server):
    (choice,) = ask(v3_server, tool_choice=NAMED, seed=2, logprobs=True, logit_bias={"5": 100}).choices
    (call,) = choice.message.tool_calls
    checked(call.function)
    assert len(choice.logprobs.content) > len(call.function.arguments) / 4
