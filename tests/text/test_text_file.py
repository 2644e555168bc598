"""Texts with a byte order mark, with other line ends, and in other encodings."""

import codecs

import pytest

from glm_int4.errors import InputError
from glm_int4.text import load_tokenizer
from glm_int4.text.text_file import read_text
from glm_int4.text.tokenizer_v2 import ChatGLM2Tokenizer
from tests.conftest import MINI

TEXT = "你好\n\n  What is 3 plus 5?\n\tone\rtwo\n"
MARK, CRLF = codecs.BOM_UTF8, TEXT.replace("\n", "\r\n")
WRITTEN = {"bom": MARK + TEXT.encode(), "crlf": CRLF.encode(), "bom and crlf": MARK + CRLF.encode()}


@pytest.fixture(params=["1", "2", "3"], ids="v{}".format)
def tokenizer(request, small_bpe):
    return load_tokenizer(MINI) if request.param == "1" else ChatGLM2Tokenizer(small_bpe, request.param)


@pytest.mark.parametrize("written", WRITTEN)
def test_a_bom_and_crlf_change_no_ids(tmp_path, tokenizer, written):
    (tmp_path / "text.txt").write_bytes(WRITTEN[written])
    assert tokenizer.encode(read_text(tmp_path / "text.txt")) == tokenizer.encode(TEXT)


def test_beside_a_bom_everything_stays(tmp_path):
    (tmp_path / "text.txt").write_bytes(MARK + "\ufeff\r\r\n\ra\ufeffb \r".encode())
    assert read_text(tmp_path / "text.txt") == "\ufeff\r\n\ra\ufeffb \r"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-32-be"])
def test_a_bom_of_another_encoding_is_named_with_the_cure(tmp_path, encoding):
    mark = "\ufeff" if encoding.endswith("be") else ""  # the others write it themselves
    (tmp_path / "text.txt").write_bytes((mark + TEXT).encode(encoding))
    name = encoding[:6].upper()
    with pytest.raises(InputError) as caught:
        read_text(tmp_path / "text.txt")
    assert str(caught.value) == (
        f"expected UTF-8 in {tmp_path / 'text.txt'}, got {name}; convert it: iconv -f {name} -t UTF-8"
    )


@pytest.mark.parametrize("content", [MARK, MARK + b"\r\n"])
def test_a_bom_alone_is_an_empty_file(tmp_path, content):
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(InputError, match="got an empty file"):
        read_text(tmp_path / "text.txt")
