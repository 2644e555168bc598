"""Adapters merged while quantizing: what is rounded is what peft's merged model has."""

import json
import shutil

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file

import glm_int4
from glm_int4.adapters.adapter_source import find_adapters
from glm_int4.adapters.reading import read_loras
from glm_int4.adapters.weight_merging import Merging
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.opening import open_checkpoint
from glm_int4.checkpoint.writing.output_folder import sha256
from glm_int4.cli.main import app
from glm_int4.conversion import matrices, quantizing
from glm_int4.errors import CheckpointError, InputError, OutputError
from tests.adapters.test_applying import GREEDY, LORA, adapter, load, random
from tests.adapters.test_lora_logits import ADAPTERS, base, expected
from tests.cli.test_commands import glm, refused
from tests.conftest import FIXTURES, MINI, TINY
from tests.conversion.test_quantizing import Killed
from tests.tolerances import ADAPTER_ABSOLUTE

MERGED = [(version, name) for version, name in ADAPTERS if name != "peft_prefix"]
LORA_1 = LORA / "v1" / "lora"


def merged_reader(folder, adapters):
    """A checkpoint's reader that gives weights with adapters in them, and its config."""
    reader, info = open_checkpoint(folder)
    reader.change(Merging(read_loras(find_adapters(adapters), info.config)))
    return reader, info.config


@pytest.mark.parametrize(("version", "name"), MERGED, ids=[f"v{v}-{n}" for v, n in MERGED])
def test_merged_rows_make_the_oracles_logits_and_tokens(version, name):
    """Before they are rounded, seven rows at a time, in float32."""
    reader, config = merged_reader(base(version), LORA / f"v{version}" / name)
    engine = load(version)
    for matrix in layout.matrices(config).values():
        path = f"{matrix.name}.weight"
        pieces = [reader.rows(path, slice(start, start + 7)) for start in range(0, matrix.out_features, 7)]
        engine.model.get_parameter(path).copy_(torch.cat(pieces))
    for path in layout.vectors(config):
        engine.model.get_parameter(path).copy_(reader.rows(path))
    for ids, logits, greedy in expected(version, name).values():
        assert (engine.logits(ids[0].tolist()) - logits).abs().max() < ADAPTER_ABSOLUTE
        assert engine.generate(ids[0].tolist(), 20, GREEDY, []) == greedy[0].tolist()


def test_adapters_that_are_merged_together_add_up_as_beside_the_weights():
    given = [(LORA / "v2" / "lora", 0.5), LORA / "v2" / "dora", LORA / "v2" / "pattern"]
    reader, config = merged_reader(FIXTURES / "v2_tiny", given)
    engine = load("2")
    for matrix in layout.linears(config):
        engine.model.get_parameter(f"{matrix.name}.weight").copy_(reader.rows(f"{matrix.name}.weight"))
    ids = [20, 31, 42, 17, 99, 33, 12]
    assert (engine.logits(ids) - load("2", given).logits(ids)).abs().max() < ADAPTER_ABSOLUTE


def all_linear(folder, config, **settings):
    """A random adapter of every linear layer of a model."""
    tensors = {}
    for seed, matrix in enumerate(layout.linears(config)):
        stem = f"base_model.model.{matrix.name}"
        tensors[f"{stem}.lora_A.weight"] = random(2, matrix.in_features, seed=seed)
        tensors[f"{stem}.lora_B.weight"] = random(matrix.out_features, 2, seed=seed + 1) / 20
    kinds = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
    return adapter(folder, tensors, target_modules=kinds, **settings)


def merged_copy(source, adapters, output):
    """A checkpoint with adapters merged into it; what changes is stored in float32, as nothing has rounded it."""
    shutil.copytree(source, output, ignore=shutil.ignore_patterns("*.bin*", "model*.safetensors*"))
    reader, _ = merged_reader(source, adapters)
    save_file({name: reader.rows(name).clone() for name in reader}, output / "model.safetensors")
    return output


@pytest.fixture(scope="module")
def sources(small_checkpoints, tmp_path_factory):
    """By version: a checkpoint with a tokenizer, an adapter for it, and the two merged."""
    found = {}
    for version, source in (("1", MINI), ("2", small_checkpoints["2"])):
        folder = tmp_path_factory.mktemp("merged")
        lora = all_linear(folder / "lora", open_checkpoint(source)[1].config)
        found[version] = source, lora, merged_copy(source, lora, folder / "merged")
    return found


