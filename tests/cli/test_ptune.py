"""``glm-int4 ptune`` and ``--prefix``, as processes."""

import json
import os
from types import SimpleNamespace

import pytest

from tests import preloaded
from tests.conftest import EXAMPLES

QUESTIONS = [("你好", "再见"), ("3加5等于几?", "八")]
FEW = (
    "--pre_seq_len 8 --max-steps 120 --save-steps 60 --learning-rate 0.1 --per-device-train-batch-size 2 "
    "--gradient-accumulation-steps 1 --device cpu"
)


def glm(*arguments):
    result = preloaded.run(arguments, b"", dict(os.environ), None, 300)
    return SimpleNamespace(returncode=result.returncode, stdout=result.stdout.decode(), stderr=result.stderr.decode())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "train.json"
    path.write_text(json.dumps([{"prompt": q, "response": a} for q, a in QUESTIONS]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(mini_int4, data, tmp_path_factory):
    """The output folder of a run, and what it printed."""
    output = tmp_path_factory.mktemp("ptune") / "out"
    columns = ["--prompt-column", "prompt", "--response-column", "response"]
    files = ["--model", mini_int4, "--train_file", data, "--eval-file", data, "--output", output]
    return output, glm("ptune", *files, *columns, *FEW.split(), "--greedy")


def test_a_run_says_what_it_did_and_what_to_do_next(trained):
    output, result = trained
    assert result.returncode == 0, result.stderr
    assert "0.03 M parameters trained on 2 samples" in result.stdout
    assert "120 steps, loss " in result.stdout
    assert "ROUGE-1" in result.stdout
    assert "exact 100.0 % of 2" in result.stdout
    assert result.stdout.endswith(f"--prefix {output / 'checkpoint-120'}\n")


@pytest.mark.slow(20)
def test_chat_generate_and_perplexity_take_the_prefix(trained, mini_int4, tmp_path):
    output, _ = trained
    model = [mini_int4, "--device", "cpu"]
    with_prefix = [*model, "--prefix", output]
    assert glm("chat", *with_prefix, "--greedy", "--prompt", "你好").stdout == "再见\n"
    assert glm("chat", *model, "--greedy", "--prompt", "你好").stdout != "再见\n"
    result = json.loads(glm("generate", *with_prefix, "--greedy", "--prompt", "3加5等于几?", "--json").stdout)
    assert result["text"] == "八"
    text = EXAMPLES / "heldout.txt"
    short = tmp_path / "short.txt"
    short.write_text(text.read_text(encoding="utf-8")[:200], encoding="utf-8")
    values = [
        json.loads(glm("perplexity", *arguments, "--text", short, "--json").stdout)["perplexity"]
        for arguments in (model, with_prefix)
    ]
    assert values[0] != values[1]


def test_json_is_the_report(trained, mini_int4, data):
    output, _ = trained
    columns = ["--prompt-column", "prompt", "--response-column", "response"]
    files = ["--model", mini_int4, "--train-file", data, "--output", output]
    report = json.loads(glm("ptune", *files, *columns, *FEW.split(), "--resume", "--json").stdout)
    assert (report["step"], report["samples"], report["evaluation"]) == (120, 2, None)
    assert report["planned_bytes"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train-file", "nowhere.json"], "error: expected training data (JSON, JSON lines or CSV) in nowhere.json"),
        (["--max-steps", "0"], "error: expected max_steps to be a whole number from 1 on, got 0"),
        ([], "error: expected the column content in item 1"),
    ],
)
def test_mistakes_end_with_one_line(mini_int4, data, tmp_path, arguments, message):
    files = ["--model", mini_int4, "--train-file", data, "--output", tmp_path / "out"]
    result = glm("ptune", *files, *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


def test_a_prefix_that_is_none_ends_with_one_line(mini_int4):
    result = glm("chat", mini_int4, "--prefix", mini_int4, "--prompt", "x")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: expected transformer.prefix_encoder.embedding.weight in ")
    assert "it holds no P-Tuning prefix" in result.stderr
    assert result.stderr.count("\n") == 1
