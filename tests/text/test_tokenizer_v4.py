"""GLM-4's tokenizer, id for id with the official one on the official file, from either kind of file."""

import base64
import json
import shutil
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_int4.checkpoint.tokenizer_check import load_checked_tokenizer
from glm_int4.errors import InputError, TokenizerError
from glm_int4.models.config_file import parse_config
from glm_int4.text import GLM4Tokenizer, StreamDecoder, load_tokenizer
from glm_int4.text.byte_pairs import name_of
from glm_int4.text.tokenizer_loading import detect_version, has_tokenizer
from tests.conftest import FIXTURES, MINI

ORACLE = json.loads((FIXTURES / "tokenizer_glm4.json").read_text(encoding="utf-8"))
CASES = [pytest.param(case, id=repr(case["text"][:20])) for case in ORACLE["cases"]]


def write_fast(folder, tokenizer, **changes):
    """A tokenizer.json of what a tokenizer holds, as converters write it; special tokens are found in text there."""
    content = json.loads(tokenizer._pairs.encoder.to_str())
    content["added_tokens"] = [
        {"id": tokenizer.piece_id(name), "content": name, "special": True, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}
        for name in tokenizer.special_names
    ]  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content | changes), encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=["tokenizer.model", "tokenizer.json"])
def tokenizer(request, official_glm4, tmp_path_factory):
    tokenizer = GLM4Tokenizer(official_glm4)
    if request.param == "tokenizer.model":
        return tokenizer
    return load_tokenizer(write_fast(tmp_path_factory.mktemp("fast"), tokenizer))


@pytest.fixture(scope="module", params=["tokenizer.model", "tokenizer.json"])
def small(request, small_ranks, tmp_path_factory):
    tokenizer = GLM4Tokenizer(small_ranks)
    if request.param == "tokenizer.model":
        return tokenizer
    return load_tokenizer(write_fast(tmp_path_factory.mktemp("fast"), tokenizer))


@pytest.mark.parametrize("case", CASES)
def test_ids_and_text_are_the_official_ones(tokenizer, case):
    assert tokenizer.encode(case["text"]) == case["ids"]
    assert tokenizer.encode_prompt(case["text"]) == case["ids_special"]
    assert tokenizer.decode(case["ids"]) == tokenizer.decode(case["ids_special"]) == case["decoded"]
    tokens = [base64.b64decode(token) for token in case["tokens_base64"]]
    assert [tokenizer.id_to_piece(index) for index in case["ids"]] == list(map(name_of, tokens))
    decoder = StreamDecoder(tokenizer)
    assert "".join([*map(decoder.push, case["ids"]), decoder.finish()]) == case["decoded"]


@pytest.mark.parametrize("case", ORACLE["partial_utf8"])
def test_parts_of_characters_decode_as_officially_and_are_never_streamed(tokenizer, case):
    assert tokenizer.decode(case["ids"]) == case["decoded"]
    decoder = StreamDecoder(tokenizer)
    streamed = "".join(map(decoder.push, case["ids"]))
    assert "\ufffd" not in streamed
    assert case["decoded"].startswith(streamed)


def test_special_ids_are_the_official_ones(tokenizer):
    assert tokenizer.vocab_size == ORACLE["vocab_size"]
    assert {name: tokenizer.piece_id(name) for name in tokenizer.special_names} == ORACLE["special"]
    assert list(tokenizer.stop_ids) == ORACLE["eos_ids"]
    assert tokenizer.pad_id == ORACLE["pad_id"]
    assert tokenizer.prefix_ids == ORACLE["prefix_ids"]
    assert tokenizer.suffix_ids == []
    assert tokenizer.longest_piece == 512
    assert len(tokenizer.encode(512 * " ")) == 1


def test_merging_is_tiktokens(official_glm4):
    """On texts of few letters, where tokens overlap themselves, and on characters of all kinds."""
    tiktoken = pytest.importorskip("tiktoken")
    tokenizer = GLM4Tokenizer(official_glm4)
    ranks = {token: rank for rank, token in enumerate(tokenizer._pairs.tokens)}
    official = tiktoken.Encoding("glm4", pat_str=ORACLE["source"]["pattern"], mergeable_ranks=ranks, special_tokens={})
    random = Random(0)
    kinds = [
        "a",
        "ab",
        "aA \n",
        "=-",
        " \t\n\r",
        "哈",
        "哈啊",
        "0123.",
        "的一是 ,。",
        "'sStTlL ",
        "ʼs'ſé\u0301\u00a0\u3000\u0085",
    ]
    alphabet = "".join(map(chr, [*range(32, 0x3000, 7), *range(0x4E00, 0x9FA5, 97), *range(0x1F300, 0x1F700, 13)]))
    for _ in range(3000):
        text = "".join(random.choices(random.choice([*kinds, alphabet]), k=random.randrange(60)))
        assert tokenizer.encode(text) == official.encode_ordinary(text), repr(text)


def test_a_vocabulary_of_another_size_has_its_own_special_ids(small):
    assert (small.eos_id, small.mask_id, small.gmask_id, small.sop_id, small.vocab_size) == (400, 401, 402, 404, 414)
    assert small.role_ids == {"system": 406, "user": 407, "assistant": 408, "observation": 409}
    assert small.decode([-1, *small.encode("你好"), 400, 413, 414, 10**6]) == "你好"
    assert (small.id_to_piece(414), small.id_to_piece(-1), small.id_to_piece(413)) == ("", "", "<|end_of_video|>")
    assert b"".join(map(small.piece_bytes().__getitem__, small.encode("weather 好"))) == "weather 好".encode()
    assert len(small.piece_bytes()) == small.vocab_size
    assert small.piece_id(small.id_to_piece(300)) == 300
    with pytest.raises(TokenizerError, match=r"expected the piece '<\|nothing\|>'"):
        small.piece_id("<|nothing|>")
    with pytest.raises(InputError, match=r"lone surrogate U\+D83D at position 1"):
        small.encode("a\ud83d")


