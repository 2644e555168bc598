"""Cleaning answers while they stream: what has been shown never changes."""

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
    """A ``ResponseStream`` for any way of cleaning that the text's end alone can change; here ``fill_template``.

    Attributes:
        unsettled: characters that wait for what follows them, beside white space.
        marks: texts that change the answer once they are complete; their beginnings wait too.
    """

    unsettled = ""
    marks: tuple[str, ...] = (TRAINING_TIME,)

    def __init__(self) -> None:
        self._beginnings = [mark[:length] for mark in self.marks for length in range(1, len(mark))]
        self._text = ""
        self._sent = 0

    def clean(self, text: str, complete: bool) -> str:
        """Clean a text, which is the whole answer or its beginning."""
        return fill_template(text)

    def push(self, piece: str) -> str:
        """Take a piece of the raw text; return what is clean of it."""
        self._text += piece
        stable = self._text.rstrip()
        held = max((len(beginning) for beginning in self._beginnings if stable.endswith(beginning)), default=0)
        stable = stable[: len(stable) - held].rstrip().rstrip(self.unsettled)
        return self._advance(self.clean(stable, False))

    def finish(self) -> str:
        """Return the rest."""
        return self._advance(self.clean(self._text, True))

    def _advance(self, cleaned: str) -> str:
        piece, self._sent = cleaned[self._sent :], max(self._sent, len(cleaned))
        return piece
