"""Definitions of tools as clients send them, tidied for ``text/chat/tools.py``."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from glm_int4.downloads import shown
from glm_int4.errors import InputError
from glm_int4.text.chat.tools import check_tools

_FIELDS = ("type", "function")
_FUNCTION_FIELDS = ("name", "description", "parameters")
_UNUSED = ("strict",)  # what the model calls is checked by nobody


def read_tools(tools: Sequence[Any]) -> list[dict[str, Any]]:
    """Definitions that the model can be shown; raises InputError where one says no name, or is of another type."""
    return check_tools([_tidy(_function(tool, index)) for index, tool in enumerate(tools)])


def unknown_tool_fields(name: str, tools: Sequence[Any]) -> list[str]:
    """Names of fields of definitions that nobody knows here; ``name`` is that of the field that holds them all."""
    return list(dict.fromkeys(chain.from_iterable(_unknown_fields(name, tool) for tool in tools)))


def _unknown_fields(name: str, tool: Any) -> list[str]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if isinstance(function, Mapping):
        return [*_others(name, tool, _FIELDS), *_others(f"{name}.function", function, _FUNCTION_FIELDS)]
    return _others(name, tool, (*_FIELDS, *_FUNCTION_FIELDS))


def _others(name: str, given: Any, known: Sequence[str]) -> list[str]:
    fields = given.items() if isinstance(given, Mapping) else ()
    return [f"{name}.{key}" for key, value in fields if key not in (*known, *_UNUSED) and value is not None]


def _function(tool: Any, index: int) -> Any:
    """The function of a tool, which may stand alone."""
    if not isinstance(tool, Mapping):
        return tool
    kind = tool.get("type") or "function"
    if kind != "function":
        raise InputError(
            f"expected tool {index} of type 'function', got {shown(kind)}; this server calls functions alone"
        )
    return tool.get("function") or tool


def _tidy(function: Any) -> Any:
    if not isinstance(function, Mapping):
        return function
    given = {key: function[key] for key in _FUNCTION_FIELDS if function.get(key) is not None}
    if isinstance(parameters := given.get("parameters"), Mapping):
        given["parameters"] = _tidy_parameters(parameters)
    return given


def _tidy_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """With "type" and "properties"; a schema that is true says nothing, one that is false allows nothing."""
    given = {"type": "object"} | {key: value for key, value in parameters.items() if value is not None}
    properties, required = given.get("properties", {}), given.get("required", [])
    if not isinstance(properties, Mapping):
        return given
    given["properties"] = {
        name: {} if schema is True or schema is None else schema
        for name, schema in properties.items()
        if schema is not False
    }
    if isinstance(required, list):
        for name in required:  # without a schema of its own it may be anything
            if isinstance(name, str):
                given["properties"].setdefault(name, {})
    return given
