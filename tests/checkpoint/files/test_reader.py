"""Every layout is read alike, and every fault is named in one line."""

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import glm_int4
from glm_int4.checkpoint.files.folder import find_shards, resolve_folder
from glm_int4.checkpoint.opening import open_checkpoint
from glm_int4.errors import CheckpointError, ConfigError, InputError, UserError
from tests.conftest import TINY

TENSORS = load_file(TINY / "model.safetensors")


def split(tensors):
    names = sorted(tensors)
    return {n: tensors[n] for n in names[::2]}, {n: tensors[n] for n in names[1::2]}


def write_layout(folder, layout):
    """Write the tiny model's tensors in one of the layouts that people have."""
    (folder / "model.safetensors").unlink()
    stem, save, suffix = {
        "bin": ("pytorch_model", torch.save, "bin"),
        "safetensors": ("model", save_file, "safetensors"),
    }[layout.split("-")[-1]]
    if layout.startswith("single"):
        save(TENSORS, folder / f"{stem}.{suffix}")
        return
    weight_map = {}
    for i, part in enumerate(split(TENSORS), start=1):
        name = f"{stem}-{i:05d}-of-00002.{suffix}"
        save(part, folder / name)
        weight_map.update(dict.fromkeys(part, name))
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("layout", ["single-bin", "sharded-bin", "single-safetensors", "sharded-safetensors"])
def test_every_layout_gives_the_same_logits(tiny_folder, cases, layout):
    write_layout(tiny_folder, layout)
    glm = glm_int4.load(tiny_folder, device="cpu", dtype=torch.float32)
    ids = cases["gmask_prompt.input_ids"][0].tolist()
    torch.testing.assert_close(glm.logits(ids), cases["gmask_prompt.logits"], atol=1e-4, rtol=0)


