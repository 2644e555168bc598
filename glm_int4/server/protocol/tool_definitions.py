"""Definitions of tools as clients send them, tidied for ``text/chat/tools.py``."""

from collections.abc import Mapping, Sequence
from typing import Any

from glm_int4.downloads import shown
from glm_int4.errors import InputError
from glm_int4.text.chat.tools import check_tools


def read_tools(tools: Sequence[Any]) -> list[dict[str, Any]]:
    """Definitions that the model can be shown; raises InputError where one says no name, or is of another type."""
    return check_tools([_tidy(_function(tool, index)) for index, tool in enumerate(tools)])


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
    given = {key: value for key, value in function.items() if value is not None and key != "type"}
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
