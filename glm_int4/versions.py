"""Telling GLM-4, ChatGLM3 and ChatGLM2 apart: keys are the same, so words, the vocabulary and the tokenizer tell."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_NAMES = (
    (re.compile("chatglm3"), "3"),
    (re.compile("chatglm2|codegeex2"), "2"),
    (re.compile(r"(?<!chat)glm-?4(?!-?bit)|codegeex4"), "4"),
)
# Files whose mention of a role's token speaks for version 3, where nothing speaks for 4, which has the token too.
_FILES = ("added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "tokenization_chatglm.py")
_MOST_CHARACTERS = 1 << 20
_ROLE, _END = "<|user|>", "<|endoftext|>"
_GLM4_CLASS = "ChatGLM4Tokenizer"
_TOKENIZER_FILE = "tokenizer.model"
_RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\s*")
GLM4_VOCAB_SIZE, EARLIER_VOCAB_SIZE = 151552, 65024
CONVERTED_FROM = "converted_from"  # the key of our own that keeps such a type
CONVERTED_TYPES = ("glm", "glm4")  # model types of checkpoints that were converted for transformers
UNDECIDED = "nothing that speaks for version 3; if it is ChatGLM3, say so (--model-version 3)"


def later_version(
    config: Mapping[str, Any], tokenizer_config: Mapping[str, Any], folder: Path | None = None
) -> tuple[str, str]:
    """Return the version "2", "3" or "4" of a checkpoint, and what decided: the first of its ``evidence``."""
    return next(iter(evidence(config, tokenizer_config, folder)), ("2", UNDECIDED))


def evidence(
    config: Mapping[str, Any], tokenizer_config: Mapping[str, Any], folder: Path | None = None
) -> list[tuple[str, str]]:
    """Everything that speaks for a version, the most trusted first: pairs of version and what it is.

    Args:
        config: the parsed config.json; its vocabulary and its ``_name_or_path`` count first.
        tokenizer_config: the parsed tokenizer_config.json: its class, a special token, or a name in any of its texts.
        folder: of the checkpoint; its other files and its name count last.
    """
    found = [*_evidence(config, tokenizer_config, folder)]
    is_glm4 = any(version == "4" for version, _ in found)
    if config.get("padded_vocab_size") == EARLIER_VOCAB_SIZE:  # a tokenizer or a name beside other weights
        return [(version, what) for version, what in found if version != "4"]
    # Roles tell 3 from 2; GLM-4 has them too.
    return [(version, what) for version, what in found if not (is_glm4 and _ROLE in what)]


def _evidence(
    config: Mapping[str, Any], tokenizer_config: Mapping[str, Any], folder: Path | None
) -> Iterator[tuple[str, str]]:
    size, texts = config.get("padded_vocab_size"), [*_texts(tokenizer_config)]
    kind = config.get(CONVERTED_FROM, config.get("model_type"))
    if kind in CONVERTED_TYPES:
        yield "4", f"the model_type {kind} in config.json"
    if size == GLM4_VOCAB_SIZE:
        yield "4", f"the vocabulary of {size} in config.json"
    yield from _named(str(config.get("_name_or_path") or ""), "config.json")
    if _GLM4_CLASS in texts:
        yield "4", f"the class {_GLM4_CLASS} in tokenizer_config.json"
    if _END in texts:
        yield "4", f"the token {_END} in tokenizer_config.json"
    if folder is not None and holds_ranks(folder / _TOKENIZER_FILE):
        yield "4", f"the lines of {_TOKENIZER_FILE}, which is no SentencePiece model"
    if any(_ROLE in text for text in texts):
        yield "3", f"the token {_ROLE} in tokenizer_config.json"
    yield from _named("\n".join(texts), "tokenizer_config.json")
    if folder is None:
        return
    for name in _FILES:
        if _ROLE in _start(folder / name):
            yield "3", f"the token {_ROLE} in {name}"
    folder = folder.resolve()
    parts = [part for part in folder.parts[-3:] if part == folder.name or part.startswith("models--")]
    yield from _named("\n".join(parts), "the folder's name")


def contradiction(found: Sequence[tuple[str, str]]) -> str | None:
    """Words about the strongest pieces of evidence where they speak for two versions; None where they agree."""
    other = next((what for version, what in found if version != found[0][0]), None)
    return f"{found[0][1]} speaks for version {found[0][0]}, {other} against it" if other else None


def holds_ranks(path: Path) -> bool:
    """Whether a file begins with a line of a token in base64 and its rank, as GLM-4's tokenizer has them."""
    return _RANK_LINE.fullmatch(_first_line(path)) is not None


def holds_pieces(path: Path) -> bool:
    """Whether a file begins as a SentencePiece model does: with the tag of its first piece, which is a line feed."""
    return _first_line(path) == b"\n"


def _first_line(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.readline(1024)
    except OSError:
        return b""


def _named(text: str, where: str) -> list[tuple[str, str]]:
    """The first name of a model in a text."""
    matches = ((version, name.search(text.lower())) for name, version in _NAMES)
    return next(([(version, f"the name {match[0]} in {where}")] for version, match in matches if match), [])


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
