"""What people really have on disk: failed downloads, mixed formats, fine-tuned models, odd files."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import glm_int4
from glm_int4.checkpoint.files.folder import find_shards
from glm_int4.checkpoint.opening import open_checkpoint
from glm_int4.errors import CheckpointError, UserError
from tests.checkpoint.files.test_reader import TENSORS, write_layout
from tests.conftest import MINI

FAILED_DOWNLOADS = {
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "a Git LFS pointer.*git lfs pull",
    ),
    "page": (b"\n<!DOCTYPE html>\n<html>sign in</html>", "a web page; download the file itself"),
    "old page": (b"<HTML><BODY>404</BODY></HTML>", "a web page"),
    "xml": (b'\xef\xbb\xbf<?xml version="1.0"?><Error>AccessDenied</Error>', "a web page"),
    "empty": (b"", "an empty file; download it again"),
}


@pytest.fixture
def mini_folder(tmp_path):
    """A copy of the mini checkpoint that a test may damage."""
    return shutil.copytree(MINI, tmp_path / "mini")


def fault_of(use, *args):
    """The one line of an error."""
    with pytest.raises(UserError) as caught:
        use(*args)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 2000
    return message


@pytest.mark.parametrize("name", [path.name for path in sorted(MINI.iterdir())])
@pytest.mark.parametrize("kind", FAILED_DOWNLOADS)
def test_a_failed_download_is_told_apart_whatever_file_it_stands_for(mini_folder, name, kind):
    data, expected = FAILED_DOWNLOADS[kind]
    (mini_folder / name).write_bytes(data)
    message = fault_of(glm_int4.load, mini_folder)
    assert name in message
    assert any(word in message for word in expected.split(".*"))


@pytest.mark.parametrize("layout", ["single-bin", "single-safetensors", "sharded-bin"])
def test_a_file_that_ends_at_any_point_is_named(tiny_folder, layout):
    write_layout(tiny_folder, layout)
    path = sorted(tiny_folder.glob("*model*[ns]"))[0]
    data = path.read_bytes()
    points = [*range(1, 60), *range(60, len(data), len(data) // 40), *range(len(data) - 40, len(data))]
    for size in points:
        path.write_bytes(data[:size])
        assert path.name in fault_of(open_checkpoint, tiny_folder), size


def test_unfinished_downloads_are_recognized(tiny_folder):
    write_layout(tiny_folder, "sharded-bin")
    shard = tiny_folder / "pytorch_model-00002-of-00002.bin"
    control = shard.with_name(shard.name + ".aria2")
    control.touch()
    assert "an unfinished download (.aria2" in fault_of(open_checkpoint, tiny_folder)
    control.unlink()
    cache = tiny_folder / ".cache" / "huggingface" / "download"
    cache.mkdir(parents=True)
    shard.rename(cache / "abc=.123.incomplete")
    message = fault_of(open_checkpoint, tiny_folder)
    assert f"got none of {shard.name}" in message
    assert "unfinished download lies there, abc=.123.incomplete" in message


def test_the_format_that_is_complete_is_used_whatever_else_lies_there(tiny_folder, caplog):
    write_layout(tiny_folder, "sharded-safetensors")
    index = tiny_folder / "model.safetensors.index.json"
    names = {path.name for path in tiny_folder.glob("*.safetensors")}
    # The other format's index beside safetensors shards.
    weight_map = json.loads(index.read_text())["weight_map"]
    other = {
        name: file.replace("model-", "pytorch_model-").replace("safetensors", "bin")
        for name, file in weight_map.items()
    }
    (tiny_folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": other}))
    assert {path.name for path in find_shards(tiny_folder)[0]} == names
    index.unlink()
    assert {path.name for path in find_shards(tiny_folder)[0]} == names
    open_checkpoint(tiny_folder)
    # A safetensors index beside .bin shards; the safetensors shards are missing, or pointers.
    index.write_text(json.dumps({"weight_map": weight_map}))
    for name in sorted(names):
        torch.save(
            load_file(tiny_folder / name), tiny_folder / other[next(n for n, f in weight_map.items() if f == name)]
        )
        (tiny_folder / name).write_bytes(FAILED_DOWNLOADS["pointer"][0])
    for _ in range(2):
        assert {path.suffix for path in find_shards(tiny_folder)[0]} == {".bin"}
        assert "using pytorch_model-00001-of-00002.bin: expected" in caplog.text
        open_checkpoint(tiny_folder)
        for name in names:
            (tiny_folder / name).unlink(missing_ok=True)
    (tiny_folder / "pytorch_model-00001-of-00002.bin").unlink()
    message = fault_of(open_checkpoint, tiny_folder)
    assert "the 2 files that pytorch_model.bin.index.json names" in message
    assert "got none of pytorch_model-00001-of-00002.bin; download" in message


def test_where_two_shards_hold_a_tensor_the_index_decides(tiny_folder):
    write_layout(tiny_folder, "sharded-safetensors")
    name = "transformer.final_layernorm.bias"
    index = json.loads((tiny_folder / "model.safetensors.index.json").read_text())["weight_map"]
    (other,) = set(index.values()) - {index[name]}
    save_file(load_file(tiny_folder / other) | {name: torch.ones(64)}, tiny_folder / other)
    reader, _ = open_checkpoint(tiny_folder)
    assert torch.equal(reader[name], TENSORS[name])


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("v_head.summary.weight", "reward model"),
        ("score.weight", "classifier"),
        ("lm_head.bias", "save the language model alone"),
        ("transformer.layers.0.attention.query_key_value.lora_A.default.weight", "merge_and_unload"),
        ("base_model.model.transformer.final_layernorm.bias", "merge_and_unload"),
        ("module.transformer.final_layernorm.bias", "unwrapped"),
        ("transformer.layers.2.\n\0", "do the config and the weights belong together"),
    ],
)
def test_tensors_of_fine_tuned_models_are_named_with_advice(edit_tensors, name, advice):
    folder = edit_tensors(lambda tensors: tensors.update({name: torch.zeros(2)}))
    message = fault_of(glm_int4.load, folder)
    assert (name if name.isprintable() else repr(name)) in message
    assert advice in message


@pytest.mark.parametrize("files", [["adapter_model.bin"], ["adapter_config.json", "adapter_model.safetensors"]])
def test_an_adapter_alone_is_no_checkpoint(tiny_folder, files):
    (tiny_folder / "model.safetensors").unlink()
    for name in files:
        (tiny_folder / name).write_bytes(b"{}")
    assert f"the adapter {files[0]}; load its base model, with --adapter" in fault_of(glm_int4.load, tiny_folder)
    (tiny_folder / "config.json").unlink()
    assert f"the adapter {files[0]}; load its base model, with --adapter" in fault_of(glm_int4.load, tiny_folder)


def test_a_head_that_was_trained_apart_is_not_ignored_silently(edit_tensors, tmp_path, caplog):
    folder = edit_tensors(lambda tensors: tensors.pop("lm_head.weight"))
    glm_int4.load(folder, device="cpu")
    for other in (torch.float32, torch.bfloat16):
        edit_tensors(lambda tensors, dtype=other: tensors.update({"lm_head.weight": embedding(tensors).to(dtype)}))
        glm_int4.load(folder, device="cpu")
        if other is torch.float32:
            assert "ignoring lm_head.weight" not in caplog.text
    assert "ignoring lm_head.weight" in caplog.text, "bfloat16 has fewer digits"
    caplog.clear()

    def change(tensors):
        tensors["lm_head.weight"] = embedding(tensors).clone()
        tensors["lm_head.weight"][-1, -1] += 1

    edit_tensors(change)
    glm_int4.load(folder, device="cpu")
    assert "ignoring lm_head.weight" in caplog.text
    caplog.clear()
    glm_int4.quantize_checkpoint(folder, tmp_path / "out", bits=8)
    assert "ignoring lm_head.weight" in caplog.text


def embedding(tensors):
    return tensors["transformer.word_embeddings.weight"]


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "name",
    [
        "transformer.word_embeddings.weight",
        "transformer.layers.1.mlp.dense_4h_to_h.weight",
        "transformer.final_layernorm.bias",
    ],
)
def test_weights_that_are_not_finite_are_named_when_a_checkpoint_loads(edit_tensors, name, value, dtype):
    folder = edit_tensors(lambda tensors: tensors[name].view(-1)[-3].fill_(value))
    with pytest.raises(CheckpointError, match=f"got inf or nan in {name}; the checkpoint is damaged"):
        glm_int4.load(folder, device="cpu", dtype=dtype)