def tensors_of(folder):
    return {name: x for path in sorted(folder.glob("model*.safetensors")) for name, x in load_file(path).items()}


OPTIONS = [
    ("2", {"group_size": 32}),
    ("1", {"bits": 8, "head_bits": 16}),
    ("1", {"format": "official", "quantize_embeddings": True}),
    ("2", {"group_size": 32, "method": "hqq"}),
    ("2", {"group_size": 64, "vllm": True}),
    ("2", {"bits": 8, "format": "official"}),
    ("2", {"group_size": 32, "method": "gptq"}),
    ("2", {"target_bits": 5.5}),
]


@pytest.mark.parametrize(("version", "options"), OPTIONS, ids=lambda value: str(value))
def test_every_method_and_format_rounds_the_merged_weights(tmp_path, sources, version, options):
    source, lora, merged = sources[version]
    if options.get("method") == "gptq":
        (tmp_path / "text").write_text("你好 世界 晚上 Hello world the weather 12 " * 40, encoding="utf-8")
        options = options | {"calibration": tmp_path / "text"}
    said = []
    report = glm_int4.quantize_checkpoint(source, tmp_path / "a", adapter=lora, announce=said.append, **options)
    other = glm_int4.quantize_checkpoint(merged, tmp_path / "b", **options)
    plain = glm_int4.quantize_checkpoint(source, tmp_path / "c", **options)
    found, expected, without = (tensors_of(tmp_path / name) for name in "abc")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name
    assert any(
        not torch.equal(tensor, without[name]) for name, tensor in found.items() if tensor.shape == without[name].shape
    )
    assert [layer.rel_error for layer in report.layers] == [layer.rel_error for layer in other.layers]
    assert report.bits_per_weight == pytest.approx(plain.bits_per_weight, rel=0.02)
    assert any(str(lora) in line for line in said)


def test_norms_biases_and_a_saved_head_are_stored_as_the_adapter_has_them(tmp_path):
    for version, name in (("1", "bias"), ("2", "saved_head"), ("3", "bias")):
        source, lora, out = FIXTURES / f"v{version}_tiny", LORA / f"v{version}" / name, tmp_path / f"v{version}"
        options = {"group_size": "channel", "head_bits": 16, "model_version": version}
        glm_int4.quantize_checkpoint(source, out, adapter=lora, **options)
        stored, own = tensors_of(out), load_file(lora / "adapter_model.safetensors")
        replaced = {key: x for key, x in own.items() if "lora_" not in key}
        assert replaced
        for key, tensor in replaced.items():
            found = stored[key.removeprefix("base_model.model.").replace(".base_layer", "")]
            assert found.dtype == torch.float16
            assert torch.equal(found, tensor.half())


def test_a_merged_checkpoint_answers_as_the_adapter_beside_int8_weights_does(tmp_path):
    glm_int4.quantize_checkpoint(TINY, tmp_path / "merged", bits=8, head_bits=16, adapter=LORA_1)
    glm_int4.quantize_checkpoint(TINY, tmp_path / "base", bits=8, head_bits=16)
    options = {"device": "cpu", "dtype": torch.float32}
    ids, logits, _ = next(iter(expected("1", "lora").values()))
    merged = glm_int4.load(tmp_path / "merged", **options).logits(ids[0].tolist())
    beside = glm_int4.load(tmp_path / "base", adapter=LORA_1, **options).logits(ids[0].tolist())
    base = glm_int4.load(TINY, **options).logits(ids[0].tolist())
    size = (base - logits).norm()
    assert (merged - logits).norm() < 0.2 * size
    assert (beside - logits).norm() < 0.2 * size


def test_rows_are_merged_a_piece_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(matrices, "PIECE_WEIGHTS", 1000)
    pieces = []
    merge = Merging.__call__
    monkeypatch.setattr(
        Merging, "__call__", lambda self, name, rows, x: pieces.append((name, x.numel())) or merge(self, name, rows, x)
    )
    glm_int4.quantize_checkpoint(TINY, tmp_path / "small", group_size=32, adapter=LORA_1)
    linears = [size for name, size in pieces if "query_key_value.weight" in name]
    assert len(linears) > 2 * 10
    assert max(linears) <= 1000
    monkeypatch.undo()
    glm_int4.quantize_checkpoint(TINY, tmp_path / "whole", group_size=32, adapter=LORA_1)
    small, whole = tensors_of(tmp_path / "small"), tensors_of(tmp_path / "whole")
    assert all(torch.equal(small[name], whole[name]) for name in whole)


