"""A folder of the hub's cache while its download goes on: one line that says so, or the whole model."""

import hashlib
import json
import random
import threading

import pytest
import torch

import glm_int4
from glm_int4.errors import UserError

pytestmark = pytest.mark.concurrency

QUESTION = [508, 12, 14]


class Download:
    """The hub client's way of filling its cache, a step at a time: the next file is begun before one is finished."""

    def __init__(self, cache, source, order):
        self.folder = cache / "models--me--model"
        self.snapshot = self.folder / "snapshots" / "0123abcd"
        self.source, self.order = source, order

    def steps(self):
        for folder in (self.folder / "blobs", self.folder / "refs"):
            folder.mkdir(parents=True)
        (self.folder / "refs" / "main").write_text("0123abcd")
        self.begin(self.order[0])
        yield "begun"
        for name, following in zip(self.order, [*self.order[1:], None], strict=True):
            content = (self.source / name).read_bytes()
            blob = self.begin(name, content[: len(content) // 2])
            yield f"half of {name}"
            if following is not None:
                self.begin(following)
            blob.write_bytes(content)
            blob.rename(blob.with_suffix(""))
            self.snapshot.mkdir(parents=True, exist_ok=True)
            (self.snapshot / name).symlink_to(f"../../blobs/{blob.stem}")
            yield f"{name} whole"

    def begin(self, name, content=b""):
        blob = self.folder / "blobs" / f"{hashlib.sha256(name.encode()).hexdigest()}.incomplete"
        blob.write_bytes(content)
        return blob


def names(source):
    return sorted(path.name for path in source.iterdir() if path.name != "quantization_report.json")


class Loader:
    """Loads folders, and tells whether what came is a given model, whole."""

    def __init__(self, source):
        self.expected = glm_int4.load(source, device="cpu").logits(QUESTION)

    def outcome(self, folder):
        """ "whole", or the line of the error."""
        try:
            engine = glm_int4.load(folder, device="cpu")
        except UserError as error:
            message = str(error)
            return message if message.isprintable() else f"not one line: {message}"
        whole = engine.tokenizer.encode("你好") and torch.equal(engine.logits(QUESTION), self.expected)
        return "whole" if whole else "another model"


def named_or_whole(found):
    return found == "whole" or "unfinished download" in found


@pytest.fixture(params=["1", "2", "3"], ids="v{}".format)
def source(request, mini_int4, small_checkpoints):
    return mini_int4 if request.param == "1" else small_checkpoints[request.param]


@pytest.mark.parametrize("order", ["small files first", "weights first", "shuffled"])
def test_a_download_that_goes_on_is_named_at_every_step_until_all_is_there(source, tmp_path, order):
    files = sorted(names(source), key=lambda name: "safetensors" in name, reverse=order == "weights first")
    if order == "shuffled":
        random.Random(1).shuffle(files)
    download, loader = Download(tmp_path, source, files), Loader(source)
    seen = []
    for step in download.steps():
        for folder in (download.folder, download.snapshot):
            if folder.is_dir():
                seen.append(loader.outcome(folder))
                assert named_or_whole(seen[-1]), f"{step}: {seen[-1]}"
    assert seen[0] != "whole"
    assert seen[-1] == "whole"


def test_a_download_beside_a_loader(mini_int4, tmp_path):
    download, loader = Download(tmp_path, mini_int4, names(mini_int4)), Loader(mini_int4)
    pause, seen = threading.Event(), []

    def fill():
        for _ in download.steps():
            pause.wait(0.02)

    thread = threading.Thread(target=fill)
    thread.start()
    while thread.is_alive():
        if (download.folder / "blobs").is_dir():  # before that it is no folder of a cache
            seen.append(loader.outcome(download.folder))
    thread.join()
    assert seen
    assert all(map(named_or_whole, seen)), seen
    assert loader.outcome(download.folder) == "whole"


def test_a_link_to_a_file_on_its_way_is_told_from_one_to_nowhere(mini_int4, tmp_path):
    download, loader = Download(tmp_path, mini_int4, names(mini_int4)), Loader(mini_int4)
    for _ in download.steps():
        pass
    for name in names(mini_int4):
        blob = (download.snapshot / name).resolve()
        blob.rename(blob.with_name(blob.name + ".1a2b3c.incomplete"))
        if name in ("config.json", "ice_text.model", "model.safetensors.index.json") or name.startswith("model-"):
            assert f"{name}, got a link to an unfinished download; let it finish" in loader.outcome(download.folder)
        blob.with_name(blob.name + ".1a2b3c.incomplete").rename(blob)
    blob = (download.snapshot / "config.json").resolve()
    blob.unlink()
    assert "a link to nowhere; download the file itself" in loader.outcome(download.folder)


def test_what_an_earlier_download_left_does_not_keep_a_whole_model_from_loading(mini_int4, tmp_path, caplog):
    download, loader = Download(tmp_path, mini_int4, names(mini_int4)), Loader(mini_int4)
    for _ in download.steps():
        pass
    download.begin("pytorch_model.bin", b"half")
    assert loader.outcome(download.folder) == "whole"
    assert "as it is now (an unfinished download lies there" in caplog.text


def test_a_download_that_may_still_tell_the_version_is_waited_for(small_checkpoints, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for path in small_checkpoints["3"].iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "_name_or_path"}))
    download, loader = Download(tmp_path, source, names(source)), Loader(source)
    for _ in download.steps():
        pass
    download.begin("tokenizer_config.json")
    assert "expected files that tell ChatGLM3 from ChatGLM2" in loader.outcome(download.folder)
    assert glm_int4.load(download.folder, device="cpu", model_version="3").config.version == "3"
