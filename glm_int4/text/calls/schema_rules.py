"""From a JSON schema to rules of a grammar for Python literals, as ``repr`` writes them.

What a schema leaves open may be narrower here: an object with ``properties`` gets others only where
``additionalProperties`` says so. ``format``, ``uniqueItems``, and whether only one part of ``oneOf`` fits, are not
looked at. What else cannot be kept is refused by its name.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from glm_int4.downloads import shown
from glm_int4.text.calls.merging import UnsupportedError, merged, reference, resolved, target
from glm_int4.text.calls.number_patterns import ANY_NUMBER, integer_pattern
from glm_int4.text.calls.schema_limits import (
    bounds_of,
    check_number_of_properties,
    check_order,
    count,
    number_of,
    number_pattern,
    whole_pattern,
)
from glm_int4.text.calls.string_patterns import literal, plain_terminal, python_text, string_terminal

MOST_RULES = 5_000
_LARGEST_MULTIPLE = 10**15
REFUSED = (
    *("not", "if", "then", "else", "dependencies", "dependentRequired", "dependentSchemas", "patternProperties"),
    *("propertyNames", "contains", "minContains", "maxContains", "unevaluatedProperties", "unevaluatedItems"),
    *("$dynamicRef", "$recursiveRef"),
)
_TYPED = {  # keywords that tell a type where the schema does not name one
    "object": ("properties", "required", "additionalProperties", "minProperties", "maxProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
_BASIC = f"""\
STRING: {string_terminal()}
NUMBER: /{ANY_NUMBER}/
INTEGER: /{integer_pattern(None, None)}/
value: STRING | NUMBER | "True" | "False" | "None" | anylist | anydict
anylist: "[" (value (", " value)*)? "]"
anydict: "{{" (STRING ": " value (", " STRING ": " value)*)? "}}"
"""


class Rules:
    """Rules and terminals of a grammar, by their names."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def new(self, letter: str) -> str:
        """A name that is not taken: of a rule with a small letter, of a terminal with a capital one."""
        if len(self._texts) >= MOST_RULES:
            raise UnsupportedError("a schema", f"one of more than {MOST_RULES} rules")
        self._texts.append("")
        return f"{letter}{len(self._texts) - 1}"

    def define(self, name: str, body: str) -> str:
        """Say what a name stands for; returns it."""
        self._texts[int(name[1:])] = f"{name}: {body}\n"
        return name

    def add(self, body: str, letter: str = "r") -> str:
        """A rule, or with ``letter`` "T" a terminal, without a use for its name but the one that is returned."""
        return self.define(self.new(letter), body)

    def text(self) -> str:
        """All rules."""
        return _BASIC + "".join(self._texts)


