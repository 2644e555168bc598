"""The v1 tokenizer, id for id with the official class on the official model."""

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_int4.errors import InputError, TokenizerError
from glm_int4.text import StreamDecoder, load_tokenizer
from glm_int4.text.tokenizer_v1 import CONTROL_PIECES, ChatGLMTokenizer
from tests.conftest import FIXTURES, MINI

ORACLE = json.loads((FIXTURES / "tokenizer_v1.json").read_text(encoding="utf-8"))

# The official class maps these to control ids even when a user types them; here they stay text.
TYPED_SPECIALS = {"[MASK]", "<sop>", "<eop>", "<unk>", "<pad>"}


@pytest.fixture(scope="module")
def tokenizer(official_tokenizers):
    return load_tokenizer(official_tokenizers / "v1")


@pytest.fixture(scope="module")
def mini_tokenizer():
    return load_tokenizer(MINI)


@pytest.mark.parametrize("case", ORACLE["cases"], ids=lambda case: repr(case["text"][:20]))
def test_ids_and_text_are_the_official_ones(tokenizer, case):
    text = case["text"]
    if text in TYPED_SPECIALS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    else:
        assert tokenizer.encode(text) == case["ids"]
        assert tokenizer.encode_prompt(text) == case["ids_special"]
    assert tokenizer.decode(case["ids"]) == case["decoded"]
    assert tokenizer.decode(case["ids_special"]) == case["decoded_special"]


@pytest.mark.parametrize("case", ORACLE["cases"], ids=lambda case: repr(case["text"][:20]))
def test_streaming_gives_the_same_text(tokenizer, case):
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.push(token) for token in case["ids"]] + [decoder.finish()]
    assert "".join(pieces) == case["decoded"]


def test_special_ids_are_found_by_name(tokenizer):
    special = ORACLE["special"]
    assert tokenizer.vocab_size == ORACLE["vocab_size"]
    for name in (*CONTROL_PIECES, "<pad>"):
        assert tokenizer.piece_id(name) == special[name]
    assert (tokenizer.gmask_id, tokenizer.bos_id, tokenizer.eos_id) == (130001, 130004, 130005)


def test_padding_rows_of_the_embedding_decode_to_nothing(tokenizer):
    assert tokenizer.decode([5, 130344, 74874, 130527]) == "你好"
    assert tokenizer.id_to_piece(130400) == ""


def test_the_first_vocabulary_is_the_same_with_ids_shifted(tokenizer, official_tokenizers, tmp_path):
    data = (official_tokenizers / "v1" / "ice_text.model").read_bytes()
    (tmp_path / "ice_text.model").write_bytes(first_pieces(data, 130000))
    old = load_tokenizer(tmp_path)
    assert (old.mask_id, old.gmask_id, old.bos_id, old.eos_id, old.pad_id) == (150000, 150001, 150004, 150005, 20003)
    for case in ORACLE["cases"]:
        ids = tokenizer.encode(case["text"])
        assert old.encode(case["text"]) == [token + 20000 for token in ids]
        assert old.decode([token + 20000 for token in ids]) == tokenizer.decode(ids)


def first_pieces(model, count):
    """The serialized SentencePiece model with its first ``count`` pieces and no byte fallback."""
    out, position, kept = bytearray(), 0, 0
    while position < len(model):
        start = position
        tag, position = varint(model, position)
        assert tag & 7 == 2, "all fields of the model are messages"
        length, position = varint(model, position)
        position += length
        if tag >> 3 == 1:
            kept += 1
            if kept > count:
                continue
        out += model[start:position]
    # Fields of later messages win: switch byte fallback off, as it was in the first revision.
    return bytes(out) + b"\x12\x03\x98\x02\x00"


def varint(data, position):
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def test_the_mini_tokenizer_holds_every_special_piece(mini_tokenizer):
    for name in (*CONTROL_PIECES, "<n>", "<|tab|>", "<|blank_2|>", "<|blank_80|>", "<0xFF>"):
        mini_tokenizer.piece_id(name)
    text = "3加5等于几?\n\tline   end 龘"
    assert mini_tokenizer.decode(mini_tokenizer.encode(text)) == text


