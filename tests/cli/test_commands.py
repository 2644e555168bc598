"""The commands as a user runs them: results on stdout, one line on stderr and exit code 2 for mistakes."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from tests import preloaded
from tests.conftest import EXAMPLES, MINI, TINY

ROOT = EXAMPLES.parent


def glm(*arguments, stdin="", env=None, cwd=None):
    """Run the command line in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "GLM_INT4_MODEL"} | {"HF_HUB_OFFLINE": "1"} | (env or {})
    return preloaded.run(arguments, stdin if isinstance(stdin, bytes) else stdin.encode(), environment, cwd, 120)


def text(result):
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode()


def test_quantize_then_chat_as_the_readme_says(tmp_path):
    command = [
        sys.executable,
        ROOT / "tools" / "quantize.py",
        "--model",
        MINI,
        "--bits",
        "4",
        "--output",
        tmp_path / "m4",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "bits per weight as stored" in result.stdout
    assert "query_key_value" in result.stdout
    assert text(glm("chat", tmp_path / "m4", "--prompt", "3加5等于几?", "--greedy")) == "8\n"


def test_an_answer_is_json_of_a_schema(tmp_path):
    schema, command = (
        tmp_path / "schema.json",
        ("generate", MINI, "--prompt", "3加5等于几?", "--greedy", "--device", "cpu"),
    )
    schema.write_text(
        '{"type": "object", "properties": {"n": {"enum": [8, 9]}, "w": {"const": "是,b"}}, "required": ["n", "w"]}'
    )
    answer = json.loads(text(glm(*command, "--json-schema", schema)))
    assert answer["n"] in (8, 9)
    assert answer["w"] == "是,b"
    result = json.loads(text(glm(*command, "--json-schema", schema, "--json", "--max-new-tokens", 4)))
    assert result["finish_reason"] == "length"
    schema.write_text('{"not": {}}')
    result = glm(*command, "--json-schema", schema)
    assert result.returncode == 2
    assert f"got not in the schema; leave it out (in {schema})" in result.stderr.decode()
    assert result.stderr.count(b"\n") == 1


def test_quantize_prints_the_contracts_json(tmp_path):
    report = json.loads(text(glm("quantize", "--model", TINY, "--output", tmp_path / "q", "--bits", 8, "--json")))
    assert report.keys() >= {
        "output", "bits", "group_size", "method", "bits_per_weight", "seconds", "peak_rss_bytes", "layers"
    }  # fmt: skip
    assert report["layers"][0].keys() >= {"name", "bits", "rel_error"}
    assert report["peak_rss_bytes"] > 10**7


def test_the_default_output_is_named_after_the_model(tmp_path):
    text(glm("quantize", "--model", TINY, "--bits", 8, cwd=tmp_path))
    assert (tmp_path / "v1_tiny-int8" / "config.json").is_file()


def test_info_prints_the_contracts_json(mini_int4):
    info = json.loads(text(glm("info", mini_int4, "--json")))
    assert info.keys() >= {
        "model", "version", "bits", "group_size", "bits_per_weight", "weight_bytes", "kv_bytes_per_token", "plan"
    }  # fmt: skip
    assert (info["version"], info["bits"], info["group_size"]) == ("1", 4, 128)
    assert 4 < info["bits_per_weight"] < 5
    original = json.loads(text(glm("info", MINI, "--json")))
    assert (original["bits"], original["group_size"]) == (16, None)
    assert "bits per weight" in text(glm("info", mini_int4))


def test_info_tells_which_context_fits_in_how_much_memory(mini_int4):
    plan = json.loads(text(glm("info", mini_int4, "--json", "--device", "cuda")))["plan"]
    assert (plan["device"], plan["tokens_in_memory"]["4 GB"]) == ("cuda", {"16": 512, "8": 512})
    original = json.loads(text(glm("info", MINI, "--json")))["plan"]
    assert original["kv_bytes_int8"] < 0.6 * original["kv_bytes"]
    shown = text(glm("info", mini_int4, "--device", "cpu"))
    for part in ("memory on CPU", "with --kv-bits 8", "512 tokens"):
        assert part in shown


def test_info_plans_what_load_takes(mini_int4):
    import glm_int4

    plan = json.loads(text(glm("info", mini_int4, "--json", "--device", "cpu")))["plan"]
    model = glm_int4.load(mini_int4, device="cpu").model
    tensors = [*model.buffers(), *model.parameters()]
    resident = sum(t.numel() * t.element_size() for t in tensors)
    biases = sum(b.numel() * b.element_size() for name, b in model.named_buffers() if name.endswith("bias"))
    assert plan["weight_bytes"] == pytest.approx(resident, abs=biases)


def test_perplexity_prints_the_contracts_json(mini_int4, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text((EXAMPLES / "heldout.txt").read_text(encoding="utf-8")[:600], encoding="utf-8")
    result = json.loads(text(glm("perplexity", mini_int4, "--text", short, "--json", "--reference", MINI)))
    assert result.keys() == {"perplexity", "standard_error", "tokens", "window", "stride", "kl", "top1"}
    assert 1 < result["perplexity"] < 10
    assert 0 < result["kl"] < 0.5
    assert "perplexity" in text(glm("perplexity", MINI, "--text", short, "--stride", 128))


def test_generate_prints_text_or_json(mini_int4, tmp_path):
    assert text(glm("generate", mini_int4, "--prompt", "3加5等于几?", "--greedy")).strip() == "8"
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("What is 3 plus 5?", encoding="utf-8")
    result = json.loads(text(glm("generate", mini_int4, "--prompt-file", prompt, "--greedy", "--json")))
    assert result["text"].strip() == "8"
    assert result["ids"]
    assert result["prompt_ids"]
    assert result["prefill_s"] > 0


def test_chat_reads_questions_from_a_pipe_and_remembers(mini_int4):
    result = glm("chat", mini_int4, "--greedy", stdin="我叫小明。\n\n我叫什么名字?\n/clear\n/help\n/exit\nignored\n")
    lines = text(result).splitlines()
    assert len(lines) == 2
    assert all("小明" in line for line in lines)
    assert b"tokens, the first after" in result.stderr


def test_long_conversations_drop_their_oldest_rounds(mini_int4):
    result = glm("chat", mini_int4, "--greedy", "--max-length", 96, stdin="3加5等于几?\n" * 8)
    assert len(text(result).splitlines()) == 8
    assert b"dropped the oldest" in result.stderr


def test_the_model_comes_from_the_environment_or_the_default_folder(mini_int4, tmp_path):
    arguments = ("chat", "--prompt", "3加5等于几?", "--greedy")
    assert text(glm(*arguments, env={"GLM_INT4_MODEL": str(mini_int4)})) == "8\n"
    shutil.copytree(mini_int4, tmp_path / "chatglm-6b-int4")
    assert text(glm(*arguments, cwd=tmp_path)) == "8\n"


def test_version_and_help():
    assert text(glm("--version")).startswith("glm-int4 ")
    for command in ("quantize", "chat", "generate", "perplexity", "info"):
        assert "Usage" in text(glm(command, "--help"))


def broken(tmp_path, case):
    """A checkpoint folder with one fault."""
    folder = tmp_path / "broken"
    shutil.copytree(MINI, folder)
    config = json.loads((folder / "config.json").read_text())
    shard = folder / "pytorch_model-00001-of-00002.bin"
    if case == "no config":
        (folder / "config.json").unlink()
    elif case == "config is not JSON":
        (folder / "config.json").write_text("<html>")
    elif case == "another model type":
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    elif case == "contradictory values":
        (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 7}))
    elif case == "truncated shard":
        shard.write_bytes(shard.read_bytes()[:-5000])
    elif case == "missing shard":
        shard.unlink()
    elif case == "wrong shape":
        (folder / "config.json").write_text(json.dumps(config | {"inner_hidden_size": 512}))
    elif case == "malicious pickle":
        tensors = torch.load(shard, weights_only=True)
        torch.save(tensors | {"x": Trap(tmp_path / "ran")}, shard)
    else:
        raise AssertionError(case)
    return folder


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def refused(result, *fragments):
    """One clear line on stderr, nothing on stdout, exit code 2."""
    lines = result.stderr.decode().strip().splitlines()
    assert result.returncode == 2, result.stderr.decode()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: expected") or "Invalid value" in lines[0], lines
    assert result.stdout == b""
    for fragment in fragments:
        assert fragment in lines[0]


