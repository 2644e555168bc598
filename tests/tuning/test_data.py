"""Rows of every format, and the official ids and labels."""

import csv
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from glm_int4.errors import InputError
from glm_int4.text import load_tokenizer
from glm_int4.text.tokenizer_v2 import ChatGLM2Tokenizer
from glm_int4.tuning.data import Columns, Row, read_rows
from glm_int4.tuning.samples import collate, make_sample, source_ids
from tests.conftest import MINI

HISTORY = Columns(prompt="prompt", response="response", history="history")


@pytest.fixture(scope="module")
def v1():
    return load_tokenizer(MINI)


@pytest.fixture(scope="module", params=["2", "3"])
def v2_or_v3(request, small_bpe):
    return ChatGLM2Tokenizer(small_bpe, request.param)


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


RECORDS = [{"content": "你好", "summary": 'a, "b"', "x": 1}, {"content": "二", "summary": "c\nd", "x": 2}]
FORMATS = {
    "list.json": json.dumps(RECORDS, ensure_ascii=False, indent=1),
    "lines.json": "\n\n".join(json.dumps(record) for record in RECORDS),
    "lines.jsonl": "\n".join(json.dumps(record) for record in RECORDS),
    "table.csv": 'content,x,summary\n你好,1,"a, ""b"""\n二,2,"c\nd"\n',
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows_with_and_without_bom_and_crlf(tmp_path, name):
    for text in (FORMATS[name], FORMATS[name].replace("\n", "\r\n"), "\ufeff" + FORMATS[name]):
        rows, num_empty = read_rows(write(tmp_path, name, text), Columns())
        assert rows == [Row("你好", 'a, "b"'), Row("二", "c\nd")]
        assert num_empty == 0


def test_a_cr_alone_stays_in_a_field(tmp_path):
    for name, text in (
        ("a.csv", 'content,summary\r\n"a\rb","c\rd"\r\n'),
        ("a.json", '{"content": "a\\rb", "summary": "c\\rd"}'),
    ):
        assert read_rows(write(tmp_path, name, text), Columns())[0] == [Row("a\rb", "c\rd")]


def test_fields_of_any_length_are_read_from_csv_and_the_limit_of_others_stays(tmp_path):
    limit = csv.field_size_limit()
    long = "好" * (limit + 1)
    rows, _ = read_rows(write(tmp_path, "a.csv", f"content,summary\nq,{long}\n"), Columns())
    assert rows == [Row("q", long)]
    with pytest.raises(InputError):
        read_rows(write(tmp_path, "a.csv", f'content,summary\nq,"{long}\n'), Columns())
    assert csv.field_size_limit() == limit


def test_readers_at_once_restore_the_limit_of_csv(tmp_path):
    limit = csv.field_size_limit()
    path = write(tmp_path, "a.csv", "content,summary\n" + f"q,{'a' * (limit + 1)}\n" * 8)
    with ThreadPoolExecutor(8) as pool:
        assert {len(rows) for rows, _ in pool.map(lambda _: read_rows(path, Columns()), range(64))} == {8}
    assert csv.field_size_limit() == limit


LONE = [
    ('{"prompt": "a\\ud800", "response": "r"}', "the column prompt in line 1 of {}"),
    ('{"prompt": "q", "response": "r"}\n{"prompt": "q", "response": "\\udc00"}', "the column response in line 2 of {}"),
    ('[{"prompt": "q", "response": "r", "history": [["a", "b"], ["c", "\\ud83d"]]}]',
     "round 2 of the column history in item 1 of {}"),
    ('prompt,response,history\nq,r,\nq,r,"[[""\\ud83d"", ""b""]]"\n', "round 1 of the column history in row 2 of {}"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "where"), LONE)
def test_half_a_surrogate_pair_is_named_with_its_row_and_column(tmp_path, text, where):
    path = write(tmp_path, "a.csv" if text.startswith("prompt") else "a.json", text)
    columns = HISTORY if "history" in text else Columns(prompt="prompt", response="response")
    with pytest.raises(InputError) as caught:
        read_rows(path, columns)
    message = str(caught.value)
    assert message.startswith(f"expected whole characters in {where.format(path)}, got a lone surrogate U+D")
    assert message.isprintable()  # one line, and no half character in it


def test_a_surrogate_pair_in_two_escapes_is_one_character(tmp_path):
    text = json.dumps({"content": "😀", "summary": "x"}, ensure_ascii=True)
    assert read_rows(write(tmp_path, "a.json", text), Columns())[0] == [Row("😀", "x")]


def test_rows_without_question_or_answer_are_left_out_and_counted(tmp_path):
    records = [
        *RECORDS,
        {"content": "", "summary": "x"},
        {"content": "x", "summary": None},
        {"content": " ", "summary": "x"},
    ]
    rows, num_empty = read_rows(write(tmp_path, "a.json", json.dumps(records)), Columns())
    assert (len(rows), num_empty) == (2, 3)


def test_history_comes_as_a_list_and_in_csv_as_json(tmp_path):
    records = [
        {"prompt": "q", "response": "r", "history": [["a", "b"], ["c", "d"]]},
        {"prompt": "q", "response": "r", "history": None},
        {"prompt": "q", "response": "r"},
        {"prompt": "q", "response": "r", "history": ""},
        {"prompt": "q", "response": "r", "history": []},
    ]
    expected = [Row("q", "r", (("a", "b"), ("c", "d"))), *[Row("q", "r", ())] * 4]
    assert read_rows(write(tmp_path, "a.json", json.dumps(records)), HISTORY)[0] == expected
    text = 'prompt,response,history\nq,r,"[[""a"", ""b""], [""c"", ""d""]]"\nq,r,\nq,r\nq,r, \nq,r,[]\n'
    assert read_rows(write(tmp_path, "a.csv", text), HISTORY)[0] == expected


@pytest.mark.parametrize(
    ("name", "text", "columns", "message"),
    [
        ("a.json", '[{"content": "x"}]', Columns(), "expected the column summary in item 1 of .*, got 'content'"),
        ("a.csv", "content,answer\nx,y\n", Columns(), "the column summary in row 1 of .*, got 'content', 'answer'"),
        ("a.json", '{"content": 3, "summary": "x"}', Columns(), "expected a text in the column content in line 1"),
        ("a.json", '{"content": "x", "summary": "y"}\nnonsense', Columns(), "expected a JSON object in line 2"),
        ("a.json", "[1]", Columns(), "expected a JSON object in item 1"),
        ("a.json", "[{]", Columns(), "something else"),
        ("a.csv", 'content,summary\n"x', Columns(), "something else"),
        ("a.json", '{"content": "", "summary": ""}', Columns(), "got 1 empty ones"),
        ("a.csv", "content,summary\n", Columns(), "got 0 empty ones"),
        ("a.json", "", Columns(), "got an empty file"),
        ("a.json", '{"prompt": "x", "response": "y", "history": ["a"]}', HISTORY, "expected a history .*history in"),
        ("a.json", '{"prompt": "x", "response": "y"}', HISTORY, "expected the column history in line 1"),
        ("a.csv", "prompt,response,history\nx,y,z\n", HISTORY, "expected a history"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used_are_named(tmp_path, name, text, columns, message):
    with pytest.raises(InputError, match=message):
        read_rows(write(tmp_path, name, text), columns)


def test_other_bytes_and_absent_files_are_named(tmp_path):
    (tmp_path / "gbk.json").write_bytes("你好".encode("gbk"))
    with pytest.raises(InputError, match="expected UTF-8"):
        read_rows(tmp_path / "gbk.json", Columns())
    (tmp_path / "utf16.csv").write_bytes("content,summary\na,b\n".encode("utf-16"))
    with pytest.raises(InputError, match="got UTF-16; convert it: iconv -f UTF-16 -t UTF-8"):
        read_rows(tmp_path / "utf16.csv", Columns())
    with pytest.raises(InputError, match="got none"):
        read_rows(tmp_path / "nowhere.json", Columns())


def test_version_1_learns_sop_the_answer_and_its_end(v1):
    sample = make_sample(v1, Row("3加5等于几?", "8"), 64, 64)
    question, answer = v1.encode("3加5等于几?"), v1.encode("8")
    assert sample.input_ids == [*question, v1.gmask_id, v1.sop_id, *answer, v1.eos_id]
    assert sample.labels == [-100] * (len(question) + 1) + [v1.sop_id, *answer, v1.eos_id]


def test_version_1_cuts_question_and_answer_as_officially(v1):
    question, answer = v1.encode("3加5等于几?" * 9), v1.encode("8" * 30)
    sample = make_sample(v1, Row("3加5等于几?" * 9, "8" * 30), 10, 7)
    assert sample.input_ids == [*question[:9], v1.gmask_id, v1.sop_id, *answer[:5], v1.eos_id]
    assert sample.num_cut == len(answer) - 5
    assert make_sample(v1, Row("你好", "8"), 10, 7).num_cut == 0


def test_version_1_writes_a_first_round_only_in_training_and_only_with_a_history_column(v1):
    suffix = v1.suffix_ids
    assert source_ids(v1, Row("你好", "x", ()), 64, training=True) == [*v1.encode("[Round 0]\n问：你好\n答："), *suffix]
    assert source_ids(v1, Row("你好", "x", ()), 64, training=False) == [*v1.encode("你好"), *suffix]
    assert source_ids(v1, Row("你好", "x"), 64, training=True) == [*v1.encode("你好"), *suffix]
    rounds = "[Round 0]\n问：a\n答：b\n[Round 1]\n问：你好\n答："
    for training in (True, False):
        ids = source_ids(v1, Row("你好", "x", (("a", "b"),)), 64, training=training)
        assert ids == [*v1.encode(rounds), *suffix]


def test_versions_2_and_3_learn_the_answer_and_its_end(v2_or_v3):
    tokenizer = v2_or_v3
    sample = make_sample(tokenizer, Row("你好", "Hello"), 200, 64)
    if tokenizer.version == "2":
        source = [*tokenizer.prefix_ids, *tokenizer.encode("[Round 1]\n\n问：你好\n\n答：")]
        answer = tokenizer.encode("Hello")
    else:
        roles = tokenizer.role_ids
        text = [*tokenizer.encode("\n"), *tokenizer.encode("你好")]
        source = [*tokenizer.prefix_ids, roles["user"], *text, roles["assistant"]]
        answer = [*tokenizer.encode("\n"), *tokenizer.encode("Hello")]
    assert sample.input_ids == [*source, *answer, tokenizer.eos_id]
    assert sample.labels == [-100] * len(source) + [*answer, tokenizer.eos_id]
    cut = make_sample(tokenizer, Row("你好", "Hello"), 5, 1)
    last = source[4] if tokenizer.version == "2" else source[-1]  # version 3 keeps who is to speak
    assert cut.input_ids == [*source[:4], last, answer[0], tokenizer.eos_id]
    assert cut.num_cut == len(answer) - 1


def test_samples_are_padded_on_the_right():
    samples = [make_sample(load_tokenizer(MINI), Row(q, "8"), 64, 64) for q in ("你好", "3加5等于几?")]
    ids, labels = collate(samples, 3)
    assert ids.shape == labels.shape == (2, len(samples[1].input_ids))
    num_padded = len(samples[1].input_ids) - len(samples[0].input_ids)
    assert ids[0, -num_padded:].tolist() == [3] * num_padded
    assert labels[0, -num_padded:].tolist() == [-100] * num_padded
