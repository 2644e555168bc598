"""Conversations and Alpaca's fields: which ids the official preprocessing makes of them, and what it learns."""

import json

import pytest

from glm_int4.errors import InputError
from glm_int4.text import load_tokenizer
from glm_int4.text.tokenizer_v2 import ChatGLM2Tokenizer
from glm_int4.tuning.data import Columns, Row, read_rows
from glm_int4.tuning.samples import Preparation
from tests.conftest import MINI

COLUMNS = Columns()
SYSTEM = "Answer the following questions as best as you can. You have access to the following tools:"
TOOLS = [{"name": "weather", "description": "天气", "parameters": {"type": "object", "properties": {}}}]
HELLO = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "Hello"}]
TWO_ROUNDS = [*HELLO, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.fixture(scope="module")
def v3(small_bpe):
    return ChatGLM2Tokenizer(small_bpe, "3")


@pytest.fixture(scope="module")
def v2(small_bpe):
    return ChatGLM2Tokenizer(small_bpe, "2")


@pytest.fixture(scope="module")
def v4(small_glm4):
    return load_tokenizer(small_glm4)


@pytest.fixture
def read(tmp_path):
    """Examples of records, and how many were empty."""

    def run(*records, columns=COLUMNS):
        path = tmp_path / "data.jsonl"
        path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
        return read_rows(path, columns)

    return run


def message_ids(tokenizer, role, metadata, content):
    """As the official ``build_single_message``."""
    return [tokenizer.role_ids[role], *tokenizer.encode(f"{metadata}\n"), *tokenizer.encode(content)]


def official_sample(tokenizer, messages):
    """The official ``process_batch``, with the result of a tool not learnt, as in ``finetune_chatmodel_demo``."""
    ids, masks = [tokenizer.gmask_id, tokenizer.sop_id], [False, False]
    for role, metadata, content in messages:
        new = message_ids(tokenizer, role, metadata, content)
        ids += new
        masks += [role == "assistant"] * len(new)
    ids.append(tokenizer.eos_id)
    return ids, [token if mask else -100 for token, mask in zip(ids, [False, *masks], strict=True)]


@pytest.mark.parametrize("field", ["conversations", "messages"])
@pytest.mark.parametrize("version", ["v3", "v4"])
def test_every_answer_of_a_conversation_is_learnt_with_what_ends_it(read, request, version, field):
    tokenizer = request.getfixturevalue(version)
    ((example,), num_empty) = read({field: [{"role": "system", "content": "Be kind."}, *TWO_ROUNDS]})
    (sample,) = Preparation(tokenizer, 200, 100).samples(example)
    system = ("system", "", "Be kind.")
    messages = [system, ("user", "", "你好"), ("assistant", "", "Hello"), ("user", "", "a"), ("assistant", "", "b")]
    assert (sample.input_ids, sample.labels) == official_sample(tokenizer, messages)
    learnt = [label for label in sample.labels if label != -100]
    first = [*tokenizer.encode("\n"), *tokenizer.encode("Hello"), tokenizer.role_ids["user"]]
    assert learnt == [*first, *tokenizer.encode("\n"), *tokenizer.encode("b"), tokenizer.eos_id]
    assert num_empty == 0


def test_a_tools_call_is_learnt_and_its_result_is_not(read, v3):
    """In ``conversations`` as the official demo describes it: ``tools`` beside them, a message of role ``tool``."""
    call = {"role": "tool", "name": "weather", "parameters": {"city": "北京", "days": 2}, "observation": {"t": "20°"}}
    record = {"tools": TOOLS, "conversations": [HELLO[0], call, {"role": "assistant", "content": "20°"}]}
    ((example,), _) = read(record)
    (sample,) = Preparation(v3, 2000, 100).samples(example)
    expected = [
        ("system", "", f"{SYSTEM}\n{json.dumps(TOOLS, indent=4, ensure_ascii=False)}"),
        ("user", "", "你好"),
        ("assistant", "weather", "```python\ntool_call(city='北京', days=2)\n```"),
        ("observation", "", '{"t": "20°"}'),
        ("assistant", "", "20°"),
    ]
    assert (sample.input_ids, sample.labels) == official_sample(v3, expected)


def test_our_own_messages_with_metadata_and_observations_are_the_same(read, v3):
    written = [
        {"role": "system", "content": SYSTEM, "tools": TOOLS},
        HELLO[0],
        {"role": "assistant", "metadata": "weather", "content": "```python\ntool_call(city='北京', days=2)\n```"},
        {"role": "observation", "content": '{"t": "20°"}'},
        {"role": "assistant", "content": "20°"},
    ]
    call = {"role": "tool", "name": "weather", "parameters": {"city": "北京", "days": 2}, "observation": '{"t": "20°"}'}
    official = {"tools": TOOLS, "messages": [HELLO[0], call, written[-1]]}
    (ours, theirs), _ = read({"messages": written}, official)
    make = Preparation(v3, 2000, 100).samples
    assert make(ours) == make(theirs)


def test_loss_says_what_is_learnt(read, v3):
    silent = [HELLO[0], {"role": "assistant", "content": "Hello", "loss": False}, *TWO_ROUNDS[2:]]
    ((example,), num_empty) = read({"messages": silent}, {"messages": silent[:2]})
    (sample,) = Preparation(v3, 200, 100).samples(example)
    assert [label for label in sample.labels if label != -100] == [*v3.encode("\n"), *v3.encode("b"), v3.eos_id]
    assert num_empty == 1


def test_long_conversations_are_cut_and_left_out_where_no_answer_is_left(read, v3):
    ((example,), _) = read({"messages": TWO_ROUNDS})
    whole = Preparation(v3, 200, 100).samples(example)[0]
    (cut,) = Preparation(v3, 6, 5).samples(example)
    assert cut.input_ids == whole.input_ids[:12]
    assert cut.labels == whole.labels[:12]
    assert cut.num_cut == len(whole.input_ids) - 12
    assert Preparation(v3, 3, 3).samples(example) == []


def test_an_evaluation_asks_for_every_answer_behind_all_that_came_before(read, v3):
    ((example,), _) = read({"messages": TWO_ROUNDS})
    first, second = Preparation(v3, 200, 100).questions(example)
    start = [v3.gmask_id, v3.sop_id, *message_ids(v3, "user", "", "你好")]
    assert first.prompt == [*start, v3.role_ids["assistant"]]
    assert first.answer == [*v3.encode("\n"), *v3.encode("Hello"), v3.eos_id]
    between = [*message_ids(v3, "assistant", "", "Hello"), *message_ids(v3, "user", "", "a")]
    assert second.prompt == [*start, *between, v3.role_ids["assistant"]]
    assert Preparation(v3, len(start), 2).questions(example) == []


def test_versions_without_roles_learn_every_answer_behind_its_rounds(read, v2):
    ((example,), _) = read({"messages": [{"role": "system", "content": "Be kind."}, *TWO_ROUNDS]})
    rows = [Row("你好", "Hello", None, "Be kind."), Row("a", "b", (("你好", "Hello"),), "Be kind.")]
    for tokenizer in (load_tokenizer(MINI), v2):
        preparation = Preparation(tokenizer, 200, 64)
        assert preparation.samples(example) == [sample for row in rows for sample in preparation.samples(row)]
        assert preparation.questions(example) == [asked for row in rows for asked in preparation.questions(row)]
    tokenizer = load_tokenizer(MINI)
    first = Preparation(tokenizer, 200, 64).questions(example)[0]
    assert first.prompt == [*tokenizer.encode("Be kind.\n你好"), *tokenizer.suffix_ids]


@pytest.mark.parametrize(
    "record",
    [
        {"tools": TOOLS, "messages": HELLO},
        {"messages": [HELLO[0], {"role": "tool", "name": "f", "parameters": {}}, HELLO[1]]},
        {"messages": [{"role": "system", "content": "x", "tools": TOOLS}, *HELLO]},
    ],
)
@pytest.mark.parametrize("version", ["2", "4"])
def test_other_versions_refuse_tools(read, request, version, record):
    ((example,), _) = read(record)
    prepare = Preparation(request.getfixturevalue(f"v{version}"), 200, 64)
    for way in (prepare.samples, prepare.questions):
        with pytest.raises(InputError, match=rf"expected no tools for version {version} in line 1 of .*, got some"):
            way(example)


def test_versions_without_roles_name_roles_out_of_turn(read, v2):
    ((example,), _) = read({"messages": [HELLO[0], *HELLO]})
    with pytest.raises(InputError, match=r"in turn, got one of role 'user' \(in line 1 of"):
        Preparation(v2, 200, 64).samples(example)


def test_alpacas_fields_are_read_where_the_columns_are_not_there(read):
    records = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Greet.", "input": "", "output": "Hello"},
        {"instruction": "Greet.", "output": "Hi", "history": [["a", "b"]], "system": "Be kind."},
        {"instruction": "", "input": "", "output": "x"},
    ]
    rows, num_empty = read(*records)
    assert rows == [
        Row("Add.\n1 and 2", "3", ()), Row("Greet.", "Hello", ()), Row("Greet.", "Hi", (("a", "b"),), "Be kind.")
    ]  # fmt: skip
    assert num_empty == 1
    assert read(*records[:2])[0][0] == Row("Add.\n1 and 2", "3")
    assert read(*records[:2], columns=Columns(prompt="input", response="output"))[0] == [Row("1 and 2", "3")]


