"""Usage errors in the words of the other errors; examples and completion of every command."""

import os
import subprocess
import sys

import pytest

from glm_int4.cli.main import app
from tests.cli.test_commands import glm, refused, text

COMMANDS = [command.name for command in app.registered_commands]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--foo", "expected an option of glm-int4, got --foo; see glm-int4 --help"),
        ("chat --topp 1", "expected an option of glm-int4 chat, got --topp; did you mean --top-p?"),
        ("cht", "got 'cht'; did you mean chat?"),
        ("chat --top-p", "expected a value behind --top-p, got none; see glm-int4 chat --help"),
        ("chat --greedy=3", "expected no value behind --greedy, got one; see glm-int4 chat --help"),
        ("chat a b c", "expected no more arguments, got 'b c'"),
        ("perplexity m", "expected --text, got none; see glm-int4 perplexity --help"),
        ("quantize --bits four", "expected an integer for --bits, got 'four'; see glm-int4 quantize --help"),
        ("chat --top-p=x", "expected a number for --top-p, got 'x'; see glm-int4 chat --help"),
    ],
)
def test_usage_errors_say_what_was_expected_and_found(line, message):
    refused(glm(*line.split()), message)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_an_example_that_the_command_takes(command):
    lines = text(glm(command, "--help", env={"COLUMNS": "80"})).splitlines()
    heading = next(i for i, line in enumerate(lines) if line.strip() in ("Example:", "Examples:"))
    examples = [line.strip() for line in lines[heading + 1 :]]
    assert examples
    options = "\n".join(lines[:heading])
    for example in examples:
        words = example.split(" < ")[0].split()
        assert words[:2] == ["glm-int4", command]
        assert all(word in options for word in words if word.startswith("-"))


def test_help_does_not_cut_what_commands_do():
    help_text = text(glm("--help"))
    assert "..." not in help_text.replace("[ARGS]...", "")
    assert all(command in help_text for command in COMMANDS)


BASH = """
eval "$(glm-int4 --show-completion bash)"
complete_words() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    _glm_int4_completion glm-int4
    echo "${COMPREPLY[*]}"
}
complete_words glm-int4 ""
complete_words glm-int4 pe
complete_words glm-int4 chat --max
"""


def test_bash_completes_commands_and_options(tmp_path):
    program = tmp_path / "glm-int4"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m glm_int4 "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run(["bash", "-c", BASH], env=environment, capture_output=True, text=True, timeout=120)
    assert result.stderr == ""
    commands, perplexity, options = result.stdout.splitlines()
    assert commands.split() == COMMANDS
    assert perplexity == "perplexity"
    assert options.split() == ["--max-new-tokens", "--max-length"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_shown_for_every_shell(shell):
    assert "_GLM_INT4_COMPLETE" in text(glm("--show-completion", shell))
