"""How GLM-4-9B expects a conversation: as ChatGLM3, but with tools in a system message of their own, and JSON calls.

A call is a line with a tool's name, then the arguments as JSON; only names of tools that were given count.
"""

import json
from collections.abc import Collection, Sequence

from glm_int4.text.chat import prompts_v3
from glm_int4.text.chat.messages import Message
from glm_int4.text.chat.prompts_v3 import ASSISTANT, encode_message
from glm_int4.text.chat.responses import TRAINING_TIME, CleaningStream, fill_template
from glm_int4.text.chat.role_messages import RoleMessage, check_messages
from glm_int4.text.chat.tools import Tool
from glm_int4.text.chat.tools_v4 import OWN_TOOLS, check_tools, write_system_text
from glm_int4.text.tokenizer import Tokenizer


def encode_messages(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Tool] | None = None,
    *,
    in_turn: bool = True,
) -> list[int]:
    """Return the ids of a conversation, ready for the assistant's answer.

    Args:
        messages: as in ``prompts_v3``; those without content are left out, as officially.
        tools: definitions (see ``tools_v4.check_tools``) for a system message in front.
        in_turn: False takes roles in any order; every one has a token.
    Raises:
        InputError: unknown roles, roles out of order, an empty question, or faulty tools.
    """
    given = check_tools(tools)
    checked = check_messages(messages, check_tools, has_tools=bool(given), in_turn=in_turn)
    ids = list(tokenizer.prefix_ids)
    for message in [RoleMessage("system", "", tools=given), *checked]:
        if message.tools:
            ids += encode_message(tokenizer, "system", "", write_system_text(message.tools))
        if message.content:
            ids += encode_message(tokenizer, message.role, message.metadata, message.content)
    return [*ids, tokenizer.role_ids["assistant"]]


def split_reply(text: str, names: Collection[str] = ()) -> list[tuple[str, str]]:
    """Metadata and content of every message of an answer.

    The first line is metadata if it is empty, or one of ``names`` with JSON behind it, or with anything where the name
    is that of the model's own tools.
    """
    parts, start = list[tuple[str, str]](), 0
    while True:
        end = text.find(ASSISTANT, start + _call_length(text[start:], names))
        parts.append(_split_message(text[start:] if end < 0 else text[start:end], names))
        if end < 0:
            return parts
        start = end + len(ASSISTANT)


def _split_message(text: str, names: Collection[str]) -> tuple[str, str]:
    line, newline, content = text.partition("\n")
    name = line.strip()
    if newline and (not name or (name in names and (name in OWN_TOOLS or content.lstrip().startswith("{")))):
        return name, content
    return "", text


def _call_length(text: str, names: Collection[str]) -> int:
    """Characters of the whole call that a text begins with: a role that its arguments spell out ends nothing."""
    name, content = _split_message(text, names)
    if not name or name in OWN_TOOLS:
        return 0
    begun = content.lstrip()
    try:
        return len(text) - len(begun) + json.JSONDecoder().raw_decode(begun)[1]
    except (ValueError, RecursionError):
        return 0


class ResponseStream(CleaningStream):
    """The contents of an answer's messages over pieces, a line apart, cleaned; of a call its name too."""

    marks = (TRAINING_TIME, ASSISTANT)

    def clean(self, text: str, complete: bool) -> str:
        """As of ``CleaningStream``."""
        return "\n".join(filter(None, map(fill_template, text.split(ASSISTANT))))


class ContentStream(prompts_v3.ContentStream):
    """The contents of an answer's messages over pieces, without the calls of tools (``names``), which are JSON."""

    def clean(self, text: str, complete: bool) -> str:
        """As of ``CleaningStream``; a call shows nothing, and nothing behind it, until it is whole."""
        parts = split_reply(text, self._names)
        if not complete:
            first = next((i for i, part in enumerate(parts) if part[0] and not self._is_whole(part)), len(parts))
            parts = parts[:first]
            if parts and self._may_be_a_call(text.rpartition(ASSISTANT)[2]):
                parts.pop()
        return "\n".join(filter(None, (fill_template(content) for name, content in parts if not name)))

    def _is_whole(self, part: tuple[str, str]) -> bool:
        return part[0] in OWN_TOOLS or _call_length("\n".join(part), self._names) > 0

    def _may_be_a_call(self, text: str) -> bool:
        line, newline, _ = text.partition("\n")
        return not newline and any(name.startswith(line.strip()) for name in self._names)
