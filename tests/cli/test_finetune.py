"""``glm-int4 finetune`` and what it says."""

import json
import subprocess
import sys

import pytest

from glm_int4.cli.main import main

QUESTIONS = [("你好", "再见"), ("3加5等于几?", "八")]
FEW = "--max_steps 40 --save-steps 20 --learning-rate 0.01 --gradient-accumulation-steps 2 --device cpu"


def glm(*arguments):
    command = [sys.executable, "-m", "glm_int4", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "train.json"
    path.write_text(json.dumps([{"instruction": q, "input": "", "output": a} for q, a in QUESTIONS]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(mini_int4, data, tmp_path_factory):
    """The output folder of a run, and what it printed."""
    output = tmp_path_factory.mktemp("finetune") / "out"
    files = ["--model", mini_int4, "--train_file", data, "--eval-file", data, "--output", output]
    return output, glm("finetune", *files, *FEW.split(), "--greedy", "--r", 4, "--alpha", "16", "--dropout", 0)


def test_a_run_says_what_it_did_and_what_to_do_next(trained):
    output, result = trained
    assert result.returncode == 0, result.stderr
    assert "0.03 M parameters trained on 2 samples" in result.stdout
    assert "40 steps, loss " in result.stdout
    assert "exact 100.0 % of 2" in result.stdout
    assert result.stdout.endswith(f"--adapter {output / 'checkpoint-40'}\n")
    settings = json.loads((output / "checkpoint-40" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (4, 16, 0)


def test_chat_takes_the_adapter(trained, mini_int4):
    result = glm("chat", mini_int4, "--device", "cpu", "--adapter", trained[0], "--greedy", "--prompt", "你好")
    assert result.stdout == "再见\n"


@pytest.fixture
def run(capsys):
    """The command line in this process: exit code, output and errors."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, arguments)))
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("command", [["ptune"], ["finetune", "--method", "ptuning"]])
def test_json_is_the_report_of_either_method(run, mini_int4, data, tmp_path, command):
    files = ["--model", mini_int4, "--train-file", data, "--output", tmp_path / "out", "--device", "cpu"]
    code, out, _ = run(*command, *files, "--max-steps", 1, "--pre_seq_len", 4, "--json")
    report = json.loads(out)
    assert code in (0, None)
    assert (report["method"], report["step"], report["parameters"]) == ("ptuning", 1, 4 * 2 * 7 * 256)
    assert report["planned_bytes"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "full"], "error: expected the method lora or ptuning, got 'full'"),
        (["--pre-seq-len", "4"], "error: expected arguments among r, "),
        (["--target-modules", "query_key_value,q_proj"], "error: expected target_modules among query_key_value"),
        (["--r", "0"], "error: expected r to be a whole number from 1 on, got 0"),
        (["--r", "many"], "error: expected an integer for --r, got 'many'"),
    ],
)
def test_mistakes_end_with_one_line(run, mini_int4, data, tmp_path, arguments, message):
    files = ["--model", mini_int4, "--train-file", data, "--output", tmp_path / "out", "--device", "cpu"]
    code, out, errors = run("finetune", *files, *arguments)
    assert (code, out) == (2, "")
    assert errors.startswith(message)
    assert errors.count("\n") == 1
