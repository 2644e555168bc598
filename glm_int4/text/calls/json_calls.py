"""The grammar of a call that an answer of GLM-4-9B must be, for llguidance: its name, then arguments as JSON.

``replies_v4.parse_reply_v4`` reads what it allows into arguments that fit the tool's JSON schema.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from glm_int4.errors import InputError
from glm_int4.text.calls.string_patterns import literal
from glm_int4.text.chat.tools import Tool

_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as json.dumps writes
_NOTHING = {"type": "object", "properties": {}}


def json_call_grammar(
    tools: Sequence[Tool], *, named: bool = False, read_schema: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> str:
    """Lark text of the calls of one of some tools, without the space that a constraint begins with.

    Args:
        tools: definitions as of ``check_tools``.
        named: whether the answer already begins with the line of the tool's name; there is one tool then.
        read_schema: checks a JSON schema, and makes it one that answers end with.
    Raises:
        InputError: no tools, or a schema that no grammar is made of.
    """
    if not tools:
        raise InputError("expected tools to call one of, got none")
    calls, rules = [], []
    for index, tool in enumerate(tools):
        schema = read_schema({"additionalProperties": False, **tool.get("parameters", _NOTHING)})
        calls.append(f"call{index}" if named else f"{literal(tool['name'] + chr(10))} call{index}")
        rules.append(f"call{index}: %json {json.dumps(schema | {'x-guidance': _STYLE})}\n")
    return f"start: {' | '.join(calls)}\n{''.join(rules)}"
