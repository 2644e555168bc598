"""A grammar of calls allows what its tool's schema allows, and nothing that cannot be read or does not fit."""

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glm_int4.errors import InputError
from glm_int4.text.calls.call_grammar import tool_call_grammar
from glm_int4.text.chat.replies import ToolCall, parse_reply_v3
from tests.text.calls.matching import accepts, matcher, walk
from tests.text.calls.schemas import tools

SLOW_TO_DRAW = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)

KEYWORDS = [
    *("type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "not", "items", "prefixItems", "properties"),
    *("required", "additionalProperties", "minimum", "maximum", "exclusiveMinimum", "multipleOf", "minLength"),
    *("maxLength", "pattern", "minItems", "maxItems", "minProperties", "maxProperties", "$defs", "title"),
]


def tool(properties, required=(), **more):
    parameters = {"type": "object", "properties": properties, "required": list(required)} | more
    return {"name": "track", "parameters": parameters}


def takes(definition, arguments):
    return accepts(tool_call_grammar([definition]), f"track\n ```python\ntool_call({arguments})\n```")


@SLOW_TO_DRAW
@given(st.data())
def test_a_call_with_any_arguments_that_the_schema_allows_is_taken(data):
    definition, values = data.draw(tools())
    arguments = data.draw(values)
    message = ToolCall(name="track", arguments=arguments).as_message()
    if "<|assistant|>" not in message["content"]:
        assert accepts(tool_call_grammar([definition]), f"track\n{message['content']}")


@SLOW_TO_DRAW
@given(tools(), st.integers(0, 2**32))
def test_whatever_the_grammar_allows_is_read_and_fits_the_schema(drawn, seed):
    definition, _ = drawn
    text = walk(tool_call_grammar([definition]), seed)
    if text is not None:
        reply = parse_reply_v3(text, [definition])
        assert reply.fault is None
        assert reply.earlier == ()
        jsonschema.validate(reply.tool_call.arguments, definition["parameters"])


@pytest.mark.parametrize(
    ("properties", "taken", "not_taken"),
    [
        ({"a": {"type": "string"}}, ["", "a='x'", 'a="it\'s"', r"a='\n'"], ["b='x'", "a=1", "a='x',", "a='x', a='y'"]),
        ({"a": {"type": "integer"}, "b": {}}, ["a=1, b=[None, {'x': 1.5e-7}]", "b=True"], ["b=1, a=1", "a=1.0", "b=x"]),
        ({"a": {"type": "integer", "minimum": 3, "multipleOf": 5}}, ["a=5"], ["a=0", "a=7"]),
        ({"a": {"minimum": 2, "exclusiveMaximum": 4}}, ["a=2", "a=3.9"], ["a=4", "a=1.9", "a='x'"]),
        ({"a": {"type": "integer", "minimum": 2, "exclusiveMinimum": True}}, ["a=3"], ["a=2"]),
        ({"class": {"type": "string"}, "b": {}}, ["b=1, **{'class': 'x'}", "**{'class': 'x'}"], ["class='x'"]),
        ({"a": {"enum": ["x", 1, None, [1, {"y": True}]]}}, ["a='x'", "a=[1, {'y': True}]"], ["a='y'", "a=2"]),
        ({"a": {"type": "string", "enum": ["x", None]}}, ["a='x'"], ["a=None"]),
        ({"a": {"const": None}}, ["a=None"], ["a=0"]),
        ({"a": {"type": ["string", "null"]}}, ["a=None", "a=''"], ["a=1"]),
        ({"a": {"oneOf": [{"const": "x"}, {"type": "integer"}]}}, ["a='x'", "a=1"], ["a='y'"]),
        ({"a": {"type": "string", "anyOf": [{"maxLength": 1}, {"const": "xyz"}]}}, ["a='x'", "a='xyz'"], ["a='xy'"]),
        ({"a": {"type": "array", "items": False}}, ["a=[]"], ["a=[1]"]),
        ({"a": {"type": "array", "prefixItems": [{"const": 1}], "items": False}}, ["a=[]", "a=[1]"], ["a=[1, 1]"]),
        ({"a": {"items": [{"const": 1}, {"const": 2}], "minItems": 1}}, ["a=[1]", "a=[1, 2, 'x']"], ["a=[]", "a=[2]"]),
        ({"a": {"type": "array", "items": {"const": 1}, "minItems": 2, "uniqueItems": True}}, ["a=[1, 1]"], ["a=[1]"]),
        ({"a": {"type": "object"}}, ["a={}", "a={'x': [1]}"], ["a={1: 2}"]),
        ({"a": {"properties": {"x": {"const": 1}}}}, ["a={}", "a={'x': 1}"], ["a={'x': 2}", "a={'y': 2}", "a=1"]),
        ({"a": {"properties": {"x": False, "y": True}}}, ["a={'y': 1}"], ["a={'x': 1}"]),
        ({"a": {"required": ["x"], "additionalProperties": {"const": 1}}}, ["a={'x': 1, 'y': 1}"], ["a={}"]),
        (
            {"a": {"properties": {"x": {"const": 1}}, "additionalProperties": {"type": "string"}}},
            ["a={'x': 1, 'y': 'z'}", "a={'y': 'z'}", "a={}"],
            ["a={'x': 'z'}", "a={'x': 1, 'x': 'z'}", "a={'y': 1}", "a={'x': 1, 'y': 'z', 'x': 'z'}"],
        ),
        (
            {"a": {"allOf": [{"properties": {"x": {}}}, {"properties": {"y": {}}, "required": ["y"]}]}},
            ["a={'y': 1}"],
            ["a={}"],
        ),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_schema_allows_is_taken_and_nothing_else(properties, taken, not_taken):
    definition = tool(properties)
    assert [arguments for arguments in taken if not takes(definition, arguments)] == []
    assert [arguments for arguments in not_taken if takes(definition, arguments)] == []


def test_required_arguments_are_there_and_in_order():
    definition = tool({"a": {"const": 1}, "b": {"const": 2}, "in": {"const": 3}, "d": {"const": 4}}, ["b", "in"])
    assert takes(definition, "a=1, b=2, d=4, **{'in': 3}")
    assert takes(definition, "b=2, **{'in': 3}")
    for arguments in ("", "a=1", "b=2", "b=2, d=4", "b=2, **{}", "b=2, a=1, **{'in': 3}", "**{'in': 3}"):
        assert not takes(definition, arguments)


def test_references_are_followed_also_to_themselves():
    node = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/a~1b"}, {"type": "null"}]}}}
    definition = tool({"a": {"$ref": "#/$defs/a~1b", "description": "x"}}, **{"$defs": {"a/b": node}})
    assert takes(definition, "a={'next': {'next': {'next': None}}}")
    assert not takes(definition, "a={'next': {'next': 1}}")
    again = tool({"a": {"type": "array", "items": {"$ref": "#/properties/a"}}})
    assert takes(again, "a=[[], [[]]]")


def test_one_of_several_tools_is_called_by_its_name():
    grammar = tool_call_grammar([tool({"a": {"const": 1}}), {"name": "track more"}])
    assert accepts(grammar, "track\n ```python\ntool_call(a=1)\n```")
    assert accepts(grammar, "track more\n ```python\ntool_call()\n```")
    assert not accepts(grammar, "track more\n ```python\ntool_call(a=1)\n```")
    assert accepts(tool_call_grammar([{"name": "x"}], named=True), " ```python\ntool_call()\n```")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"not": {}}, "got not: "),
        ({"patternProperties": {"a": {}}}, "got patternProperties: "),
        ({"type": "string", "pattern": "(?=a)"}, r"got pattern: '\(\?=a\)' with a group of another kind"),
        ({"type": "string", "pattern": 5}, "got pattern: 5"),
        ({"type": "strin"}, "got type: 'strin'"),
        ({"type": {}}, "got type: {}"),
        ({"$ref": "https://example.com/a"}, "got .ref: 'https://example.com/a', which is not within the schema"),
        ({"$ref": "#/$defs/none"}, "got .ref: '#/.defs/none', where there is nothing"),
        ({"$ref": "#/properties/a"}, "got .ref: '#/properties/a', which leads nowhere"),
        ({"type": "integer", "minimum": "1"}, "got minimum: '1'"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "got minimum: bounds that no integer keeps"),
        ({"type": "number", "exclusiveMinimum": 3, "maximum": 3}, "got minimum: bounds that no number keeps"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "got maxLength: 2, less than the 3"),
        ({"type": "string", "minLength": 10**6}, "got minLength: 1000000, more than 10000"),
        ({"type": "array", "minItems": -1}, "got minItems: -1"),
        ({"type": "array", "items": False, "minItems": 1}, "got items: false"),
        ({"type": "array", "prefixItems": {}}, "got prefixItems: {}"),
        ({"type": "object", "properties": []}, r"got properties: \[\]"),
        ({"type": "object", "required": "a"}, "got required: 'a'"),
        ({"type": "object", "required": ["x"], "additionalProperties": False}, "got required: 'x', which may not be"),
        ({"type": "object", "minProperties": 1}, "got minProperties: 1, more than are required"),
        ({"type": "object", "maxProperties": 1}, "got maxProperties: 1, less than there can be"),
        ({"enum": []}, "got enum: one that allows nothing"),
        ({"enum": 3}, "got enum: 3"),
        ({"anyOf": []}, r"got anyOf: \[\]"),
        ({"anyOf": [False]}, "got anyOf: one that allows nothing"),
        ({"anyOf": [{"type": "string"}], "type": "integer"}, "got anyOf: parts with different type"),
        ({"allOf": [{"minimum": 3}, {"minimum": 4}]}, "got allOf: parts with different minimum"),
        ({"type": "array", "items": 3}, "got a schema: 3"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_by_its_name(schema, message):
    with pytest.raises(InputError, match=f"expected parameters of tool 'track' that a call can be held to, {message}"):
        tool_call_grammar([tool({"a": schema})])


def test_an_object_whose_size_needs_no_counting_is_taken():
    size = {"minProperties": 1, "maxProperties": 2, "required": ["x"], "properties": {"x": {}, "y": {}}}
    assert takes(tool({"a": {"type": "object", **size}}), "a={'x': 1}")


JUNK = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(-3, 3), st.floats(allow_nan=False)),
        st.sampled_from(["#", "a", "#/a", "("]),
    ),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.sampled_from(KEYWORDS), values, max_size=4),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(KEYWORDS), JUNK, max_size=4))
def test_whatever_is_sent_as_a_schema_becomes_a_grammar_or_is_refused_in_words(schema):
    try:
        matcher(tool_call_grammar([tool({"a": schema})]))
    except InputError as error:
        message = str(error)
        assert message.startswith("expected parameters of tool 'track'")
        assert "\n" not in message
