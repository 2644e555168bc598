"""What stands between a text and what a model writes behind it."""

import pytest

from glm_int4.text import ChatGLM2Tokenizer, load_tokenizer
from glm_int4.text.chat.chat_format import chat_format
from glm_int4.text.continued import SpaceOnce, decoder_behind, encode_open
from tests.conftest import EXAMPLES

TEXTS = ["The sky is", "Hi", "你好", "x,", "1 + 1 =", "a\n", "def f():\n   ", "a b "]
WORDS = ["blue", "Hello", "x", "12", "你好", ", too"]


def written_on(tokenizer, text, word):
    """A text as a client has it, where a model writes a word behind it."""
    beginning = encode_open(tokenizer, text)
    decoder, once = decoder_behind(tokenizer, beginning), SpaceOnce(text)
    pieces = [once.push(decoder.push(token)) for token in tokenizer.encode(word)]
    return text + "".join(pieces) + once.push(decoder.finish())


def check(tokenizer):
    for text in TEXTS:
        assert encode_open(tokenizer, text.rstrip(" ")) == tokenizer.encode(text.rstrip(" "))
        spaces = len(text) - len(text.rstrip(" "))
        for word in WORDS:
            whole = written_on(tokenizer, f"{text} ", word)
            rest = whole.removeprefix(text.rstrip(" "))
            assert len(rest) - len(rest.lstrip(" ")) == spaces + 1, (text, word, whole)
            assert whole.endswith(word)


@pytest.mark.parametrize("version", "123")
def test_official_tokenizers_put_no_second_space_behind_one(official_tokenizers, version):
    check(load_tokenizer(official_tokenizers / ("v1" if version == "1" else "v2"), version))


def test_the_mini_models_tokenizer_puts_no_second_space_behind_one():
    check(load_tokenizer(EXAMPLES / "mini-chatglm"))


@pytest.mark.parametrize("version", "23")
def test_a_small_bpe_model_puts_no_second_space_behind_one(small_bpe, version):
    check(ChatGLM2Tokenizer(small_bpe, version))


@pytest.mark.parametrize("version", "123")
def test_the_ids_of_a_beginning_are_those_that_it_has_in_front_of_a_word(official_tokenizers, version):
    """The model has read such ids before; a space alone is none of them."""
    tokenizer = load_tokenizer(official_tokenizers / ("v1" if version == "1" else "v2"), version)
    for text in ("The sky is ", "x, ", "a\n ", "a\n    ", "a  "):
        ids = encode_open(tokenizer, text)
        assert ids == tokenizer.encode(f"{text}blue")[: len(ids)]
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": text}]
        _, beginning = chat_format(version).encode_any_order(tokenizer, turns)
        assert beginning[-len(ids) :] == ids
    assert encode_open(tokenizer, "The sky is ") == tokenizer.encode("The sky is")
