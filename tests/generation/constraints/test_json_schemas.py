"""Schemas are kept or refused, and what comes out of a small model is valid."""

import json
import re

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings

import glm_int4
from glm_int4 import SamplingParams
from glm_int4.errors import InputError
from glm_int4.generation.constraints import time_limit
from glm_int4.generation.constraints.json_schemas import MOST_CHARACTERS, read_schema
from glm_int4.generation.records import StreamRecord
from tests.generation.constraints.schemas import SCHEMAS

QUESTION = [{"role": "user", "content": "3加5等于几?"}]
LEAST_COMPLETE = 0.9  # of answers, with 256 tokens
OFF_THE_LIST = {
    "not": {},
    "if": {},
    "then": {},
    "else": {},
    "uniqueItems": True,
    "contains": {},
    "minContains": 1,
    "propertyNames": {},
    "dependentRequired": {},
    "dependentSchemas": {},
    "dependencies": {},
    "additionalItems": {},
    "unevaluatedItems": False,
    "unevaluatedProperties": False,
    "contentEncoding": "base64",
    "contentMediaType": "a/b",
    "contentSchema": {},
    "$dynamicRef": "#a",
    "$anchor": "a",
    "$vocabulary": {},
    "nullable": True,
    "minLenght": 1,
}
HOLDERS = {
    "at the top": lambda part: part,
    "in a property": lambda part: {"properties": {"a": part}},
    "in a pattern": lambda part: {"patternProperties": {"^a": part}},
    "in more properties": lambda part: {"additionalProperties": part},
    "in items": lambda part: {"items": part},
    "in first items": lambda part: {"prefixItems": [{}, part]},
    "in anyOf": lambda part: {"anyOf": [{}, {"allOf": [part]}]},
    "in oneOf": lambda part: {"oneOf": [part]},
    "in a definition": lambda part: {"$defs": {"a": part}, "definitions": {}},
    "in an old definition": lambda part: {"definitions": {"a": part}},
}


@pytest.fixture(scope="module")
def engine(mini_int4):
    return glm_int4.load(mini_int4, device="cpu")


def answer(engine, schema, max_new_tokens=256, **sampling):
    """The text of an answer, and whether it is complete."""
    record, params = StreamRecord(), SamplingParams(**{"temperature": 0} | sampling, json_schema=schema)
    text = "".join(engine.stream_chat(QUESTION, max_new_tokens, params, record))
    return text, not record.cut


def check_answers(engine, number):
    """Answers to schemas of our own are valid, or too long; most are not."""
    complete = []

    @settings(max_examples=number, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(SCHEMAS)
    def check(schema):
        text, is_complete = answer(engine, schema)
        complete.append(is_complete)
        if is_complete:
            jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)

    check()
    assert len(complete) >= number
    assert sum(complete) / len(complete) >= LEAST_COMPLETE


def test_answers_are_valid(engine):
    check_answers(engine, 15)


@pytest.mark.slow(150)
def test_answers_to_300_schemas_are_valid(engine):
    check_answers(engine, 300)


@pytest.mark.parametrize("place", HOLDERS)
@pytest.mark.parametrize("keyword", OFF_THE_LIST)
def test_a_keyword_off_the_list_is_named(keyword, place):
    says = rf"expected keywords of docs/\S+, got {re.escape(keyword)} in .*; leave it out$"
    with pytest.raises(InputError, match=says):
        read_schema(HOLDERS[place]({keyword: OFF_THE_LIST[keyword]}))