def test_named_columns_come_before_conversations(read):
    record = {"prompt": "q", "response": "r", "messages": HELLO}
    assert read(record, columns=Columns(prompt="prompt", response="response"))[0] == [Row("q", "r")]


BAD = [
    ({"messages": "text"}, "expected a list of messages in line 1"),
    ({"messages": [1]}, "as message 1 of line 1"),
    ({"messages": [{"role": "bot", "content": "x"}]}, "expected a role of system, user, .*, tool in message 1 .*'bot'"),
    ({"messages": [*HELLO, {"role": "user"}]}, "expected a text in the content of message 3"),
    ({"messages": [{"role": "assistant", "content": "x", "metadata": "a\nb"}]}, "expected metadata of one line"),
    ({"messages": [{"role": "assistant", "content": "\ud800"}]}, "got a lone surrogate"),
    ({"messages": [{"role": "assistant", "content": "x", "loss": "no"}]}, "expected true or false as loss"),
    ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "expected calls of tools as"),
    ({"messages": [{"role": "tool", "name": "f", "content": "x"}]}, "parameters of the call in message 1"),
    ({"messages": [{"role": "tool", "parameters": {}}]}, "expected a text in the name of message 1"),
    ({"messages": [{**HELLO[0], "tools": TOOLS}, HELLO[1]]}, "expected tools in a system message"),
    ({"messages": HELLO, "tools": "weather"}, "expected a list of tools in line 1"),
    ({"messages": [HELLO[0]]}, "expected rows with messages or conversations with an answer .* got 1 empty ones"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "message"), BAD)
def test_what_is_no_conversation_is_named_with_its_place(read, record, message):
    with pytest.raises(InputError, match=message) as caught:
        read(record)
    assert str(caught.value).isprintable()


def test_tools_nested_too_deeply_are_refused(read):
    deep = []
    for _ in range(500):
        deep = [deep]
    for record in (
        {"messages": HELLO, "tools": deep},
        {"messages": [HELLO[0], {"role": "tool", "name": "f", "parameters": {"x": deep}}]},
    ):
        with pytest.raises(InputError, match="nested deeper"):
            read(record)


def test_a_record_among_conversations_that_is_none_is_named(read):
    with pytest.raises(InputError, match="expected a list of messages in line 2 of"):
        read({"messages": HELLO}, {"x": "y"})
