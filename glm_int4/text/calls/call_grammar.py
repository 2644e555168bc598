"""The grammar of a call that an answer of ChatGLM3-6B must be, for llguidance: its name, then Python in a fence.

``replies.parse_reply_v3`` reads what it allows into arguments that fit the tool's JSON schema.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from glm_int4.downloads import shown
from glm_int4.errors import InputError
from glm_int4.text.calls.merging import UnsupportedError, resolved
from glm_int4.text.calls.schema_rules import REFUSED, Rules, SchemaRules, constant, named_properties
from glm_int4.text.calls.string_patterns import literal
from glm_int4.text.chat.replies import is_keyword_argument
from glm_int4.text.chat.tools import Tool

# The content is a text of its own behind the line, so its first piece begins with a space.
_BEFORE, _BEHIND = " ```python\ntool_call(", ")\n```"


def tool_call_grammar(tools: Sequence[Tool], *, named: bool = False) -> str:
    """Lark text of the calls of one of some tools, without the space that an answer's first piece begins with.

    Args:
        tools: definitions as of ``check_tools``.
        named: whether the answer already begins with the line of the tool's name; there is one tool then.
    Raises:
        InputError: no tools, or a keyword of a schema that no grammar is made of.
    """
    if not tools:
        raise InputError("expected tools to call one of, got none")
    rules = Rules()
    calls = []
    for tool in tools:
        try:
            arguments = _arguments(rules, tool.get("parameters", {}))
        except UnsupportedError as error:
            raise InputError(
                f"expected parameters of tool {shown(tool['name'])} that a call can be held to, got {error.keyword}: "
                f"{error.found}; leave it out, or let the model choose (tool_choice: auto)"
            ) from error
        line = "" if named else f"{tool['name']}\n"
        calls.append(f"{literal(line + _BEFORE)} {arguments} {literal(_BEHIND)}")
    return f"start: {' | '.join(calls)}\n{rules.text()}"


def _arguments(rules: Rules, parameters: Mapping[str, Any]) -> str:
    """Expression of a call's arguments; those whose names Python does not take come last, in a ``**{...}``."""
    made = SchemaRules(rules, parameters)
    said = resolved(parameters, parameters)
    for word in (*REFUSED, "anyOf", "oneOf", "enum", "const", "minProperties", "maxProperties"):
        if word in said:
            raise UnsupportedError(word, f"{shown(said[word])} beside properties")
    plain, others = [], []
    for name, schema, needed in named_properties(said):
        if is_keyword_argument(name):
            plain.append((f"{literal(name + '=')} {made.symbol(schema)}", needed))
        else:
            others.append((f'{constant(name)} ": " {made.symbol(schema)}', needed))
    if others:
        plain.append((f'"**{{" {made.sequence(others)} "}}"', any(needed for _, needed in others)))
    return made.sequence(plain)
