"""Faults that are nobody's mistake: one line or silence, exit code 1, never a traceback."""

import json
import os
import signal
import subprocess
import sys

import pytest

from glm_int4.errors import is_out_of_memory
from tests.cli.test_commands import glm


def run_in_shell(line, **files):
    """Run a shell line that says glm-int4 for the command line; returns (output, errors, exit codes of the pipe)."""
    line = line.replace("glm-int4", f"{sys.executable} -m glm_int4").format(**files)
    result = subprocess.run(
        ["bash", "-c", f'{line}; echo "${{PIPESTATUS[@]}}" >&2'], capture_output=True, text=True, timeout=120
    )
    *errors, codes = result.stderr.splitlines()
    return result.stdout, errors, codes


def test_a_reader_that_leaves_ends_the_chat_quietly(mini_int4):
    lines = "printf '我叫小明。\\n3加5等于几?\\n我叫什么名字?\\n'"
    output, errors, codes = run_in_shell(lines + " | glm-int4 chat {m} --greedy 2>/dev/null | head -1", m=mini_int4)
    assert output.count("\n") == 1
    assert errors == []
    assert codes.split()[1] == "1"


@pytest.mark.parametrize("rest", ["chat {m} --prompt hi", "generate {m} --prompt hi --json", "--help"])
def test_a_reader_that_never_came_is_no_error_message(mini_int4, rest):
    _, errors, codes = run_in_shell(f"glm-int4 {rest} | true", m=mini_int4)
    assert errors == []
    assert codes == "1 0"


def test_notes_without_a_reader_are_no_traceback(mini_int4):
    output, errors, codes = run_in_shell("echo hi | glm-int4 chat {m} 2>&1 | head -1", m=mini_int4)
    assert output.count("\n") == 1
    assert errors == []
    assert codes.split()[1] in ("0", "1")  # all may have fitted into the pipe before the reader left


def test_nohup_keeps_its_promise(mini_int4, tmp_path):
    (tmp_path / "script.json").write_text(json.dumps({"answer": "slowly " * 30, "delay": 0.01}))
    command = [sys.executable, "-m", "tests.cli.scripted_chat", tmp_path / "script.json", "chat", mini_int4]
    process = subprocess.Popen(
        ["nohup", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdin.write(b"hi\n")
    process.stdin.flush()
    process.stdout.read(6)
    process.send_signal(signal.SIGHUP)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output.endswith(b"slowly \n")


def test_a_full_disk_is_one_line(mini_int4):
    _, errors, codes = run_in_shell("glm-int4 chat {m} --prompt hi > /dev/full", m=mini_int4)
    assert errors == [
        "error: expected an output that can be written, got No space left on device; make room or write elsewhere"
    ]
    assert codes == "1"


def test_streams_that_are_closed_are_no_traceback(mini_int4):
    assert run_in_shell("glm-int4 chat {m} --prompt hi >&-", m=mini_int4)[1:] == ([], "0")
    assert run_in_shell("glm-int4 chat {m} 2>/dev/null <&-", m=mini_int4) == ("", [], "0")


@pytest.mark.parametrize("fault", ["memory", "torch"])
def test_memory_that_runs_out_is_one_line(mini_int4, tmp_path, fault):
    (tmp_path / "script.json").write_text(json.dumps({"answer": "abc", "fail": fault}))
    command = [sys.executable, "-m", "tests.cli.scripted_chat", tmp_path / "script.json", "chat", mini_int4]
    result = subprocess.run([*command, "--prompt", "hi"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert result.stdout == "abc\n"
    assert result.stderr.startswith("error: expected enough memory for the answer, got too little; ")
    assert "--max-length" in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_ways_of_saying_that_memory_ran_out():
    import torch

    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(OSError(12, os.strerror(12)))
    assert not is_out_of_memory(RuntimeError("shapes do not agree"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_an_allocation_that_torch_refuses_is_recognized():
    import torch

    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 56, dtype=torch.uint8)
    assert is_out_of_memory(error.value)


def test_a_prompt_that_was_cut_says_so_beside_the_answer(mini_int4):
    result = glm("chat", mini_int4, "--prompt", "你会什么", "--greedy", "--max-new-tokens", 2)
    assert result.returncode == 0
    assert result.stderr.decode() == "(cut after 2 tokens: --max-new-tokens)\n"


@pytest.mark.parametrize("words", [["--version"], ["info", "nowhere"]])
def test_a_ctrl_c_more_does_not_kill_what_is_leaving(words):
    """While the interpreter ends, nobody handles signals: what torch then tears down would end by SIGINT."""
    code = "import signal, sys\nfrom glm_int4.cli.main import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
    code += "print(signal.getsignal(signal.SIGINT).name)"
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines()[-1] == "SIG_IGN"
