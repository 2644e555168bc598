"""Schemas that a call can be held to, each with a strategy of values that it allows."""

import math

from hypothesis import strategies as st

TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = st.sampled_from(
    ["a", "b", "city", "unit_2", "城市", "class", "from-date", "None", "ﬁ", "it's", 'a"b', "", "a\n\\", "<|assistant|>"]
)
PATTERNS = [
    ("^[a-z]+$", st.text(alphabet="abcxyz", min_size=1)),
    (r"^\d{3}-\d{4}$", st.from_regex(r"[0-9]{3}-[0-9]{4}", fullmatch=True)),
    (r"^(https?)://[\w.-]+/?$", st.from_regex(r"https?://[a-z0-9_.\-]+/?", fullmatch=True)),
    ("b+", st.builds("{}b{}".format, st.text("xé好 "), st.text("xy"))),
    ("^a|c$", st.builds("a{}".format, st.text("xyz")) | st.builds("{}c".format, st.text("xyz"))),
    (r"^[^\s&~[/\-]*\.(txt|csv)$", st.from_regex(r"[a-z_0-9]*\.(txt|csv)", fullmatch=True)),
    (r"^\u4f60\x41.?$", st.from_regex("你A[b-z]?", fullmatch=True)),
]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats(-1e300, 1e300) | TEXTS,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(TEXTS, values, max_size=3),
    max_leaves=5,
)


def _between(low, high):
    """Bounds of which either may be absent."""
    return {key: value for key, value in (("low", low), ("high", high)) if value is not None}


@st.composite
def strings(draw):
    if draw(st.booleans()):
        pattern, values = draw(st.sampled_from(PATTERNS))
        return {"type": "string", "pattern": pattern}, values
    low, high = sorted(draw(st.tuples(st.integers(0, 8), st.integers(0, 8))))
    bounds = draw(st.sampled_from([{}, {"minLength": low}, {"maxLength": high}, {"minLength": low, "maxLength": high}]))
    limits = {"min_size": bounds.get("minLength", 0), "max_size": bounds.get("maxLength", 10)}
    return {"type": "string", "format": "date"} | bounds, st.text(st.characters(exclude_categories=["Cs"]), **limits)


@st.composite
def integers(draw):
    low, high = sorted(draw(st.tuples(*[st.integers(-300, 300) | st.integers(-(10**25), 10**25)] * 2)))
    form = draw(st.integers(0, 5))
    if form == 5:
        step = draw(st.integers(1, 50))
        return {"type": "integer", "multipleOf": step, "minimum": 0}, st.integers(0, 10**6).map(lambda n: n * step)
    schemas = [
        ({}, -(10**18), 10**18),
        ({"minimum": low}, low, max(low, 10**18)),
        ({"maximum": high}, min(high, -(10**18)), high),
        ({"minimum": low, "maximum": high}, low, high),
        ({"exclusiveMinimum": low - 1, "exclusiveMaximum": high + 0.5 if abs(high) < 1000 else high + 1}, low, high),
    ]
    schema, least, most = schemas[form]
    return {"type": "integer"} | schema, st.integers(least, most)


def _decimals(low, high, but=()):
    """Numbers of a few digits, which Python writes without an exponent."""
    whole = st.integers(math.ceil(low), math.floor(high)) if math.ceil(low) <= math.floor(high) else st.nothing()
    fractions = st.decimals(str(low), str(high), places=3).map(lambda number: float(number) + 0.0)
    return (whole | fractions).filter(lambda number: number not in but and "e" not in repr(number))


@st.composite
def numbers(draw):
    low, high = sorted(draw(st.tuples(*[st.decimals(-2000, 2000, places=2).map(float) | st.integers(-99, 99)] * 2)))
    schemas = [
        ({}, st.floats(-1e300, 1e300) | st.integers(-(10**18), 10**18)),
        ({"minimum": low}, _decimals(low, low + 5000)),
        ({"exclusiveMaximum": high}, _decimals(high - 5000, high, [high])),
        ({"minimum": low, "maximum": high}, _decimals(low, high)),
        ({"exclusiveMinimum": low, "exclusiveMaximum": high + 1}, _decimals(low, high + 1, [low, high + 1])),
    ]
    schema, values = draw(st.sampled_from(schemas))
    return {"type": "number"} | schema, values


