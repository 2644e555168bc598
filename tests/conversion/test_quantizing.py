"""Quantizing a folder: what is written, what an independent reader sees in it, and what faults leave."""

import json
import shutil

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file, save_file

import glm_int4
from glm_int4.checkpoint.formats import layout, packed
from glm_int4.checkpoint.opening import open_checkpoint
from glm_int4.conversion import matrices, quantizing
from glm_int4.errors import CheckpointError, InputError, OutputError, UserError
from tests.conftest import MINI, TINY
from tests.tolerances import relative_rms
from triton_kernels.packing import unpack_int4

OPTIONS = [
    {"bits": 4, "group_size": 32},
    {"bits": 4, "group_size": 64, "symmetric": True, "head_bits": 16},
    {"bits": 4, "group_size": "channel", "head_bits": 4},
    {"bits": 8},
    {"bits": 8, "group_size": 32, "head_bits": 16},
]


def name_of(options):
    return "-".join(f"{key}={value}" for key, value in options.items())


def all_tensors(folder):
    return {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()}


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_compressed_tensors_reads_every_tensor_to_the_same_values(tmp_path, options):
    report = glm_int4.quantize_checkpoint(TINY, tmp_path / "out", **options)
    tensors = all_tensors(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    parsed = QuantizationConfig.model_validate(config["quantization_config"])
    reader, info = open_checkpoint(tmp_path / "out")
    original = load_file(TINY / "model.safetensors")
    errors = {layer.name: layer.rel_error for layer in report.layers}
    seen = set()
    for matrix in (layout.embedding(info.config), *layout.linears(info.config)):
        scheme = info.schemes[matrix.name]
        if scheme is None:
            assert torch.equal(tensors[f"{matrix.name}.weight"], original[f"{matrix.name}.weight"])
            seen.add(f"{matrix.name}.weight")
            continue
        group = parsed.config_groups["embeddings" if matrix.kind == "embedding + head" else "linears"].weights
        assert (group.num_bits, group.symmetric) == (scheme.bits, scheme.symmetric)
        assert (group.group_size or matrix.in_features) == scheme.row_group_size(matrix.in_features)
        shape = torch.Size(tensors[f"{matrix.name}.weight_shape"].tolist())
        assert shape == (matrix.out_features, matrix.in_features)
        q = unpack_from_int32(tensors[f"{matrix.name}.weight_packed"], scheme.bits, shape)
        scales = tensors[f"{matrix.name}.weight_scale"]
        zeros = torch.zeros(scales.shape)
        if not scheme.symmetric:
            words = tensors[f"{matrix.name}.weight_zero_point"]
            zeros = unpack_from_int32(words, scheme.bits, scales.shape, packed_dim=0)
        ours = packed.read_weight(reader, matrix, scheme)
        ours_q = unpack_int4(ours.packed) if scheme.bits == 4 else ours.packed
        assert torch.equal(ours_q.int() - scheme.zero, q.int())
        assert torch.equal(ours.scales, scales)
        if ours.zero_points is not None:
            assert torch.equal(ours.zero_points.int() - scheme.zero, zeros.int())
        groups = q.float().unflatten(1, (scales.shape[1], -1))
        weight = ((groups - zeros.float()[..., None]) * scales.float()[..., None]).flatten(1)
        stored = {s.name.removeprefix(f"{matrix.name}."): tensors[s.name] for s in packed.tensor_specs(matrix, scheme)}
        scheme_of_group = parsed.config_groups["embeddings" if matrix.kind == "embedding + head" else "linears"]
        theirs = PackedQuantizationCompressor.decompress(stored, scheme_of_group)["weight"]
        assert relative_rms(theirs, weight) < 2**-11, "they round to float16"
        assert relative_rms(weight, original[f"{matrix.name}.weight"]) == pytest.approx(errors[matrix.name], rel=1e-3)
        seen |= {spec.name for spec in packed.tensor_specs(matrix, scheme)}
    for name in layout.vectors(info.config):
        assert torch.equal(tensors[name], original[name])
        assert tensors[name].dtype == original[name].dtype
        seen.add(name)
    assert seen == tensors.keys()


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_a_quantized_model_computes_with_the_dequantized_weights(tmp_path, options, cases):
    glm_int4.quantize_checkpoint(TINY, tmp_path / "out", **options)
    reader, info = open_checkpoint(tmp_path / "out")
    dense = load_file(TINY / "model.safetensors")
    for matrix in (layout.embedding(info.config), *layout.linears(info.config)):
        scheme = info.schemes[matrix.name]
        if scheme is None:
            continue
        weight = packed.read_weight(reader, matrix, scheme)
        q = unpack_int4(weight.packed) if scheme.bits == 4 else weight.packed
        zeros = scheme.zero if weight.zero_points is None else weight.zero_points.float()[..., None]
        groups = q.float().unflatten(1, (weight.scales.shape[1], -1))
        dense[f"{matrix.name}.weight"] = ((groups - zeros) * weight.scales.float()[..., None]).flatten(1)
    folder = tmp_path / "dense"
    folder.mkdir()
    shutil.copy(TINY / "config.json", folder)
    save_file(dense, folder / "model.safetensors")
    ids = cases["gmask_with_answer.input_ids"][0].tolist()
    quantized = glm_int4.load(tmp_path / "out", device="cpu", dtype=torch.float32).logits(ids)
    expected = glm_int4.load(folder, device="cpu", dtype=torch.float32).logits(ids)
    torch.testing.assert_close(quantized, expected, atol=1e-4, rtol=1e-4)


def test_the_packed_words_are_the_documented_bytes():
    q = torch.arange(16).to(torch.uint8)[None]
    words = quantizing.packed_format.pack_zero_points(q.T, 4)
    assert words.shape == (2, 1)
    assert words.view(torch.uint8).flatten().tolist() == [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]
    assert torch.equal(packed.unpack_zero_points(words, 4, 16), q.T)
    odd = torch.arange(5).to(torch.uint8)[:, None]
    assert torch.equal(packed.unpack_zero_points(packed.pack_zero_points(odd, 4), 4, 5), odd)


def test_the_written_folder_is_complete(tmp_path):
    report = glm_int4.quantize_checkpoint(MINI, tmp_path / "out", bits=4)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "config.json",
        "ice_text.model",
        "tokenizer_config.json",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
        "quantization_report.json",
    }
    stored = json.loads((tmp_path / "out" / "quantization_report.json").read_text())
    assert stored["method"] == "rtn"
    assert set(stored["source_sha256"]) == {f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)}
    assert {layer["kind"] for layer in stored["layers"]} == {
        "embedding + head", "query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"
    }  # fmt: skip
    size = sum(t.numel() * t.element_size() for t in all_tensors(tmp_path / "out").values())
    assert report.stored_bytes == size
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "auto_map" not in config
    assert config.items() >= json.loads((MINI / "config.json").read_text()).items()


