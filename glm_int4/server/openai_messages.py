"""Conversations in OpenAI's form, and tool calls, from and to this project's."""

import json
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from glm_int4.downloads import shown
from glm_int4.errors import InputError
from glm_int4.server.schemas import CalledTool, ChatMessage, ContentPart
from glm_int4.text.chat.chat_format import ChatFormat
from glm_int4.text.chat.messages import Message
from glm_int4.text.chat.replies import Reply, ToolCall

_ROLES = {"developer": "system"}
_TEXTS = ("text", "input_text", "output_text", "refusal")


def read_messages(messages: Sequence[ChatMessage], chat: ChatFormat) -> list[Message]:
    """Messages as the text room takes them, roles in any order.

    An assistant's message with several calls becomes one message a call, each followed by its result if it has one.

    Args:
        chat: of the model; where it knows no tools, a call becomes a text that says it, and a result the user's.
    Raises:
        InputError: a part of a message that is no text, or arguments that are no JSON.
    """
    converted: list[Message] = []
    calls: dict[str, ToolCall] = {}  # that wait for their result

    def take(key: str) -> None:
        converted.append(chat.call_message(calls.pop(key)))

    for message in messages:
        if message.role in ("tool", "function"):
            key = message.tool_call_id or next(iter(calls), "")
            if key in calls:
                take(key)
            role = "observation" if chat.calls_tools else "user"
            converted.append({"role": role, "content": _text(message)})
            continue
        for key in [*calls]:
            take(key)  # nobody has answered it
        converted.append({"role": _ROLES.get(message.role, message.role), "content": _text(message)})
        calls = _read_calls(message)
    for key in [*calls]:
        take(key)
    return converted


def _text(message: ChatMessage) -> str:
    if isinstance(message.content, list):
        return "".join(map(_part_text, message.content))
    return message.content or ""


def _part_text(part: ContentPart | str) -> str:
    if isinstance(part, str):
        return part
    if part.type not in _TEXTS:
        raise InputError(
            f"expected texts in a message, got a part of type {shown(part.type)}; this model reads text alone"
        )
    return part.text or part.refusal or ""


def _read_calls(message: ChatMessage) -> dict[str, ToolCall]:
    """Calls of an assistant's message by their id, those without one by their number."""
    given = list(message.tool_calls or ()) if message.role == "assistant" else []
    if message.role == "assistant" and message.function_call and not given:
        given = [CalledTool(function=message.function_call)]
    calls: dict[str, ToolCall] = {}
    for index, called in enumerate(given):
        key = called.id if called.id and called.id not in calls else f"{called.id} {index}"
        calls[key] = _read_call(called)
    return calls


def _read_call(call: CalledTool) -> ToolCall:
    arguments: Any = call.function.arguments
    if not isinstance(arguments, dict):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise InputError(f"expected JSON as arguments of a call, got {shown(arguments)}") from error
    if not isinstance(arguments, dict):
        raise InputError(f"expected an object as arguments of a call, got {shown(call.function.arguments)}")
    return ToolCall(name=call.function.name, arguments=arguments)


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
