"""Conversations to learn from, as the official ChatGLM3 demos take them: every message of the assistant is learnt."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glm_int4.downloads import check_depth, shown
from glm_int4.errors import InputError
from glm_int4.text.chat.messages import is_blank
from glm_int4.text.chat.replies import ToolCall
from glm_int4.text.chat.tools import TOOLS_SYSTEM_TEXT, write_tools
from glm_int4.text.tokenizer_v2 import ROLES
from glm_int4.tuning.record_files import whole_text

FIELDS = ("messages", "conversations")  # where a record has its messages
_TOOL = "tool"  # a call and what came of it; it is learnt and read as two messages
_CALLS = ("tool_calls", "function_call")


@dataclass(frozen=True, slots=True)
class Turn:
    """A message as version 3 writes it: its role, a line of metadata, its content, and whether it is learnt."""

    role: str
    metadata: str
    content: str
    is_learnt: bool


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order, whether tools are among them, and where they stand, for errors."""

    turns: tuple[Turn, ...]
    has_tools: bool
    place: str


def read_conversation(place: str, record: Mapping[str, Any]) -> Conversation | None:
    """The conversation of a record; None where nothing of it is to be learnt.

    Tools of the record become a system message in front, those of a system message stand behind its text. ``loss`` of
    a message says whether it is learnt: by default the assistant's are, and calls of tools.

    Raises:
        InputError: names the message that is none.
    """
    field = next((name for name in FIELDS if record.get(name) is not None), FIELDS[0])
    messages = record.get(field)
    if not isinstance(messages, list):
        raise InputError(f"expected a list of {field} in {place}, got {shown(messages)}")
    turns = []
    if record.get("tools"):
        turns.append(Turn("system", "", f"{TOOLS_SYSTEM_TEXT}\n{_tools(record['tools'], place)}", False))
    for i, message in enumerate(messages, 1):
        turns += _turns(message, f"message {i} of {place}")
    if not any(turn.is_learnt and not is_blank(turn.content) for turn in turns):
        return None
    defined = [record.get("tools"), *(message.get("tools") for message in messages)]
    used = any(turn.metadata or turn.role == "observation" for turn in turns)
    return Conversation(tuple(turns), used or any(defined), place)


def _turns(message: Any, where: str) -> list[Turn]:
    """What becomes of one message."""
    if not isinstance(message, Mapping):
        raise InputError(f'expected {{"role": ..., "content": ...}} as {where}, got {shown(message)}')
    role, learnt = message.get("role"), message.get("loss", True)
    for name in _CALLS:
        if message.get(name) is not None:
            raise InputError(
                f'expected calls of tools as {{"role": "tool", "name": ..., "parameters": {{...}}, "observation": ...}}'
                f" in {where}, got {name}"
            )
    if not isinstance(learnt, bool | None):
        raise InputError(f"expected true or false as loss of {where}, got {shown(learnt)}")
    if role == _TOOL:
        return _call(message, where, learnt is not False)
    if not isinstance(role, str) or role not in ROLES:
        raise InputError(f"expected a role of {', '.join((*ROLES, _TOOL))} in {where}, got {shown(role)}")
    metadata = whole_text(message.get("metadata") or "", f"the metadata of {where}")
    if "\n" in metadata:
        raise InputError(f"expected metadata of one line in {where}, got {shown(metadata)}")
    content = whole_text(message.get("content"), f"the content of {where}")
    if message.get("tools"):
        if role != "system":
            raise InputError(f"expected tools in a system message, got them in {where}, of role {role}")
        content = f"{content}\n{_tools(message['tools'], where)}"
    return [Turn(role, metadata, content, role == "assistant" and learnt is not False)]


def _call(message: Mapping[str, Any], where: str, is_learnt: bool) -> list[Turn]:
    """The assistant's call of a tool, and what came of it."""
    name, parameters = whole_text(message.get("name"), f"the name of {where}"), message.get("parameters")
    if not name.strip() or "\n" in name or not isinstance(parameters, Mapping):
        raise InputError(
            f"expected a name of one line and parameters of the call in {where}, got {shown(name)} and "
            f"{shown(parameters)}"
        )
    observation = message.get("observation")
    _check_depth([parameters, observation], where)
    call = str(ToolCall(name=name, arguments=dict(parameters)).as_message()["content"]).lstrip()
    if not isinstance(observation, str):
        observation = json.dumps(observation, ensure_ascii=False)
    return [
        Turn("assistant", name, whole_text(call, f"the parameters of {where}"), is_learnt),
        Turn("observation", "", whole_text(observation, f"the observation of {where}"), False),
    ]


def _tools(tools: Any, where: str) -> str:
    if not isinstance(tools, list):
        raise InputError(f"expected a list of tools in {where}, got {shown(tools)}")
    _check_depth(tools, where)
    return whole_text(write_tools(tools), f"the tools of {where}")


def _check_depth(value: Any, where: str) -> None:
    try:
        check_depth(value)
    except ValueError as error:
        raise InputError(f"expected what a model can read in {where}, got {error}") from error