def test_torch_files_of_the_old_format_are_read(tiny_folder):
    (tiny_folder / "model.safetensors").unlink()
    torch.save(TENSORS, tiny_folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    reader, _ = open_checkpoint(tiny_folder)
    for name, tensor in TENSORS.items():
        assert torch.equal(reader[name], tensor)
        reader.release(name)  # a no-op: this file is not mapped
        assert torch.equal(reader[name], tensor)


@pytest.mark.parametrize("layout", ["single-bin", "single-safetensors"])
def test_released_pages_are_read_again(tiny_folder, layout):
    write_layout(tiny_folder, layout)
    reader, _ = open_checkpoint(tiny_folder)
    for name, tensor in TENSORS.items():
        reader.release(name)
        assert torch.equal(reader[name], tensor)


@pytest.mark.parametrize("vocab_size", [130528, 150528])
def test_both_vocabularies_load(tiny_folder, vocab_size):
    offset = vocab_size - 528
    config = json.loads((tiny_folder / "config.json").read_text())
    names = {"mask_token_id": 0, "gmask_token_id": 1, "bos_token_id": 4, "eos_token_id": 5}
    config |= {"vocab_size": vocab_size, "hidden_size": 16, "inner_hidden_size": 32, "num_attention_heads": 2}
    config |= {"num_layers": 1} | {name: offset + i for name, i in names.items()}
    (tiny_folder / "config.json").write_text(json.dumps(config))
    tensors = random_tensors(config)
    save_file(tensors, tiny_folder / "model.safetensors")
    glm = glm_int4.load(tiny_folder, device="cpu", dtype=torch.float32)
    logits = glm.logits([5, 9, offset + 1, offset + 4])
    assert logits.shape == (1, 4, vocab_size)


def random_tensors(config):
    from glm_int4.checkpoint.formats import layout
    from glm_int4.models.config_file import parse_config

    parsed = parse_config(config)
    shapes = layout.vectors(parsed)
    for matrix in (layout.embedding(parsed), *layout.linears(parsed)):
        shapes[f"{matrix.name}.weight"] = (matrix.out_features, matrix.in_features)
    return {name: torch.randn(shape).half() for name, shape in shapes.items()}


def test_missing_extra_misshaped_and_mistyped_tensors_are_named_in_one_error(edit_tensors):
    def change(tensors):
        del tensors["transformer.final_layernorm.bias"]
        tensors["transformer.layers.9.extra"] = torch.zeros(1)
        tensors["transformer.layers.0.attention.dense.weight"] = torch.zeros(64, 65).half()
        tensors["transformer.layers.1.mlp.dense_h_to_4h.bias"] = torch.zeros(256, dtype=torch.int8)

    folder = edit_tensors(change)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    message = str(caught.value)
    assert "missing transformer.final_layernorm.bias" in message
    assert "extra transformer.layers.9.extra" in message
    assert "mis-shaped transformer.layers.0.attention.dense.weight (64, 65) instead of (64, 64)" in message
    assert "mis-typed transformer.layers.1.mlp.dense_h_to_4h.bias torch.int8 instead of torch.float16" in message
    assert "\n" not in message


def test_the_tied_head_and_inverse_frequencies_are_ignored(edit_tensors):
    def change(tensors):
        tensors.pop("lm_head.weight")
        for name in [n for n in tensors if n.endswith("inv_freq")]:
            tensors.pop(name)

    open_checkpoint(edit_tensors(change))


class RunsCode:
    """A pickle of this creates a file when it is opened carelessly."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_runs_code_is_refused_and_nothing_ran(tiny_folder, tmp_path):
    (tiny_folder / "model.safetensors").unlink()
    trap = tmp_path / "ran"
    torch.save(TENSORS | {"lm_head.weight": RunsCode(trap)}, tiny_folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="asks to run code"):
        open_checkpoint(tiny_folder)
    with (tiny_folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump(RunsCode(trap), file)
    with pytest.raises(CheckpointError, match=r"run code|cannot be read"):
        open_checkpoint(tiny_folder)
    assert not trap.exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("layout", ["single-bin", "single-safetensors"])
def test_a_truncated_file_is_named(tiny_folder, layout, share):
    write_layout(tiny_folder, layout)
    path = next(p for p in tiny_folder.iterdir() if p.name != "config.json")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CheckpointError, match=path.name) as caught:
        open_checkpoint(tiny_folder)
    assert "download" in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b".", b"\x80\x02.", b"u.", b"\x80\x02}q\x00(X", b"<html>404</html>", b"PK\x03\x04"]
)
def test_garbage_in_a_torch_file_is_named(tiny_folder, data):
    (tiny_folder / "model.safetensors").unlink()
    (tiny_folder / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        open_checkpoint(tiny_folder)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_of_the_old_format_is_named(tiny_folder, share):
    (tiny_folder / "model.safetensors").unlink()
    path = tiny_folder / "pytorch_model.bin"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        open_checkpoint(tiny_folder)


@pytest.mark.parametrize(
    "value",
    [torch.ones(1).expand(4096, 4096), torch.eye(3).to_sparse(), torch.empty(3, device="meta"), [1], 7],
    ids=["expanded", "sparse", "meta", "list", "number"],
)
def test_entries_that_are_not_plain_tensors_are_refused(tiny_folder, value):
    (tiny_folder / "model.safetensors").unlink()
    torch.save(TENSORS | {"lm_head.weight": value}, tiny_folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="expected a dictionary of tensors"):
        open_checkpoint(tiny_folder)


def test_parameters_are_taken_as_tensors(tiny_folder):
    (tiny_folder / "model.safetensors").unlink()
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in TENSORS.items()}
    torch.save(parameters, tiny_folder / "pytorch_model.bin")
    glm_int4.quantize_checkpoint(tiny_folder, tiny_folder.parent / "out", bits=8)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>sign in</html>", "got a web page"),
        (b"\n<html>404</html>", "got a web page"),
    ],
)
def test_what_failed_downloads_leave_is_told_apart(tiny_folder, name, data, message):
    (tiny_folder / "model.safetensors").unlink()
    (tiny_folder / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tiny_folder)


def test_a_missing_shard_is_named(tiny_folder):
    write_layout(tiny_folder, "sharded-bin")
    (tiny_folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match=r"got none of pytorch_model-00002-of-00002\.bin"):
        open_checkpoint(tiny_folder)


@pytest.mark.parametrize("layout", ["sharded-bin", "sharded-safetensors"])
def test_all_shards_without_their_index_are_a_checkpoint_and_fewer_are_not(tiny_folder, layout):
    write_layout(tiny_folder, layout)
    next(tiny_folder.glob("*.index.json")).unlink()
    reader, _ = open_checkpoint(tiny_folder)
    assert len(reader.files) == 2
    reader.files[0].unlink()
    with pytest.raises(CheckpointError, match=r"all of the 2 shards in .* got none of .*-00001-of-00002"):
        open_checkpoint(tiny_folder)


def test_a_shard_without_a_tensor_that_the_index_names(tiny_folder):
    write_layout(tiny_folder, "sharded-safetensors")
    path = tiny_folder / "model-00001-of-00002.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=f"expected {name} in"):
        open_checkpoint(tiny_folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": "../../etc/passwd"}}'])
def test_a_broken_index_is_named(tiny_folder, text):
    write_layout(tiny_folder, "sharded-bin")
    (tiny_folder / "pytorch_model.bin.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="index"):
        find_shards(tiny_folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\udcff"])
def test_a_config_that_is_not_json_is_named(tiny_folder, text):
    (tiny_folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=r"config\.json"):
        open_checkpoint(tiny_folder)


def test_folders_without_config_or_weights_and_paths_that_do_not_exist(tiny_folder, tmp_path):
    (tiny_folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors or pytorch_model\.bin"):
        open_checkpoint(tiny_folder)
    (tiny_folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"expected config\.json"):
        open_checkpoint(tiny_folder)
    for path in (tmp_path / "nowhere", TINY / "config.json"):
        with pytest.raises(InputError, match="expected a checkpoint folder"):
            resolve_folder(path)


@pytest.mark.parametrize("reference", [True, False])
def test_the_parent_folder_of_the_hub_cache_finds_its_snapshot(tiny_folder, tmp_path, reference):
    parent = tmp_path / "models--zai-org--chatglm-6b"
    (parent / "snapshots" / "old").mkdir(parents=True)
    shutil.copytree(tiny_folder, parent / "snapshots" / "new")
    if reference:
        (parent / "refs").mkdir()
        (parent / "refs" / "main").write_text("new\n")
        os.utime(parent / "snapshots" / "new", (0, 0))
    else:
        os.utime(parent / "snapshots" / "old", (0, 0))
    assert open_checkpoint(resolve_folder(parent))[1].config.version == "1"


def test_a_hub_id_goes_through_the_hub_cache(monkeypatch, tiny_folder):
    asked = []

    def download(name, allow_patterns):
        asked.append((name, set(allow_patterns) & {"*.bin", "*.safetensors"}))
        return str(tiny_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve_folder("zai-org/chatglm-6b") == tiny_folder
    assert asked[-1] == ("zai-org/chatglm-6b", {"*.bin", "*.safetensors"})
    (tiny_folder / "pytorch_model.bin.index.json").write_text("{}")
    resolve_folder("zai-org/chatglm-6b")
    assert asked[-1] == ("zai-org/chatglm-6b", {"*.bin"})
    (tiny_folder / "model.safetensors.index.json").write_text("{}")
    resolve_folder("zai-org/chatglm-6b")
    assert asked[-1] == ("zai-org/chatglm-6b", {"*.safetensors"})

    def fail(name, allow_patterns):
        raise OSError("no network\nsecond line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(InputError, match=r"download failed \(no network\)"):
        resolve_folder("zai-org/chatglm-6b")


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b'{"a": 3}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}',
        b'{"a": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}}',
    ],
)
def test_a_broken_safetensors_header_is_named(tiny_folder, header):
    path = tiny_folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 64)
    with pytest.raises(CheckpointError, match="expected a safetensors header"):
        open_checkpoint(tiny_folder)
    path.write_bytes((1 << 60).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="expected a safetensors header"):
        open_checkpoint(tiny_folder)


def test_an_unknown_dtype_is_named(tiny_folder):
    header = b'{"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}'
    path = tiny_folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(CheckpointError, match="got 'F8_E4M3' for a"):
        open_checkpoint(tiny_folder)


def test_a_packed_matrix_of_an_impossible_shape_is_named(tiny_folder, tmp_path):
    glm_int4.quantize_checkpoint(tiny_folder, tmp_path / "out", group_size=32)
    path = tmp_path / "out" / "model-00001-of-00001.safetensors"
    name = "transformer.layers.0.attention.dense"
    for change in ({"weight_packed": torch.zeros((), dtype=torch.int32)}, {"weight_shape": torch.tensor([64, 32])}):
        tensors = load_file(path)
        save_file(tensors | {f"{name}.{key}": value for key, value in change.items()}, path)
        with pytest.raises(CheckpointError, match=f"{name}.weight"):
            glm_int4.load(tmp_path / "out", device="cpu")
        save_file(tensors, path)


def test_every_reader_error_is_the_users(tiny_folder):
    shutil.rmtree(tiny_folder)
    with pytest.raises(UserError) as caught:
        glm_int4.load(tiny_folder)
    assert caught.value.exit_code == 2