def test_streaming_never_emits_half_a_character(mini_tokenizer):
    ids = mini_tokenizer.encode("好👋🏽!")
    assert len(ids) > 8, "emoji come as bytes"
    decoder = StreamDecoder(mini_tokenizer)
    pieces = [decoder.push(token) for token in ids]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == "好👋🏽!"


@given(st.lists(st.integers(0, 1400), max_size=30))
def test_streamed_pieces_add_up_for_any_ids(ids):
    tokenizer = load_tokenizer(MINI)
    decoder = StreamDecoder(tokenizer)
    assert "".join([decoder.push(token) for token in ids] + [decoder.finish()]) == tokenizer.decode(ids)


def test_streamed_pieces_add_up_for_any_official_ids(tokenizer):
    random = Random(0)
    pool = [5, 4, 130008, 130009, *range(130320, 130340), *random.sample(range(tokenizer.vocab_size), 300)]
    for _ in range(1500):
        ids = random.choices(pool, k=8)
        decoder = StreamDecoder(tokenizer)
        assert "".join([decoder.push(token) for token in ids] + [decoder.finish()]) == tokenizer.decode(ids)


def test_only_the_official_blank_pieces_become_spaces(mini_tokenizer):
    for text in ("<|blank_0|>", "<|blank_1|>", "<|blank_02|>", "<|blank_81|>", "<|blank_99|>"):
        assert mini_tokenizer.decode(mini_tokenizer.encode(text)) == text


def test_a_broken_character_is_shown_at_the_end(mini_tokenizer):
    decoder = StreamDecoder(mini_tokenizer)
    ids = mini_tokenizer.encode("👋")
    assert "".join(decoder.push(token) for token in ids[:-1]) == ""
    assert "\ufffd" in decoder.finish()


def test_missing_broken_and_foreign_tokenizers_are_named(tmp_path):
    with pytest.raises(TokenizerError, match=r"expected ice_text.model or tokenizer.model in .* got none"):
        load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match=r"expected ice_text.model in .* for version 1, got none"):
        load_tokenizer(tmp_path, "1")
    (tmp_path / "ice_text.model").write_bytes(b"<html>not found</html>")
    with pytest.raises(TokenizerError, match="expected a SentencePiece model"):
        load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="auto, 1, 2, 3 or 4"):
        load_tokenizer(tmp_path, "0")
    with pytest.raises(TokenizerError, match=r"expected a SentencePiece model in .* got none"):
        ChatGLMTokenizer(tmp_path / "nothing.model")


def test_a_model_of_another_version_is_named(small_bpe, tmp_path):
    (tmp_path / "ice_text.model").write_bytes(small_bpe.read_bytes())
    with pytest.raises(TokenizerError, match=r"expected ChatGLM-6B's unigram model .* got a BPE model"):
        load_tokenizer(tmp_path)


def test_half_a_surrogate_pair_is_refused(mini_tokenizer):
    with pytest.raises(InputError, match=r"lone surrogate U\+DC00 at position 0"):
        mini_tokenizer.encode("\udc00")


def test_a_prompt_ends_with_the_marks(mini_tokenizer):
    ids = mini_tokenizer.encode("3加5")
    assert mini_tokenizer.encode_prompt("3加5") == [*ids, mini_tokenizer.gmask_id, mini_tokenizer.sop_id]
    assert (mini_tokenizer.prefix_ids, mini_tokenizer.stop_ids) == ([], (mini_tokenizer.eos_id,))


def test_a_broken_tokenizer_config_is_named(tmp_path):
    (tmp_path / "ice_text.model").write_bytes((MINI / "ice_text.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(TokenizerError, match="expected a JSON object"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"num_image_tokens": -3}')
    with pytest.raises(TokenizerError, match="num_image_tokens"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("text", ["<n>", "a<|tab|>b", "<|blank_12|><|blank_2", "<<n>", "<|blank_81|>"])
def test_streamed_pieces_add_up_where_white_space_is_spelled_out(mini_tokenizer, text):
    """A model may give the name of such a piece letter by letter."""
    sp = mini_tokenizer._sp
    ids = [sp.piece_to_id(f"<0x{ord(character):02X}>") for character in text]
    decoder = StreamDecoder(mini_tokenizer)
    assert "".join([decoder.push(token) for token in ids] + [decoder.finish()]) == mini_tokenizer.decode(ids)
