"""Files of conversations: what is written, what is refused, and that an error changes nothing."""

import json
import os

import pytest

from glm_int4.cli.terminal import saved
from glm_int4.errors import InputError
from glm_int4.generation.sampling import SamplingParams


@pytest.fixture
def file(said, tmp_path):
    said.system, said.max_new_tokens = "简短", 50
    said.sampling = SamplingParams(temperature=0.5, seed=3, stop=("。",))
    path = tmp_path / "talk.json"
    saved.save(said, path)
    return path


def edited(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes))
    return file


def test_everything_comes_back(said, file):
    before = (said.messages, said.system, said.sampling, said.max_new_tokens)
    said.clear()
    said.system, said.sampling, said.max_new_tokens = None, SamplingParams(), None
    saved.load(said, file)
    assert (said.messages, said.system, said.sampling, said.max_new_tokens) == before
    assert said.last_question == "我叫小明。"


def test_a_file_is_for_its_owner_alone_and_readable_for_people(file):
    assert file.stat().st_mode & 0o777 == 0o600
    assert "小明" in file.read_text(encoding="utf-8")
    assert [path.name for path in file.parent.iterdir()] == ["talk.json"]


def test_a_saved_conversation_is_replaced_and_nothing_else(said, file, tmp_path):
    saved.save(said, file)
    for name, content in (("notes.txt", "mine"), ("other.json", "{}"), ("empty", "")):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match="expected a new file or a saved conversation to replace"):
            saved.save(said, tmp_path / name)
        assert (tmp_path / name).read_text() == content
    with pytest.raises(InputError, match="choose another name"):
        saved.save(said, tmp_path)


@pytest.mark.parametrize("path", ["nowhere/talk.json", "x" * 300])
def test_a_file_that_cannot_be_written_is_named(said, tmp_path, path):
    with pytest.raises(InputError, match="expected a file that can be written"):
        saved.save(said, tmp_path / path)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_save_leaves_the_old_file(said, file, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    before = file.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        saved.save(said, file)
    assert file.read_bytes() == before
    assert len(list(file.parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"format": "other"}, "expected a conversation written by /save"),
        ({"version": 2}, "expected version 1"),
        ({"system": 3}, "text or null as system"),
        ({"system": "\ud800"}, "in UTF-8"),
        ({"messages": {}}, "expected a list of messages"),
        ({"messages": ["hi"]}, "both texts, in message 0"),
        ({"messages": [{"role": "user", "content": None}]}, "both texts, in message 0"),
        ({"messages": [{"role": "user", "content": "a"}]}, "user and assistant in turn"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "user and assistant in turn"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "in UTF-8"),
        ({"settings": {"speed": 3}}, "got speed"),
        ({"settings": {"a\nb": 3}}, r"got 'a\\nb'"),
        ({"settings": {"x" * 5000: 3}}, "got 'xxx"),
        ({"settings": None}, "got NoneType"),
        ({"settings": {"temperature": "x" * 5000}}, "expected temperature to be a number"),
        ({"settings": {"stop": ["x" * 5000, ""]}}, "expected a stop text that is not empty"),
        ({"settings": {"stop": {"x" * 5000: 1}}}, "expected stop to be a text or a list"),
        ({"settings": {"max_new_tokens": "x" * 5000}}, "max_new_tokens of 1 or more"),
        ({"version": "x" * 5000}, "expected version 1"),
        ({"settings": {"temperature": "hot"}}, "expected temperature to be a number"),
        ({"settings": {"temperature": float("nan")}}, "got nan"),
        ({"settings": {"max_new_tokens": 0}}, "max_new_tokens of 1 or more"),
        ({"settings": {"max_new_tokens": True}}, "max_new_tokens of 1 or more"),
    ],
)
def test_what_cannot_be_believed_changes_nothing(said, file, changes, fault):
    before = (said.messages, said.system, said.sampling, said.max_new_tokens)
    with pytest.raises(InputError, match=fault) as error:
        saved.load(said, edited(file, **changes))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    assert (said.messages, said.system, said.sampling, said.max_new_tokens) == before


@pytest.mark.parametrize("model", ["a\nb", "x" * 5000, ["x" * 5000], None])
def test_the_name_of_the_last_model_is_a_short_line_whatever_the_file_says(said, file, model):
    name = saved.load(said, edited(file, model=model))
    assert "\n" not in name
    assert len(name) <= 120


@pytest.mark.parametrize("content", [b"", b"not json", b"\xff\xfe", b"[" * 100_000, b"[]"])
def test_other_files_are_refused(said, tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match="expected a conversation written by /save"):
        saved.load(said, tmp_path / "file")


def test_what_is_no_file_is_refused(said, tmp_path):
    with pytest.raises(InputError, match="it is a folder"):
        saved.load(said, tmp_path)
    with pytest.raises(InputError, match="no such file"):
        saved.load(said, tmp_path / "nowhere")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match="it is no file"):
        saved.load(said, tmp_path / "fifo")
