"""What an answer must look like: a JSON schema, a regular expression, one of some texts, or a grammar.

Here it is checked and written down as llguidance reads it; ``compiler.py`` makes a matcher of it.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glm_int4.downloads import shown
from glm_int4.errors import InputError
from glm_int4.generation.constraints.json_schemas import MOST_CHARACTERS, JSONSchema, read_schema

# White space is what json.dumps writes: where it is free, a small model may write nothing else.
_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Tokens that are the only way on are not chosen in place of the model: it may cut a text in its own way.
_ANSWER = '%llguidance {"no_forcing": true}\nstart: " " @content\n'


@dataclass(frozen=True, slots=True)
class Constraint:
    """A constraint, ready to be compiled.

    Attributes:
        grammars: for llguidance, in JSON. They begin with a space, as the first piece of a text does.
    """

    grammars: str


def read_constraint(
    json_schema: JSONSchema | None = None,
    regex: str | None = None,
    choices: Sequence[str] | None = None,
    grammar: str | None = None,
) -> Constraint | None:
    """The constraint that arguments describe; None where there is none.

    Args:
        json_schema: a schema or its JSON. regex: Rust's syntax, for the whole answer. choices: texts, one of which is
            the answer. grammar: Lark as llguidance reads it, with a rule ``start``.
    Raises:
        InputError: more than one of them, or one that is not what it should be.
    """
    given = {"json_schema": json_schema, "regex": regex, "choices": choices, "grammar": grammar}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise InputError(f"expected at most one constraint, got {' and '.join(names)}")
    if json_schema is not None:
        return _constraint({"json_schema": read_schema(json_schema) | {"x-guidance": _JSON_STYLE}})
    if regex is not None:
        return _constraint({"lark_grammar": f"start: {_regex(_text('regex', regex))}"})
    if choices is not None:
        return _constraint({"lark_grammar": f"start: /{_choices(choices)}/"})
    if grammar is not None:
        return _constraint({"lark_grammar": _text("grammar", grammar)})
    return None


def _constraint(content: dict[str, Any]) -> Constraint:
    grammars = [{"name": "answer", "lark_grammar": _ANSWER}, {"name": "content", **content}]
    return Constraint(json.dumps({"grammars": grammars}))


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"expected {name} to be a text that is not empty, got {shown(value)}")
    if len(value) > MOST_CHARACTERS:
        raise InputError(f"expected a {name} of at most {MOST_CHARACTERS} characters, got {len(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"expected {name} to be text, got a lone surrogate at character {error.start}") from error
    return value


def _regex(regex: str) -> str:
    """As a grammar writes it: between slashes, so that those in it need a backslash."""
    inner = re.sub(r"\\.|/", lambda match: "\\/" if match[0] == "/" else match[0], regex, flags=re.DOTALL)
    return f"/{inner}/"


def _choices(choices: object) -> str:
    """A regular expression for one of some texts."""
    if isinstance(choices, str) or not isinstance(choices, Sequence) or not choices:
        raise InputError(f"expected choices to be a list of texts, got {shown(choices)}")
    texts = [_text("each of choices", choice) for choice in choices]
    if (length := sum(map(len, texts))) > MOST_CHARACTERS:
        raise InputError(f"expected choices of at most {MOST_CHARACTERS} characters, got {length}")
    return "|".join("".join(c if c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text) for text in texts)
