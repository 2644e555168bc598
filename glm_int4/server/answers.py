"""The text of an answer, made from its ids one by one on the engine's thread."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from glm_int4.generation.scoring import ScoredToken
from glm_int4.generation.stopping import AnswerText
from glm_int4.server.openai_messages import read_calls
from glm_int4.text import StreamDecoder, Tokenizer
from glm_int4.text.chat.chat_format import ChatFormat
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


class MeasuredPieces:
    """The pieces of a text that goes on behind another one, and where in it every token is.

    Attributes:
        starts: of every token, the characters of the text in front of it. length: characters of the whole text.
    """

    def __init__(self, decoder: StreamDecoder, before: str) -> None:
        self._decoder, self._space = decoder, SpaceOnce(before)
        self.starts: list[int] = []
        self.length = 0

    def push(self, token_id: int) -> str:
        """As of ``TextDecoder``."""
        piece = self._space.push(self._decoder.push(token_id))
        self.starts.append(self.length)
        self.length += len(piece)
        return piece

    def finish(self) -> str:
        """As of ``TextDecoder``."""
        return self._space.push(self._decoder.finish())


class TextAnswer:
    """A text as the model continues it, up to a stop text.

    Args:
        before: the text that it continues.
        cleaned: cleans what the model wrote; None shows it as it is.
    Attributes:
        pieces: where every token is.
        tells_end: whether the id that ends it has its log-probability told, as in OpenAI's completions.
    """

    tells_end = True

    def __init__(
        self, decoder: StreamDecoder, stops: Sequence[str], before: str = "", cleaned: ResponseStream | None = None
    ) -> None:
        self.pieces = MeasuredPieces(decoder, before)
        self._text = AnswerText(self.pieces, stops, cleaned)

    @property
    def stopped(self) -> bool:
        """Whether a stop text was found: no more ids are needed."""
        return self._text.stopped

    def push(self, token: int) -> str:
        """Take the next id; return the text that can be shown, perhaps none."""
        return self._text.push(token)

    def finish(self) -> tuple[str, list[ToolCall]]:
        """The rest of the text, and the tools that are called."""
        return self._text.finish(), []


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
        self._chat, self._tools, self._begun = chat, tools, "".join(map(decoder.push, beginning))
        if before.endswith(" ") and not self._begun.endswith(" "):
            self._begun += " "
        cleaned = chat.content_stream([tool["name"] for tool in tools]) if tools else chat.response_stream()
        super().__init__(decoder, stops, before, _Behind(cleaned, self._begun) if beginning else cleaned)

    def finish(self) -> tuple[str, list[ToolCall]]:
        """The rest of the text, and the tools that are called."""
        text, _ = super().finish()
        if not self._tools:
            return text, []
        calls, rest = read_calls(self._chat.parse_reply(self._begun + self._text.raw, self._tools))
        return (f"{text}\n{rest}" if text and rest else text or rest), calls


class _Behind:
    """A ``ResponseStream`` of what comes behind a text that it cleans with it."""

    def __init__(self, cleaned: ResponseStream, begun: str) -> None:
        self._cleaned = cleaned
        # The end of the beginning may wait for what follows it.
        whole = begun.lstrip().replace(TRAINING_TIME, TRAINING_TIME_TEXT)
        self._skipped = len(whole) - len(cleaned.push(begun))

    def push(self, piece: str) -> str:
        """As of ``ResponseStream``."""
        return self._new(self._cleaned.push(piece))

    def finish(self) -> str:
        """As of ``ResponseStream``."""
        return self._new(self._cleaned.finish())

    def _new(self, cleaned: str) -> str:
        new, self._skipped = cleaned[self._skipped :], max(self._skipped - len(cleaned), 0)
        return new
