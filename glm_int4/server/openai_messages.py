"""Conversations in OpenAI's form, and tool calls, from and to this project's."""

import json
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from glm_int4.downloads import shown
from glm_int4.errors import InputError
from glm_int4.server.schemas import CalledTool, ChatMessage
from glm_int4.text.chat.messages import Message
from glm_int4.text.chat.replies import Reply, ToolCall

_ROLES = {"developer": "system", "tool": "observation"}


def read_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """Messages as the text room takes them.

    An assistant's message with several calls becomes one message a call, each followed by its result.

    Raises:
        InputError: a call without its result, a result without its call, or contents that are missing.
    """
    converted: list[Message] = []
    calls: dict[str, ToolCall] = {}  # that wait for their result
    for message in messages:
        if message.role == "tool":
            key = message.tool_call_id or next(iter(calls), "")
            if key not in calls:
                raise InputError(f"expected a tool message to answer a call before it, got one for {shown(key)}")
            converted += [calls.pop(key).as_message(), {"role": "observation", "content": _text(message)}]
            continue
        if calls:
            raise InputError(f"expected a tool message for the call {shown(next(iter(calls)))}, got none")
        if message.role == "assistant" and message.tool_calls:
            if message.content:
                converted.append({"role": "assistant", "content": _text(message)})
            calls = dict(_read_call(call, i) for i, call in enumerate(message.tool_calls))
            if len(calls) < len(message.tool_calls):
                raise InputError("expected tool calls with different ids, got one twice")
            continue
        converted.append({"role": _ROLES.get(message.role, message.role), "content": _text(message)})
    if calls:
        raise InputError(f"expected a tool message for the call {shown(next(iter(calls)))}, got none")
    return converted


def _text(message: ChatMessage) -> str:
    if isinstance(message.content, list):
        return "".join(part.text for part in message.content)
    if message.content is None:
        raise InputError(f"expected a content in the message of role {message.role}, got none")
    return message.content


def _read_call(call: CalledTool, index: int) -> tuple[str, ToolCall]:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"expected JSON as arguments of a call, got {shown(call.function.arguments)}") from error
    if not isinstance(arguments, dict):
        raise InputError(f"expected an object as arguments of a call, got {shown(call.function.arguments)}")
    return call.id or str(index), ToolCall(name=call.function.name, arguments=arguments)


def read_calls(reply: Reply) -> tuple[list[ToolCall], str]:
    """The calls that an answer makes, and the text of those that cannot be read or are code."""
    calls, rest = [], []
    for part in (*reply.earlier, reply):
        if part.tool_call is not None:
            calls.append(part.tool_call)
        elif part.metadata.strip():
            rest.append(f"{part.metadata.strip()}\n{part.content.strip()}")
    return calls, "\n".join(rest)


def write_calls(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """Calls as OpenAI's answers hold them."""
    return list(_write_calls(calls))


def _write_calls(calls: Sequence[ToolCall]) -> Iterator[dict[str, Any]]:
    for call in calls:
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        yield {
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {"name": call.name, "arguments": arguments},
        }
