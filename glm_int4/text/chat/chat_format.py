"""One face for the conversations of every version: messages to ids, and answers back to messages."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from glm_int4.downloads import shown
from glm_int4.errors import InputError
from glm_int4.text.calls.call_grammar import tool_call_grammar
from glm_int4.text.calls.json_calls import json_call_grammar
from glm_int4.text.chat import prompts_v1, prompts_v2, prompts_v3, prompts_v4
from glm_int4.text.chat.any_order import as_rounds, split_beginning
from glm_int4.text.chat.messages import Message
from glm_int4.text.chat.replies import Reply, ToolCall, parse_reply_v3
from glm_int4.text.chat.replies_v4 import call_message_v4, parse_reply_v4
from glm_int4.text.chat.responses import CleaningStream, ResponseStream, fill_template
from glm_int4.text.chat.tools import Tool
from glm_int4.text.continued import encode_open
from glm_int4.text.streaming import StreamDecoder
from glm_int4.text.tokenizer import Tokenizer

ReadSchema = Callable[[Mapping[str, Any]], dict[str, Any]]


class ChatFormat(Protocol):
    """How one model version writes and reads a conversation.

    Ids of an answer go through ``reply_decoder``; the text that gives goes to ``parse_reply`` at once, or
    piece by piece to a ``response_stream``.
    """

    @property
    def version(self) -> str:
        """Of the model: "1", "2", "3" or "4"."""

    @property
    def calls_tools(self) -> bool:
        """Whether the model knows tools."""

    def encode(
        self, tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Tool] | None = None
    ) -> list[int]:
        """Ids of the whole prompt; raises InputError for a conversation that the version cannot take."""

    def encode_any_order(
        self, tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Tool] | None = None
    ) -> tuple[list[int], list[int]]:
        """Ids of the prompt of a conversation whose roles come in any order (``any_order``), and behind them those
        of the answer's beginning, where the last message is the assistant's.

        Raises:
            InputError: no question, or tools for a version without.
        """

    def before_content(self, tokenizer: Tokenizer) -> list[int]:
        """Ids between a prompt and an answer's content, where it is nothing but content."""

    def reply_decoder(self, tokenizer: Tokenizer) -> StreamDecoder:
        """Turns the ids of one answer into text."""

    def response_stream(self) -> ResponseStream:
        """Cleans the text of one answer as it comes."""

    def content_stream(self, names: Collection[str]) -> ResponseStream:
        """Cleans the text of one answer as it comes, and leaves out calls of the tools of some names."""

    def parse_reply(self, text: str, tools: Sequence[Tool] | None = None) -> Reply:
        """Take a whole answer apart; never raises because of what the model wrote."""

    def call_message(self, call: ToolCall) -> Message:
        """The assistant's message that makes a call; a text that says it where the model knows no tools."""

    def encode_call(self, tokenizer: Tokenizer, name: str) -> list[int]:
        """Ids of the line that begins the call of a tool; raises InputError where the model cannot write it."""

    def call_grammar(self, tools: Sequence[Tool], *, named: bool, read_schema: ReadSchema) -> str:
        """Lark text of the calls of one of some tools; arguments and errors as of ``json_calls``."""