FAULTS = {
    "no config": "config.json",
    "config is not JSON": "expected JSON in",
    "another model type": 'model_type "chatglm"',
    "contradictory values": "7 heads for 256",
    "truncated shard": "truncated",
    "missing shard": "pytorch_model-00001-of-00002.bin",
    "wrong shape": "mis-shaped",
    "malicious pickle": "run code",
}


@pytest.mark.parametrize("case", FAULTS)
def test_broken_checkpoints_are_refused_and_leave_nothing(tmp_path, case):
    folder = broken(tmp_path, case)
    refused(glm("quantize", "--model", folder, "--output", tmp_path / "out"), FAULTS[case])
    refused(glm("chat", folder, "--prompt", "hi"), FAULTS[case])
    assert {path.name for path in tmp_path.iterdir()} == {"broken"}


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--model", "nowhere/at/all"], "no such folder"),
        (["--bits", "3"], "bits to be 4 or 8, got 3"),
        (["--bits", "four"], "integer"),
        (["--group-size", "48"], "32, 64, 128 or channel"),
        (["--group-size", "128", "--model", str(TINY)], "divides the 64 inputs"),
        (["--method", "magic"], "the method rtn"),
        (["--threads", "0"], "from 1 to"),
        (["--output", "x" * 300], "File name too long"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, arguments, fragment):
    options = [] if "--model" in arguments else ["--model", MINI]
    refused(glm("quantize", *options, "--output", tmp_path / "out", *arguments), fragment)
    assert not list(tmp_path.iterdir())


