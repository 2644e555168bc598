"""Strings of Python: what an expression takes reads back as a text of the wanted form."""

import ast
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_int4.text.calls.string_patterns import literal, plain_terminal, python_text, string_terminal
from tests.text.calls.matching import accepts, walk

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def takes(expression, text):
    return accepts(f"start: T\nT: {expression}\n", text)


@given(ANY_TEXT)
def test_any_text_is_a_literal_of_the_grammar(text):
    assert accepts(f"start: {literal(text)}\n", text)


@settings(max_examples=30)
@given(ANY_TEXT)
def test_a_text_is_taken_as_python_writes_it(text):
    assert takes(string_terminal(), repr(text))
    assert takes(string_terminal(len(text), len(text)), repr(text))
    assert not takes(string_terminal(len(text) + 1), repr(text))
    assert not text or not takes(string_terminal(0, len(text) - 1), repr(text))


@settings(max_examples=30)
@given(st.integers(0, 5), st.integers(0, 2**32))
def test_whatever_is_taken_reads_back_with_its_length(length, seed):
    text = walk(f"start: T\nT: {string_terminal(length, length)}\n", seed)
    assert len(ast.literal_eval(text)) == length
    json.dumps(ast.literal_eval(text), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "text",
    ["'", "'a", "a", "'\\'", "'\n'", "'\0'", "'\\q'", r"'\ud800'", r"'\U00110000'", r"'\N{DASH}'", "'a''b'", "f'a'"],
)
def test_other_texts_are_not(text):
    assert not takes(string_terminal(), text)


def test_a_role_that_is_spelled_out_is_kept_out_and_written_in_another_way():
    assert not takes(string_terminal(), "'a<|assistant|>'")
    assert takes(string_terminal(), "'a<|user|> <|assistant|'")
    assert ast.literal_eval(python_text({"<|assistant|>": ["<|assistant|>"]})) == {"<|assistant|>": ["<|assistant|>"]}
    assert "<|assistant|>" not in python_text({"<|assistant|>": ["<|assistant|>"]})
    assert takes(string_terminal(), python_text("<|assistant|>"))


def test_some_names_can_be_left_out():
    expression = plain_terminal(["a", "it's", "名/]"])
    assert not any(takes(expression, text) for text in ("'a'", '"a"', '"it\'s"', "'名/]'", r"'\x61'"))
    assert all(takes(expression, text) for text in ("'b'", "'aa'", "''", '"名"'))


# A pattern, texts that it is found in, and some that it is not.
PATTERNS = [
    ("^a$", ["a"], ["ab", "ba", ""]),
    ("a", ["a", "xay"], ["x"]),
    ("^a|b$", ["ax", "xb"], ["xa", "bx"]),
    ("^(a|b)$", ["a", "b"], ["ab"]),
    ("^[^/]+/x$", ["名/x"], ["/x", "a/b/x"]),
    (r"^\d+$", ["12"], ["٣", "1x"]),
    (r"^\w+$", ["a_9"], ["名", "a b"]),
    (r"^[\w-]+$", ["a-b_9"], ["名"]),
    (r"^\D\W$", ["a-"], ["1-", "aa"]),
    (r"^a\.b\/\-$", ["a.b/-"], ["axb/-"]),
    (r"^[a\-z]$", ["a", "-", "z"], ["b"]),
    (r"^[\]a]$", ["]", "a"], ["b"]),
    (r"^.$", ["好", " "], ["", "ab"]),
    (r"^\x41\u4f60$", ["A你"], ["x41"]),
    ("^(?:ab){2,3}$", ["abab", "ababab"], ["ab"]),
    (r"^\$[0-9]+(\.[0-9]{2})?$", ["$5", "$5.00"], ["5", "$5.0"]),
    (r"\^", ["a^"], ["a"]),
    ("#~&@<>", ["#~&@<>"], ["#"]),
    ("[a&b~[c#]", ["&", "~", "[", "#"], ["d"]),
    ("^$", [""], ["a"]),
    ("", ["", "a"], []),
]


@pytest.mark.parametrize(("pattern", "found", "others"), PATTERNS, ids=[pattern for pattern, *_ in PATTERNS])
def test_a_pattern_is_found_as_in_json_schema(pattern, found, others):
    expression = string_terminal(pattern=pattern)
    for text in (*found, *others):
        assert bool(re.search(pattern, text, re.ASCII)) == (text in found)
        assert takes(expression, repr(text)) == (text in found), text


def test_a_pattern_and_a_length_go_together():
    expression = string_terminal(2, 3, "^a+$")
    assert [takes(expression, f"'{'a' * n}'") for n in range(5)] == [False, False, True, True, False]
    assert not takes(expression, r"'\x61\x61'")


@pytest.mark.parametrize(
    "pattern",
    ["(?=a)", "(?<!a)b", r"\bword", r"(a)\1", "a^b", "(^a)", r"\p{L}", "[]a", r"\ud83d", "a\\", "(", "a{3,2}"],
)
def test_what_automata_lack_is_refused(pattern):
    with pytest.raises(ValueError, match=r"^(a|half|.* in its|\\)"):
        string_terminal(pattern=pattern)