def test_shards_stay_below_the_limit_and_load_alike(tmp_path, cases):
    glm_int4.quantize_checkpoint(TINY, tmp_path / "one", group_size=32)
    glm_int4.quantize_checkpoint(TINY, tmp_path / "many", group_size=32, max_shard_bytes=20_000)
    shards = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    for shard in shards:
        assert sum(t.numel() * t.element_size() for t in load_file(shard).values()) <= 20_000
    one, many = all_tensors(tmp_path / "one"), all_tensors(tmp_path / "many")
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
    glm_int4.load(tmp_path / "many", device="cpu")


def test_blocks_of_rows_do_not_show(tmp_path, monkeypatch):
    glm_int4.quantize_checkpoint(TINY, tmp_path / "whole", group_size=32)
    monkeypatch.setattr(matrices, "PIECE_WEIGHTS", 24 * 64)
    glm_int4.quantize_checkpoint(TINY, tmp_path / "blocks", group_size=32)
    for path in sorted((tmp_path / "whole").glob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / "blocks" / path.name).read_bytes()


class Killed(BaseException):
    """Ends a run as a signal would, past every handler of errors."""


def test_a_finished_shard_that_was_damaged_since_is_written_again(tmp_path):
    options = {"group_size": 32, "max_shard_bytes": 20_000, "resume": True}

    def stop(done, total, name):
        if name == "transformer.layers.1.mlp.dense_4h_to_h":
            raise Killed

    glm_int4.quantize_checkpoint(TINY, tmp_path / "whole", **options)
    with pytest.raises(Killed):
        glm_int4.quantize_checkpoint(TINY, tmp_path / "out", progress=stop, **options)
    first = sorted((tmp_path / "out.partial").glob("*.safetensors"))[0]
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    glm_int4.quantize_checkpoint(TINY, tmp_path / "out", **options)
    for path in sorted((tmp_path / "whole").glob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


@pytest.mark.parametrize("note", ["", "{", "[]", '{"fingerprint": 1}', '{"fingerprint": 1, "shards": {"a": 2}}'])
def test_a_damaged_note_of_progress_starts_over(tmp_path, note):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "progress.json").write_text(note)
    glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=32, resume=True)
    glm_int4.load(tmp_path / "out", device="cpu")