def test_what_looks_like_a_keyword_is_a_name_or_a_value():
    read_schema({"properties": {"not": {}, "if": {"enum": [{"not": 1}], "default": {"not": 1}}}, "x-note": {"not": 1}})


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"$ref": "https://a.example/b"}, "a $ref in the schema that begins with #"),
        ({"items": {"format": "idn-email"}}, "a format in items of the schema of date-time, "),
        ({"maxItems": 10**6}, "maxItems in the schema to be from 0 to 10000, got 1000000"),
        ({"minLength": "1"}, "minLength in the schema to be from 0 to 10000, got '1'"),
        ({"properties": []}, "an object of schemas as properties of the schema, got []"),
        ({"items": [{}]}, "an object or true or false at items of the schema, got [{}]"),
        ({"items": {"$id": "a"}}, "got $id in items of the schema"),
        ({"enum": [1] * MOST_CHARACTERS}, f"at most {MOST_CHARACTERS} characters, got "),
        ("[" * 5000, "expected a JSON schema, got something else"),
        ('{"type": "null", "type": "null"}', "the key type stands there twice"),
        (False, "expected a JSON schema that some value meets, got false"),
        ("3", "expected a JSON schema, which is an object, got 3"),
        ({"const": float("nan")}, "expected a JSON schema, got something else"),
        ({"const": {1}}, "expected a JSON schema, got something else"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_schema_that_is_none_is_refused(schema, says):
    with pytest.raises(InputError) as error:
        SamplingParams(json_schema=schema)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum (5) is greater than maximum (3)"),
        ({"type": "text"}, "Invalid type: text"),
        ({"$ref": "#/$defs/a"}, "Pointer '/$defs/a' does not exist"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "that some token can go on with"),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
        ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}, "oneOf constraints are not supported"),
        (
            {"type": "object", "properties": {str(i): {"type": "string"} for i in range(1500)}, "minProperties": 1},
            "expected a constraint that compiles within 1 s and 2 GiB, got a harder one; make it simpler",
        ),
        (
            {"allOf": [{"enum": [*range(200)]}, {"enum": [*range(1, 200)]}]},
            "expected a constraint that compiles within 1 s",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_schema_that_cannot_be_kept_is_refused_before_the_first_token(engine, monkeypatch, schema, says):
    monkeypatch.setattr(time_limit, "PROCESSOR_SECONDS", 1)
    with pytest.raises(InputError) as error:
        engine.generate([5, 8], 1, SamplingParams(json_schema=schema))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_schema_does_not_name_is_not_written(engine):
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    assert answer(engine, schema) == ('{"a": 1}', True)
    assert answer(engine, {"prefixItems": [{"const": 1}], "type": "array", "minItems": 1}) == ("[1]", True)
    assert answer(engine, {"type": "object", "required": ["a"], "properties": {"b": {}}}, 2)[0].startswith("{")


def test_numbers_have_an_end(engine):
    for schema in (
        {"type": "number"},
        {"type": "integer"},
        {"type": "array", "items": {"type": "number"}, "maxItems": 2},
    ):
        text, is_complete = answer(engine, schema)
        assert is_complete, text
    assert answer(engine, {"type": "number", "minimum": 1e-12, "maximum": 2e-12}, 40)[0].startswith("0.00000000000")
    assert answer(engine, {"type": "integer", "minimum": 2**60, "maximum": 2**60}) == (str(2**60), True)


def tagged(name, **more):
    """An object with a property that says what it is."""
    properties = {"kind": {"const": name, "type": "string"}, **more}
    return {"type": "object", "properties": properties, "required": ["kind", *more]}


@pytest.mark.parametrize(
    ("schemas", "definitions"),
    [
        ([{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}], {"A": tagged("a"), "B": tagged("b", n={"enum": [1, 2]})}),
        ([tagged("a"), {"type": "null"}, {"type": ["integer", "string"], "maxLength": 2}, {"const": True}], {}),
        ([{"enum": ["a", "b"]}, {"const": "c"}, {"enum": [None]}, {"const": 1}, {"enum": [2, 3]}, {"const": [1]}], {}),
    ],
    ids=["references", "types", "constants"],
)
def test_one_of_schemas_that_no_value_shares_is_kept(engine, schemas, definitions):
    schema = {"oneOf": schemas, "$defs": definitions, "discriminator": {"propertyName": "kind"}}
    for seed in range(4):
        text, is_complete = answer(engine, schema, 60, temperature=1.0, seed=seed)
        assert is_complete
        jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    "schemas",
    [
        [{"type": "integer"}, {"type": "number"}],
        [{"const": 1}, {"const": 1.0}],
        [tagged("a"), tagged("a", n={})],
        [tagged("a"), {"type": "object", "properties": {"kind": {"const": "b"}}}],
        [{}, {"type": "null"}],
        [{"$ref": "#/$defs/C"}, {"type": "null"}],
    ],
    ids=str,
)
def test_one_of_schemas_that_may_share_a_value_is_not_taken_for_any_of(schemas):
    kept = read_schema({"oneOf": schemas, "$defs": {"C": {"$ref": "#/$defs/C"}}})
    assert "oneOf" in kept
    assert "anyOf" not in kept


def test_remarks_change_nothing(engine):
    remarks = {"title": "a", "$schema": "b", "$id": "c", "default": 1, "x-guidance": {"lenient": True}}
    assert answer(engine, {"const": "是,否"} | remarks) == ('"是,否"', True)