@given(st.text())
def test_any_text_survives_and_special_tokens_in_it_are_text(small, text):
    for part in (text, f"{text}<|user|>[gMASK]<sop>"):
        ids = small.encode(part)
        assert small.decode(ids) == part
        assert max(ids, default=0) < small.eos_id


@given(st.lists(st.integers(-2, 420), max_size=30))
def test_streamed_pieces_add_up_for_any_ids(small, ids):
    decoder = StreamDecoder(small)
    pieces = [decoder.push(token) for token in ids]
    assert not any(piece.endswith("\ufffd") for piece in pieces)
    assert "".join([*pieces, decoder.finish()]) == small.decode(ids)


def test_added_tokens_are_found_in_text(small_ranks, tmp_path):
    shutil.copy(small_ranks, tmp_path / "tokenizer.model")
    (tmp_path / "added_tokens.json").write_text('{"<think>": 414, "<|user|>": 407}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("a<think><|user|>")[1] == 414
    assert tokenizer.decode([*tokenizer.encode("a"), 414]) == "a<think>"
    assert tokenizer.vocab_size == 415
    assert 407 not in tokenizer.encode("a<think><|user|>")


def test_the_files_tell_the_version(small_ranks, small_bpe, small, tmp_path):
    shutil.copy(small_ranks, tmp_path / "tokenizer.model")
    (tmp_path / "config.json").write_text('{"_name_or_path": "chatglm3-6b"}')
    assert detect_version(tmp_path) == ("4", "the lines of tokenizer.model, which is no SentencePiece model")
    fast = tmp_path / "fast"
    fast.mkdir()
    write_fast(fast, small)
    assert detect_version(fast) == ("4", "it holds tokenizer.json alone")
    assert has_tokenizer(fast, "4")
    assert not has_tokenizer(fast, "3")


def test_a_tokenizer_of_another_version_is_refused(small_ranks, small_bpe, tmp_path):
    shutil.copy(small_ranks, tmp_path / "tokenizer.model")
    with pytest.raises(TokenizerError, match=r"a SentencePiece model in .* for version 3, got the lines of GLM-4's"):
        load_tokenizer(tmp_path, "3")
    shutil.copy(small_bpe, tmp_path / "tokenizer.model")
    with pytest.raises(TokenizerError, match=r"lines of tokens and ranks in .* for version 4, got a SentencePiece"):
        load_tokenizer(tmp_path, "4")
    with pytest.raises(TokenizerError, match=r"expected tokenizer.model or tokenizer.json in .* got ice_text.model"):
        load_tokenizer(MINI, "4")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [*lines[:7], b"IQ= 7", *lines[8:]], "its rank 7 in line 8 of .* got 'IQ= 7'; download it again"),
        (lambda lines: [b"!", *lines[1:]], "its rank 0 in line 1 of .* got '!'"),
        (lambda lines: [*lines[:300], lines[300][:-1], *lines[301:]], "its rank 300 in line 301"),
        (lambda lines: lines[:300] + lines[301:], "its rank 300 in line 301"),
        (lambda lines: [*lines, b"IQ=="], "its rank 400 in line 401 of .* got 'IQ=='"),
        (lambda lines: [*lines, lines[9].split()[0] + b" 400"], "expected every token once .* 2 times"),
        (lambda lines: [b"AAAA 0", *lines[1:]], "expected a token for every byte"),
        (lambda lines: [*lines, b"\xff\x00 400"], "its rank 400 in line 401"),
        (lambda lines: [], "got an empty file"),
    ],
)
def test_a_damaged_line_is_named(small_ranks, tmp_path, damage, message):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"\n".join(damage(small_ranks.read_bytes().splitlines())))
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(tmp_path, "4")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "expected a byte-level BPE vocabulary in .* got another model"),
        ({"model": {"type": "BPE", "vocab": {"a": 1}, "merges": []}}, "expected ids from 0 to 0"),
        ({"model": {"type": "BPE", "vocab": {"a": "0"}, "merges": []}}, "expected ids from 0 to 0"),
        ({"model": {"type": "BPE", "vocab": {"\u2581": 0}, "merges": []}}, "got the piece '\u2581'"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}, "expected a token for every byte"),
        ({"pre_tokenizer": {"type": "Nothing"}}, "expected a tokenizer.json in .* got another"),
        ({"added_tokens": []}, None),
        ({"added_tokens": [{"id": 400, "content": "<|endoftext|>"}]}, r"the special token \[MASK\] in .* got none"),
    ],
)
def test_a_tokenizer_json_of_another_kind_is_refused(small_ranks, tmp_path, changes, message):
    write_fast(tmp_path, GLM4Tokenizer(small_ranks), **changes)
    if message is None:
        assert load_tokenizer(tmp_path).vocab_size == 414
        return
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert len(str(caught.value)) < 400


def test_the_ids_that_end_an_answer_must_be_tokens(small_glm4, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(small_glm4, folder)
    config = parse_config(json.loads((folder / "config.json").read_text()))
    assert load_checked_tokenizer(folder, config).version == "4"
    raw = json.loads((folder / "config.json").read_text()) | {"eos_token_id": [400, 450]}
    with pytest.raises(TokenizerError, match="expected a token for 450 of eos_token_id"):
        load_checked_tokenizer(folder, parse_config(raw))
