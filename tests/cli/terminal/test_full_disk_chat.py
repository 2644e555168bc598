"""A disk that is full from any call of a chat on: answers are shown, what is not kept is said, and the chat goes on."""

import shutil

import pytest

from glm_int4.cli.terminal import autosave, saved, session
from glm_int4.cli.terminal.commands import Commands
from glm_int4.cli.terminal.conversation import Conversation
from glm_int4.cli.terminal.screen import PlainScreen
from glm_int4.generation.sampling import SamplingParams
from tests.disk import full_disk

pytestmark = pytest.mark.concurrency


def chat(glm, talk):
    """Two questions with a /save between them; returns what was saved, had all gone well."""
    conversation = Conversation(glm, SamplingParams(temperature=0), name="mini")
    lines = iter(["我叫小明。", f"/save {talk}", "我叫什么名字?"])
    screen = PlainScreen()
    keep = autosave.Autosave(conversation, screen.note).keep
    commands = Commands(conversation, screen.note)
    session.run(conversation, commands, screen, lambda: next(lines, None), keep, forgiving=True)
    assert conversation.num_rounds == 2


def reset(place, old):
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (place / "talk.json").write_bytes(old)


def test_a_disk_that_is_full_from_any_call_of_a_chat_on(glm, tmp_path, monkeypatch, capsys):
    place = tmp_path / "disk"
    talk = place / "talk.json"
    monkeypatch.setenv("XDG_STATE_HOME", str(place / "state"))
    old = saved.to_bytes(Conversation(glm, SamplingParams(), name="old"))
    reset(place, old)
    with full_disk(monkeypatch, place) as disk:
        chat(glm, talk)
    new, output, notes = talk.read_bytes(), *capsys.readouterr()
    assert "No space" not in notes
    assert disk.count > 10
    for moment in range(1, disk.count + 1):
        reset(place, old)
        with full_disk(monkeypatch, place, moment) as full:
            chat(glm, talk)
        shown, notes = capsys.readouterr()
        assert shown == output, full.refused
        faults = [line for line in notes.splitlines() if "No space left on device" in line]
        kept = [line for line in faults if "this conversation is not kept for --continue" in line]
        not_saved = [line for line in faults if str(talk) in line]
        assert len(kept) == 1, (full.refused, notes)
        assert sorted(faults) == sorted(kept + not_saved), (full.refused, notes)
        assert talk.read_bytes() == (old if not_saved else new), full.refused
        assert not [path for path in place.rglob("*") if path.name.startswith(".")], full.refused
        for path in place.glob("state/glm-int4/chats/*"):
            saved.load(Conversation(glm, SamplingParams(), name="mini"), path)
        chat(glm, talk)
        assert talk.read_bytes() == new, full.refused
        capsys.readouterr()
