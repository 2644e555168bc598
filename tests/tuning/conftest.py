"""What the tests of training runs share: a few questions to learn, and what a run leaves behind."""

import hashlib
import json

import pytest

QUESTIONS = [("你好", "再见"), ("3加5等于几?", "八"), ("What is 1 plus 2?", "three"), ("法国的首都是哪里?", "巴黎很美")]


@pytest.fixture
def train_file(tmp_path):
    path = tmp_path / "train.jsonl"
    lines = [json.dumps({"content": q, "summary": a}, ensure_ascii=False) for q, a in QUESTIONS]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def log(folder):
    return [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text().splitlines()]


def losses(folder):
    return [entry["loss"] for entry in log(folder)]


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
