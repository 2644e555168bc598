"""The text of an answer while it comes, and ending it at a stop text."""

from collections.abc import Sequence
from typing import Protocol

from glm_int4.text.chat.responses import ResponseStream


class StopFilter:
    """Passes a text on up to the first stop text.

    Attributes:
        stopped: whether a stop text was found; nothing comes out any more.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._text, self._sent = "", 0
        self.stopped = False

    def push(self, piece: str) -> str:
        """Take the next piece; return what can no longer belong to a stop text."""
        if self.stopped:
            return ""
        self._text += piece
        end, self.stopped = _stable_end(self._text, self._stops)
        return self._advance(end)

    def finish(self) -> str:
        """Return what was held back."""
        return "" if self.stopped else self._advance(len(self._text))

    def _advance(self, end: int) -> str:
        piece, self._sent = self._text[self._sent : end], max(self._sent, end)
        return piece


class TextDecoder(Protocol):
    """What turns ids into text as they come, as ``StreamDecoder`` does."""

    def push(self, token_id: int) -> str:
        """Take the next id; return the text that it completes, perhaps none."""

    def finish(self) -> str:
        """Return what was held back."""


class AnswerText:
    """The text of an answer, made from its ids one by one: decoded, ended at a stop text, cleaned.

    Args:
        decoder: turns the ids into text.
        stops: texts that end the answer, in what the model wrote or in what cleaning made of it.
        cleaned: cleans what the model wrote; None shows it as it is.

    Attributes:
        raw: what the model has written, up to a stop text.
        stopped: whether a stop text was found: no more ids are needed.
    """

    def __init__(self, decoder: TextDecoder, stops: Sequence[str], cleaned: ResponseStream | None = None) -> None:
        self._decoder, self._cleaned = decoder, cleaned
        self._filter = StopFilter(stops) if stops else None
        self._shown = StopFilter(stops) if stops and cleaned else None  # for texts that the cleaning makes
        self.raw, self.stopped = "", False

    def push(self, token: int) -> str:
        """Take the next id; return the text that can be shown, perhaps none."""
        piece = self._decoder.push(token)
        return self._show(self._filter.push(piece) if self._filter else piece) if piece else ""

    def finish(self) -> str:
        """The rest of the text."""
        if self._shown is not None and self._shown.stopped:
            return ""
        rest = self._decoder.finish()
        text = self._show(self._filter.push(rest) + self._filter.finish() if self._filter else rest)
        if self._cleaned is None:
            return text
        rest = self._cleaned.finish()
        return text + (self._shown.push(rest) + self._shown.finish() if self._shown else rest)

    def _show(self, piece: str) -> str:
        """Note what the model wrote, and clean it."""
        self.raw += piece
        if self._cleaned is not None and piece:
            piece = self._cleaned.push(piece)
            piece = self._shown.push(piece) if self._shown else piece
        if self._filter:
            self.stopped = self._filter.stopped or (self._shown is not None and self._shown.stopped)
        return piece


def _stable_end(text: str, stops: Sequence[str]) -> tuple[int, bool]:
    """Where the text that may be shown ends, and whether a stop text was found there.

    An end of the text that a stop text could begin with is held back.
    """
    found = [position for stop in stops if (position := text.find(stop)) >= 0]
    if found:
        return min(found), True
    held = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), held, -1):
            if text.endswith(stop[:length]):
                held = length
                break
    return len(text) - held, False
