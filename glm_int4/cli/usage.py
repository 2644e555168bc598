"""Mistakes on a command line, in the words of this project's other errors."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

_NUMBERS = (("valid integer", "an integer"), ("valid number", "a number"), ("valid float", "a number"))


def explain(error: Any, words: Sequence[str]) -> str:
    """One line about a usage error of Click: what was expected, what was found, what to do.

    Recent releases of Typer carry their own copy of Click, so the classes are told apart by their names.

    Args:
        words: the command line.
    """
    kind, message = type(error).__name__, str(getattr(error, "message", error)).rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context else " ".join(["glm-int4", *words[:1]])
    see = f"see {command} --help"
    if kind == "NoSuchOption":
        return f"expected an option of {command}, got {error.option_name}; {_did_you_mean(error.possibilities) or see}"
    if kind == "BadOptionUsage":
        takes_none = "not take a value" in message
        found = "expected no value behind {}, got one" if takes_none else "expected a value behind {}, got none"
        return f"{found.format(error.option_name)}; {see}"
    if kind == "MissingParameter":
        return f"expected {_name(error.param)}, got none; {see}"
    if kind == "BadParameter":
        name, got = _name(error.param), _given(error.param, words)
        for sign, what in _NUMBERS:
            if sign in message:
                return f"expected {what} for {name}, got {got}; {see}"
        return f"expected a valid value for {name}, got {got} ({message}); {see}"
    if match := re.match(r"No such command '(.*?)'", message, re.DOTALL):
        commands = list(context.command.commands) if context else []
        close = _did_you_mean(difflib.get_close_matches(match[1], commands, n=1))
        return f"expected a command ({', '.join(commands)}), got {match[1]!r}; {close or see}"
    if match := re.match(r"Got unexpected extra argument\S* \((.*)\)", message, re.DOTALL):
        return f"expected no more arguments, got {match[1]!r}; put quotes around a text with spaces, or {see}"
    return f"expected a command line as in {command} --help, got another: {message}"


def _name(parameter: Any) -> str:
    """An option or argument as help calls it."""
    if parameter is None:
        return "a parameter"
    name: str = parameter.opts[0]
    return name if name.startswith("-") else name.upper()


def _given(parameter: Any, words: Sequence[str]) -> str:
    """What the command line says for an option."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        for option in parameter.opts if parameter else ():
            if word == option:
                return repr(following)
            if word.startswith(f"{option}="):
                return repr(word.removeprefix(f"{option}="))
    return "another"


def _did_you_mean(possibilities: Sequence[str] | None) -> str:
    return f"did you mean {possibilities[0]}?" if possibilities else ""
