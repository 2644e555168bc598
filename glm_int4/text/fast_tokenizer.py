"""The v2 and v3 tokenizers as a HuggingFace ``tokenizer.json``, for programs that read nothing else.

The engine itself uses ``tokenizer_v2``. Encoding agrees with it; so does decoding of ids that a text can
have. Two sequences of bytes decode otherwise: of a run that is no UTF-8 as a whole the format marks every
byte, SentencePiece only the broken ones; and a space that a byte piece puts first is dropped.

transformers finds the tokens that it is told (``eos_token`` and so on) in text; where it should not, it
takes ``split_special_tokens=True``.
"""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm_int4.downloads import shown
from glm_int4.errors import InputError, TokenizerError
from glm_int4.text.added_tokens import AddedToken
from glm_int4.text.sentencepiece_model import SPACE, load_model, read_model, read_spec, user_defined_pieces
from glm_int4.text.tokenizer_v2 import CONTROL_PIECES, ChatGLM2Tokenizer, special_pieces

if TYPE_CHECKING:
    import sentencepiece


def fast_tokenizer_json(
    model_file: str | Path, version: str, matched: Sequence[str] = (), added: Collection[AddedToken] = ()
) -> str:
    """Return the text of a ``tokenizer.json`` that does what ``ChatGLM2Tokenizer`` does.

    Args:
        model_file: ``tokenizer.model``.
        version: "2" or "3".
        matched: special pieces to find in text too, for chat templates that spell them out; by default
            none, so that what a user types is plain text. ``sop`` and ``eop``, which occur in ordinary
            words, are then called ``<sop>`` and ``<eop>``.
        added: what ``read_added_tokens`` has found.
    Raises:
        TokenizerError: the file is not such a model, or cuts text in a way the format cannot say.
        InputError: ``matched`` holds something that is no special piece.
    """
    tokenizer = ChatGLM2Tokenizer(model_file, version, added)  # checks the file
    unknown = [name for name in matched if name not in special_pieces(version)]
    if unknown:
        raise InputError(
            f"expected special pieces to match among {', '.join(special_pieces(version))}, got {shown(unknown[0])}"
        )
    model = read_model(Path(model_file))
    _check_settings(model, model_file)
    sp = load_model(model, model_file)
    vocab = {sp.id_to_piece(index): index for index in range(sp.get_piece_size())}
    special = {_written(name, matched): tokenizer.piece_id(name) for name in special_pieces(version)}
    if vocab.keys() & special.keys():
        raise TokenizerError(f"expected {model_file} without pieces called {', '.join(special)}, got one")
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [*_special_tokens(matched, special), *_added_tokens(added)],
            "normalizer": _sequence(
                "normalizers",
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ),
            "pre_tokenizer": None,
            "post_processor": _prefixing({k: v for k, v in special.items() if v in tokenizer.prefix_ids}),
            "decoder": _decoder([*CONTROL_PIECES, *special]),
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": CONTROL_PIECES[0],
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": vocab | special,
                "merges": list(_merges(sp)),
            },
        },
        ensure_ascii=False,
    )


def _check_settings(model: bytes, name: str | Path) -> None:
    """Raise TokenizerError for a model that treats text in another way than the official one."""
    spec = read_spec(model)
    if spec.normalizer != "identity" or not spec.add_dummy_prefix or spec.remove_extra_whitespaces:
        raise TokenizerError(
            f"expected {name} to keep text as it is behind one space, got normalizer {shown(spec.normalizer)}, "
            f"dummy prefix {spec.add_dummy_prefix}, white space removed {spec.remove_extra_whitespaces}"
        )
    pieces = user_defined_pieces(model)
    if pieces:
        raise TokenizerError(f"expected {name} without user-defined pieces, got {shown(pieces[0])}")


def _merges(sp: "sentencepiece.SentencePieceProcessor") -> Iterator[tuple[str, str]]:
    """Yield every pair of pieces that make a piece, best first.

    SentencePiece merges the neighbours whose union has the best score, the leftmost of equals. Equals
    overlap where a piece ends as it begins; the split with the longer left part is then the one more to
    the left, so it comes first.
    """
    scores = {
        sp.id_to_piece(index): sp.get_score(index)
        for index in range(sp.get_piece_size())
        if not (sp.is_control(index) or sp.is_unknown(index) or sp.is_byte(index) or sp.is_unused(index))
    }
    for piece in sorted(scores, key=scores.__getitem__, reverse=True):
        for end in range(len(piece) - 1, 0, -1):
            if piece[:end] in scores and piece[end:] in scores:
                yield piece[:end], piece[end:]


def _prefixing(prefix: dict[str, int]) -> dict[str, Any]:
    """Special pieces in front of a text."""
    marks = [{"SpecialToken": {"id": name, "type_id": 0}} for name in prefix]
    texts = [{"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B")]
    return {
        "type": "TemplateProcessing",
        "single": [*marks, texts[0]],
        "pair": [*marks, *texts],
        "special_tokens": {name: {"id": name, "ids": [index], "tokens": [name]} for name, index in prefix.items()},
    }


def _decoder(silent: Sequence[str]) -> dict[str, Any]:
    """Pieces to text: special ones left out, bytes joined, the first space dropped."""
    names = "|".join(re.escape(name) for name in silent)
    return _sequence(
        "decoders",
        {"type": "Replace", "pattern": {"Regex": rf"\A(?:{names})\z"}, "content": ""},
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    )


def _sequence(key: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", key: list(steps)}


def _written(name: str, matched: Sequence[str]) -> str:
    """How the file calls a special piece."""
    return f"<{name}>" if name in matched and name.isalpha() else name


def _added_tokens(added: Collection[AddedToken]) -> list[dict[str, Any]]:
    """Entries for what fine-tuning has added."""
    flags = {"single_word": False, "normalized": False, "special": False}
    return [asdict(token) | flags for token in added]


def _special_tokens(matched: Sequence[str], special: dict[str, int]) -> list[dict[str, Any]]:
    """Entries for the special pieces that are found in text."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    names = {_written(name, matched) for name in matched}
    return [{"id": index, "content": name, **flags} for name, index in special.items() if name in names]
