"""Conversations as JSON files: written whole or not at all, and believed only after every part was checked."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from glm_int4.cli.options import check_text, check_utf8
from glm_int4.cli.terminal.conversation import Conversation, Message
from glm_int4.downloads import shown, shown_name
from glm_int4.errors import InputError
from glm_int4.generation.sampling import SamplingParams
from glm_int4.system import write_whole

_FORMAT, _VERSION = "glm-int4 conversation", 1
_MOST_BYTES = 64 << 20  # nobody has typed more


def save(conversation: Conversation, path: Path) -> None:
    """Write a conversation, in place of an earlier one but of nothing else.

    Raises:
        InputError: the file is of another kind, or cannot be written.
    """
    try:
        if path.exists():
            _check_kind(path)
        write_whole(path.resolve(), to_bytes(conversation))
    except OSError as error:
        raise InputError(
            f"expected a file that can be written, got {path}: {error.strerror}; choose another place"
        ) from error


def to_bytes(conversation: Conversation) -> bytes:
    """A conversation as ``save`` writes it."""
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": conversation.name,
        "system": conversation.system,
        "messages": conversation.messages,
        "settings": asdict(conversation.sampling) | {"max_new_tokens": conversation.max_new_tokens},
    }
    text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
    return text.encode("utf-8", "backslashreplace")  # a model's path may be other bytes: JSON's \\udc.. then


def load(conversation: Conversation, path: Path) -> str:
    """Take messages, system text and settings from a file; on an error the conversation is as before.

    Returns:
        The model that gave the last answer, as it was called.

    Raises:
        InputError: what is wrong with the file.
    """
    content = _read(path)
    system, messages = content.get("system"), content.get("messages")
    if not (system is None or isinstance(system, str)):
        raise InputError(f"expected a text or null as system in {path}, got {type(system).__name__}")
    try:
        if system is not None:
            check_text(system, "a system text")
        messages = _checked_messages(messages)
        conversation.check(system, messages)
        sampling, max_new_tokens = _checked_settings(content.get("settings"))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    conversation.resume(messages)
    conversation.system = system
    conversation.sampling, conversation.max_new_tokens = sampling, max_new_tokens
    model = content.get("model")
    return shown_name(model) if isinstance(model, str) else shown(model)


def _read(path: Path) -> dict[str, Any]:
    """The content of a saved conversation, with its kind checked and nothing else."""
    try:
        if not path.is_file():
            raise InputError(f"expected a saved conversation, got {path}: " + _what_it_is(path))
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"expected a saved conversation of at most {_MOST_BYTES >> 20} MiB, got {path}")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"expected a saved conversation that can be read, got {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"expected a conversation written by /save, got {path}, which is not JSON") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise InputError(f"expected a conversation written by /save, got other JSON in {path}")
    if content.get("version") != _VERSION:
        raise InputError(
            f"expected version {_VERSION} of a saved conversation, got {shown(content.get('version'))} in {path}; "
            "read it with the release that wrote it"
        )
    return content


def _check_kind(path: Path) -> None:
    try:
        _read(path)
    except InputError as error:
        raise InputError(
            f"expected a new file or a saved conversation to replace, got {path}, which is neither; choose another name"
        ) from error


def _what_it_is(path: Path) -> str:
    return "it is a folder" if path.is_dir() else "it is no file" if path.exists() else "no such file"


def _checked_messages(messages: Any) -> list[Message]:
    if not isinstance(messages, list):
        raise InputError(f"expected a list of messages, got {type(messages).__name__}")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise InputError(f"expected role and content, both texts, in message {i}, got {shown(message)}")
        check_utf8(message["content"], f"message {i}")
        if not isinstance(message.get("metadata", ""), str):
            raise InputError(f"expected a text as metadata in message {i}, got {shown(message)}")
    return [{key: message[key] for key in ("role", "content", "metadata") if key in message} for message in messages]


def _checked_settings(settings: Any) -> tuple[SamplingParams, int | None]:
    known = {field.name for field in fields(SamplingParams)} | {"max_new_tokens"}
    if not isinstance(settings, dict) or not known.issuperset(settings):
        strange = [shown_name(name) for name in settings if name not in known] if isinstance(settings, dict) else []
        strange = strange[:1] or [type(settings).__name__]
        raise InputError(f"expected settings of {', '.join(sorted(known))}, got {strange[0]}")
    settings = dict(settings)
    max_new_tokens = settings.pop("max_new_tokens", None)
    if max_new_tokens is not None and (type(max_new_tokens) is not int or max_new_tokens < 1):
        raise InputError(f"expected max_new_tokens of 1 or more, got {shown(max_new_tokens)}")
    return SamplingParams(**settings), max_new_tokens
