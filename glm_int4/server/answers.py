"""The text of an answer, made from its ids one by one on the engine's thread."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from glm_int4.generation.stopping import StopFilter
from glm_int4.server.openai_messages import read_calls
from glm_int4.text import StreamDecoder, Tokenizer
from glm_int4.text.chat.chat_format import ChatFormat
from glm_int4.text.chat.prompts_v3 import ContentStream
from glm_int4.text.chat.replies import ToolCall
from glm_int4.text.chat.responses import ResponseStream


@dataclass(slots=True)
class Chunk:
    """A piece of an answer on its way to the client.

    Attributes:
        num_tokens: new ids in it. calls: tools that the answer calls, in the last chunk.
        end: "stop", "length" or "tool_calls" in the last chunk. error: what ended the answer instead.
    """

    text: str = ""
    num_tokens: int = 0
    calls: list[ToolCall] = field(default_factory=list)
    end: str | None = None
    error: Exception | None = None


class TextAnswer:
    """A text as the model continues it, up to a stop text."""

    def __init__(self, decoder: StreamDecoder, stops: Sequence[str]) -> None:
        self._decoder, self._stop = decoder, StopFilter(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop text was found: no more ids are needed."""
        return self._stop.stopped

    def push(self, token: int) -> str:
        """Take the next id; return the text that can be shown, perhaps none."""
        return self._stop.push(self._decoder.push(token))

    def finish(self) -> tuple[str, list[ToolCall]]:
        """The rest of the text, and the tools that are called."""
        return self._stop.push(self._decoder.finish()) + self._stop.finish(), []


class ChatAnswer(TextAnswer):
    """An answer cleaned as ``Engine.stream_chat`` cleans it; calls of tools are kept out of its text."""

    def __init__(
        self, chat: ChatFormat, tokenizer: Tokenizer, stops: Sequence[str], tools: list[dict[str, Any]] | None
    ) -> None:
        super().__init__(chat.reply_decoder(tokenizer), stops)
        self._chat, self._tools, self._raw = chat, tools, ""
        self._cleaned: ResponseStream = chat.response_stream()
        if tools:
            self._cleaned = ContentStream([tool["name"] for tool in tools])
        self._shown = StopFilter(stops)  # once more, for texts that the cleaning has made

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
        text = self._show(text) + self._shown.push(self._cleaned.finish()) + self._shown.finish()
        if not self._tools:
            return text, []
        calls, rest = read_calls(self._chat.parse_reply(self._raw, self._tools))
        return (f"{text}\n{rest}" if text and rest else text or rest), calls

    def _show(self, raw: str) -> str:
        self._raw += raw
        return self._shown.push(self._cleaned.push(raw)) if raw else ""
