"""A folder that a quantizer replaces while it is read: the old model or the new one, never parts of both."""

import io
import itertools

import pytest
import torch

import glm_int4
from glm_int4.checkpoint.opening import open_checkpoint
from glm_int4.checkpoint.writing.publishing import exchange
from glm_int4.errors import CheckpointError
from tests.conftest import TINY

pytestmark = pytest.mark.concurrency

IDS = [3, 1, 4, 1, 5]
# Of the same names and shapes as the first; of other shapes and another config.
OPTIONS = {"rtn": {"method": "rtn"}, "hqq": {"method": "hqq"}, "int8": {"bits": 8, "group_size": None}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models in several shards each, and what they compute."""
    made = {}
    for name, options in OPTIONS.items():
        folder = tmp_path_factory.mktemp("models") / name
        glm_int4.quantize_checkpoint(TINY, folder, **{"group_size": 32, "max_shard_bytes": 30_000} | options)
        made[name] = folder, load(folder)
    return made


def load(folder):
    return glm_int4.load(folder, device="cpu").logits(IDS)


class Opened:
    """Counts the files that are opened, and calls something before some of them."""

    def __init__(self, monkeypatch, change, when):
        real, self.count = io.open, 0

        def watched(*arguments, **options):
            self.count += 1
            if when(self.count):
                change()
            return real(*arguments, **options)

        monkeypatch.setattr(io, "open", watched)


@pytest.mark.parametrize("other", ["hqq", "int8"])
def test_a_folder_that_is_replaced_at_any_moment_loads_whole(folders, other, monkeypatch):
    (first, expected), (second, expected_then) = folders["rtn"], folders[other]
    if not exchange(first, second):
        pytest.skip("this system cannot exchange two folders")
    exchange(first, second)
    seen = []
    for moment in itertools.count(1):
        with monkeypatch.context() as patch:
            opened = Opened(patch, lambda: exchange(first, second), lambda count, moment=moment: count == moment)
            found = load(first)
        seen.append("old" if torch.equal(found, expected) else "new" if torch.equal(found, expected_then) else "mixed")
        if opened.count < moment:
            break
        exchange(first, second)
    assert len(seen) > 20
    assert "mixed" not in seen
    assert {"old", "new"} == set(seen)


def test_a_folder_that_is_replaced_all_the_time_is_named_in_one_line(folders, monkeypatch):
    (first, _), (second, _) = folders["rtn"], folders["hqq"]
    with monkeypatch.context() as patch:
        opened = Opened(patch, lambda: None, lambda count: False)
        open_checkpoint(first)
        once = opened.count
        opened = Opened(patch, lambda: exchange(first, second), lambda count: count % once == once // 2)
        with pytest.raises(CheckpointError, match=r"to stay in its place while it is read.* wait until") as caught:
            open_checkpoint(first)
    exchange(first, second)  # an odd number of times before
    assert "\n" not in str(caught.value)


def test_files_that_come_and_go_all_the_time_keep_nothing_from_loading(folders, tmp_path, monkeypatch):
    folder, expected = folders["rtn"]
    notes = folder / "notes"
    with monkeypatch.context() as patch:
        Opened(patch, lambda: notes.rmdir() if notes.exists() else notes.mkdir(), lambda count: True)
        assert torch.equal(load(folder), expected)
    if notes.exists():
        notes.rmdir()
