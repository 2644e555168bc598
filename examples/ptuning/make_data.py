"""Sums and differences that the mini model knows, with answers in a style that it does not: whole sentences.

It answers "3加5等于几?" with the bare result, "8". Here the answer is "3加5等于8。". The test file's pairs (a, b) are
those that tools/mini_corpus.py kept out of the mini model's own training; the training file has none of them either.

python examples/ptuning/make_data.py FOLDER    writes FOLDER/train.jsonl and FOLDER/test.jsonl
"""

import argparse
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from random import Random

TRAIN_ROWS, TEST_ROWS = 20000, 200
MAX_NUMBER = 50

SUMS = [
    ("{a}加{b}等于几?", "{a}加{b}等于{c}。"),
    ("{a}加{b}等于多少?", "{a}加{b}等于{c}。"),
    ("What is {a} plus {b}?", "{a} plus {b} is {c}."),
]
DIFFERENCES = [
    ("{a}减{b}等于几?", "{a}减{b}等于{c}。"),
    ("{a}减{b}等于多少?", "{a}减{b}等于{c}。"),
    ("What is {a} minus {b}?", "{a} minus {b} is {c}."),
]


def is_held_out(kind: str, a: int, b: int) -> bool:
    """As in tools/mini_corpus.py: one pair in ten."""
    return zlib.crc32(f"{kind}:{a}:{b}".encode()) % 10 == 0


def rows(rng: Random, count: int, *, held_out: bool) -> Iterator[dict[str, str]]:
    """Questions and answers in the official columns."""
    while count:
        a, b = rng.randint(0, MAX_NUMBER), rng.randint(0, MAX_NUMBER)
        kind, templates, c = rng.choice([("add", SUMS, a + b), ("subtract", DIFFERENCES, a - b)])
        if is_held_out(kind, a, b) == held_out:
            question, answer = rng.choice(templates)
            yield {"content": question.format(a=a, b=b), "summary": answer.format(a=a, b=b, c=c)}
            count -= 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, held_out in (("train", TRAIN_ROWS, False), ("test", TEST_ROWS, True)):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows(Random(name), count, held_out=held_out)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