@dataclass(frozen=True, slots=True)
class _Rounds:
    """Versions 1 and 2: a text of numbered rounds; no tools."""

    version: str
    build_prompt: Callable[[Sequence[Message]], str]
    write_prompt: Callable[[str, Sequence[tuple[str, str]], str], str]
    clean: Callable[[str], str]
    response_stream: Callable[[], ResponseStream]
    calls_tools = False

    def encode(
        self, tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Tool] | None = None
    ) -> list[int]:
        prompt = self.build_prompt(messages)
        self._check_tools(messages, tools)
        return tokenizer.encode_prompt(prompt)

    def encode_any_order(
        self, tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Tool] | None = None
    ) -> tuple[list[int], list[int]]:
        self._check_tools(messages, tools)
        before, beginning = split_beginning(messages)
        prompt = tokenizer.encode_prompt(self.write_prompt(*as_rounds(before)))
        return prompt, encode_open(tokenizer, beginning)

    def _check_tools(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> None:
        if tools or any(message.get("tools") for message in messages):
            raise self._no_tools()

    def _no_tools(self) -> InputError:
        return InputError(f"expected no tools for version {self.version}, got some; ask ChatGLM3-6B or GLM-4-9B")

    def before_content(self, tokenizer: Tokenizer) -> list[int]:
        return []

    def reply_decoder(self, tokenizer: Tokenizer) -> StreamDecoder:
        return StreamDecoder(tokenizer)

    def content_stream(self, names: Collection[str]) -> ResponseStream:
        return self.response_stream()

    def parse_reply(self, text: str, tools: Sequence[Tool] | None = None) -> Reply:
        return Reply(content=self.clean(text))

    def call_message(self, call: ToolCall) -> Message:
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        return {"role": "assistant", "content": f"{call.name}({arguments})"}

    def encode_call(self, tokenizer: Tokenizer, name: str) -> list[int]:
        raise self._no_tools()

    def call_grammar(self, tools: Sequence[Tool], *, named: bool, read_schema: ReadSchema) -> str:
        raise self._no_tools()


class _EncodeMessages(Protocol):
    def __call__(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None = None,
        *,
        in_turn: bool = True,
    ) -> list[int]: ...


class _CallGrammar(Protocol):
    def __call__(self, tools: Sequence[Tool], *, named: bool, read_schema: ReadSchema) -> str: ...


@dataclass(frozen=True, slots=True)
class _Roles:
    """Versions 3 and 4: messages behind role ids; tools and code."""

    version: str
    encode_messages: _EncodeMessages
    response_stream: Callable[[], ResponseStream]
    content_stream: Callable[[Collection[str]], ResponseStream]
    parse_reply: Callable[..., Reply]
    call_message: Callable[[ToolCall], Message]
    call_grammar: _CallGrammar
    calls_tools = True

    def encode(
        self, tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Tool] | None = None
    ) -> list[int]:
        return self.encode_messages(tokenizer, messages, tools)

    def encode_any_order(
        self, tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Tool] | None = None
    ) -> tuple[list[int], list[int]]:
        before, beginning = split_beginning(messages)
        prompt = self.encode_messages(tokenizer, before, tools, in_turn=False)
        return prompt, prompts_v3.encode_beginning(tokenizer, beginning) if beginning else []

    def before_content(self, tokenizer: Tokenizer) -> list[int]:
        return prompts_v3.encode_beginning(tokenizer, "")

    def reply_decoder(self, tokenizer: Tokenizer) -> StreamDecoder:
        return StreamDecoder(prompts_v3.ReplyDecoder(tokenizer))

    def encode_call(self, tokenizer: Tokenizer, name: str) -> list[int]:
        return prompts_v3.encode_call(tokenizer, name)


def _python_call_grammar(tools: Sequence[Tool], *, named: bool, read_schema: ReadSchema) -> str:
    return tool_call_grammar(tools, named=named)


_FORMATS: dict[str, ChatFormat] = {
    "1": _Rounds(
        "1", prompts_v1.build_prompt, prompts_v1.write_prompt, prompts_v1.process_response, prompts_v1.ResponseStream
    ),
    "2": _Rounds("2", prompts_v2.build_prompt, prompts_v2.write_prompt, fill_template, CleaningStream),
    "3": _Roles(
        "3",
        prompts_v3.encode_messages,
        prompts_v3.ResponseStream,
        prompts_v3.ContentStream,
        parse_reply_v3,
        ToolCall.as_message,
        _python_call_grammar,
    ),
    "4": _Roles(
        "4",
        prompts_v4.encode_messages,
        prompts_v4.ResponseStream,
        prompts_v4.ContentStream,
        parse_reply_v4,
        call_message_v4,
        json_call_grammar,
    ),
}


def chat_format(version: str) -> ChatFormat:
    """The conversations of model version "1", "2", "3" or "4"."""
    if version not in _FORMATS:
        raise InputError(f"expected version 1, 2, 3 or 4, got {shown(version)}")
    return _FORMATS[version]
