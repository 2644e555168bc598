"""A grammar of JSON calls allows what the schema allows, and nothing that cannot be read or does not fit."""

import json

import jsonschema
import pytest

from glm_int4.errors import InputError
from glm_int4.generation.constraints.json_schemas import read_schema
from glm_int4.text.calls.json_calls import json_call_grammar
from glm_int4.text.chat.replies import ToolCall
from glm_int4.text.chat.replies_v4 import call_message_v4, parse_reply_v4
from tests.text.calls.matching import accepts, walk

PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 6},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"enum": ["C", "F", None]},
    },
    "required": ["city"],
}
TOOL, NOW = {"name": "weather", "parameters": PARAMETERS}, {"name": "now"}


def grammar(*tools, **options):
    return json_call_grammar(tools, read_schema=read_schema, **options)


@pytest.mark.parametrize("arguments", [{"city": "北京"}, {"city": 'a"b', "days": 3, "unit": None}])
def test_a_call_as_it_is_written_is_taken(arguments):
    message = call_message_v4(ToolCall(name="weather", arguments=arguments))
    assert accepts(grammar(TOOL), f"weather\n{message['content']}")
    assert accepts(grammar(NOW, TOOL), f"weather\n{message['content']}")
    assert accepts(grammar(TOOL, named=True), message["content"])


@pytest.mark.parametrize(
    "text",
    [
        'weather\n{"days": 3}',
        'weather\n{"city": "a", "days": 15}',
        'weather\n{"city": "a", "other": 1}',
        'weather\n{"city":"a"}',
        'now\n{"city": "a"}',
        "weather\n{}",
        'other\n{"city": "a"}',
        '{"city": "a"}',
    ],
)
def test_what_does_not_fit_is_not_taken(text):
    assert accepts(grammar(NOW, TOOL), "now\n{}")
    assert not accepts(grammar(NOW, TOOL), text)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_the_grammar_allows_is_read_and_fits(seed):
    text = walk(grammar(NOW, TOOL), seed)
    call = parse_reply_v4(text, [NOW, TOOL]).tool_call
    jsonschema.validate(call.arguments, PARAMETERS if call.name == "weather" else {"maxProperties": 0})
    assert call_message_v4(call)["metadata"] == text.partition("\n")[0]
    assert json.loads(text.partition("\n")[2]) == call.arguments


def test_what_no_grammar_is_made_of_is_refused():
    with pytest.raises(InputError, match="expected tools to call one of"):
        grammar()
    with pytest.raises(InputError, match="not"):
        grammar({"name": "x", "parameters": {"type": "object", "properties": {"a": {"not": {}}}}})