class SchemaRules:
    """Makes rules of one schema and what it contains; ``root`` is what ``$ref`` points into."""

    def __init__(self, rules: Rules, root: Mapping[str, Any]) -> None:
        self._rules, self._root = rules, root
        self._known: dict[str, str] = {}

    def symbol(self, schema: Any) -> str:
        """Name of the rule for values that a schema allows; raises UnsupportedError."""
        if schema is True:
            return "value"
        if not isinstance(schema, Mapping):
            raise UnsupportedError("a schema", shown(schema))
        pointer = reference(schema)
        key = pointer or json.dumps(schema)
        if key not in self._known:
            self._known[key] = name = self._rules.new("r")
            self._rules.define(name, self._body(target(pointer, self._root) if pointer else schema))
        return self._known[key]

    def sequence(self, items: Sequence[tuple[str, bool]], more: str = "") -> str:
        """Expression of items with commas between: what each is, and whether it must be there; then any of ``more``."""
        rest = f'(", " {more})*' if more else '""'
        first = [f"{more} {rest}", '""'] if more else ['""']
        for item, needed in reversed(items):
            first = [f"{item} {rest}", *(first if not needed else [])]
            rest = self._rules.add(f'", " {item} {rest}' if needed else f'(", " {item})? {rest}')
        return self._rules.add(" | ".join(first))

    def _body(self, schema: Any) -> str:
        said = resolved(schema, self._root)
        for keyword in REFUSED:
            if keyword in said:
                raise UnsupportedError(keyword, shown(said[keyword]))
        if "const" in said or "enum" in said:
            return _constants(said)
        for keyword in ("anyOf", "oneOf"):
            if keyword in said:
                return self._alternatives(keyword, said)
        types = _types(said)
        return " | ".join(dict.fromkeys(self._typed(kind, said) for kind in types)) if types else "value"

    def _alternatives(self, keyword: str, said: dict[str, Any]) -> str:
        parts = said.pop(keyword)
        if not isinstance(parts, list) or not parts:
            raise UnsupportedError(keyword, shown(parts))
        others = [part for part in parts if part is not False]
        if said:
            others = [merged(said, resolved(part, self._root), keyword) for part in others]
        if not others:
            raise UnsupportedError(keyword, "one that allows nothing")
        return " | ".join(dict.fromkeys(map(self.symbol, others)))

    def _typed(self, kind: str, said: Mapping[str, Any]) -> str:
        match kind:
            case "null":
                return '"None"'
            case "boolean":
                return '"True" | "False"'
            case "string":
                return self._string(said)
            case "array":
                return self._array(said)
            case "object":
                return self._object(said)
        return self._number(said, whole=kind == "integer")

    def _string(self, said: Mapping[str, Any]) -> str:
        low, high = count(said, "minLength") or 0, count(said, "maxLength")
        pattern = said.get("pattern")
        if pattern is not None and not isinstance(pattern, str):
            raise UnsupportedError("pattern", shown(pattern))
        if not low and high is None and pattern is None:
            return "STRING"
        check_order(low, high, "maxLength")
        try:
            return self._rules.add(string_terminal(low, high, pattern), "T")
        except ValueError as error:
            raise UnsupportedError("pattern", f"{shown(pattern)} with {error}") from error

    def _number(self, said: Mapping[str, Any], *, whole: bool) -> str:
        bounds = bounds_of(said)
        if "multipleOf" in said:
            step = number_of(said, "multipleOf")
            names = {(True, False): "minimum", (True, True): "exclusiveMinimum"}
            names |= {(False, False): "maximum", (False, True): "exclusiveMaximum"}
            schema = {"type": "integer" if whole else "number", "multipleOf": step}
            schema |= {"minimum": -_LARGEST_MULTIPLE, "maximum": _LARGEST_MULTIPLE}
            schema |= {names[is_low, strict]: bound for is_low, strict, bound in bounds}
            return self._rules.add(f"%json {json.dumps(schema)}")
        if not bounds:
            return "INTEGER" if whole else "NUMBER"
        try:
            pattern = whole_pattern(bounds) if whole else number_pattern(bounds)
        except ValueError as error:
            raise UnsupportedError("minimum" if bounds[0][0] else "maximum", str(error)) from error
        return self._rules.add(pattern, "T")

    def _array(self, said: Mapping[str, Any]) -> str:
        low, high = count(said, "minItems") or 0, count(said, "maxItems")
        check_order(low, high, "maxItems")
        given, others = said.get("prefixItems", []), said.get("items", True)
        if isinstance(others, list):  # as drafts before 2020 write it
            given, others = others, said.get("additionalItems", True)
        if not isinstance(given, list):
            raise UnsupportedError("prefixItems", shown(given))
        items = [(self.symbol(schema), index < low) for index, schema in enumerate(given[:high])]
        number, left = len(items), None if high is None else max(high - len(items), 0)
        if others is False and low > number:
            raise UnsupportedError("items", "false, and minItems that ask for some")
        if others is False or left == 0:
            return f'"[" {self._in_order(items, "")} "]"'
        other = self.symbol(others)
        if not items:
            return f'"[" {_repeated(other, low, high)} "]"'
        least = max(low - number, 0)
        tail = _times(f'(", " {other})', least, left)
        return f'"[" {self._in_order(items, tail)} "]"'

    def _in_order(self, items: Sequence[tuple[str, bool]], tail: str) -> str:
        """Expression of a list's first items, none left out before another, and what follows the last."""
        rest = tail or '""'
        for index, (item, needed) in reversed([*enumerate(items)]):
            comma = '", " ' if index else ""
            rest = self._rules.add(f"{comma}{item} {rest}" if needed else f"({comma}{item} {rest})?")
        return rest

    def _object(self, said: Mapping[str, Any]) -> str:
        pairs = named_properties(said)
        more = said.get("additionalProperties", not pairs)
        check_number_of_properties(said, sum(needed for _, _, needed in pairs), None if more else len(pairs))
        if not pairs and more is True:
            return "anydict"
        items = [(f'{constant(name)} ": " {self.symbol(schema)}', needed) for name, schema, needed in pairs]
        extra = ""
        if more is not False:
            key = self._rules.add(plain_terminal([name for name, _, _ in pairs]), "T") if pairs else "STRING"
            extra = f'{key} ": " {self.symbol(more)}'
        return f'"{{" {self.sequence(items, extra)} "}}"'


