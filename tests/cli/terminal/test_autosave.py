"""What is kept of a conversation without being asked, and how the next chat goes on with it."""

import os
import signal
from contextlib import nullcontext
from pathlib import Path

import pytest

from glm_int4.cli.terminal import autosave, saved, session
from glm_int4.cli.terminal.commands import Commands
from glm_int4.cli.terminal.conversation import Conversation
from glm_int4.cli.terminal.screen import PlainScreen
from glm_int4.errors import InputError
from glm_int4.generation.engine import Engine
from glm_int4.generation.sampling import SamplingParams


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "glm-int4" / "chats"


def chat(conversation, *lines, forgiving=False):
    """Run a session of these lines; a line that is an exception is raised."""
    waiting = list(lines)
    notes = []

    def read():
        line = waiting.pop(0) if waiting else None
        if isinstance(line, BaseException):
            raise line
        return line

    keep = autosave.Autosave(conversation, notes.append).keep
    session.run(conversation, Commands(conversation, notes.append), PlainScreen(), read, keep, forgiving=forgiving)
    return notes


def test_an_autosave_is_written_after_every_answer_for_its_owner_alone(conversation, folder):
    kept = []

    class Watched(PlainScreen):
        def note(self, text):  # what stands below an answer
            kept.append(len(saved._read(autosave.newest())["messages"]))

    lines = iter(["我叫小明。", "我叫什么名字?"])
    keep = autosave.Autosave(conversation, print).keep
    commands = Commands(conversation, print)
    session.run(conversation, commands, Watched(), lambda: next(lines, None), keep, forgiving=False)
    assert kept == [2, 4]
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_an_autosave_can_be_loaded_as_a_saved_conversation(conversation, folder):
    chat(conversation, "我叫小明。")
    before = conversation.messages
    conversation.clear()
    assert saved.load(conversation, autosave.newest()) == "mini"
    assert conversation.messages == before


@pytest.mark.parametrize("way", [KeyboardInterrupt(), SystemExit(129), OSError(5, "gone"), "/exit", None])
def test_an_autosave_is_written_whatever_ends_the_chat(said, folder, way):
    ends_in = pytest.raises(type(way)) if isinstance(way, BaseException) else nullcontext()
    with ends_in:
        chat(said, "/system new", way)  # no answer has written it
    assert saved._read(autosave.newest())["system"] == "new"


def test_an_autosave_holds_what_was_said_of_an_answer_that_was_stopped(conversation, folder, monkeypatch):
    def stopped(engine, messages, max_new_tokens=None, sampling=None, record=None, tools=None):
        record.ids.append(0)
        record.text = "so far"
        yield "so far"
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "stream_chat", stopped)
    chat(conversation, "hello", forgiving=True)
    assert saved._read(autosave.newest())["messages"][1]["content"] == "so far"


def test_an_empty_conversation_replaces_no_autosave(conversation, folder):
    chat(conversation)
    assert not folder.exists()
    chat(conversation, "我叫小明。", "/clear")
    assert "小明" in autosave.newest().read_text(encoding="utf-8")


def test_two_chats_at_once_keep_an_autosave_each(glm, folder):
    chats = [Conversation(glm, SamplingParams(temperature=0), name=name) for name in ("one", "two")]
    keepers = [autosave.Autosave(conversation, print) for conversation in chats]
    for question in ("我叫小明。", "我叫什么名字?"):
        for conversation, keeper in zip(chats, keepers, strict=True):
            "".join(conversation.ask(question))
            keeper.keep()
    assert sorted(saved._read(file)["model"] for file in folder.iterdir()) == ["one", "two"]
    assert saved._read(autosave.newest())["model"] == "two"


def test_ten_autosaves_are_kept_and_one_that_was_forgotten_is_written_again(said, folder):
    first = autosave.Autosave(said, print)
    said.system = "first"
    first.keep()
    os.utime(autosave.newest(), (1, 1))
    for i in range(11):
        keeper = autosave.Autosave(said, print)
        said.system = str(i)
        keeper.keep()
    assert len(list(folder.iterdir())) == 10
    assert "first" not in {saved._read(file)["system"] for file in folder.iterdir()}
    said.system = "first"
    first.keep()
    assert saved._read(autosave.newest())["system"] == "first"


def test_an_autosave_that_cannot_be_written_is_said_once(conversation, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    notes = chat(conversation, "我叫小明。", "我叫什么名字?")
    assert [note for note in notes if "not kept" in note] == notes
    assert len(notes) == 1
    assert conversation.num_rounds == 2


def test_an_autosave_without_a_home_is_said_and_no_error(conversation, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_STATE_HOME", "")
    monkeypatch.setattr(Path, "home", homeless)
    assert "home directory" in chat(conversation, "我叫小明。")[0]
    with pytest.raises(InputError, match=r"expected a conversation to continue, got none .*home directory"):
        autosave.newest()


def test_an_autosave_of_a_model_whose_name_is_no_utf8_is_written(said, folder):
    said.name = os.fsdecode(b"caf\xe9")
    keeper = autosave.Autosave(said, print)
    "".join(said.retry())
    said.system = "new"
    keeper.keep()
    assert saved._read(autosave.newest())["model"] == said.name


def test_a_ctrl_c_during_an_autosave_waits_for_it(said, folder, monkeypatch):
    write_whole = saved.write_whole

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        write_whole(*arguments)

    monkeypatch.setattr(saved, "write_whole", interrupted)
    keeper = autosave.Autosave(said, print)
    said.system = "new"
    with pytest.raises(KeyboardInterrupt):
        keeper.keep()
    assert saved._read(autosave.newest())["system"] == "new"


def test_continue_takes_settings_along_and_the_command_line_wins(said, glm, folder):
    said.sampling, said.max_new_tokens = SamplingParams(temperature=0, top_k=7), 50
    keeper = autosave.Autosave(said, print)
    said.system = "简短"
    keeper.keep()
    next_one = Conversation(glm, SamplingParams(temperature=0.5), name="other", max_new_tokens=9)
    note = autosave.continue_from(next_one, autosave.newest())
    assert "1 round of " in note
    assert "last answered by mini" in note
    assert next_one.messages == said.messages
    assert (next_one.sampling.temperature, next_one.sampling.top_k) == (0.5, 7)
    assert (next_one.system, next_one.max_new_tokens) == ("简短", 9)


def test_what_continue_has_read_is_not_written_again_until_something_is_said(said, glm, folder):
    keeper = autosave.Autosave(said, print)
    said.system = "new"
    keeper.keep()
    before = {file: file.read_bytes() for file in folder.iterdir()}
    next_one = Conversation(glm, SamplingParams(temperature=0), name="mini")
    autosave.continue_from(next_one, autosave.newest())
    chat(next_one)
    assert {file: file.read_bytes() for file in folder.iterdir()} == before
    chat(next_one, "我叫什么名字?")
    assert len(list(folder.iterdir())) == 2
    assert before.items() <= {file: file.read_bytes() for file in folder.iterdir()}.items()


def test_continue_needs_a_conversation(folder):
    with pytest.raises(InputError, match="expected a conversation to continue, got none in ") as error:
        autosave.newest()
    assert error.value.exit_code == 2
