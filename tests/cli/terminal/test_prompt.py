"""The history on disk and the completion of what is typed; the keys are tested in a pseudo-terminal."""

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from glm_int4.cli.terminal.prompt import CommandCompleter, Prompt, history_path, open_history
from tests.disk import full_disk


def completions(text):
    completer = CommandCompleter(["/save", "/system", "/stats"], ["/save"])
    return [c.text for c in completer.get_completions(Document(text), CompleteEvent())]


def test_commands_and_their_files_are_completed(tmp_path):
    (tmp_path / "talk.json").write_text("")
    assert completions("/s") == ["/save", "/system", "/stats"]
    assert completions("/sy") == ["/system"]
    assert completions(f"/save {tmp_path}/ta") == ["lk.json"]
    assert completions(f"/system {tmp_path}/ta") == completions("hello") == completions("") == []


def test_the_history_lies_in_the_folder_for_state(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert history_path() == tmp_path / "state" / "glm-int4" / "chat_history"
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        assert history_path() == tmp_path / ".local" / "state" / "glm-int4" / "chat_history"


def test_the_history_is_kept_for_its_owner_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path = history_path()
    path.parent.mkdir()
    path.write_text("")
    path.chmod(0o644)
    history, warning = open_history()
    assert warning is None
    assert path.stat().st_mode & 0o777 == 0o600
    history.append_string("你好\nworld")
    assert list(open_history()[0].load_history_strings()) == ["你好\nworld"]


@pytest.mark.parametrize("obstacle", ["file", "folder"])
def test_a_history_that_cannot_be_kept_stays_in_memory(monkeypatch, tmp_path, obstacle):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    if obstacle == "file":
        (tmp_path / "glm-int4").write_text("")
    else:
        history_path().mkdir(parents=True)
    history, warning = open_history()
    assert isinstance(history, InMemoryHistory)
    assert warning


def test_a_history_whose_disk_fails_later_costs_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    history, _ = open_history()
    history_path().unlink()
    history_path().mkdir()
    history.append_string("hello")
    assert history.get_strings() == ["hello"]


def test_a_history_whose_disk_fills_up_is_said_once_and_the_texts_come(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    said = []
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        prompt = Prompt(["/save"], ["/save"], lambda: "", said.append)
        with full_disk(monkeypatch, tmp_path, 1):
            for text in ("one", "two"):
                keys.send_text(f"{text}\r")
                assert prompt.ask() == text
        keys.send_text("three\r")
        assert prompt.ask() == "three"
    assert said == ["(what you type is not kept for the next time: No space left on device)"]
    assert list(open_history()[0].load_history_strings()) == ["three"]
