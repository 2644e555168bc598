"""Files of training data in every format, and the samples that the versions make of them."""

import json

from glm_int4.errors import InputError
from glm_int4.text import load_tokenizer
from glm_int4.text.tokenizer_v2 import ChatGLM2Tokenizer
from glm_int4.tuning.data import Columns, Row, read_rows
from glm_int4.tuning.loss import IGNORED
from glm_int4.tuning.samples import Preparation, collate
from tests.conftest import MINI
from tests.fuzz.mutations import Kind
from tests.fuzz.small_models import bpe_tokenizer, write_folder

COLUMNS = (Columns(), Columns(prompt="prompt", response="response", history="history"))
LENGTHS = ((3, 3), (64, 128))  # the least, and as officially
RECORDS = [{"content": "你好", "summary": 'a, "b"'}, {"content": "二\n<n>", "summary": "c\nd"}]
ROUNDS = [
    {"prompt": "q", "response": "r", "history": [["a", "b"], ["c", "d"]]},
    {"prompt": "你好", "response": "x", "history": []},
]
TALKS = [
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r", "loss": True}]},
    {
        "tools": [{"name": "f"}],
        "messages": [
            {"role": "user", "content": "你好"},
            {"role": "tool", "name": "f", "parameters": {"x": [1, "a"]}, "observation": {"y": None}},
            {"role": "assistant", "content": "x"},
        ],
    },
]
ALPACA = [{"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]], "system": "f"}]
WORDS = (
    *("messages", "conversations", "role", "loss", "system", "user", "assistant", "tool", "observation", "parameters"),
    *("instruction", "input", "output", "metadata", "tools", "tool_calls", "name", "true", "false", "1e999"),
    *("content", "summary", "prompt", "response", "history", '[["a", "b"]]', '"[[""a"", ""b""]]"', '"', '""', ",", ";"),
    *("\n", "\r\n", "\r", "\ufeff", "[", "{", "null", "[gMASK]", "sop", "[Round 1]\n\n问：", "\0", "x" * 140_000),
)
CSV = 'content,x,summary\n你好,1,"a, ""b"""\n二,2,"c\nd"\n'
CSV_ROUNDS = 'prompt,response,history\nq,r,"[[""a"", ""b""]]"\nx,y,\n'


class Target:
    """Reading rows, making samples of every version, and putting them into a batch."""

    def __init__(self, work):
        write_folder(work, {"tokenizer.model": bpe_tokenizer(work)})
        self._work = work
        self._tokenizers = [
            load_tokenizer(MINI),
            *(ChatGLM2Tokenizer(work / "tokenizer.model", version) for version in ("2", "3")),
        ]
        lists = [json.dumps(rows).encode() for rows in (RECORDS, ROUNDS, TALKS, ALPACA)]
        lines = ["\n".join(map(json.dumps, rows)).encode() for rows in (RECORDS, ROUNDS, TALKS, ALPACA)]
        self.kinds = {
            "json": Kind(format="json", seeds=tuple(lists), words=WORDS),
            "jsonl": Kind(format="json lines", seeds=tuple(lines), words=WORDS),
            "csv": Kind(format="text", seeds=(CSV.encode(), CSV_ROUNDS.encode()), words=WORDS),
        }

    def use(self, kind, data):
        path = self._work / f"data.{kind}"
        path.write_bytes(data)
        columns = COLUMNS[b"history" in data]
        rows, num_empty = read_rows(path, columns)
        assert rows
        assert num_empty >= 0
        for tokenizer in self._tokenizers:
            for lengths in LENGTHS:
                self._prepare(rows[:20], tokenizer, lengths)

    def _prepare(self, rows, tokenizer, lengths):
        preparation = Preparation(tokenizer, *lengths)
        made = []
        for row in rows:
            try:
                samples, questions = preparation.samples(row), preparation.questions(row)
            except InputError:  # of versions without tools, or without roles
                assert not isinstance(row, Row)
                continue
            for sample in samples:
                check_sample(sample, tokenizer, *lengths, ends=isinstance(row, Row) or not tokenizer.role_ids)
            assert all(question.prompt and question.answer for question in questions)
            made += samples
        if made:
            ids, labels = collate(made, tokenizer.pad_id)
            assert ids.shape == labels.shape


def check_sample(sample, tokenizer, max_source_length, max_target_length, *, ends):
    """As long as may be, with labels behind the question alone; the end of a conversation may be cut off."""
    assert len(sample.input_ids) == len(sample.labels) <= max_source_length + max_target_length + 1
    assert sample.num_labels
    if ends:
        assert sample.input_ids[-1] == sample.labels[-1] == tokenizer.eos_id
    assert sample.labels[0] == IGNORED
    assert all(
        label in (IGNORED, token) and 0 <= token < tokenizer.vocab_size
        for token, label in zip(sample.input_ids, sample.labels, strict=True)
    )
