"""Tokenizers that the tests of this room share."""

import pytest

from glm_int4.text import ChatGLM2Tokenizer


@pytest.fixture(scope="session")
def official_v2(official_tokenizers):
    """The official ``tokenizer.model`` of versions 2 and 3."""
    path = official_tokenizers / "v2" / "tokenizer.model"
    if not path.is_file():
        pytest.skip("needs the official tokenizer model: set GLM_INT4_TOKENIZERS to a folder with v2/tokenizer.model")
    return path


@pytest.fixture(scope="session", params=["2", "3"])
def small_tokenizer(small_bpe, request):
    """The small model as either version."""
    return ChatGLM2Tokenizer(small_bpe, request.param)
