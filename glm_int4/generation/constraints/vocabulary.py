"""What the ids of a model stand for, as llguidance keeps it, and what SentencePiece does to the beginning of a text."""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from glm_int4.errors import InputError
from glm_int4.text import Tokenizer
from glm_int4.text.sentencepiece_model import SPACE

if TYPE_CHECKING:
    import llguidance

INSTALL = (
    "expected the package llguidance for an answer of a given form, got none; "
    "install it with: pip install 'glm-int4[structured]'"
)
_SPACE_BYTE = "<0x20>"
_LONGEST_NAME = 16  # bytes of a text that decoding rewrites: <|blank_80|>


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The ids of a model.

    Attributes:
        table: the ids by their bytes; of ids with the same bytes one alone is ever allowed.
        pieces: the bytes of every id (V).
        spaced: (V,) bool, ids whose piece begins with the mark of a space: the first one of a text loses it.
        blank: the id of that mark alone, or None. doubled: ids that begin with two of them.
        loses_all: whether all of them at the beginning are lost, and not one.
        loses_none: whether none is.
        space: the id of a single space behind other text. eos: what llguidance takes for the end of an answer.
        space_byte: the id of a space as a byte, which is never lost, or None.
    """

    table: "llguidance.LLTokenizer"
    pieces: list[bytes]
    spaced: NDArray[np.bool_]
    blank: int | None
    doubled: list[int]
    loses_all: bool
    loses_none: bool
    space: int
    eos: int
    space_byte: int | None
    _rewritten: re.Pattern[bytes] | None
    _endings: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        """V."""
        return len(self.pieces)

    def rewriting(self, tail: bytes) -> list[int]:
        """Ids that would complete a text, begun at the end of ``tail``, which decoding turns into white space."""
        if self._rewritten is None or b"<" not in tail[-_LONGEST_NAME:]:
            return []
        tail = tail[-_LONGEST_NAME:]
        return [i for i in self._endings if self._rewritten.search(tail + self.pieces[i])]


def make_vocabulary(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """Take in a tokenizer's pieces; seconds for the official ones, in which nothing else of Python runs for half of it.

    Args:
        size: ids of the model; there may be more or fewer than of the tokenizer.
    Raises:
        InputError: llguidance is not installed, or the vocabulary cannot spell every byte.
    """
    try:
        import llguidance
    except ImportError as error:
        raise InputError(INSTALL) from error
    names = [tokenizer.id_to_piece(token) for token in range(min(tokenizer.vocab_size, size))]
    pieces = tokenizer.piece_bytes()[:size]
    pieces += [b""] * (size - len(pieces))
    rewritten = re.compile(b"|".join(re.escape(name.encode()) for name in tokenizer.rewritten) or b"(?!)")
    ids = _preferred(names, pieces, tokenizer.rewritten, rewritten)
    if missing := [byte for byte in range(256) if bytes([byte]) not in ids]:
        raise InputError(f"expected a tokenizer with a piece for every byte, got none for {missing[0]:#x}")
    pieces = [piece if ids.get(piece) == token else b"" for token, piece in enumerate(pieces)]
    spaced = np.array([*(name.startswith(SPACE) for name in names), *[False] * (size - len(names))])
    source = llguidance.TokenizerWrapper(_Pieces(pieces, tokenizer.eos_id))
    spec = tokenizer.spec
    return Vocabulary(
        table=llguidance.LLTokenizer(source, n_vocab=size, slices=[]),
        pieces=pieces,
        spaced=spaced,
        blank=ids[b" "] if spaced[ids[b" "]] else None,
        doubled=[token for token, name in enumerate(names) if name.startswith(2 * SPACE)],
        loses_all=spec.remove_extra_whitespaces,
        loses_none=not (spec.add_dummy_prefix or spec.remove_extra_whitespaces),
        space=ids[b" "],
        eos=tokenizer.eos_id,
        space_byte=names.index(_SPACE_BYTE) if _SPACE_BYTE in names else None,
        _rewritten=rewritten if tokenizer.rewritten else None,
        _endings=[token for token, piece in enumerate(pieces) if b">" in piece],
    )


def _preferred(
    names: list[str], pieces: list[bytes], rewritten: tuple[str, ...], pattern: re.Pattern[bytes]
) -> dict[bytes, int]:
    """The id to use for bytes: of the first piece that has them as a text, or else as a byte."""
    ids: dict[bytes, int] = {}
    as_bytes: dict[bytes, int] = {}
    for token, (name, piece) in enumerate(zip(names, pieces, strict=False)):
        is_byte = len(piece) == 1 and name == f"<0x{piece[0]:02X}>"
        if piece and (name in rewritten or not pattern.search(piece)):
            (as_bytes if is_byte else ids).setdefault(piece, token)
    return as_bytes | ids


class _Pieces:
    """A tokenizer as llguidance asks for one; it never has to cut a text itself."""

    bos_token_id = None

    def __init__(self, pieces: list[bytes], eos_id: int) -> None:
        self.tokens, self.eos_token_id = list(pieces), eos_id
        self.tokens[eos_id] = b"</s>"
        self.special_token_ids = [eos_id]

    def __call__(self, text: bytes) -> list[int]:
        raise ValueError("texts are not cut here")
