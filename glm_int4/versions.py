"""Telling ChatGLM3 from ChatGLM2: keys, shapes and the tokenizer's file are the same, so only words tell."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_NAMES = (("chatglm3", "3"), ("chatglm2", "2"), ("codegeex2", "2"))
# Files whose mention of a role's token speaks for version 3.
_FILES = ("added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "tokenization_chatglm.py")
_MOST_CHARACTERS = 1 << 20
_ROLE = "<|user|>"
UNDECIDED = "nothing that speaks for version 3; if it is ChatGLM3, say so (--model-version 3)"


def two_or_three(
    config: Mapping[str, Any], tokenizer_config: Mapping[str, Any], folder: Path | None = None
) -> tuple[str, str]:
    """Return the version "2" or "3" of a checkpoint, and what decided: the first of its ``evidence``."""
    return next(iter(evidence(config, tokenizer_config, folder)), ("2", UNDECIDED))


def evidence(
    config: Mapping[str, Any], tokenizer_config: Mapping[str, Any], folder: Path | None = None
) -> list[tuple[str, str]]:
    """Everything that speaks for a version, the most trusted first: pairs of version and what it is.

    Args:
        config: the parsed config.json; its ``_name_or_path`` counts first.
        tokenizer_config: the parsed tokenizer_config.json: a role token, or a name in any of its texts.
        folder: of the checkpoint; its other files and its name count last.
    """
    found = _named(str(config.get("_name_or_path") or ""), "config.json")
    texts = list(_texts(tokenizer_config))
    if any(_ROLE in text for text in texts):
        found.append(("3", f"the token {_ROLE} in tokenizer_config.json"))
    found += _named("\n".join(texts), "tokenizer_config.json")
    if folder is None:
        return found
    for name in _FILES:
        if _ROLE in _start(folder / name):
            found.append(("3", f"the token {_ROLE} in {name}"))
    folder = folder.resolve()
    parts = [part for part in folder.parts[-3:] if part == folder.name or part.startswith("models--")]
    return found + _named("\n".join(parts), "the folder's name")


def contradiction(found: Sequence[tuple[str, str]]) -> str | None:
    """Words about the strongest pieces of evidence where they speak for two versions; None where they agree."""
    other = next((what for version, what in found if version != found[0][0]), None)
    return f"{found[0][1]} speaks for version {found[0][0]}, {other} against it" if other else None


def _named(text: str, where: str) -> list[tuple[str, str]]:
    """The first name of a model in a text."""
    lower = text.lower()
    return next(([(version, f"the name {part} in {where}")] for part, version in _NAMES if part in lower), [])


def _start(path: Path) -> str:
    """The beginning of a text file; empty where there is none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_MOST_CHARACTERS)
    except OSError:
        return ""


def _texts(value: object) -> Iterator[str]:
    """Every text among the values of a JSON object."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
