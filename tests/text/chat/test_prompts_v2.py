"""Prompts of v2 against the official ones."""

import json

import pytest

from glm_int4.errors import InputError
from glm_int4.text import ChatGLM2Tokenizer
from glm_int4.text.chat.chat_format import chat_format
from glm_int4.text.chat.prompts_v2 import build_prompt
from tests.conftest import FIXTURES

ORACLE = json.loads((FIXTURES / "tokenizer_v2.json").read_text(encoding="utf-8"))
FIRST = [{"role": "user", "content": "你好"}]
SECOND = [
    *FIRST,
    {"role": "assistant", "content": "你好👋！"},
    {"role": "user", "content": "晚上睡不着应该怎么办"},
]


@pytest.mark.parametrize(("messages", "key"), [(FIRST, "prompt_first"), (SECOND, "prompt_second")])
def test_prompts_and_their_ids_are_the_official_ones(official_v2, messages, key):
    assert build_prompt(messages) == ORACLE[key]
    ids = chat_format("2").encode(ChatGLM2Tokenizer(official_v2), messages)
    assert ids == ORACLE[f"{key}_ids"]


def test_a_later_prompt_goes_on_with_the_official_ids(official_v2):
    # A cache of the first round and its answer can be kept: the rest is what the official stream encodes.
    ids = chat_format("2").encode(ChatGLM2Tokenizer(official_v2), SECOND)
    assert ids[-len(ORACLE["stream_cont_ids"]) :] == ORACLE["stream_cont_ids"]


def test_system_text_goes_in_front():
    messages = [{"role": "system", "content": "请简短回答。"}, *FIRST]
    assert build_prompt(messages) == "请简短回答。\n[Round 1]\n\n问：你好\n\n答："


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "last message"),
        ([*FIRST, *FIRST], "in turn, got one of role 'user'"),
        ([{"role": "observation", "content": "a"}], "in turn, got one of role 'observation'"),
        ([{"role": "user", "content": " \n"}], "empty prompt"),
        (["你好"], "expected every message as"),
        ([{"role": "user", "content": ["你好"]}], "a text as content, got \\['你好'\\]"),
    ],
)
def test_conversations_out_of_order_are_refused(messages, message):
    with pytest.raises(InputError, match=message):
        build_prompt(messages)
