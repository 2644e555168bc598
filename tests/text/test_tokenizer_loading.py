"""Which tokenizer a folder gets."""

import json
import logging
import shutil

import pytest

from glm_int4.errors import TokenizerError
from glm_int4.text import load_tokenizer
from glm_int4.text.tokenizer_loading import detect_version
from tests.conftest import MINI

V2, V3 = {"name_or_path": "THUDM/chatglm2-6b"}, {"name_or_path": "THUDM/chatglm3-6b"}


@pytest.fixture
def folder(small_bpe, tmp_path):
    shutil.copy(small_bpe, tmp_path / "tokenizer.model")
    return tmp_path


def write(folder, tokenizer_config=None, config=None):
    for name, value in (("tokenizer_config.json", tokenizer_config), ("config.json", config)):
        if value is not None:
            (folder / name).write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("tokenizer_config", "config", "version"),
    [
        (None, None, "2"),
        (V2, None, "2"),
        (V3, None, "3"),
        ({"name_or_path": "zai-org/ChatGLM3-6B-32k"}, None, "3"),
        ({"added_tokens_decoder": {"64795": {"content": "<|user|>"}}}, {"_name_or_path": "x"}, "3"),
        ({"chat_template": "{% for m in messages %}<|user|>\n{% endfor %}"}, None, "3"),
        ({}, {"_name_or_path": "THUDM/chatglm3-6b"}, "3"),
        ({"name_or_path": "local"}, {"_name_or_path": "THUDM/chatglm3-6b-base"}, "3"),
        (V2, {"_name_or_path": "THUDM/chatglm3-6b"}, "3"),
        (V3, {"_name_or_path": "THUDM/codegeex2-6b"}, "2"),
        ({}, {"_name_or_path": None}, "2"),
    ],
)
def test_auto_goes_by_the_files_around_the_model(folder, tokenizer_config, config, version):
    write(folder, tokenizer_config, config)
    assert load_tokenizer(folder).version == version


@pytest.mark.parametrize("version", ["2", "3"])
def test_an_explicit_version_wins(folder, version):
    write(folder, V3 if version == "2" else V2)
    assert load_tokenizer(folder, version).version == version


def test_the_reason_is_logged(folder, caplog):
    write(folder, V3)
    with caplog.at_level(logging.INFO):
        load_tokenizer(folder)
    assert f"tokenizer of version 3 in {folder}: the name chatglm3 in tokenizer_config.json" in caplog.text
    assert detect_version(MINI) == ("1", "it holds ice_text.model")


@pytest.mark.parametrize("version", ["2", "3"])
def test_a_tokenizer_of_another_version_is_refused_in_one_line(folder, version):
    with pytest.raises(TokenizerError, match=f"expected tokenizer.model in .* for version {version}, got ice_text"):
        load_tokenizer(MINI, version)
    with pytest.raises(TokenizerError, match=r"expected ice_text.model in .* for version 1, got tokenizer.model"):
        load_tokenizer(folder, "1")


def test_a_damaged_config_beside_the_model_is_named(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"expected JSON in .*config.json"):
        load_tokenizer(folder)
    assert load_tokenizer(folder, "3").version == "3"
