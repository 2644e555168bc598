"""Cleaning answers while they stream: what has been shown never changes."""

from collections.abc import Callable
from typing import Protocol

TRAINING_TIME, TRAINING_TIME_TEXT = "[[训练时间]]", "2023年"


def fill_template(text: str) -> str:
    """What the official code does to the answers of every version: trim, and fill in the training time."""
    return text.strip().replace(TRAINING_TIME, TRAINING_TIME_TEXT)


class ResponseStream(Protocol):
    """Cleans an answer piece by piece; the returned pieces add up to the cleaned whole."""

    def push(self, piece: str) -> str:
        """Take the next piece of raw text; return what can no longer change."""

    def finish(self) -> str:
        """Return what was held back."""


class CleaningStream:
    """A ``ResponseStream`` for any way of cleaning that the text's end alone can change.

    Args:
        clean: cleans a text; the second argument says whether it is the whole answer.
        unsettled: characters that wait for what follows them, beside white space.
        marks: texts that change the answer once they are complete; their beginnings wait too.
    """

    def __init__(
        self, clean: Callable[[str, bool], str], unsettled: str = "", marks: tuple[str, ...] = (TRAINING_TIME,)
    ) -> None:
        self._clean, self._unsettled = clean, unsettled
        self._beginnings = tuple(mark[:length] for mark in marks for length in range(1, len(mark)))
        self._text = ""
        self._sent = 0

    def push(self, piece: str) -> str:
        """Take a piece of the raw text; return what is clean of it."""
        self._text += piece
        stable = self._text.rstrip()
        held = max((len(beginning) for beginning in self._beginnings if stable.endswith(beginning)), default=0)
        stable = stable[: len(stable) - held].rstrip().rstrip(self._unsettled)
        return self._advance(self._clean(stable, False))

    def finish(self) -> str:
        """Return the rest."""
        return self._advance(self._clean(self._text, True))

    def _advance(self, cleaned: str) -> str:
        piece, self._sent = cleaned[self._sent :], max(self._sent, len(cleaned))
        return piece
