"""Schemas that refer to others, or are made of several: what they come to as one schema."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from glm_int4.downloads import shown

_SAY_NOTHING = {
    *("title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly", "nullable"),
    *("$schema", "$id", "id", "$comment", "$anchor", "$defs", "definitions", "discriminator", "strict"),
}


class UnsupportedError(Exception):
    """A schema that no grammar is made of: the keyword, and what is wrong with it."""

    def __init__(self, keyword: str, found: str) -> None:
        super().__init__(f"{keyword}: {found}")
        self.keyword, self.found = keyword, found


def assertions(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema without what says nothing about values."""
    said = {key: value for key, value in schema.items() if key not in _SAY_NOTHING}
    return {key: value for key, value in said.items() if value is not None or key == "const"}


def reference(schema: Mapping[str, Any]) -> str | None:
    """The reference that is all a schema says, perhaps as the one part of an ``allOf``."""
    said = assertions(schema)
    if set(said) == {"allOf"} and isinstance(said["allOf"], list) and len(said["allOf"]) == 1:
        return reference(said["allOf"][0]) if isinstance(said["allOf"][0], Mapping) else None
    return said["$ref"] if set(said) == {"$ref"} and isinstance(said["$ref"], str) else None


def target(pointer: str, root: Mapping[str, Any]) -> Any:
    """What a reference within the schema means."""
    if pointer != "#" and not pointer.startswith("#/"):
        raise UnsupportedError("$ref", f"{shown(pointer)}, which is not within the schema")
    found: Any = root
    for part in pointer.split("/")[1:]:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isascii() and key.isdigit() and int(key) < len(found):
            found = found[int(key)]
        elif isinstance(found, Mapping) and key in found:
            found = found[key]
        else:
            raise UnsupportedError("$ref", f"{shown(pointer)}, where there is nothing")
    return found


def resolved(schema: Any, root: Mapping[str, Any], followed: tuple[str, ...] = ()) -> dict[str, Any]:
    """A schema's assertions, with those of what it refers to and of the parts of its ``allOf``."""
    if schema is True:
        return {}
    if not isinstance(schema, Mapping):
        raise UnsupportedError("a schema", shown(schema))
    said = assertions(schema)
    if "$ref" in said:
        pointer = said.pop("$ref")
        if not isinstance(pointer, str) or pointer in followed:
            raise UnsupportedError("$ref", f"{shown(pointer)}, which leads nowhere")
        said = merged(resolved(target(pointer, root), root, (*followed, pointer)), said, "$ref")
        return resolved(said, root, followed)
    parts = said.pop("allOf", [])
    if not isinstance(parts, list):
        raise UnsupportedError("allOf", shown(parts))
    for part in parts:
        said = merged(said, resolved(part, root, followed), "allOf")
    return said


def merged(one: Mapping[str, Any], other: Mapping[str, Any], keyword: str) -> dict[str, Any]:
    """What is demanded by both; raises UnsupportedError where they say different things with one keyword."""
    both = {**one, **other}
    for key in one.keys() & other.keys():
        if _same(one[key], other[key]):
            continue
        if key == "required" and isinstance(one[key], list) and isinstance(other[key], list):
            both[key] = [*one[key], *(name for name in other[key] if name not in one[key])]
        elif key == "properties" and not {"additionalProperties"} & both.keys():
            both[key] = _united(one[key], other[key], keyword)
        else:
            raise UnsupportedError(keyword, f"parts with different {key}")
    return both


def _united(one: Any, other: Any, keyword: str) -> dict[str, Any]:
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        raise UnsupportedError("properties", shown(other))
    for name in one.keys() & other.keys():
        if not _same(one[name], other[name]):
            raise UnsupportedError(keyword, f"parts with different schemas of {shown(name)}")
    return {**one, **other}


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one) == json.dumps(other)
