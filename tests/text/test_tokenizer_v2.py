"""The v2 and v3 tokenizers, id for id with the official classes on the official model."""

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_int4.errors import InputError, TokenizerError
from glm_int4.text import ChatGLM2Tokenizer, StreamDecoder, load_tokenizer
from tests.conftest import FIXTURES, MINI, train_bpe

ORACLES = {v: json.loads((FIXTURES / f"tokenizer_v{v}.json").read_text(encoding="utf-8")) for v in ("2", "3")}
CASES = [pytest.param(v, case, id=f"v{v}-{case['text'][:20]!r}") for v in ORACLES for case in ORACLES[v]["cases"]]


@pytest.fixture(scope="module")
def tokenizers(official_v2):
    return {version: ChatGLM2Tokenizer(official_v2, version) for version in ("2", "3")}


@pytest.mark.parametrize(("version", "case"), CASES)
def test_ids_and_text_are_the_official_ones(tokenizers, version, case):
    tokenizer = tokenizers[version]
    assert tokenizer.encode(case["text"]) == case["ids"]
    assert tokenizer.encode_prompt(case["text"]) == case["ids_special"]
    assert [tokenizer.id_to_piece(token) for token in case["ids"]] == case["tokens"]
    assert tokenizer.decode(case["ids"]) == case["decoded"]
    # The official v3 class spells special ids out in front of the text; here they are left out.
    assert tokenizer.decode(case["ids_special"]) == case["decoded"]


@pytest.mark.parametrize(("version", "case"), CASES)
def test_streaming_gives_the_same_text(tokenizers, version, case):
    decoder = StreamDecoder(tokenizers[version])
    pieces = [decoder.push(token) for token in case["ids"]] + [decoder.finish()]
    assert "".join(pieces) == case["decoded"]


@pytest.mark.parametrize("version", ["2", "3"])
def test_special_ids_follow_the_last_piece(tokenizers, version):
    tokenizer, oracle = tokenizers[version], ORACLES[version]
    assert tokenizer.vocab_size == oracle["vocab_size"]
    assert {name: tokenizer.piece_id(name) for name in oracle["special"]} == oracle["special"]
    assert {name: tokenizer.id_to_piece(i) for name, i in oracle["special"].items()} == {
        n: n for n in oracle["special"]
    }
    assert [tokenizer.piece_id("<s>"), tokenizer.eos_id, tokenizer.pad_id] == oracle["bos_eos_pad"]
    assert tokenizer.prefix_ids == [oracle["special"]["[gMASK]"], oracle["special"]["sop"]]


def test_stop_ids_and_roles(tokenizers):
    assert tokenizers["2"].stop_ids == (2,)
    assert tokenizers["2"].role_ids == {}
    assert tokenizers["3"].stop_ids == (2, 64795, 64797)
    assert tokenizers["3"].role_ids == {"system": 64794, "user": 64795, "assistant": 64796, "observation": 64797}


@pytest.mark.parametrize("version", ["2", "3"])
def test_streamed_pieces_add_up_for_any_official_ids(tokenizers, version):
    tokenizer, random = tokenizers[version], Random(0)
    pool = [0, 1, 2, 13, 30910, 265, *range(200, 259), 64790, 64796, 65000, *random.sample(range(64789), 300)]
    for _ in range(1500):
        ids = random.choices(pool, k=8)
        decoder = StreamDecoder(tokenizer)
        assert "".join([decoder.push(token) for token in ids] + [decoder.finish()]) == tokenizer.decode(ids)


def test_a_vocabulary_of_another_size_has_its_own_special_ids(small_tokenizer):
    assert (small_tokenizer.mask_id, small_tokenizer.gmask_id, small_tokenizer.sop_id) == (400, 401, 403)
    assert small_tokenizer.vocab_size == (405 if small_tokenizer.version == "2" else 409)
    assert small_tokenizer.decode([-1, 0, 1, 2, *small_tokenizer.encode("你好"), 400, 408, 409, 10**6]) == "你好"
    assert small_tokenizer.id_to_piece(409) == ""
    assert small_tokenizer.id_to_piece(-1) == ""


@given(st.text())
def test_any_text_survives(small_tokenizer, text):
    ids = small_tokenizer.encode(text)
    assert small_tokenizer.decode(ids) == text.replace("\u2581", " ")
    assert max(ids, default=0) < small_tokenizer.mask_id


@given(st.lists(st.integers(-2, 420), max_size=30))
def test_streamed_pieces_add_up_for_any_ids(small_tokenizer, ids):
    decoder = StreamDecoder(small_tokenizer)
    pieces = [decoder.push(token) for token in ids]
    assert not any(piece.endswith("\ufffd") for piece in pieces)
    assert "".join([*pieces, decoder.finish()]) == small_tokenizer.decode(ids)


def test_half_a_surrogate_pair_is_refused(small_tokenizer):
    with pytest.raises(InputError, match=r"lone surrogate U\+D83D at position 1"):
        small_tokenizer.encode("a\ud83d")


def test_an_unknown_piece_is_named(small_tokenizer):
    with pytest.raises(TokenizerError, match=r"expected the piece '<\|nothing\|>'"):
        small_tokenizer.piece_id("<|nothing|>")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"byte_fallback": False, "vocab_size": 120}, "got BPE without byte fallback; download it again"),
        ({"bos_id": -1}, "expected the pieces <unk>, <s>, </s> in .* got '<unk>, none, </s>'"),
    ],
)
def test_models_of_another_kind_are_refused(tmp_path, changes, message):
    train_bpe(tmp_path / "tokenizer.model", **changes)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)


def test_foreign_files_are_refused(small_bpe, tmp_path):
    with pytest.raises(TokenizerError, match="got unigram with byte fallback; that of ChatGLM-6B is called ice_text"):
        ChatGLM2Tokenizer(MINI / "ice_text.model")
    with pytest.raises(TokenizerError, match="expected version 2 or 3"):
        ChatGLM2Tokenizer(small_bpe, "1")
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\n")
    with pytest.raises(TokenizerError, match="expected a SentencePiece model"):
        load_tokenizer(tmp_path, "2")
