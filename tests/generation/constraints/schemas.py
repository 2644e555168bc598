"""JSON schemas of every keyword that is kept, for hypothesis."""

from hypothesis import strategies as st

PATTERNS = ("^[a-c]{1,4}$", r"^\d{3}-\d{4}$", "^(red|green|蓝)$", "^[A-Z][a-z]{0,6}$", "^#[0-9a-f]{6}$", "^.?x")
FORMATS = ("date", "time", "ipv4", "uuid", "date-time")
NAMES = st.sampled_from(["a", "b", "name", "age", "x y", "名字", "n1", '"q"', "__"])


@st.composite
def bounded(draw, kind, numbers):
    low, high = sorted((draw(numbers), draw(numbers)))
    schema = {"minimum": low, "maximum": high}
    if low < high and draw(st.booleans()):
        schema["exclusiveMinimum"] = schema.pop("minimum")
    return {"type": kind} | {name: value for name, value in schema.items() if draw(st.booleans())}


TEXTS = st.fixed_dictionaries(
    {"type": st.just("string"), "maxLength": st.integers(2, 20)}, optional={"minLength": st.integers(0, 2)}
)
ENUMS = st.lists(
    st.one_of(st.integers(-5, 5), st.sampled_from(["甲", "a,b", "\n", "{}", ""]), st.booleans(), st.none()),
    min_size=1,
    max_size=4,
    unique_by=repr,
)
LEAVES = st.one_of(
    TEXTS,
    st.sampled_from(PATTERNS).map(lambda pattern: {"type": "string", "pattern": pattern, "maxLength": 12}),
    st.sampled_from(FORMATS).map(lambda name: {"type": "string", "format": name}),
    bounded("integer", st.integers(-1000, 1000)),
    bounded("number", st.integers(-10000, 10000).map(lambda number: number / 100)),
    st.sampled_from([2, 7, 10]).map(lambda n: {"type": "integer", "multipleOf": n, "minimum": 0, "maximum": 999}),
    ENUMS.map(lambda values: {"enum": values}),
    st.sampled_from(["是", 1, None, True, [1, 2], {"k": "v"}]).map(lambda value: {"const": value}),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["integer", "null"]}]),
)


@st.composite
def objects(draw, parts):
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    schema = {"type": "object", "properties": {name: draw(parts) for name in names}, "title": "of no effect"}
    schema["required"] = [name for name in names if draw(st.booleans())]
    if draw(st.booleans()):
        schema["additionalProperties"] = False
    return schema


@st.composite
def patterned(draw, parts):
    return {"type": "object", "patternProperties": {"^k[0-9]$": draw(parts)}, "maxProperties": 2}


@st.composite
def arrays(draw, parts):
    schema = {"type": "array", "items": draw(parts), "maxItems": draw(st.integers(1, 4))}
    if draw(st.booleans()):
        schema["minItems"] = draw(st.integers(0, schema["maxItems"]))
    if draw(st.booleans()):
        schema["prefixItems"] = [draw(parts)]
    return schema


@st.composite
def referring(draw, parts):
    part = {"$ref": "#/$defs/part"}
    properties = {"first": part, "more": {"type": "array", "items": part, "maxItems": 2}}
    return {"$defs": {"part": draw(parts)}, "type": "object", "properties": properties, "required": ["first"]}


@st.composite
def joined(draw, parts):
    first, second = ({"type": "object", "properties": {name: draw(parts)}, "required": [name]} for name in "ab")
    return {"allOf": [first, second], "maxProperties": 2}


def unions(parts):
    return st.lists(parts, min_size=1, max_size=3).map(lambda choices: {"anyOf": choices})


PARTS = st.recursive(LEAVES, lambda parts: st.one_of(objects(parts), arrays(parts), unions(parts)), max_leaves=5)
SCHEMAS = st.one_of(
    PARTS, objects(PARTS), patterned(LEAVES), referring(LEAVES), referring(objects(LEAVES)), joined(LEAVES)
)
