"""Conversations of the versions with roles (3 and 4): their messages checked, one after the other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from glm_int4.downloads import shown
from glm_int4.errors import InputError
from glm_int4.text.chat.messages import Message, check_question, role_and_content
from glm_int4.text.tokenizer_v2 import ROLES

_BEFORE = {  # roles that a role may follow; None is the beginning
    "system": (None, "system"),
    "user": (None, "system", "assistant"),
    "assistant": ("user", "observation", "assistant"),
    "observation": ("assistant",),
}


@dataclass(frozen=True, slots=True)
class RoleMessage:
    """A checked message. metadata: the line in front of its content. tools: that a system message defines."""

    role: str
    content: str
    metadata: str = ""
    tools: list[dict[str, Any]] = field(default_factory=list)


def check_messages(
    messages: Sequence[Message],
    check_tools: Callable[[Any], list[dict[str, Any]]],
    *,
    has_tools: bool,
    in_turn: bool,
) -> list[RoleMessage]:
    """Check the messages of a conversation.

    Args:
        check_tools: checks definitions of tools.
        has_tools: whether tools are given already, beside the messages.
        in_turn: False takes roles in any order, and no question.
    Raises:
        InputError: unknown roles, roles out of order, an empty question, faulty tools, or tools in two places.
    """
    checked: list[RoleMessage] = []
    for message in messages:
        role, content = role_and_content(message)
        if not isinstance(role, str) or role not in ROLES:
            raise InputError(f"expected a role of {', '.join(ROLES)}, got {shown(role)}")
        metadata = message.get("metadata") or ""
        if not isinstance(metadata, str) or "\n" in metadata:
            raise InputError(f"expected metadata of one line, got {shown(metadata)}")
        if in_turn:
            _check_turn(role, checked[-1] if checked else None)
        own_tools = check_tools(message["tools"]) if message.get("tools") is not None else []
        if own_tools and role != "system":
            raise InputError(f"expected tools in a system message, got them in one of role {role!r}")
        if own_tools and has_tools:
            raise InputError("expected tools once, got them as an argument and in a system message")
        checked.append(RoleMessage(role, content, metadata, own_tools))
    if in_turn and not (checked and checked[-1].role == "observation"):
        check_question(checked[-1].content if checked and checked[-1].role == "user" else None)
    return checked


def _check_turn(role: str, before: RoleMessage | None) -> None:
    if (before.role if before else None) not in _BEFORE[role]:
        place = f"after one of role {before.role!r}" if before else "at the beginning"
        raise InputError(f"expected messages in turn, got one of role {role!r} {place}")
    if role == "observation" and before and not before.metadata.strip():
        raise InputError(
            "expected an observation to follow a call of a tool, got one after an answer; "
            "give the assistant's message its metadata"
        )