def test_ctrl_c_keeps_what_is_finished_for_a_later_resume(tmp_path):
    def stop(done, total, name):
        if done > 30_000:
            raise KeyboardInterrupt

    options = {"group_size": 32, "max_shard_bytes": 20_000}
    with pytest.raises(KeyboardInterrupt):
        glm_int4.quantize_checkpoint(TINY, tmp_path / "out", progress=stop, **options)
    finished = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out.partial").glob("*.safetensors")}
    assert finished
    glm_int4.quantize_checkpoint(TINY, tmp_path / "out", resume=True, **options)
    for name, written in finished.items():
        assert (tmp_path / "out" / name).stat().st_mtime_ns == written


@pytest.mark.parametrize("first", [1, 4, 7])
def test_an_interrupted_run_leaves_nothing_that_loads_and_can_be_resumed(tmp_path, first):
    options = {"group_size": 32, "max_shard_bytes": 20_000}
    glm_int4.quantize_checkpoint(TINY, tmp_path / "whole", **options)
    calls = []

    limits = []

    def stop(done, total, name):
        calls.append(name)
        if len(calls) > limits[-1]:
            raise Killed

    for limit in (first, 1):
        limits.append(limit)
        calls.clear()
        with pytest.raises(Killed):
            glm_int4.quantize_checkpoint(TINY, tmp_path / "out", resume=True, progress=stop, **options)
        assert not (tmp_path / "out").exists()
        with pytest.raises(UserError):
            glm_int4.load(tmp_path / "out.partial")
    glm_int4.quantize_checkpoint(TINY, tmp_path / "out", resume=True, **options)
    for path in sorted((tmp_path / "whole").glob("*.safetensors*")):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    assert not (tmp_path / "out.partial").exists()


def test_resuming_with_other_options_is_refused(tmp_path):
    def stop(done, total, name):
        if done:
            raise Killed

    options = {"max_shard_bytes": 20_000, "resume": True}
    with pytest.raises(Killed):
        glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=32, progress=stop, **options)
    with pytest.raises(OutputError, match="the same checkpoint and options"):
        glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=64, **options)


def test_an_existing_output_is_kept_without_overwrite_and_until_the_new_one_is_complete(tmp_path, edit_tensors):
    out = tmp_path / "out"
    glm_int4.quantize_checkpoint(TINY, out, group_size=32)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(OutputError, match="pass --overwrite"):
        glm_int4.quantize_checkpoint(TINY, out, group_size=64)
    damaged = edit_tensors(lambda tensors: tensors["transformer.final_layernorm.weight"].fill_(torch.nan))
    with pytest.raises(CheckpointError, match=r"got inf or nan in transformer\.final_layernorm\.weight"):
        glm_int4.quantize_checkpoint(damaged, out, group_size=64, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    glm_int4.quantize_checkpoint(TINY, out, group_size=64, overwrite=True)
    assert {p.name for p in tmp_path.iterdir()} == {"out", "tiny"}
    assert json.loads((out / "quantization_report.json").read_text())["group_size"] == 64


def test_odd_text_in_the_config_is_written_as_it_was(tmp_path, tiny_folder):
    path = tiny_folder / "config.json"
    config = json.loads(path.read_text()) | {"_name_or_path": '\ud800 模型 "\n'}
    path.write_text(json.dumps(config))
    glm_int4.quantize_checkpoint(tiny_folder, tmp_path / "out", group_size=32)
    assert json.loads((tmp_path / "out" / "config.json").read_bytes()).items() >= config.items()


def test_an_empty_output_folder_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=32)
    glm_int4.load(tmp_path / "out", device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 3}, "expected bits to be 4 or 8, got 3"),
        ({"bits": 4, "group_size": 128}, r"divides the 64 inputs of .*, got 128"),
        ({"bits": 4, "group_size": 48}, "expected a group size of 32, 64, 128 or channel"),
        ({"bits": 4, "group_size": "row"}, "expected a group size"),
        ({"method": "magic"}, "expected the method rtn"),
        ({"head_bits": 2}, "expected head bits"),
    ],
)
def test_options_that_do_not_fit_leave_nothing(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        glm_int4.quantize_checkpoint(TINY, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_named_and_leave_nothing(tmp_path, edit_tensors):
    name = "transformer.layers.1.mlp.dense_4h_to_h.weight"

    def change(tensors):
        tensors[name][3, 5] = torch.inf

    folder = edit_tensors(change)
    with pytest.raises(CheckpointError, match=f"got inf or nan in {name}"):
        glm_int4.quantize_checkpoint(folder, tmp_path / "out", group_size=32)
    assert {p.name for p in tmp_path.iterdir()} == {"tiny"}


def test_a_quantized_checkpoint_is_not_quantized_again(tmp_path):
    glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=32)
    with pytest.raises(CheckpointError, match="half-precision"):
        glm_int4.quantize_checkpoint(tmp_path / "out", tmp_path / "again", group_size=32)


@pytest.mark.parametrize("up", [0, 1])
def test_the_checkpoint_and_what_holds_it_are_no_outputs(tiny_folder, up):
    output = [tiny_folder, *tiny_folder.parents][up]
    with pytest.raises(OutputError, match="apart from the checkpoint"):
        glm_int4.quantize_checkpoint(tiny_folder, output, group_size=32, overwrite=True)
    assert (tiny_folder / "model.safetensors").is_file()


def test_overwriting_something_else_than_a_checkpoint_keeps_it_aside(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=32, overwrite=True)
    glm_int4.load(tmp_path / "out", device="cpu")
    (kept,) = tmp_path.glob("out.old-*/out/precious.txt")
    assert kept.read_text() == "mine"


def test_a_project_with_a_config_of_its_own_is_kept_aside_too(tmp_path):
    (tmp_path / "out" / "src").mkdir(parents=True)
    (tmp_path / "out" / "config.json").write_text("{}")
    (tmp_path / "out" / "src" / "main.py").write_text("code")
    glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=32, overwrite=True)
    assert len(list(tmp_path.glob("out.old-*/out/src/main.py"))) == 1


