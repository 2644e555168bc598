"""What an answer of GLM-4-9B says: content, and perhaps the call of a tool as JSON. It is read, never evaluated."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from glm_int4.downloads import shown
from glm_int4.text.chat.prompts_v4 import split_reply
from glm_int4.text.chat.replies import (
    MAX_CALL_CHARACTERS,
    MAX_CALL_DEPTH,
    MalformedError,
    Reply,
    ToolCall,
    check_arguments,
    json_value,
)
from glm_int4.text.chat.responses import fill_template
from glm_int4.text.chat.tools import Tool
from glm_int4.text.chat.tools_v4 import OWN_TOOLS, PYTHON, check_tools, tool_name


def parse_reply_v4(text: str, tools: Sequence[Tool] | None = None) -> Reply:
    """Take an answer of version 4 apart.

    Args:
        text: the decoded answer, with role tokens as ``prompts_v3.ReplyDecoder`` spells them.
        tools: the definitions that were given; without any, an answer calls nothing.
    Raises:
        InputError: the tools are faulty; never because of the answer.
    """
    known = {tool_name(tool): tool for tool in check_tools(tools)}
    *earlier, last = [_parse_message(name, content, known) for name, content in split_reply(text, known)]
    return replace(last, earlier=tuple(reply for reply in earlier if reply.metadata or reply.content))


def call_message_v4(call: ToolCall) -> dict[str, Any]:
    """The assistant's message that makes a call, as the model would write it."""
    return {
        "role": "assistant",
        "metadata": call.name,
        "content": json.dumps(call.arguments, ensure_ascii=False),
    }


def _parse_message(name: str, content: str, known: dict[str, dict[str, Any]]) -> Reply:
    if not name:
        return Reply(content=fill_template(content), raw_content=content.strip())
    reply: dict[str, Any] = {"content": content, "metadata": name, "raw_content": content}
    if name in OWN_TOOLS:
        return Reply(**reply, code=content.strip() if name == PYTHON else None)
    try:
        arguments = _arguments(content.strip())
        check_arguments(arguments, known[name].get("parameters", {}))
        return Reply(**reply, tool_call=ToolCall(name=name, arguments=arguments))
    except MalformedError as error:
        return Reply(**reply, fault=str(error))


def _arguments(text: str) -> dict[str, Any]:
    """The JSON object of a call; hostile sizes are refused first."""
    if len(text) > MAX_CALL_CHARACTERS:
        raise MalformedError(f"expected a call of at most {MAX_CALL_CHARACTERS} characters, got {len(text)}")
    try:
        value = json_value(json.loads(text, object_pairs_hook=_once), MAX_CALL_DEPTH)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"expected arguments in JSON, got {shown(text)}") from error
    assert isinstance(value, dict), "it begins with a brace"
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys stand there once; raises ValueError for another."""
    if len(arguments := dict(pairs)) < len(pairs):
        raise ValueError("a key stands there twice")
    return arguments
