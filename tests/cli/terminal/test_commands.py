"""Commands: what they change, what they say, and which lines are none."""

import pytest

from glm_int4.cli.terminal.commands import Commands, Then
from glm_int4.errors import InputError


@pytest.fixture
def run(said):
    """A function that runs a line and returns what was said."""

    def one(line):
        lines = []
        assert Commands(said, lines.append).dispatch(line) is Then.GO_ON
        return "\n".join(lines)

    return one


def test_questions_are_no_commands(said):
    commands = Commands(said, print)
    for line in ("hello", "/etc/hosts 是什么?", "1/2", "// comment"):
        assert commands.dispatch(line) is None


def test_the_loop_is_told_what_to_do_next(said):
    commands = Commands(said, print)
    assert commands.dispatch("/retry") is Then.RETRY
    assert commands.dispatch("/exit") is commands.dispatch("/quit") is Then.LEAVE


def test_help_names_every_command(run, said):
    text = run("/help")
    for command in Commands(said, print).listed:
        assert command.name in text


def test_the_system_text_is_set_shown_and_removed(run, said):
    assert "none" in run("/system")
    assert "be brief" in run("/system be brief\nand kind")
    assert said.system == "be brief\nand kind"
    run("/system off")
    assert said.system is None


def test_the_temperature_is_set_shown_and_reset(run, said):
    assert "temperature: 0 " in run("/temperature")
    assert "0.7" in run("/temperature 0.7")
    assert said.sampling.temperature == 0.7
    assert "0.95 (the model's official value)" in run("/temperature off")
    for argument in ("hot", "-1", "nan", "1e9"):
        with pytest.raises(InputError, match="expected a"):
            run(f"/temperature {argument}")
    assert said.sampling.temperature is None


def test_stats_tell_model_context_and_speed(run):
    text = run("/stats")
    for fragment in ("INT4", "of 128 tokens", "1 round", "tokens/s", "top_k 50"):
        assert fragment in text


def test_clear_forgets(run, said):
    run("/clear")
    assert said.messages == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("/hlep", r"got /hlep; did you mean /help\?"),
        ("/", "/help lists them"),
        ("/clear all", "expected /clear alone, got 'all'"),
        ("/save", "expected a file name behind /save"),
        ("/load a\0b", "expected a file name behind /load"),
        ("/save ~nobody_of_that_name/x", "expected a file name behind /save"),
    ],
)
def test_mistakes_are_named(run, line, fault):
    with pytest.raises(InputError, match=fault):
        run(line)