def test_an_existing_output_needs_overwrite(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    refused(glm("quantize", "--model", TINY, "--bits", 8, "--output", tmp_path / "out"), "--overwrite")
    assert (tmp_path / "out" / "precious.txt").read_text() == "mine"
    text(glm("quantize", "--model", TINY, "--bits", 8, "--output", tmp_path / "out", "--overwrite"))
    assert not (tmp_path / "out" / "precious.txt").exists()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]


def test_prompts_and_texts_that_cannot_be_used_are_refused(mini_int4, tmp_path):
    latin = tmp_path / "latin.txt"
    latin.write_bytes("café".encode("latin-1"))
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    refused(glm("chat", mini_int4, "--prompt", ""), "empty")
    refused(glm("chat", mini_int4, "--prompt", "  "), "empty")
    refused(glm("chat", mini_int4, "--prompt", os.fsdecode(b"caf\xe9")), "UTF-8")
    refused(glm("generate", mini_int4), "either --prompt or --prompt-file, got none")
    refused(glm("generate", mini_int4, "--prompt", "a", "--prompt-file", latin), "got both")
    refused(glm("generate", mini_int4, "--prompt-file", latin), "expected UTF-8 in")
    refused(glm("perplexity", mini_int4, "--text", latin), "expected UTF-8 in")
    refused(glm("perplexity", mini_int4, "--text", empty), "empty file")
    refused(glm("perplexity", mini_int4, "--text", tmp_path / "nowhere"), "No such file")
    refused(glm("chat", mini_int4, "--prompt", "hi", "--greedy", "--temperature", "1"), "--greedy or --temperature")
    refused(glm("chat", mini_int4, "--prompt", "hi", "--top-p", "7"), "top_p")
    refused(glm("chat", mini_int4, "--prompt", "3加5等于几?" * 200), "less than 512 tokens")


def test_piped_questions_that_are_not_utf8_end_the_chat(mini_int4):
    for encoding in ("utf-8:strict", "latin-1"):
        result = glm("chat", mini_int4, stdin=b"caf\xe9\n", env={"PYTHONIOENCODING": encoding})
        assert result.returncode == 2
        assert result.stderr.decode().splitlines()[-1].startswith("error: expected a question in UTF-8")


def test_answers_are_utf8_whatever_the_locale_says(mini_int4):
    result = glm("chat", mini_int4, "--prompt", "法国的首都是哪里?", "--greedy", env={"PYTHONIOENCODING": "latin-1"})
    assert text(result) == "巴黎\n"


def test_without_a_command_there_is_help():
    assert "Commands" in text(glm())


def test_no_tokenizer_and_no_model_are_refused(tmp_path):
    refused(glm("chat", TINY, "--prompt", "hi"), "expected a tokenizer (ice_text.model)")
    refused(glm("chat", "--prompt", "hi", cwd=tmp_path), "glm-int4 quantize --bits 4")


def test_debug_shows_the_traceback():
    result = glm("chat", TINY, "--prompt", "hi", "--debug")
    assert result.returncode == 2
    assert b"Traceback" in result.stderr


def test_a_mixed_checkpoint_says_what_was_chosen_and_info_shows_it(tmp_path):
    run = glm("quantize", "--model", TINY, "--target-bits", "7.5", "--output", tmp_path / "out")
    assert "of 9 matrices" in run.stderr.decode()
    assert text(run).count("query_key_value") >= 1
    info = json.loads(text(glm("info", tmp_path / "out", "--json")))
    assert info["bits"] == info["group_size"] == "mixed"
    assert sum(info["linear_layers"].values()) == 8
    assert info["bits_per_weight"] <= 7.5
    shown = text(glm("info", tmp_path / "out"))
    assert " x INT8 per channel" in shown
    assert " x INT4 " in shown


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--method", "gptq"], "--calibration FILE"),
        (["--target-bits", "3"], "the smallest is --target-bits"),
        (["--target-size", "wide"], "a size like 3.2GB"),
    ],
)
def test_quantizing_that_cannot_work_is_refused_in_one_line(tmp_path, arguments, fragment):
    refused(glm("quantize", "--model", TINY, *arguments, "--output", tmp_path / "out"), fragment)
