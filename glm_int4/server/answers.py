"""The text of an answer, made from its ids one by one on the engine's thread."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from glm_int4.generation.scoring import ScoredToken
from glm_int4.generation.stopping import StopFilter
from glm_int4.server.openai_messages import read_calls
from glm_int4.text import StreamDecoder, Tokenizer
from glm_int4.text.chat.chat_format import ChatFormat
from glm_int4.text.chat.prompts_v3 import ContentStream
from glm_int4.text.chat.replies import ToolCall
from glm_int4.text.chat.responses import TRAINING_TIME, TRAINING_TIME_TEXT, ResponseStream
from glm_int4.text.continued import SpaceOnce


@dataclass(slots=True)
class Chunk:
    """A piece of an answer on its way to the client.

    Attributes:
        num_tokens: new ids in it. index: of the answer among those of a request.
        scored: its tokens with their log-probabilities, where somebody wants them.
        calls: tools that the answer calls, in the last chunk.
        end: "stop", "length" or "tool_calls" in the last chunk. error: what ended the answer instead.
    """

    text: str = ""
    num_tokens: int = 0
    index: int = 0
    scored: list[ScoredToken] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    end: str | None = None
    error: Exception | None = None


class TextAnswer:
    """A text as the model continues it, up to a stop text.

    Args:
        before: the text that it continues.
    Attributes:
        starts: of every token, the characters of the text in front of it. length: characters of the whole text.
        tells_end: whether the id that ends it has its log-probability told, as in OpenAI's completions.
    """

    tells_end = True

    def __init__(self, decoder: StreamDecoder, stops: Sequence[str], before: str = "") -> None:
        self._decoder, self._stop, self._space = decoder, StopFilter(stops), SpaceOnce(before)
        self.starts: list[int] = []
        self.length = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop text was found: no more ids are needed."""
        return self._stop.stopped

    def push(self, token: int) -> str:
        """Take the next id; return the text that can be shown, perhaps none."""
        piece = self._space.push(self._decoder.push(token))
        self.starts.append(self.length)
        self.length += len(piece)
        return self._stop.push(piece)

    def finish(self) -> tuple[str, list[ToolCall]]:
        """The rest of the text, and the tools that are called."""
        return self._stop.push(self._space.push(self._decoder.finish())) + self._stop.finish(), []


class ChatAnswer(TextAnswer):
    """An answer cleaned as ``Engine.stream_chat`` cleans it; calls of tools are kept out of its text.

    Args:
        beginning: ids that the prompt ends with; their text is no part of what comes out.
        before: the text that they stand for, which may end in a space that they lack.
    """

    tells_end = False

    def __init__(
        self,
        chat: ChatFormat,
        tokenizer: Tokenizer,
        stops: Sequence[str],
        tools: list[dict[str, Any]] | None,
        beginning: Sequence[int] = (),
        before: str = "",
    ) -> None:
        decoder = chat.reply_decoder(tokenizer)
        super().__init__(decoder, stops, before)
        self._chat, self._tools, self._raw = chat, tools, "".join(map(decoder.push, beginning))
        if before.endswith(" ") and not self._raw.endswith(" "):
            self._raw += " "
        self._cleaned: ResponseStream = chat.response_stream()
        if tools:
            self._cleaned = ContentStream([tool["name"] for tool in tools])
        self._shown = StopFilter(stops)  # once more, for texts that the cleaning has made
        # The end of the beginning may wait for what follows it.
        begun = self._raw.lstrip().replace(TRAINING_TIME, TRAINING_TIME_TEXT)
        self._skipped = len(begun) - len(self._cleaned.push(self._raw)) if beginning else 0

    @property
    def stopped(self) -> bool:
        """As of ``TextAnswer``; a stop text may also arise where the answer is cleaned."""
        return super().stopped or self._shown.stopped

    def push(self, token: int) -> str:
        """As of ``TextAnswer``, cleaned."""
        return self._show(super().push(token))

    def finish(self) -> tuple[str, list[ToolCall]]:
        """The rest of the text, and the tools that are called."""
        text, _ = super().finish()
        text = self._show(text) + self._shown.push(self._new(self._cleaned.finish())) + self._shown.finish()
        if not self._tools:
            return text, []
        calls, rest = read_calls(self._chat.parse_reply(self._raw, self._tools))
        return (f"{text}\n{rest}" if text and rest else text or rest), calls

    def _show(self, raw: str) -> str:
        self._raw += raw
        return self._shown.push(self._new(self._cleaned.push(raw))) if raw else ""

    def _new(self, cleaned: str) -> str:
        """Of a cleaned piece, what is behind the beginning."""
        new, self._skipped = cleaned[self._skipped :], max(self._skipped - len(cleaned), 0)
        return new
