"""Python's strings in llguidance's Lark: what ``ast.literal_eval`` reads back as a text that a schema allows.

A text stands between single or double quotes. Where a ``pattern`` is given, it holds no characters that need a
backslash, so what is written is what is meant. Role tokens that are spelled out are kept out: an answer is cut there.
"""

import json
import re
import warnings
from collections.abc import Collection
from typing import Any

from glm_int4.text.chat.prompts_v3 import ASSISTANT

_CODE = "x[0-9a-f]{2}|u([0-9a-ce-f][0-9a-f]{3}|d[0-7][0-9a-f]{2})|U000[1-9a-f][0-9a-f]{4}|U0010[0-9a-f]{4}"
_ESCAPE = rf"""\\(['"\\nrt]|{_CODE})"""
_SINGLE, _DOUBLE = (rf"""[^{quote}\\\x00-\x1f\x7f]""" for quote in "'\"")
_NO_ROLE = rf"~/(?s:.*){re.escape(ASSISTANT)}(?s:.*)/"
_SHORTHANDS = {"d": "0-9", "w": "0-9A-Za-z_"}
_NOT_SHORTHANDS = {"D": "[^0-9]", "W": "[^0-9A-Za-z_]"}


def literal(text: str) -> str:
    """A text as Lark has it between quotes."""
    return json.dumps(text)


def string_terminal(low: int = 0, high: int | None = None, pattern: str | None = None) -> str:
    """Expression of a terminal for texts of ``low`` to ``high`` characters that a pattern of JSON Schema is found in.

    Raises:
        ValueError: says what of the pattern cannot be followed.
    """
    count = f"{{{low},{'' if high is None else high}}}" if low or high is not None else "*"
    if pattern is None:
        single, double = (f"({plain}|{_ESCAPE}){count}" for plain in (_SINGLE, _DOUBLE))
        return f"({_quoted(single, double)}) & {_NO_ROLE}"
    return f"{plain_terminal()} & {_between_quotes(f'(?s:.{count})')} & {_between_quotes(_found(pattern))}"


def plain_terminal(but: Collection[str] = ()) -> str:
    """Expression of a terminal for texts without a backslash, other ones than ``but``."""
    plain = f"({_quoted(_SINGLE + '*', _DOUBLE + '*')}) & {_NO_ROLE}"
    if not but:
        return plain
    return f"{plain} & ~{_between_quotes('(' + '|'.join(map(_escaped, but)) + ')')}"


def _quoted(single: str, double: str) -> str:
    return f"/'{single}'/ | /\"{double}\"/"


def _between_quotes(expression: str) -> str:
    return f"/['\"]({expression})['\"]/"


def _escaped(text: str) -> str:
    """A regular expression of a text, in printable ASCII."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\u{{{ord(c):x}}}" for c in text)


def _found(pattern: str) -> str:
    """A regular expression, as Rust reads it, of texts that a pattern of ECMAScript's is found in."""
    try:
        with warnings.catch_warnings(action="ignore"):  # on what another version of Python may read in another way
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"a fault: {error}") from error
    parts = []
    for branch in _branches(pattern):
        begins = branch.startswith("^")
        ends = branch.endswith("$") and not _is_escaped(branch, len(branch) - 1)
        inner = branch[begins : len(branch) - ends]
        parts.append(f"{'' if begins else '(?s:.*)'}({_translated(inner)}){'' if ends else '(?s:.*)'}")
    return "|".join(parts)


def _is_escaped(text: str, index: int) -> bool:
    before = text[:index]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1


def _branches(pattern: str) -> list[str]:
    """Alternatives of a pattern that stand in no parentheses."""
    branches, depth, in_class, index = [""], 0, False, 0
    while index < len(pattern):
        taken = pattern[index : index + 2] if pattern[index] == "\\" else pattern[index]
        index += len(taken)
        if not in_class:
            depth += {"(": 1, ")": -1}.get(taken, 0)
        in_class = taken == "[" or (in_class and taken != "]")
        if taken == "|" and depth == 0 and not in_class:
            branches.append("")
        else:
            branches[-1] += taken
    return branches


def _translated(pattern: str) -> str:
    """What ECMAScript and Rust write differently; raises ValueError for what Rust's automata lack."""
    out, in_class, index = "", False, 0
    while index < len(pattern):
        character = pattern[index]
        index += 1
        if character == "\\":
            if index == len(pattern):
                raise ValueError("a backslash at its end")
            piece, index = _translated_escape(pattern, index, in_class)
            out += piece
        elif in_class:
            in_class = character != "]"
            out += _one(character) if in_class else "]"
        elif character == "[":
            in_class = True
            if pattern[index : index + 1] == "]" or pattern[index : index + 2] == "^]":
                raise ValueError("an empty class of characters")
            out += "[^" if pattern[index : index + 1] == "^" else "["
            index += pattern[index : index + 1] == "^"
        elif character in "^$":
            raise ValueError(f"{character} in its middle")
        elif character == "(" and pattern[index : index + 1] == "?":
            if pattern[index : index + 2] != "?:":
                raise ValueError("a group of another kind than (?:...)")
            out, index = f"{out}(?:", index + 2
        elif character == ".":
            out += r"[^\n\r\u{2028}\u{2029}]"
        else:
            out += character if character in "()*+?{}|," else _one(character)
    return out


def _translated_escape(pattern: str, index: int, in_class: bool) -> tuple[str, int]:
    """What stands behind a backslash in Rust's form, and where the rest begins."""
    kind = pattern[index]
    if kind in _SHORTHANDS:
        return (_SHORTHANDS[kind] if in_class else f"[{_SHORTHANDS[kind]}]"), index + 1
    if kind in _NOT_SHORTHANDS:
        return _NOT_SHORTHANDS[kind], index + 1
    if kind in "sSnrtfv":
        return f"\\{kind}", index + 1
    if match := re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]{1,6})\}").match(pattern, index):
        number = int(match[1] or match[2] or match[3], 16)
        if 0xD800 <= number < 0xE000 or number > 0x10FFFF:
            raise ValueError("half a character")
        return f"\\u{{{number:x}}}", match.end()
    if kind.isalnum():
        raise ValueError(f"\\{kind}")
    return f"\\u{{{ord(kind):x}}}", index + 1


def _one(character: str) -> str:
    """One character, as itself."""
    plain = character.isascii() and (character.isalnum() or character in "_- ,:;=@!\"'<>%")
    return character if plain else f"\\u{{{ord(character):x}}}"


def python_text(value: Any) -> str:
    """A constant as Python writes it, and an answer can hold it."""
    return repr(value).replace(ASSISTANT, ASSISTANT.replace("|", r"\x7c", 1))
