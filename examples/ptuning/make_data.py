"""Sums and differences that the mini model knows, with answers in a style that it does not: whole sentences.

It answers "3加5等于几?" with the bare result, "8". Here the answer is "3加5等于8。". No number pair (a, b) of the
test file occurs in the training file in that order; the mini model itself may have been trained on it.

python examples/ptuning/make_data.py FOLDER    writes FOLDER/train.jsonl and FOLDER/test.jsonl
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

TRAIN_ROWS, TEST_ROWS = 20000, 200
MAX_NUMBER = 50
PAIRS_HELD_OUT = 10  # one pair in ten is for testing

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


def rows(rng: Random, count: int, *, held_out: bool) -> Iterator[dict[str, str]]:
    """Questions and answers in the official columns."""
    pairs = [(a, b) for a in range(MAX_NUMBER + 1) for b in range(MAX_NUMBER + 1)]
    Random("pairs").shuffle(pairs)
    num_held_out = len(pairs) // PAIRS_HELD_OUT
    pairs = pairs[:num_held_out] if held_out else pairs[num_held_out:]
    for _ in range(count):
        a, b = rng.choice(pairs)
        templates, c = rng.choice([(SUMS, a + b), (DIFFERENCES, a - b)])
        question, answer = rng.choice(templates)
        yield {"content": question.format(a=a, b=b), "summary": answer.format(a=a, b=b, c=c)}


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, held_out in (("train", TRAIN_ROWS, False), ("test", TEST_ROWS, True)):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows(Random(name), count, held_out=held_out)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
