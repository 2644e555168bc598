"""The common face of the versions' conversations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_int4.errors import InputError
from glm_int4.text import load_tokenizer
from glm_int4.text.chat.chat_format import chat_format
from glm_int4.text.chat.prompts_v1 import build_prompt
from tests.conftest import MINI
from tests.text.chat.test_tools import TRACK

QUESTION = [{"role": "user", "content": "3加5等于几?"}]


def test_version_1_is_encoded_as_before():
    tokenizer = load_tokenizer(MINI)
    assert chat_format("1").encode(tokenizer, QUESTION) == tokenizer.encode_prompt(build_prompt(QUESTION))


@pytest.mark.parametrize("version", ["1", "2"])
def test_tools_need_version_3(version):
    tokenizer = load_tokenizer(MINI)
    with pytest.raises(InputError, match=f"expected no tools for version {version}"):
        chat_format(version).encode(tokenizer, QUESTION, [TRACK])
    with pytest.raises(InputError, match=f"expected no tools for version {version}"):
        chat_format(version).encode(tokenizer, [{"role": "system", "content": "", "tools": [TRACK]}, *QUESTION])


def test_an_unknown_version_is_refused():
    with pytest.raises(InputError, match="expected version 1, 2, 3 or 4, got 'auto'"):
        chat_format("auto")


@given(st.lists(st.text(alphabet="好a ,![训练时间]\n", max_size=5), max_size=12))
def test_streams_add_up_to_the_content(pieces):
    for version in ("1", "2"):
        stream = chat_format(version).response_stream()
        streamed = [stream.push(piece) for piece in pieces] + [stream.finish()]
        assert "".join(streamed) == chat_format(version).parse_reply("".join(pieces)).content
