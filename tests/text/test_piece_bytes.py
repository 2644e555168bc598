"""What an id adds to a text is what ``piece_bytes`` says."""

import pytest

from glm_int4.text import load_tokenizer
from tests.conftest import MINI


def check(tokenizer, step=1):
    pieces, before = tokenizer.piece_bytes(), tokenizer.encode("a")
    assert len(pieces) == tokenizer.vocab_size
    length, num_checked = len(tokenizer.decode(before)), 0
    rare = [i for i, piece in enumerate(pieces) if tokenizer.id_to_piece(i)[:1] == "<" or not piece]
    for token in sorted({*range(0, len(pieces), step), *rare}):
        added, name = tokenizer.decode([*before, token])[length:], tokenizer.id_to_piece(token)
        if name == "<unk>" or (name.startswith("<0x") and len(pieces[token]) == 1 and pieces[token][0] > 127):
            continue  # shown as a mark for what is missing, or for a part of a character
        assert added.encode() == pieces[token], tokenizer.id_to_piece(token)
        num_checked += 1
    assert num_checked > 0.5 * len(pieces) / step
    bytes_alone = {piece for i, piece in enumerate(pieces) if tokenizer.id_to_piece(i).startswith("<0x")}
    assert bytes_alone == {bytes([byte]) for byte in range(256)}


def test_of_the_mini_model():
    check(load_tokenizer(MINI))


@pytest.mark.parametrize("version", ["2", "3"])
def test_of_a_small_bpe_model(small_checkpoints, version):
    check(load_tokenizer(small_checkpoints[version], version))


@pytest.mark.parametrize(("version", "step"), [("1", 20), ("2", 10)])
def test_of_the_official_models(official_tokenizers, version, step):
    tokenizer = load_tokenizer(official_tokenizers / f"v{version}", version)
    check(tokenizer, step)
    if version == "1":
        pieces = tokenizer.piece_bytes()
        for name, text in (("<n>", "\n"), ("<|tab|>", "\t"), ("<|blank_2|>", "  "), ("<|blank_80|>", " " * 80)):
            assert pieces[tokenizer.piece_id(name)] == text.encode()