def test_a_file_is_no_output_and_a_foreign_partial_folder_stays(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="which is a file"):
        glm_int4.quantize_checkpoint(TINY, tmp_path / "file", group_size=32, overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine").write_text("mine")
    with pytest.raises(OutputError, match="other files"):
        glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=32)
    assert (tmp_path / "out.partial" / "mine").read_text() == "mine"


def test_an_output_that_is_a_link_goes_where_it_points(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    glm_int4.quantize_checkpoint(TINY, tmp_path / "link", group_size=32)
    assert (tmp_path / "link").is_symlink()
    glm_int4.load(tmp_path / "disk", device="cpu")


def test_a_tokenizer_that_does_not_fit_is_named_before_any_work(tmp_path):
    folder = shutil.copytree(MINI, tmp_path / "mini")
    (folder / "ice_text.model").write_bytes(b"garbage")
    with pytest.raises(UserError, match="expected a SentencePiece model"):
        glm_int4.quantize_checkpoint(folder, tmp_path / "out")
    shutil.copy(MINI / "ice_text.model", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"gmask_token_id": 7}))
    with pytest.raises(UserError, match="different revisions"):
        glm_int4.quantize_checkpoint(folder, tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"mini"}


def test_a_folder_that_cannot_be_made_is_named_and_parents_do_not_stay(tmp_path, edit_tensors):
    with pytest.raises(OutputError, match="File name too long"):
        glm_int4.quantize_checkpoint(TINY, tmp_path / ("x" * 300), group_size=32)
    damaged = edit_tensors(lambda tensors: tensors["transformer.final_layernorm.weight"].fill_(torch.nan))
    with pytest.raises(CheckpointError):
        glm_int4.quantize_checkpoint(damaged, tmp_path / "a" / "b" / "out", group_size=32)
    assert {p.name for p in tmp_path.iterdir()} == {"tiny"}


def test_a_broken_tokenizer_config_is_named_before_any_work(tiny_folder, tmp_path):
    (tiny_folder / "tokenizer_config.json").write_text("{")
    seen = []
    with pytest.raises(UserError, match=r"tokenizer_config\.json"):
        glm_int4.quantize_checkpoint(
            tiny_folder, tmp_path / "out", group_size=32, progress=lambda *step: seen.append(step)
        )
    assert not seen


def test_a_full_disk_is_named_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match=r"expected [\d.]+ kB free for .*, got 1\.00 kB"):
        glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=32)
    assert not list(tmp_path.iterdir())


def test_another_quantized_format_is_named(edit_config):
    folder = edit_config(quantization_config={"quant_method": "compressed-tensors", "format": "int-quantized"})
    with pytest.raises(UserError, match="expected quantization_config"):
        open_checkpoint(folder)


def test_damaged_scales_are_named(tmp_path):
    glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=32)
    path = tmp_path / "out" / "model-00001-of-00001.safetensors"
    tensors = load_file(path)
    tensors["transformer.layers.0.attention.dense.weight_scale"][0, 0] = torch.nan
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"finite scales in transformer\.layers\.0\.attention\.dense"):
        glm_int4.load(tmp_path / "out", device="cpu")


def test_progress_goes_from_nothing_to_all(tmp_path):
    seen = []
    glm_int4.quantize_checkpoint(
        TINY, tmp_path / "out", group_size=32, progress=lambda done, total, name: seen.append((done, total))
    )
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1]
    assert sorted(seen) == seen
