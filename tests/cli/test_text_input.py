"""Texts that the commands take, written as Windows writes them: the same ids and answers as without."""

import hashlib
import json
import os

import pytest

from glm_int4.conversion.calibrated.sequences import read_calibration
from glm_int4.models.config_file import parse_config
from glm_int4.text import load_tokenizer
from tests.cli.test_commands import glm, refused, text
from tests.conftest import EXAMPLES

BOM = "\ufeff"
PROMPT = "你好\nWhat is 3 plus 5?"
FEW = ("--greedy", "--max-new-tokens", 3)


def windows(value):
    return BOM + value.replace("\n", "\r\n")


@pytest.fixture(scope="session", params=["1", "2", "3"], ids="v{}".format)
def model(request, mini_int4, small_checkpoints):
    return mini_int4 if request.param == "1" else small_checkpoints[request.param]


def test_a_bom_in_a_prompt_changes_no_ids(model, tmp_path):
    ask = ("generate", model, "--json", *FEW)
    file = tmp_path / "prompt.txt"
    file.write_bytes(windows(PROMPT).encode())
    expected = load_tokenizer(model).encode_prompt(PROMPT)
    as_argument = windows(PROMPT) + "\r"  # "$(cat prompt.txt)": the shell takes away the last line feed
    for way in (("--prompt-file", file), ("--prompt", as_argument)):
        assert json.loads(text(glm(*ask, *way)))["prompt_ids"] == expected, way
    if os.path.exists("/dev/stdin"):
        run = glm(*ask, "--prompt-file", "/dev/stdin", stdin=windows(PROMPT))
        assert json.loads(text(run))["prompt_ids"] == expected


def kept(run, folder):
    """What a chat has kept of the conversation: system text and messages."""
    assert run.returncode == 0, run.stderr.decode()
    (file,) = (folder / "glm-int4" / "chats").iterdir()
    content = json.loads(file.read_text(encoding="utf-8"))
    return content["system"], content["messages"]


def test_a_bom_in_a_chat_is_no_part_of_what_was_said(model, tmp_path):
    said = []
    for name, changed in (("plain", str), ("windows", windows)):
        state = tmp_path / name
        run = glm(
            "chat", model, *FEW, "--system", changed("be\nbrief"),
            stdin=changed("你好\na\rb\n\n"), env={"XDG_STATE_HOME": str(state)},
        )  # fmt: skip
        said.append(kept(run, state))
    assert said[0] == said[1]
    assert said[0][0] == "be\nbrief"
    assert [message["content"] for message in said[0][1] if message["role"] == "user"] == ["你好", "a\rb"]


def test_a_bom_in_a_saved_conversation_and_in_its_commands(mini_int4, tmp_path):
    talk = tmp_path / "talk.json"
    first = glm("chat", mini_int4, "--greedy", stdin=f"我叫小明。\n/save {talk}\n")
    assert first.returncode == 0, first.stderr.decode()
    talk.write_bytes(windows(talk.read_text(encoding="utf-8")).encode())
    result = glm("chat", mini_int4, "--greedy", stdin=windows(f"/load {talk}\n我叫什么名字?\n"))
    assert "小明" in text(result)


def test_a_bom_in_a_file_of_tools(small_checkpoints, tmp_path):
    tools = tmp_path / "tools.json"
    tools.write_bytes(windows('[\n{"name": "track", "description": "你好"}\n]').encode())
    ask = ("chat", small_checkpoints["3"], "--prompt", "price", *FEW, "--tools", tools)
    assert glm(*ask).returncode == 0
    tools.write_text('[{"name": "track", "description": "\\ud800"}]')
    refused(glm(*ask), "expected whole characters in the tools, got a lone surrogate U+D800")


def test_a_bom_in_the_text_of_a_perplexity(mini_int4, tmp_path):
    content = (EXAMPLES / "heldout.txt").read_text(encoding="utf-8")[:300]
    results = []
    for changed in (str, windows):
        (tmp_path / "text.txt").write_bytes(changed(content).encode())
        results.append(json.loads(text(glm("perplexity", mini_int4, "--text", tmp_path / "text.txt", "--json"))))
    assert results[0] == results[1]


def test_a_bom_in_a_calibration_text_changes_no_ids(model, tmp_path):
    content = (EXAMPLES / "heldout.txt").read_text(encoding="utf-8")
    config = parse_config(json.loads((model / "config.json").read_text()), folder=model)
    tokenizer = load_tokenizer(model)
    found = []
    for changed in (str, windows):
        (tmp_path / "text.txt").write_bytes(changed(content).encode())
        found.append(read_calibration(tmp_path / "text.txt", tokenizer, config))
    assert found[0] == found[1]
    digest = hashlib.sha256(content.encode()).hexdigest()
    assert found[0].fingerprint.startswith(digest)  # so that a run which an earlier release began can be resumed


def test_a_bom_of_utf16_is_named_with_the_cure(mini_int4, tmp_path):
    cure = "got UTF-16; convert it: iconv -f UTF-16 -t UTF-8"
    (tmp_path / "p.txt").write_bytes("hi".encode("utf-16"))
    refused(glm("generate", mini_int4, "--prompt-file", tmp_path / "p.txt"), cure)
    piped = glm("chat", mini_int4, stdin="hi\n".encode("utf-16"))
    assert piped.returncode == 2
    assert piped.stderr.decode().splitlines()[1:] == [f"error: expected a question in UTF-8, {cure}"]


@pytest.mark.parametrize("options", [("--prompt",), ("--prompt", "hi", "--system"), ("--prompt", "hi", "--stop")])
def test_lone_surrogates_on_the_command_line_are_no_traceback(mini_int4, options):
    """Bytes that are not UTF-8 come in as half surrogate pairs."""
    result = glm("chat", mini_int4, *options, os.fsdecode(b"\xff"), *FEW)
    if options[-1] == "--stop":
        assert result.returncode == 0, result.stderr  # no answer ever holds it
    else:
        refused(result, "in UTF-8, got other bytes at character 0")
