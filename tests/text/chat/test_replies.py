"""Answers taken apart: calls are read, never run."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from glm_int4.text.chat.chat_format import chat_format
from glm_int4.text.chat.replies import MAX_CALL_CHARACTERS, ToolCall
from tests.text.chat.test_tools import TRACK

V3 = chat_format("3")


def call(arguments, name="track", tools=None):
    return V3.parse_reply(f"{name}\n ```python\ntool_call({arguments})\n```", tools)


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        ("symbol='10111'", {"symbol": "10111"}),
        ("", {}),
        ("k='v', n=3", {"k": "v", "n": 3}),
        (
            "a=-1.5, b=[1, (2,)], c={'x': None}, d=True",
            {"a": -1.5, "b": [1, [2]], "c": {"x": None}, "d": True},
        ),
        ("text='''a\n```b\n```'''", {"text": "a\n```b\n```"}),
        (r"pattern='\d'", {"pattern": r"\d"}),
        ("a=1, **{'class': 'x', 'from-date': None}", {"a": 1, "class": "x", "from-date": None}),
    ],
)
def test_keyword_arguments_are_read(arguments, values):
    reply = call(arguments)
    assert reply.tool_call == ToolCall(name="track", arguments=values)
    assert (reply.fault, reply.code, reply.metadata) == (None, None, "track")


def test_arguments_without_a_name_take_those_of_the_tool():
    assert call("'10111', n=3", tools=[TRACK]).tool_call.arguments == {"symbol": "10111", "n": 3}
    assert call("'10111', 3", tools=[TRACK]).tool_call.arguments == {"symbol": "10111", "n": 3}
    assert "expected keyword arguments, got 1" in call("'10111'").fault
    assert "expected keyword arguments, got 3" in call("1, 2, 3", tools=[TRACK]).fault
    assert "expected every argument once" in call("1, symbol=2", tools=[TRACK]).fault


@pytest.mark.parametrize(
    "arguments",
    [
        "a=__import__('os').system('true')",
        "a=open('/etc/passwd').read()",
        "a=b",
        "a=f'{1}'",
        "a=1+1",
        "a={1: 2}",
        "a={1}",
        "a=b'x'",
        "a=1j",
        "a=...",
        "a=1e999",
        "a=0x" + "f" * 5000,
        "a='\\ud800'",
        "a={[]: 1}",
        "**{1: 2}",
        "**a",
        "a=1, **{'a': 2}",
        "**{'a': 1, 'a': 2}",
        "**{**{'a': 1}}",
        "**{'a': b}",
        r"**{'\ud800': 1}",
        "*[1]",
        "a=1, a=2",
        "a=",
        "a='\0'",
        "a=(yield)",
        "a=" + "[" * 40 + "]" * 40,
    ],
)
def test_anything_but_literal_json_is_a_fault(arguments):
    reply = call(arguments)
    assert reply.tool_call is None
    assert reply.fault.startswith("expected ")
    assert "\n" not in reply.fault
    assert reply.content == f" ```python\ntool_call({arguments})\n```"


@pytest.mark.parametrize(
    "text",
    [
        "track\n```python\ntool_call(a=1)",
        "track\n```python\nprint(1)\n```",
        "track\n```python\ntrack(a=1)\n```",
        "track\n```python\ntool_call(a=1); tool_call(a=2)\n```",
        "track\n```python\nx.tool_call(a=1)\n```",
    ],
)
def test_anything_but_one_call_is_a_fault(text):
    reply = V3.parse_reply(text)
    assert reply.tool_call is None
    assert reply.fault.startswith("expected ")
    assert f"track\n{reply.content}" == text


@pytest.mark.parametrize("text", ["track\nno fence", "track\n"])
def test_a_tool_that_is_known_is_meant_even_without_a_fence(text):
    assert V3.parse_reply(text, [TRACK]).fault.startswith("expected code between ``` lines")
    assert V3.parse_reply(text).fault is None
    assert V3.parse_reply(text).content == text.strip()


@pytest.mark.parametrize("arguments", ["", "stock='1'", "symbol='1', stock='2'"])
def test_arguments_that_the_tool_does_not_take_or_that_are_missing_are_a_fault(arguments):
    tool = {
        "name": "track",
        "parameters": {"type": "object", "properties": {"symbol": {}}, "required": ["symbol"]},
    }
    assert call(arguments, tools=[tool]).fault.startswith("expected arguments of symbol, got")
    assert call("symbol='1'", tools=[tool]).tool_call.arguments == {"symbol": "1"}


def test_a_tool_that_does_not_exist_is_a_fault():
    assert call("", name="now", tools=[TRACK]).fault == "expected a tool of track, got 'now'"


@pytest.mark.parametrize(
    "hostile",
    ["-", "not ", "(", "[", "{1:", "{**", "lambda:", "a.", "1+", "1 if 1 else ", "f(", "await ", "9", "a[0]"],
)
@pytest.mark.parametrize("characters", [2000, MAX_CALL_CHARACTERS - 100, 10**6])
def test_hostile_calls_crash_nothing(hostile, characters):
    reply = call("a=" + hostile * (characters // len(hostile)))
    assert reply.fault is not None


def test_code_is_told_from_calls():
    reply = V3.parse_reply("interpreter\n ```python\nprint(1)\nx = 2\n```")
    assert (reply.code, reply.tool_call, reply.metadata) == ("print(1)\nx = 2", None, "interpreter")
    assert V3.parse_reply("interpreter\nprint(1)").fault.startswith("expected code between ``` lines")


def test_plain_answers_are_content_alone():
    reply = V3.parse_reply("\n [[训练时间]]是什么")
    assert (reply.content, reply.metadata, reply.tool_call) == ("2023年是什么", "", None)
    assert reply.as_message() == {"role": "assistant", "content": "[[训练时间]]是什么"}
    assert V3.parse_reply("one line").content == "one line"
    assert V3.parse_reply("").content == ""


@pytest.mark.parametrize(("version", "content"), [("1", "你好！track\nx"), ("2", "你好!track\nx")])
def test_earlier_versions_have_content_alone(version, content):
    reply = chat_format(version).parse_reply(" 你好!track\nx ")
    assert reply.content == content
    assert reply.as_message() == {"role": "assistant", "content": content}


@example("t\n```")
@example("track\n\nt")
@given(
    st.lists(st.sampled_from([*"track\n`(a='1',)[]{}:<|>*- ", "<|assistant|>", "```", "tool_call("]), max_size=40).map(
        "".join
    )
)
def test_any_answer_can_be_read_and_is_what_the_stream_shows(text):
    for version in ("1", "2", "3"):
        reply = chat_format(version).parse_reply(text, [TRACK] if version == "3" else None)
        parts = (*reply.earlier, reply)
        stream = chat_format(version).response_stream()
        shown = stream.push(text) + stream.finish()
        # Of a call the stream shows the name too; blank lines inside it are the text's own.
        assert shown.split() == " ".join(f"{part.metadata} {part.content}" for part in parts).split()
        if not any(part.metadata for part in parts):
            assert shown == "\n".join(filter(None, (part.content.strip() for part in parts)))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(exclude_categories=["Cs"])),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values, max_size=3),
    max_leaves=8,
)  # fmt: skip


NAMES = st.sampled_from(["a", "b", "名字", "class", "from-date", "ﬁ", "", "a'b", "a\n"])


@given(st.dictionaries(NAMES, JSON_VALUES))
def test_a_call_reads_back_as_it_was_written(arguments):
    message = ToolCall(name="track", arguments=arguments).as_message()
    reply = V3.parse_reply(f"{message['metadata']}\n{message['content']}")
    assert reply.fault is None
    assert json.dumps(reply.tool_call.arguments, sort_keys=True) == json.dumps(arguments, sort_keys=True)
    assert reply.as_message() == message