def named_properties(said: Mapping[str, Any]) -> list[tuple[str, Any, bool]]:
    """Name, schema, and whether it is required, of an object's properties; those that may not be are left out."""
    properties, required = said.get("properties", {}), said.get("required", [])
    if not isinstance(properties, Mapping):
        raise UnsupportedError("properties", shown(properties))
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise UnsupportedError("required", shown(required))
    others = said.get("additionalProperties", True)
    schemas = {**properties, **{name: others for name in required if name not in properties}}
    for name in required:
        if schemas[name] is False:
            raise UnsupportedError("required", f"{shown(name)}, which may not be there")
    return [(name, schema, name in required) for name, schema in schemas.items() if schema is not False]


def _constants(said: Mapping[str, Any]) -> str:
    values = [said["const"]] if "const" in said else said["enum"]
    if not isinstance(values, list):
        raise UnsupportedError("enum", shown(values))
    types = _types(said, inferred=False)
    kept = [value for value in values if not types or _type_of(value) & set(types)]
    if not kept:
        raise UnsupportedError("enum", "one that allows nothing")
    return " | ".join(dict.fromkeys(map(constant, kept)))


def constant(value: Any) -> str:
    """Expression of one value. The lexer never goes back, so its parts are those of the other rules."""
    if isinstance(value, list):
        return f'"[" {_commas(map(constant, value))} "]"'
    if isinstance(value, dict):
        pairs = (f'{constant(name)} ": " {constant(part)}' for name, part in value.items())
        return f'"{{" {_commas(pairs)} "}}"'
    return literal(python_text(value))


def _commas(parts: Iterable[str]) -> str:
    return ' ", " '.join(parts) or '""'


def _type_of(value: Any) -> set[str]:
    """Names of the types that a constant has."""
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int | float):
        return {"number", "integer"} if value == int(value) else {"number"}
    kinds = {str: "string", list: "array", dict: "object", type(None): "null"}
    return {kinds[type(value)]}


def _types(said: Mapping[str, Any], *, inferred: bool = True) -> list[str]:
    """Types that a schema names, or else speaks of; none for any."""
    given = said.get("type", [])
    types = [given] if isinstance(given, str) else given
    known = ("object", "array", "string", "number", "integer", "boolean", "null")
    if not isinstance(types, list) or not all(kind in known for kind in types):
        raise UnsupportedError("type", shown(given))
    if not types and inferred:
        return [kind for kind, keywords in _TYPED.items() if any(keyword in said for keyword in keywords)]
    return [kind for kind in types if kind != "integer" or "number" not in types]


def _repeated(item: str, low: int, high: int | None) -> str:
    """Expression of a list's items, ``low`` to ``high`` of them."""
    if high == 0:
        return '""'
    others = _times(f'(", " {item})', max(low - 1, 0), None if high is None else high - 1)
    return f"{item} {others}" if low else f"({item} {others})?"


def _times(expression: str, low: int, high: int | None) -> str:
    if high == 0:
        return '""'
    if high is None:
        return f"{expression}{{{low},}}" if low else f"{expression}*"
    return f"{expression}{{{low},{high}}}"
