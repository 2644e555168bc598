"""Roles in any order: a conversation in turn is what it was, and every other one has a prompt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_int4.errors import InputError
from glm_int4.text import ChatGLM2Tokenizer, load_tokenizer
from glm_int4.text.chat.any_order import as_rounds, split_beginning
from glm_int4.text.chat.chat_format import chat_format
from tests.conftest import EXAMPLES

WORDS = st.sampled_from(["a", "你好", "b c"])


@pytest.fixture(scope="module")
def tokenizers(small_bpe):
    first = load_tokenizer(EXAMPLES / "mini-chatglm")
    return {"1": first} | {version: ChatGLM2Tokenizer(small_bpe, version) for version in "23"}


@given(system=st.booleans(), texts=st.lists(WORDS, min_size=1, max_size=5).filter(lambda texts: len(texts) % 2))
def test_a_conversation_in_turn_becomes_the_same_prompt(tokenizers, system, texts):
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    messages = [{"role": "system", "content": "s"}, *messages] if system else messages
    for version, tokenizer in tokenizers.items():
        chat = chat_format(version)
        assert chat.encode_any_order(tokenizer, messages) == (chat.encode(tokenizer, messages), [])


@given(turns=st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "observation"]), WORDS), min_size=1))
def test_every_text_is_in_the_prompt_once(tokenizers, turns):
    messages = [{"role": role, "content": f"{text}{i}."} for i, (role, text) in enumerate(turns)]
    for version, tokenizer in tokenizers.items():
        prompt, beginning = chat_format(version).encode_any_order(tokenizer, messages)
        text = tokenizer.decode(prompt) + tokenizer.decode(beginning)
        for message in messages:
            assert text.count(message["content"]) == 1
        assert bool(beginning) == (turns[-1][0] == "assistant")


@pytest.mark.parametrize("roles", ["u", "ua", "uau", "su", "a"])
def test_messages_without_text_are_left_out(roles):
    names = {"u": "user", "a": "assistant", "s": "system"}
    blank = [{"role": names[role], "content": " \n"} for role in roles]
    with pytest.raises(InputError, match="got an empty prompt"):
        split_beginning(blank)
    if roles[-1] == "a":
        assert split_beginning([{"role": "user", "content": "a"}, *blank])[0][0]["content"] == "a"


def test_calls_are_not_joined():
    call = {"role": "assistant", "metadata": "f", "content": "x"}
    assert split_beginning([call, call]) == ([call, call], "")
    assert as_rounds([]) == ("", [], "")
