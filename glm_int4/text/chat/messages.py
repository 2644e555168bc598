"""Conversations as every version takes them: messages in, rounds of question and answer out."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from glm_int4.downloads import shown
from glm_int4.errors import InputError

Message = Mapping[str, Any]


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: white space, control and format characters only."""
    for character in text:
        if not character.isspace() and unicodedata.category(character) not in ("Cc", "Cf"):
            return False
    return True


def role_and_content(message: Message) -> tuple[object, str]:
    """Role and text of a message; the role is not checked.

    Raises:
        InputError: it is no message, or its content is no text.
    """
    if not isinstance(message, Mapping):
        raise InputError(f'expected every message as {{"role": ..., "content": ...}}, got {shown(message)}')
    content = message.get("content")
    if not isinstance(content, str):
        raise InputError(f"expected every message to have a text as content, got {shown(content)}")
    return message.get("role"), content


def check_question(question: str | None) -> str:
    """Return the text to answer, or raise InputError where there is none."""
    if question is None:
        raise InputError("expected the last message to be the user's, got none")
    if is_blank(question):
        raise InputError("expected a question, got an empty prompt")
    return question


def split_rounds(messages: Sequence[Message]) -> tuple[str, list[tuple[str, str]], str]:
    """Split a conversation of the versions without roles (1 and 2).

    Returns:
        The system text, a line a message; the rounds of question and answer; the open question.
    Raises:
        InputError: roles that do not alternate, or an empty question.
    """
    system, rounds, question = "", [], None
    for message in messages:
        role, content = role_and_content(message)
        if role == "system" and question is None:
            system += f"{content}\n"
        elif role == "user" and question is None:
            question = content
        elif role == "assistant" and question is not None:
            rounds.append((question, content))
            question = None
        else:
            raise InputError(f"expected messages of user and assistant in turn, got one of role {shown(role)}")
    return system, rounds, check_question(question)
