"""A disk that is full from any call on: one line, the old checkpoint whole, nothing half that loads, and resuming."""

import shutil

import pytest

import glm_int4
from glm_int4.checkpoint.opening import open_checkpoint
from glm_int4.errors import OutputError, UserError
from tests.conftest import TINY
from tests.disk import full_disk

pytestmark = pytest.mark.concurrency

OPTIONS = {"group_size": 32, "max_shard_bytes": 30_000, "overwrite": True}
EVERY = pytest.param(1, marks=pytest.mark.slow(20))


def files(folder):
    """Content of a checkpoint, without what differs from run to run."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "quantization_report.json"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """An old output, and what the new run writes without trouble."""
    folder = tmp_path_factory.mktemp("models")
    glm_int4.quantize_checkpoint(TINY, folder / "old", bits=8)
    glm_int4.quantize_checkpoint(TINY, folder / "new", **OPTIONS)
    return folder / "old", folder / "new"


@pytest.mark.parametrize("step", [7, EVERY])
@pytest.mark.parametrize("before", ["nothing", "an old output"])
@pytest.mark.parametrize("resume", [False, True], ids=["anew", "resume"])
def test_a_disk_that_is_full_from_any_call_on(tmp_path, monkeypatch, models, before, resume, step):
    old, new = models
    output = tmp_path / "disk" / "parent" / "out"

    def reset():
        shutil.rmtree(tmp_path / "disk", ignore_errors=True)
        (tmp_path / "disk").mkdir()
        if before != "nothing":
            shutil.copytree(old, output)

    reset()
    with full_disk(monkeypatch, tmp_path / "disk") as disk:
        glm_int4.quantize_checkpoint(TINY, output, resume=resume, **OPTIONS)
    assert disk.count > 50
    for moment in range(1, disk.count + 1, step):
        reset()
        with full_disk(monkeypatch, tmp_path / "disk", moment) as full:
            message = run(output, resume)
        assert_named(message, output, full)
        if output.exists():
            allowed = [new] if before == "nothing" else [new, old]
            assert any(files(output) == files(folder) for folder in allowed), full.refused
        else:
            assert before == "nothing", full.refused
        assert_nothing_half_loads(tmp_path / "disk", models)
        if message is not None and not resume and not output.exists() and list((tmp_path / "disk").iterdir()):
            complete = files(output.with_name("out.partial"))  # only its name could not be given
            assert complete.items() >= files(new).items(), full.refused
        glm_int4.quantize_checkpoint(TINY, output, resume=True, **OPTIONS)
        assert files(output) == files(new), full.refused
        assert [path.name for path in output.parent.iterdir()] == ["out"], full.refused


def run(output, resume):
    """The message of the error; None where the run ended as it should."""
    try:
        glm_int4.quantize_checkpoint(TINY, output, resume=resume, **OPTIONS)
    except OutputError as error:
        return str(error)
    return None


def assert_named(message, output, disk):
    if message is not None:
        assert message.isprintable(), disk.refused
        assert "No space left on device" in message, disk.refused
        assert str(output) in message, disk.refused


def assert_nothing_half_loads(place, models):
    for config in place.rglob("config.json"):
        try:
            open_checkpoint(config.parent)
        except UserError:
            continue
        assert any(files(config.parent).items() >= files(folder).items() for folder in models), config
