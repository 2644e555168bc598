"""Tokenizers that the tests of this room share."""

import pytest
import sentencepiece

from glm_int4.text import ChatGLM2Tokenizer


@pytest.fixture(scope="session")
def official_v2(official_tokenizers):
    """The official ``tokenizer.model`` of versions 2 and 3."""
    path = official_tokenizers / "v2" / "tokenizer.model"
    if not path.is_file():
        pytest.skip("needs the official tokenizer model: set GLM_INT4_TOKENIZERS to a folder with v2/tokenizer.model")
    return path


def train_bpe(path, **changes):
    """Train a BPE model of 400 pieces with the official settings, or some changed."""
    words = "你好 世界 晚上 睡不着 应该 怎么办 Hello world the weather track tool call python symbol price 12 345"
    text = [" ".join(words.split()[i:] + words.split()[:i]) for i in range(16)]
    settings = dict(
        model_type="bpe",
        vocab_size=400,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text * 4), model_prefix=str(path.with_suffix("")), **settings | changes
    )
    return path


@pytest.fixture(scope="session")
def small_bpe(tmp_path_factory):
    """A BPE model of 400 pieces, trained on the spot."""
    return train_bpe(tmp_path_factory.mktemp("bpe") / "tokenizer.model")


@pytest.fixture(scope="session", params=["2", "3"])
def small_tokenizer(small_bpe, request):
    """The small model as either version."""
    return ChatGLM2Tokenizer(small_bpe, request.param)
