"""Definitions of tools, and the fault that an error names."""

import pytest

from glm_int4.errors import InputError
from glm_int4.text.chat.tools import check_tools, parameter_names, write_tools

TRACK = {
    "name": "track",
    "description": "追踪指定股票的实时价格",
    "parameters": {"type": "object", "properties": {"symbol": {"description": "代码"}, "n": {}}, "required": ["n"]},
}


def parameters(**changes):
    return TRACK | {"parameters": TRACK["parameters"] | changes}


def test_the_wrapping_of_openai_is_taken_off():
    assert check_tools([{"type": "function", "function": TRACK}]) == [TRACK]


def test_a_tool_may_take_nothing_and_need_nothing():
    assert check_tools([{"name": "now"}, parameters(properties={}, required=[])])
    assert check_tools(None) == check_tools([]) == []


def test_parameters_keep_their_order():
    assert parameter_names([TRACK], "track") == ["symbol", "n"]
    assert parameter_names([{"name": "now"}], "now") == []
    assert parameter_names([TRACK], "now") is None


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("track", "a list of tools, got 'track'"),
        ({"name": "track"}, "a list of tools"),
        (["track"], "tool 0 to be an object"),
        ([TRACK, {"type": "retrieval", "function": TRACK}], "tool 1 of type 'function', got 'retrieval'"),
        ([{"type": "function", "function": None}], "tool 0 to be an object"),
        ([{}], "tool 0 to have a name of one line, got None"),
        ([TRACK | {"name": "a\nb"}], "name of one line"),
        ([TRACK | {"name": "a<|assistant|>"}], r"a name without a role of the model's, got 'a<\|assistant\|>'"),
        ([TRACK | {"name": "interpreter"}], "another name than 'interpreter'"),
        ([TRACK, TRACK], "different names, got 'track' twice"),
        ([TRACK | {"description": 3}], "description of tool 'track' to be a text, got 3"),
        ([TRACK | {"parameters": []}], 'to have "type": "object"'),
        ([parameters(type="array")], 'to have "type": "object"'),
        ([parameters(properties=None)], "properties of tool 'track' to be an object, got None"),
        ([parameters(properties={"n": "int"})], "property 'n' of tool 'track' to be an object, got 'int'"),
        ([parameters(required="n")], "required of tool 'track' to be a list of names"),
        ([parameters(required=["m"])], "to name its properties, got 'm'"),
        ([parameters(required=[[]])], r"to name its properties, got \[\]"),
    ],
)
def test_faulty_definitions_are_named(tools, message):
    with pytest.raises(InputError, match=message):
        check_tools(tools)


def test_tools_nested_deeper_than_any_real_ones_are_refused():
    """Written out, with an indentation, a few kilobytes of them are hundreds of megabytes."""
    deep = {}
    for _ in range(40):
        deep = {"a": deep}
    with pytest.raises(InputError, match="expected tools that a model can read, got lists or objects nested deeper"):
        check_tools([parameters(properties={"n": deep})])


@pytest.mark.parametrize("value", [{1, 2}, float("nan")])
def test_values_that_json_cannot_hold_are_refused(value):
    with pytest.raises(InputError, match="expected tools that JSON can hold"):
        write_tools([TRACK | {"extra": value}])
