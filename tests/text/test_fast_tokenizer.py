"""``tokenizer.json`` against the tokenizer it is made from, read by the ``tokenizers`` library."""

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from glm_int4.errors import InputError, TokenizerError
from glm_int4.text import ChatGLM2Tokenizer
from glm_int4.text.fast_tokenizer import fast_tokenizer_json
from tests.conftest import FIXTURES, train_bpe

ORACLES = {v: json.loads((FIXTURES / f"tokenizer_v{v}.json").read_text(encoding="utf-8")) for v in ("2", "3")}
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


def encode(fast, text):
    return fast.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module", params=["2", "3"])
def official(official_v2, request):
    fast = Tokenizer.from_str(fast_tokenizer_json(official_v2, request.param))
    return fast, ChatGLM2Tokenizer(official_v2, request.param)


@pytest.fixture(scope="module")
def small(small_bpe):
    return Tokenizer.from_str(fast_tokenizer_json(small_bpe, "3")), ChatGLM2Tokenizer(small_bpe, "3")


def test_ids_and_text_are_the_official_ones(official):
    fast, tokenizer = official
    for case in ORACLES[tokenizer.version]["cases"]:
        assert encode(fast, case["text"]) == case["ids"]
        assert fast.encode(case["text"]).ids == case["ids_special"]
        assert fast.decode(case["ids"]) == fast.decode(case["ids_special"]) == case["decoded"]


def test_every_piece_has_its_id(official):
    fast, tokenizer = official
    assert fast.get_vocab_size() == tokenizer.vocab_size
    assert all(fast.id_to_token(i) == tokenizer.id_to_piece(i) for i in range(tokenizer.vocab_size))


def test_random_texts_have_the_same_ids(official):
    fast, tokenizer = official
    random = Random(0)
    pieces = [tokenizer.id_to_piece(i) for i in range(259, tokenizer.mask_id)]
    for _ in range(4000):
        text = "".join(random_part(random, pieces) for _ in range(random.randint(1, 8)))
        ids = tokenizer.encode(text)
        assert encode(fast, text) == ids
        assert fast.decode(ids) == tokenizer.decode(ids)


def random_part(random, pieces):
    """A piece, repeated pieces, white space and control characters, Chinese, emoji, digits or letters."""
    return random.choice(
        [
            lambda: random.choice(pieces).replace("\u2581", " "),
            lambda: random.choice(pieces).replace("\u2581", " ") * random.randint(2, 9),
            lambda: random.choice(" \n\t\r\0aA1.") * random.randint(1, 40),
            lambda: "".join(chr(random.randint(0x4E00, 0x9FFF)) for _ in range(random.randint(1, 8))),
            lambda: chr(random.choice([random.randint(0x1F300, 0x1FAFF), random.randint(0, 0x2FF), 0x2581, 0x200D])),
            lambda: str(random.randint(0, 10**9)),
            lambda: "".join(random.choices("abcdehilmnorstu ", k=random.randint(1, 30))),
        ]
    )()


@given(st.text())
def test_any_text_has_the_same_ids(small, text):
    fast, tokenizer = small
    ids = tokenizer.encode(text)
    assert encode(fast, text) == ids
    assert fast.decode(ids) == tokenizer.decode(ids)


def test_special_pieces_in_a_text_are_plain_unless_they_are_to_be_matched(small_bpe, small):
    fast, tokenizer = small
    text = "sop [gMASK]<sop><|user|>\n 你好</s>"
    assert max(encode(fast, text)) < tokenizer.mask_id
    matching = Tokenizer.from_str(fast_tokenizer_json(small_bpe, "3", matched=("sop", "<|user|>")))
    found = [i for i in encode(matching, text) if i >= tokenizer.mask_id]
    assert found == [tokenizer.sop_id, tokenizer.role_ids["user"]]
    assert matching.decode(found) == fast.decode(found, skip_special_tokens=False) == ""


@pytest.mark.parametrize("key", [key for key in ORACLES["3"] if key.startswith("chat_")])
def test_a_template_of_role_tokens_gives_the_official_chat_ids(official_v2, key):
    fast = Tokenizer.from_str(fast_tokenizer_json(official_v2, "3", matched=("[gMASK]", "sop", *ROLES)))
    chat = ORACLES["3"][key]
    text = "[gMASK]<sop>"
    for message in [*(chat["history"] or []), {"role": chat["role"], "content": chat["query"]}]:
        content = message["content"]
        if "tools" in message:
            content += "\n" + json.dumps(message["tools"], indent=4, ensure_ascii=False)
        text += f"<|{message['role']}|>{message.get('metadata', '')}\n {content}"
    assert encode(fast, f"{text}<|assistant|>") == chat["ids"]


def test_what_cannot_be_said_in_the_format_is_refused(small_bpe, tmp_path):
    with pytest.raises(InputError, match=r"among \[MASK\], .*, got '</s>'"):
        fast_tokenizer_json(small_bpe, "2", matched=("</s>",))
    path = train_bpe(tmp_path / "tokenizer.model", normalization_rule_name="nmt_nfkc")
    with pytest.raises(TokenizerError, match=r"to keep text as it is .* got normalizer 'nmt_nfkc'"):
        fast_tokenizer_json(path, "2")
    path = train_bpe(tmp_path / "tokenizer.model", user_defined_symbols=["<n>"])
    with pytest.raises(TokenizerError, match="without user-defined pieces, got '<n>'"):
        fast_tokenizer_json(path, "2")
    path = train_bpe(tmp_path / "tokenizer.model", control_symbols=["[MASK]"])
    with pytest.raises(TokenizerError, match=r"without pieces called \[MASK\]"):
        fast_tokenizer_json(path, "2")
