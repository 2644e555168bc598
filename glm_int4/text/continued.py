"""Texts that a model goes on with: what stands between their end and what comes."""

from collections.abc import Sequence

from glm_int4.text.streaming import StreamDecoder
from glm_int4.text.tokenizer import Tokenizer

_CONTEXT = 8  # ids, more than a character has


def encode_open(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text that a word may follow.

    The space in front of a word is part of the word's first piece. One at the end of the text is left to that piece,
    since the model would write another one. Several are pieces of their own.
    """
    return tokenizer.encode(text[:-1] if text.endswith(" ") and not text.endswith("  ") else text)


def decoder_behind(tokenizer: Tokenizer, ids: Sequence[int]) -> StreamDecoder:
    """A decoder of what follows ids: its first piece keeps the space in front of a word, unless ids say nothing."""
    decoder = StreamDecoder(tokenizer)
    for token in ids[-_CONTEXT:]:
        decoder.push(token)
    return decoder


class SpaceOnce:
    """Pieces of a text that goes on behind another one; a space that ends this one does not begin that one too."""

    def __init__(self, before: str) -> None:
        self._given = before.endswith(" ")

    def push(self, piece: str) -> str:
        """The piece, the first one without the space that is there already."""
        if self._given and piece:
            piece, self._given = piece.removeprefix(" "), False
        return piece
