"""Conversations whose roles come in any order, as clients of a server send them.

``split_beginning`` joins neighbours of one role; a last message of the assistant is the beginning of the answer.
``as_rounds`` is what becomes of the rest in the versions without roles (1 and 2).
"""

from collections.abc import Sequence
from typing import Any

from glm_int4.errors import InputError
from glm_int4.text.chat.messages import Message, check_question, is_blank, role_and_content


def split_beginning(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], str]:
    """The conversation, neighbours of one role joined by a line break, and the answer's beginning, often "".

    Messages without text are left out, but for observations and calls of tools.

    Raises:
        InputError: nothing is left, or the last message is the user's and empty.
    """
    joined: list[dict[str, Any]] = []
    for message in messages:
        role, content = role_and_content(message)
        metadata = message.get("metadata") or ""
        if is_blank(content) and not metadata and role != "observation":
            continue
        before = joined[-1] if joined else {}
        if before.get("role") == role and not metadata and not before["metadata"]:
            before["content"] += f"\n{content}"
        else:
            joined.append({"role": role, "content": content, "metadata": metadata})
    if messages and messages[-1].get("role") == "user":
        check_question(messages[-1]["content"])
    if not joined:
        raise InputError("expected a question, got an empty prompt")
    if joined[-1]["role"] == "assistant" and not joined[-1]["metadata"]:
        return joined[:-1], joined[-1]["content"]
    return joined, ""


def as_rounds(messages: Sequence[Message]) -> tuple[str, list[tuple[str, str]], str]:
    """System text, rounds and question, as of ``messages.split_rounds``.

    All system texts come first; alone they are the question. What a tool has answered counts as the user's,
    and an answer without a question gets an empty one.
    """
    system = ""
    rounds: list[tuple[str, str]] = []
    questions: list[str] = []
    for message in messages:
        role, content = role_and_content(message)
        if role == "system":
            system += f"{content}\n"
        elif role == "assistant":
            rounds.append(("\n".join(questions), content))
            questions = []
        else:
            questions.append(content)
    if system and not rounds and not questions:
        return "", [], system.removesuffix("\n")
    return system, rounds, "\n".join(questions)
