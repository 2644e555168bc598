"""Files of prefixes: what is taken, and what is refused in one line."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import glm_int4
from glm_int4.checkpoint.prefix_file import load_prefix, read_prefix_encoder
from glm_int4.errors import CheckpointError, ConfigError, InputError
from glm_int4.models.config_file import parse_config
from tests.conftest import FIXTURES, TINY

CONFIG = parse_config(json.loads((TINY / "config.json").read_text()))
STEM = "transformer.prefix_encoder."


@pytest.fixture(params=[0, 1], ids=["embedding", "projection"])
def stored(request):
    return load_file(TINY / f"prefix_proj{request.param}.safetensors")


@pytest.fixture
def folder(tmp_path, stored):
    """An official ptuning checkpoint: parameters in float32, and a config."""
    folder = tmp_path / "out" / "checkpoint-3000"
    folder.mkdir(parents=True)
    torch.save({name: tensor.float() for name, tensor in stored.items()}, folder / "pytorch_model.bin")
    write_config(folder, pre_seq_len=8, prefix_projection=len(stored) > 1)
    return folder


def write_config(folder, **changes):
    config = json.loads((TINY / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def read(path, **arguments):
    return {name: p.detach() for name, p in read_prefix_encoder(path, CONFIG, **arguments).named_parameters()}


def assert_same(parameters, stored):
    assert parameters.keys() == {name.removeprefix(STEM) for name in stored}
    for name, parameter in parameters.items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, stored[STEM + name].float())


def test_an_official_folder_its_parent_and_its_file_are_read(folder, stored):
    (folder.parent / "checkpoint-200").mkdir()
    (folder.parent / "checkpoint-4000.partial").mkdir()
    for path in (folder, str(folder), folder / "pytorch_model.bin", folder.parent):
        assert_same(read(path), stored)


@pytest.mark.parametrize("stem", ["prefix_encoder.", ""])
def test_names_that_were_stripped_are_read(tmp_path, stored, stem):
    save_file({stem + n.removeprefix(STEM): t for n, t in stored.items()}, tmp_path / "prefix.safetensors")
    assert_same(read(tmp_path / "prefix.safetensors"), stored)


def test_a_whole_model_with_a_prefix_in_it_is_read(tmp_path, stored):
    torch.save(stored | {"transformer.embedding.weight": torch.zeros(3)}, tmp_path / "pytorch_model.bin")
    assert_same(read(tmp_path), stored)


def test_half_precision_keeps_the_prefix_in_half_precision(folder):
    prefix = load_prefix(folder, CONFIG, torch.device("cpu"), torch.float16)
    assert (prefix.k.dtype, prefix.k.shape, prefix.num_bytes) == (torch.float16, (2, 4, 8, 16), 2 * 2 * 4 * 8 * 16 * 2)
    exact = load_prefix(folder, CONFIG, torch.device("cpu"), torch.float32)
    assert exact.k.untyped_storage().nbytes() == exact.k.numel() * 4, "a copy of its own, not the encoder's output"


@pytest.mark.parametrize("key", ["pre_seq_len", "prefix_projection"])
def test_a_config_that_says_something_else_is_refused(folder, stored, key):
    changes = {"pre_seq_len": 8, "prefix_projection": len(stored) > 1}
    write_config(folder, **changes | {key: 16 if key == "pre_seq_len" else len(stored) == 1})
    with pytest.raises(ConfigError, match=rf"expected {key} .* of different runs"):
        read(folder)


def test_the_config_of_a_model_without_a_prefix_is_no_contradiction(folder, stored):
    write_config(folder, pre_seq_len=None, prefix_projection=False)
    assert_same(read(folder), stored)


@pytest.mark.parametrize("version", ["2", "3"])
def test_a_prefix_of_another_version_is_refused(version):
    with pytest.raises(CheckpointError, match=r"which suits this model, got .* load the model that it was trained on"):
        read(FIXTURES / f"v{version}_tiny" / "prefix_proj0.safetensors")


def test_the_official_sizes_are_named(tmp_path):
    save_file({"embedding.weight": torch.zeros(2, 229376)}, tmp_path / "p.safetensors")
    with pytest.raises(CheckpointError, match="it is a prefix of ChatGLM-6B"):
        read(tmp_path / "p.safetensors")


def test_a_file_without_a_prefix_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="it holds no P-Tuning prefix"):
        read(TINY)
    save_file({}, tmp_path / "p.safetensors")
    with pytest.raises(CheckpointError, match="got nothing; it holds no P-Tuning prefix"):
        read(tmp_path / "p.safetensors")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("embedding.weight", torch.zeros(8), "of 1 to 65536 rows"),
        ("embedding.weight", torch.zeros(0, 256), "of 1 to 65536 rows"),
        ("embedding.weight", torch.full((8, 256), float("nan")), "finite"),
        ("embedding.weight", torch.zeros(8, 256, dtype=torch.int32), "expected floating-point numbers"),
        ("trans.0.weight", torch.zeros(64, 64), "the file is incomplete"),
    ],
)
def test_damaged_tensors_are_named(tmp_path, name, tensor, message):
    tensors = load_file(TINY / "prefix_proj0.safetensors")
    save_file(tensors | {STEM + name: tensor}, tmp_path / "p.safetensors")
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / "p.safetensors")


def test_values_beyond_half_precision_are_refused(tmp_path):
    save_file({"embedding.weight": torch.full((8, 256), 1e6)}, tmp_path / "p.safetensors")
    with pytest.raises(CheckpointError, match="float16"):
        load_prefix(tmp_path / "p.safetensors", CONFIG, torch.device("cpu"), torch.float16)


def test_a_pickle_that_runs_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"prefix_encoder.embedding.weight": Evil()}))
    with pytest.raises(CheckpointError, match="nothing of it was run"):
        read(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_paths_with_nothing_to_read_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    for path, message in (
        (tmp_path, "is this a ptuning checkpoint"),
        (tmp_path / "nowhere", "there is none"),
        (tmp_path / "notes.txt", "a .bin or .safetensors file"),
        (7, "a folder or a file as prefix"),
    ):
        with pytest.raises(InputError, match=message):
            read(path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="got an empty file"):
        read(tmp_path)


def test_a_model_whose_config_speaks_of_a_prefix_loads_and_warns(tmp_path, caplog):
    model = shutil.copytree(TINY, tmp_path / "model")
    write_config(model, pre_seq_len=8, prefix_projection=False)
    glm_int4.load(model, device="cpu", prefix=TINY / "prefix_proj0.safetensors")
    assert not caplog.text
    assert glm_int4.load(model, device="cpu").prefix is None
    assert "the prefix itself is loaded with --prefix" in caplog.text
