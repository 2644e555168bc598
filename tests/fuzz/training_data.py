"""Files of training data in every format, and the samples that the versions make of them."""

import json

from glm_int4.text import load_tokenizer
from glm_int4.text.tokenizer_v2 import ChatGLM2Tokenizer
from glm_int4.tuning.data import Columns, collate, make_sample, read_rows, source_ids
from glm_int4.tuning.loss import IGNORED
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
WORDS = (
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
        lists = [json.dumps(rows).encode() for rows in (RECORDS, ROUNDS)]
        lines = ["\n".join(map(json.dumps, rows)).encode() for rows in (RECORDS, ROUNDS)]
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
                samples = [make_sample(tokenizer, row, *lengths) for row in rows[:20]]
                for sample in samples:
                    check_sample(sample, tokenizer, *lengths)
                ids, labels = collate(samples, tokenizer.pad_id)
                assert ids.shape == labels.shape
            source_ids(tokenizer, rows[0], 64, training=False)


def check_sample(sample, tokenizer, max_source_length, max_target_length):
    """As long as may be, with labels behind the question alone."""
    assert len(sample.input_ids) == len(sample.labels) <= max_source_length + max_target_length + 1
    assert sample.input_ids[-1] == sample.labels[-1] == tokenizer.eos_id
    assert sample.labels[0] == IGNORED
    assert all(
        label in (IGNORED, token) and 0 <= token < tokenizer.vocab_size
        for token, label in zip(sample.input_ids, sample.labels, strict=True)
    )
