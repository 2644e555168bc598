"""Ending a text at a stop text, while it comes in pieces."""

from collections.abc import Iterator, Sequence


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


def until_stop(pieces: Iterator[str], stops: Sequence[str]) -> Iterator[str]:
    """Pass on a stream of text up to the first stop text, in pieces that are not empty."""
    passed = StopFilter(stops)
    for piece in pieces:
        if out := passed.push(piece):
            yield out
        if passed.stopped:
            return
    if out := passed.finish():
        yield out


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
