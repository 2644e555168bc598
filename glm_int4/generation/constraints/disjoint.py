"""Whether no value can meet two schemas: then ``oneOf`` asks for what ``anyOf`` does, which is easier to follow."""

from itertools import combinations
from typing import Any

_MOST_BRANCHES, _MOST_REFERENCES, _DEEPEST = 200, 10, 10
_TYPES = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}


def are_apart(schemas: list[Any], root: dict[str, Any]) -> bool:
    """Whether no value meets two of some schemas, by their types, constants, or a property that both require.

    False where that cannot be told.
    """
    resolved = [_resolve(schema, root) for schema in schemas]
    return len(schemas) <= _MOST_BRANCHES and all(_apart(a, b, root) for a, b in combinations(resolved, 2))


def _apart(first: Any, second: Any, root: dict[str, Any], depth: int = 0) -> bool:
    if depth == _DEEPEST:
        return False
    if not isinstance(first, dict) or not isinstance(second, dict):
        return first is False or second is False
    kinds, other_kinds = _kinds(first), _kinds(second)
    if kinds is not None and other_kinds is not None and not kinds & other_kinds:
        return True
    values, other_values = _values(first), _values(second)
    if values is not None and other_values is not None:
        return not values & other_values
    if kinds != {"object"} or other_kinds != {"object"}:
        return False
    shared = _required(first) & _required(second)
    if not shared:
        return False
    here, there = first["properties"], second["properties"]
    return any(_apart(_resolve(here[name], root), _resolve(there[name], root), root, depth + 1) for name in shared)


def _resolve(schema: Any, root: dict[str, Any]) -> Any:
    """A schema behind its references, which may go in a circle."""
    for _ in range(_MOST_REFERENCES):
        if not isinstance(schema, dict) or not isinstance(reference := schema.get("$ref"), str):
            return schema
        schema = root
        for name in reference.removeprefix("#").split("/")[1:]:
            schema = schema.get(name) if isinstance(schema, dict) else None
    return {}


def _kinds(schema: dict[str, Any]) -> set[str] | None:
    """The types that its values have, "integer" counted as "number"; None for any."""
    kinds = schema.get("type")
    if isinstance(kinds, str):
        kinds = [kinds]
    if isinstance(kinds, list):
        return {"number" if kind == "integer" else str(kind) for kind in kinds}
    values = (
        schema["enum"] if isinstance(schema.get("enum"), list) else [schema["const"]] if "const" in schema else None
    )
    return None if values is None else {_TYPES.get(type(value), "null") for value in values}


def _values(schema: dict[str, Any]) -> set[str | int] | None:
    """Its constants; None where it has others than texts and whole numbers."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list) or not all(type(value) in (str, int) for value in values):
        return None
    return set(values)


def _required(schema: dict[str, Any]) -> set[str]:
    """Properties that it both describes and requires."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or not isinstance(required, list):
        return set()
    return {name for name in required if isinstance(name, str) and name in properties}
