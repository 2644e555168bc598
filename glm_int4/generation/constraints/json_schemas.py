"""JSON schemas as a user gives them: checked against the keywords that are kept, and made narrower where answers would
otherwise go on and on.

A keyword that cannot be kept is an error, never left out: every complete answer is valid. docs/structured-output.md
has the list.
"""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from glm_int4.downloads import check_depth, shown, shown_name, unique_keys
from glm_int4.errors import InputError
from glm_int4.generation.constraints.disjoint import are_apart

MOST_CHARACTERS = 1 << 16
# Largest integers that every program keeps exactly (RFC 8259); a schema's own bounds may go beyond.
LARGEST_INTEGER = 2**53 - 1
SMALLEST_STEP = 1e-9  # between numbers, where the schema does not say
_LEAST_ROOM = 1e-3  # between the bounds of numbers that go in such steps
# A bound on a length or on a number of items takes as many states of the matcher.
LARGEST_COUNT = 10_000

_ONE, _MANY, _NAMED = "a schema", "a list of schemas", "an object of schemas"
_HOLDERS = {  # keywords that hold schemas
    **dict.fromkeys(("items", "additionalProperties"), _ONE),
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), _MANY),
    **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions"), _NAMED),
}
_TOP = "the schema"
_ANY = "any-value"
_LOWS, _HIGHS = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_VALUES = {
    *("type", "enum", "const", "$ref", "pattern", "format", "required", "multipleOf"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *_COUNTS,
}
_REMARKS = {  # they say something about a value, and ask nothing of it
    *("title", "description", "default", "example", "examples", "$comment", "$schema", "$id"),
    *("deprecated", "readOnly", "writeOnly", "discriminator"),
}
KEYWORDS = frozenset({*_HOLDERS, *_VALUES})
FORMATS = ("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
_LONGEST = {"date-time": 35, "time": 24, "duration": 32}  # nine digits of a second; without a bound there is no end

JSONSchema = Mapping[str, Any] | bool | str


def read_schema(given: JSONSchema) -> dict[str, Any]:
    """A schema, or the JSON of one, as ``Constraint`` takes it.

    Raises:
        InputError: no schema, one that is too large, or a keyword that is not kept; the message names it.
    """
    try:
        text = given if isinstance(given, str) else json.dumps(given, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"expected a JSON schema, got something else ({error})") from error
    if len(text) > MOST_CHARACTERS:
        raise InputError(f"expected a JSON schema of at most {MOST_CHARACTERS} characters, got {len(text)}")
    kept: dict[str, Any] = json.loads(_read(text))
    return kept


@lru_cache(maxsize=32)
def _read(text: str) -> str:
    """What is kept of a schema."""
    try:
        schema = json.loads(text, object_pairs_hook=unique_keys)
        check_depth(schema)
    except (ValueError, RecursionError) as error:
        raise InputError(f"expected a JSON schema, got something else ({error})") from error
    schema = {} if schema is True else schema
    if schema is False:
        raise InputError("expected a JSON schema that some value meets, got false, which none does")
    if not isinstance(schema, dict):
        raise InputError(f"expected a JSON schema, which is an object, got {shown(schema)}")
    for place, part in _parts(schema, _TOP):
        _check(part, place)
        if "oneOf" in part and "anyOf" not in part and are_apart(part["oneOf"], schema):
            part["anyOf"] = part.pop("oneOf")
    if any(_intersects(part) for _, part in _parts(schema, "")):
        return json.dumps(_kept(schema, narrow=False))
    kept = _kept(schema, narrow=True)
    kept["$defs"] = kept.get("$defs", {}) | {_ANY: _any_value()}
    return json.dumps(kept)


def _any_value() -> dict[str, Any]:
    """A schema for any value, narrow as others are."""
    kinds: list[dict[str, Any]] = [
        {"type": kind} for kind in ("null", "boolean", "number", "string", "array", "object")
    ]
    return {"anyOf": [_kept(kind, narrow=True) for kind in kinds]}


def _parts(schema: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema in a schema that is an object, with its place in words."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise InputError(f"expected an object or true or false at {place}, got {shown(schema)}")
    yield place, schema
    for keyword, kind in _HOLDERS.items():
        held = schema.get(keyword)
        if keyword not in schema:
            continue
        where = f"{keyword} of {place}"
        if kind == _ONE:
            yield from _parts(held, where)
        elif isinstance(held, list if kind == _MANY else dict):
            for name, part in enumerate(held) if isinstance(held, list) else held.items():
                yield from _parts(part, f"{shown_name(str(name))} in {where}")
        else:
            raise InputError(f"expected {kind} as {where}, got {shown(held)}")


def _check(schema: dict[str, Any], place: str) -> None:
    """Raise InputError for a keyword that is not kept."""
    for keyword, value in schema.items():
        is_remark = keyword in _REMARKS or keyword.startswith("x-")
        if is_remark and (keyword != "$id" or place == _TOP):  # elsewhere $id says what a $ref begins at
            continue
        if keyword not in KEYWORDS:
            raise InputError(
                f"expected keywords of docs/structured-output.md, got {shown_name(keyword)} in {place}; leave it out"
            )
        if keyword in _COUNTS and not _is_count(value):
            raise InputError(f"expected {keyword} in {place} to be from 0 to {LARGEST_COUNT}, got {shown(value)}")
    if not isinstance(reference := schema.get("$ref", "#"), str) or not reference.startswith("#"):
        raise InputError(f"expected a $ref in {place} that begins with #, got {shown(reference)}")
    if schema.get("format", FORMATS[0]) not in FORMATS:
        raise InputError(
            f"expected a format in {place} of {', '.join(FORMATS)}, got {shown(schema['format'])}; leave it out"
        )


def _is_count(value: object) -> bool:
    return _is_number(value) and 0 <= value <= LARGEST_COUNT  # type: ignore[operator]


def _intersects(schema: dict[str, Any]) -> bool:
    """Whether several schemas must hold for one value: what one of them does not name, another may."""
    applied = [schema[name] for name in ("allOf", "anyOf", "oneOf", "$ref") if name in schema]
    beside = {"properties", "patternProperties", "required", "prefixItems", "items"} & schema.keys()
    return len(applied) + bool(beside) > 1 or len(schema.get("allOf", ())) > 1


def _kept(schema: Any, narrow: bool) -> Any:
    """A schema without its remarks; if ``narrow``, without what it does not name."""
    if narrow and (schema is True or schema == {}):
        return {"$ref": f"#/$defs/{_ANY}"}
    if isinstance(schema, bool):
        return schema
    kept = {name: value for name, value in schema.items() if name in KEYWORDS}
    if narrow:
        _close(kept)
        _bound(kept)
        if kept.get("format") in _LONGEST:
            kept.setdefault("maxLength", _LONGEST[kept["format"]])
    for name, kind in _HOLDERS.items():
        if name not in kept:
            continue
        if kind == _ONE:
            kept[name] = _kept(kept[name], narrow)
        elif kind == _MANY:
            kept[name] = [_kept(part, narrow) for part in kept[name]]
        else:
            kept[name] = {key: _kept(part, narrow) for key, part in kept[name].items()}
    return kept


def _close(schema: dict[str, Any]) -> None:
    """Leave out properties and items that a schema allows without naming them; where it names none, they are any."""
    kinds, least = _kinds(schema), schema.get("minProperties", 0)
    names, patterns = schema.get("properties", {}), schema.get("patternProperties")
    if (names or patterns or "object" in kinds) and "additionalProperties" not in schema:
        required = schema.get("required", [])
        missing = not isinstance(required, list) or any(name not in names for name in required)
        enough = patterns or least <= len(names)
        schema["additionalProperties"] = not ((names or patterns) and enough and not missing)
    if ("prefixItems" in schema or "array" in kinds) and "items" not in schema:
        first = len(schema.get("prefixItems", ()))
        schema["items"] = not first or schema.get("minItems", 0) > first


def _bound(schema: dict[str, Any]) -> None:
    """Keep numbers within what every program keeps exactly, and short."""
    kinds = _kinds(schema) & {"integer", "number"}
    lows, highs = ([schema[name] for name in names if name in schema] for names in (_LOWS, _HIGHS))
    if not kinds or not all(_is_number(value) and abs(value) <= LARGEST_INTEGER for value in (*lows, *highs)):
        return
    if not lows:
        schema["minimum"] = -LARGEST_INTEGER
    if not highs:
        schema["maximum"] = LARGEST_INTEGER
    room = min(highs, default=LARGEST_INTEGER) - max(lows, default=-LARGEST_INTEGER)
    if "number" in kinds and "multipleOf" not in schema and room > _LEAST_ROOM:
        schema["multipleOf"] = SMALLEST_STEP


def _kinds(schema: dict[str, Any]) -> set[Any]:
    """The types that a schema names, where nothing else says what its values are."""
    kinds = schema.get("type")
    if {"enum", "const"} & schema.keys():
        return set()
    return {kind for kind in (kinds if isinstance(kinds, list) else [kinds]) if isinstance(kind, str)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