@st.composite
def constants(draw):
    values = draw(st.lists(ANYTHING, min_size=1, max_size=4))
    if draw(st.booleans()):
        return {"const": values[0]}, st.just(values[0])
    return {"enum": values}, st.sampled_from(values)


LEAVES = st.one_of(
    *(strings(), integers(), numbers(), constants()),
    st.sampled_from([
        ({"type": "boolean"}, st.booleans()),
        ({"type": "null"}, st.none()),
        ({}, ANYTHING),
        (True, ANYTHING),
        ({"type": ["string", "null"], "description": "perhaps"}, st.none() | TEXTS),
        ({"type": ["integer", "boolean"]}, st.booleans() | st.integers(-9, 9)),
        ({"type": "object"}, st.dictionaries(TEXTS, ANYTHING, max_size=2)),
        ({"type": "array"}, st.lists(ANYTHING, max_size=2)),
        ({"$ref": "#/$defs/tree"}, st.just({"name": "a", "children": [{"name": "b", "children": []}]})),
        ({"allOf": [{"$ref": "#/$defs/tree"}], "default": None}, st.just({"name": "a", "children": []})),
    ]),
)  # fmt: skip
TREE = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 3},
        "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2},
    },
    "required": ["name", "children"],
    "additionalProperties": False,
}


@st.composite
def arrays(draw, inner):
    schema, values = draw(inner)
    low, high = sorted(draw(st.tuples(st.integers(0, 3), st.integers(0, 3))))
    bounds = draw(st.sampled_from([{}, {"minItems": low}, {"maxItems": high}, {"minItems": low, "maxItems": high}]))
    least, most = bounds.get("minItems", 0), bounds.get("maxItems", 4)
    if draw(st.booleans()):
        return {"type": "array", "items": schema} | bounds, st.lists(values, min_size=least, max_size=most)
    first, first_values = draw(inner)
    items = st.tuples(first_values, st.lists(values, min_size=max(least - 1, 0), max_size=max(most - 1, 0)))
    whole = {"type": "array", "prefixItems": [first], "items": schema} | bounds
    return whole, items.map(lambda pair: [pair[0], *pair[1]][: max(most, 0)])


@st.composite
def objects(draw, inner):
    named = draw(st.dictionaries(NAMES, inner, max_size=4))
    required = [name for name in named if draw(st.booleans())]
    schema = {"type": "object", "properties": {name: schema for name, (schema, _) in named.items()}}
    schema |= {"required": required} if required or draw(st.booleans()) else {}
    others = draw(st.none() | inner)
    optional = {name: values for name, (_, values) in named.items() if name not in required}
    values = st.fixed_dictionaries({name: named[name][1] for name in required}, optional=optional)
    if others is None:
        schema |= draw(st.sampled_from([{}, {"additionalProperties": False}]))
        return schema, values.map(lambda given: {name: given[name] for name in named if name in given})
    more = st.dictionaries(st.text("xyz", min_size=4), others[1], max_size=2)
    return schema | {"additionalProperties": others[0]}, st.builds(
        lambda given, more: {name: given[name] for name in named if name in given} | more, values, more
    )


@st.composite
def choices(draw, inner):
    parts = draw(st.lists(inner, min_size=1, max_size=3))
    return {"anyOf": [schema for schema, _ in parts]}, st.one_of(*(values for _, values in parts))


SCHEMAS = st.recursive(LEAVES, lambda inner: arrays(inner) | objects(inner) | choices(inner), max_leaves=5)


@st.composite
def tools(draw):
    """A tool, and a strategy of arguments that its schema allows, in the order of a call."""
    named = draw(st.dictionaries(NAMES, SCHEMAS, max_size=4))
    required = [name for name in named if draw(st.booleans())]
    parameters = {
        "type": "object",
        "properties": {name: {} if schema is True else schema for name, (schema, _) in named.items()},
        "required": required,
        "$defs": {"tree": TREE},
    }
    optional = {name: values for name, (_, values) in named.items() if name not in required}
    values = st.fixed_dictionaries({name: named[name][1] for name in required}, optional=optional)
    ordered = values.map(lambda given: {name: given[name] for name in named if name in given})
    return {"name": "track", "parameters": parameters}, ordered