def test_an_interrupted_run_goes_on_with_the_same_adapter_alone(tmp_path):
    def stop(done, total, name):
        if done > 30_000:
            raise Killed

    options = {"group_size": 32, "max_shard_bytes": 20_000}
    glm_int4.quantize_checkpoint(TINY, tmp_path / "whole", adapter=LORA_1, **options)
    lora = shutil.copytree(LORA_1, tmp_path / "lora")
    with pytest.raises(Killed):
        glm_int4.quantize_checkpoint(TINY, tmp_path / "out", adapter=lora, resume=True, progress=stop, **options)
    changed = shutil.copytree(LORA / "v1" / "dora", tmp_path / "changed" / "lora")
    for other in (None, (lora, 0.5), changed, [lora, LORA / "v1" / "official"]):
        with pytest.raises(OutputError, match="the same checkpoint and options"):
            glm_int4.quantize_checkpoint(TINY, tmp_path / "out", adapter=other, resume=True, **options)
    moved = lora.rename(tmp_path / "moved")  # what is in it counts
    glm_int4.quantize_checkpoint(TINY, tmp_path / "out", adapter=moved, resume=True, **options)
    for path in sorted((tmp_path / "whole").glob("*.safetensors*")):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_the_report_names_the_adapters_and_their_sums(tmp_path):
    given = [(LORA_1, 0.5), LORA / "v1" / "old_bin"]
    glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=32, adapter=given)
    report = json.loads((tmp_path / "out" / "quantization_report.json").read_text())
    assert [(each["name"], each["scale"]) for each in report["adapters"]] == [("lora", 0.5), ("old_bin", 1.0)]
    for each, file in zip(report["adapters"], ("adapter_model.safetensors", "adapter_model.bin"), strict=True):
        folder = LORA / "v1" / each["name"]
        assert each["sha256"] == {name: sha256(folder / name) for name in ("adapter_config.json", file)}
    glm_int4.quantize_checkpoint(TINY, tmp_path / "plain", group_size=32)
    report = json.loads((tmp_path / "plain" / "quantization_report.json").read_text())
    assert report["adapters"] == []
    assert "adapters" not in report["fingerprint"]


def test_an_adapter_is_merged_into_half_precision_alone(tmp_path):
    with pytest.raises(CheckpointError, match="quantized already; take the original, or load this one with --adapter"):
        glm_int4.quantize_checkpoint(FIXTURES / "v1_tiny_int4", tmp_path / "out", adapter=LORA_1)
    with pytest.raises(InputError, match="expected LoRA to merge, got the prefix in"):
        glm_int4.quantize_checkpoint(
            FIXTURES / "v3_tiny",
            tmp_path / "out",
            group_size=32,
            adapter=LORA / "v3" / "peft_prefix",
            model_version="3",
        )
    with pytest.raises(CheckpointError, match="these are names of"):
        glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=32, adapter=LORA / "v2" / "lora")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_parts_tied_matrices_is_refused(tmp_path):
    lora = shutil.copytree(LORA_1, tmp_path / "lora")
    stored = load_file(lora / "adapter_model.safetensors")
    save_file(stored | {"base_model.model.lm_head.weight": random(160, 64)}, lora / "adapter_model.safetensors")
    config = json.loads((lora / "adapter_config.json").read_text()) | {"modules_to_save": ["lm_head"]}
    (lora / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(
        InputError, match=r"leaves embedding and head of ChatGLM-6B tied, got .* which replaces lm_head"
    ):
        glm_int4.quantize_checkpoint(TINY, tmp_path / "out", group_size=32, adapter=lora)


def test_the_command_takes_adapters_with_scales(tmp_path, monkeypatch):
    given = []

    def stop(*arguments, **options):
        given.append(options["adapter"])
        raise Killed

    monkeypatch.setattr(quantizing, "quantize_checkpoint", stop)
    command = typer.main.get_command(app).commands["quantize"]
    with pytest.raises(Killed):
        command.main(["--adapter", f"{LORA_1}:0.5", "--adapter", "owner/name"], standalone_mode=False)
    assert given == [[(str(LORA_1), 0.5), "owner/name"]]
    options = ["--model", TINY, "--output", tmp_path / "out", "--adapter", tmp_path]
    refused(glm("quantize", *options), "expected adapter_config.json in")
