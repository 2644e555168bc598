"""Tools that ChatGLM3-6B and GLM-4-9B may call: what a definition must hold, and how the model reads it."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from glm_int4.downloads import check_depth, shown
from glm_int4.errors import InputError
from glm_int4.text.tokenizer_v2 import ROLE_PIECES

Tool = Mapping[str, Any]

TOOLS_SYSTEM_TEXT = (
    "Answer the following questions as best as you can. You have access to the following tools:"  # as in training
)
INTERPRETER = "interpreter"


def check_tools(tools: Sequence[Tool] | None, taken: Collection[str] = (INTERPRETER,)) -> list[dict[str, Any]]:
    """Return the definitions of tools, without OpenAI's wrapping.

    Args:
        tools: ``{"name": ..., "description": ..., "parameters": {"type": "object", "properties": {...},
            "required": [...]}}``, or that as ``{"type": "function", "function": {...}}``. ``description``,
            ``required`` and, for a tool that takes nothing, ``parameters`` may be absent.
        taken: names that mean something else to the model.
    Raises:
        InputError: names the first fault.
    """
    if tools is None:
        return []
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise InputError(f"expected a list of tools, got {shown(tools)}")
    try:
        check_depth(tools)  # they are written with an indentation, which grows as the square of the depth
    except ValueError as error:
        raise InputError(f"expected tools that a model can read, got {error}") from error
    checked: list[dict[str, Any]] = []
    for index, tool in enumerate(tools):
        definition = _unwrapped(tool, f"tool {index}")
        name = _checked_name(definition, f"tool {index}", taken)
        if name in (other["name"] for other in checked):
            raise InputError(f"expected tools of different names, got {shown(name)} twice")
        _check_definition(definition, f"tool {shown(name)}")
        checked.append(definition)
    return checked


def write_tools(tools: Sequence[Tool]) -> str:
    """Definitions as the model was trained to read them, behind the system text."""
    return write_json(list(tools))


def write_json(definition: Any) -> str:
    """One or several definitions in JSON; raises InputError for what JSON cannot hold."""
    try:
        return json.dumps(definition, indent=4, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"expected tools that JSON can hold, got others ({error}); use texts and numbers") from error


def parameter_names(tools: Sequence[Tool], name: str) -> list[str] | None:
    """Names of a tool's parameters in order; None for a tool that is not among ``tools``."""
    for tool in tools:
        if tool["name"] == name:
            return list(tool.get("parameters", {}).get("properties", {}))
    return None


def _unwrapped(tool: object, where: str) -> dict[str, Any]:
    if isinstance(tool, Mapping) and "function" in tool:
        if tool.get("type", "function") != "function":
            raise InputError(f"expected {where} of type 'function', got {shown(tool['type'])}")
        tool = tool["function"]
    if not isinstance(tool, Mapping):
        raise InputError(f"expected {where} to be an object with name and parameters, got {shown(tool)}")
    return dict(tool)


def _checked_name(definition: Tool, where: str, taken: Collection[str]) -> str:
    name = definition.get("name")
    if not isinstance(name, str) or not name.strip() or name != name.strip() or "\n" in name:
        raise InputError(f"expected {where} to have a name of one line, got {shown(name)}")
    if any(piece in name for piece in ROLE_PIECES):  # an answer is cut there, so the call could never be read
        raise InputError(f"expected {where} to have a name without a role of the model's, got {shown(name)}")
    if name in taken:
        meant = "the code interpreter" if name == INTERPRETER else "a tool of the model's own"
        raise InputError(f"expected {where} to have another name than {name!r}, which means {meant}")
    return name


def _check_definition(definition: Tool, where: str) -> None:
    description = definition.get("description", "")
    if not isinstance(description, str):
        raise InputError(f"expected the description of {where} to be a text, got {shown(description)}")
    if "parameters" not in definition:
        return
    parameters = definition["parameters"]
    if not isinstance(parameters, Mapping) or parameters.get("type") != "object":
        raise InputError(f'expected the parameters of {where} to have "type": "object", got {shown(parameters)}')
    properties = parameters.get("properties")
    if not isinstance(properties, Mapping):
        raise InputError(f"expected the properties of {where} to be an object, got {shown(properties)}")
    for key, value in properties.items():
        if not isinstance(key, str) or not isinstance(value, Mapping):
            raise InputError(f"expected the property {shown(key)} of {where} to be an object, got {shown(value)}")
    required = parameters.get("required", [])
    if not isinstance(required, Sequence) or isinstance(required, str):
        raise InputError(f"expected required of {where} to be a list of names, got {shown(required)}")
    for key in required:
        if not isinstance(key, str) or key not in properties:
            raise InputError(f"expected required of {where} to name its properties, got {shown(key)}")
