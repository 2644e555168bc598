"""Turning ids into text as they come, never half a character."""

from collections.abc import Iterable
from typing import Protocol


class _Decoder(Protocol):
    def decode(self, ids: Iterable[int]) -> str: ...

    def may_change(self, text: str) -> bool: ...


class StreamDecoder:
    """Incremental ``decode``: the pieces add up to ``decode`` of all ids.

    What later ids may still change is held back, such as byte pieces until they form a character. Only ids
    since the last clean break are decoded again, so the cost per id does not grow with the answer.
    """

    def __init__(self, tokenizer: _Decoder) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._num_read = 0  # of _ids, those whose text has been returned
        self._read = ""

    def push(self, token_id: int) -> str:
        """Take the next id; return the text that it completes, perhaps none."""
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids)
        if self._tokenizer.may_change(text):
            return ""
        piece = text[len(self._read) :]
        recent = self._ids[self._num_read :]
        context = self._tokenizer.decode(recent)
        if context:
            # Keep the ids just read as context, since the first piece of a text loses its leading space.
            self._ids, self._num_read, self._read = recent, len(recent), context
        else:
            self._num_read, self._read = len(self._ids), text
        return piece

    def finish(self) -> str:
        """Return what was held back, broken characters included."""
        piece = self._tokenizer.decode(self._ids)[len(self._read) :]
        self._ids, self._num_read, self._read = [], 0, ""
        return piece
