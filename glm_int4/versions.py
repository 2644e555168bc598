"""Telling ChatGLM3 from ChatGLM2: keys, shapes and the tokenizer's file are the same, so only words tell."""

from collections.abc import Iterator, Mapping
from typing import Any

_NAMES = (("chatglm3", "3"), ("chatglm2", "2"), ("codegeex2", "2"))
_ROLE = "<|user|>"
UNDECIDED = "nothing that speaks for version 3; if it is ChatGLM3, say so (--model-version 3)"


def two_or_three(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the version "2" or "3" of a checkpoint, and what decided.

    Args:
        config: the parsed config.json; its ``_name_or_path`` counts first.
        tokenizer_config: the parsed tokenizer_config.json: a role token, or a name in any of its texts.
    """
    name = str(config.get("_name_or_path") or "").lower()
    for part, version in _NAMES:
        if part in name:
            return version, f"the name {part} in config.json"
    texts = list(_texts(tokenizer_config))
    if any(_ROLE in text for text in texts):
        return "3", f"the token {_ROLE} in tokenizer_config.json"
    for part, version in _NAMES:
        if any(part in text.lower() for text in texts):
            return version, f"the name {part} in tokenizer_config.json"
    return "2", UNDECIDED


def _texts(value: object) -> Iterator[str]:
    """Every text among the values of a JSON object."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
