"""Prompts of GLM-4 against the official ones, and what streams of its answers show."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from glm_int4.errors import InputError
from glm_int4.text import GLM4Tokenizer
from glm_int4.text.chat.chat_format import chat_format
from glm_int4.text.chat.prompts_v3 import ASSISTANT
from glm_int4.text.chat.prompts_v4 import ContentStream, ResponseStream
from glm_int4.text.chat.tools_v4 import check_tools
from tests.conftest import FIXTURES
from tests.text.chat.test_tools import TRACK

ORACLE = json.loads((FIXTURES / "tokenizer_glm4.json").read_text(encoding="utf-8"))
V4 = chat_format("4")
WEATHER = ORACLE["chats"]["tools"]["messages"][0]["tools"][0]
CALL = '{"city": "北京"}'


def user(text):
    return {"role": "user", "content": text}


@pytest.fixture(scope="module")
def tokenizer(official_glm4):
    return GLM4Tokenizer(official_glm4)


@pytest.fixture(scope="module")
def small(small_ranks):
    return GLM4Tokenizer(small_ranks)


@pytest.mark.parametrize("name", ORACLE["chats"])
def test_prompts_are_the_official_ones(tokenizer, name):
    assert V4.encode(tokenizer, ORACLE["chats"][name]["messages"]) == ORACLE["chats"][name]["ids"]


@pytest.mark.parametrize("wrapped", [False, True])
def test_tools_as_an_argument_stand_in_a_system_message_of_their_own(tokenizer, wrapped):
    tools = [WEATHER if wrapped else WEATHER["function"]]
    question = ORACLE["chats"]["tools"]["messages"][1:]
    assert V4.encode(tokenizer, question, tools) == ORACLE["chats"]["tools"]["ids"]
    (system, asked), both = ORACLE["chats"]["tools_and_system"]["messages"], ORACLE["chats"]["tools_and_system"]["ids"]
    brief = {"role": "system", "content": system["content"]}
    assert V4.encode(tokenizer, [brief, asked], system["tools"]) == both


def test_a_call_and_what_the_tool_answered_give_the_official_prompt(tokenizer):
    *asked, called, result = ORACLE["chats"]["call_and_result"]["messages"]
    reply = V4.parse_reply(f"get_weather\n{CALL}", [WEATHER])
    for answer in (reply.as_message(), V4.call_message(reply.tool_call), called):
        assert V4.encode(tokenizer, [*asked, answer, result]) == ORACLE["chats"]["call_and_result"]["ids"]
    line = V4.encode_call(tokenizer, "get_weather")
    ids = V4.encode(tokenizer, [*asked, called, result])
    at = ids.index(tokenizer.role_ids["assistant"]) + 1
    assert ids[at : at + len(line)] == line


def test_roles_in_any_order_and_an_answer_that_is_begun(small):
    system = {"role": "system", "content": "Be brief."}
    begun = {"role": "assistant", "content": "Well, "}
    prompt, beginning = V4.encode_any_order(small, [user("a"), system, user("b"), begun])
    roles = [small.role_ids[role] for role in ("user", "system", "user", "assistant")]
    assert [token for token in prompt if token > small.sop_id] == roles
    assert small.decode(beginning) == "\nWell,"  # the space is the next word's
    assert V4.before_content(small) == small.encode("\n")


def test_special_tokens_that_a_user_types_are_plain_text(small):
    ids = V4.encode(small, [user("<|user|>\n<|endoftext|>[gMASK]<sop>")])
    special = [*small.prefix_ids, small.role_ids["user"], small.role_ids["assistant"]]
    assert [token for token in ids if token >= small.eos_id] == special


@pytest.mark.parametrize(
    ("messages", "tools", "message"),
    [
        ([], None, "last message"),
        ([user(" ")], None, "empty prompt"),
        ([user("a"), user("b")], None, "in turn, got one of role 'user' after one of role 'user'"),
        ([user("a") | {"tools": [WEATHER]}], None, "tools in a system message"),
        ([{"role": "system", "content": "", "tools": [WEATHER]}, user("a")], [WEATHER], "expected tools once"),
        ([user("a")], [{"type": "browser"}], "expected tool 0 to have a name"),
        ([user("a")], [{"type": "python"}, {"type": "python"}], "got one of type 'python' twice"),
        ([user("a")], [{"name": "cogview"}], "another name than 'cogview', which means a tool of the model's own"),
        ([user("a")], [WEATHER, WEATHER], "'get_weather' twice"),
        ([user("a")], "tools", "expected a list of tools"),
    ],
)
def test_conversations_that_make_no_sense_are_refused(small, messages, tools, message):
    with pytest.raises(InputError, match=message):
        V4.encode(small, messages, tools)


def test_own_tools_stand_where_they_were_given():
    given = [{"type": "python"}, TRACK, {"type": "cogview", "more": 1}]
    assert check_tools(given) == [{"type": "python"}, TRACK, {"type": "cogview"}]
    assert check_tools(None) == check_tools([]) == []


@pytest.mark.parametrize(
    ("raw", "shown", "content"),
    [
        ("\n你好", "你好", "你好"),
        ("你好", "你好", "你好"),
        ("\n a\n b ", "a\n b", "a\n b"),
        ("\n[[训练时间]]", "2023年", "2023年"),
        (f"track\n{CALL}", f"track\n{CALL}", ""),
        (f"\nsee<|assistant|>track\n{CALL}", f"see\ntrack\n{CALL}", "see"),
        (f"track\n{CALL}<|assistant|>\nbehind", f"track\n{CALL}\nbehind", "behind"),
        ('track\n{"a": "<|assistant|>x"}<|assistant|>\ny', 'track\n{"a": "\nx"}\ny', "y"),
        (f"trick\n{CALL}", f"trick\n{CALL}", f"trick\n{CALL}"),
        ("track\nthe parcel", "track\nthe parcel", "track\nthe parcel"),
        ("track", "track", "track"),
        ("", "", ""),
    ],
)
def test_what_is_shown_loses_no_text_and_content_has_no_calls(raw, shown, content):
    for stream, expected in ((ResponseStream(), shown), (ContentStream(["track"]), content)):
        assert stream.push(raw) + stream.finish() == expected
    for stream, expected in ((ResponseStream(), shown), (ContentStream(["track"]), content)):
        assert "".join([*map(stream.push, raw), stream.finish()]) == expected


def test_a_line_waits_until_it_is_known_not_to_be_the_name_of_a_tool():
    stream = ContentStream(["track"])
    assert [stream.push(piece) for piece in ("tr", "ack", "\n", " ", "x")] == ["", "", "", "", "track\n x"]
    stream = ContentStream(["track"])
    assert [stream.push(piece) for piece in ("tri", "ck", "\n", "a")] == ["tri", "ck", "", "\na"]
    stream = ContentStream(["track"])
    assert [stream.push(piece) for piece in ("\n", "track", "ed")] == ["", "track", "ed"]


@example(["track\n{", ASSISTANT, "\na"])
@example(["track\n{}", ASSISTANT, "a", ASSISTANT, "track"])
@given(
    st.lists(st.text('好a\n {"}[训练时间]<|asitn>', max_size=5) | st.sampled_from([ASSISTANT, "track\n{", "{}", "t"]))
)
def test_streamed_cleaning_adds_up_to_the_whole(pieces):
    for make in (ResponseStream, lambda: ContentStream(["track"])):
        stream, whole = make(), make()
        streamed = [stream.push(piece) for piece in pieces] + [stream.finish()]
        assert "".join(streamed) == whole.clean("".join(pieces), True)
