"""Adapters that cannot be used, or not with this model: each is named in one line, before any weight is loaded."""

import json
import pickle
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

import glm_int4
from glm_int4.adapters import reading
from glm_int4.adapters.adapter_source import find_adapters, parse_adapter
from glm_int4.errors import CheckpointError, ConfigError, InputError, UserError
from tests.conftest import FIXTURES

LORA = FIXTURES / "lora"
STEM = "base_model.model.transformer.layers.0.attention.query_key_value"


@pytest.fixture
def folder(tmp_path):
    """A copy of an adapter for version 1 that a test may damage."""
    return shutil.copytree(LORA / "v1" / "lora", tmp_path / "adapter")


def settings(folder, **changes):
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return folder


def tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    stored = load_file(path)
    stored = change(stored) or stored
    save_file({name: tensor.clone() for name, tensor in stored.items()}, path)
    return folder


def refused(adapter, message, kind=UserError, version="1"):
    """The message of the error, which is one line."""
    with pytest.raises(kind, match=message) as caught:
        glm_int4.load(FIXTURES / f"v{version}_tiny", device="cpu", adapter=adapter, model_version=version)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("expected ")
    assert caught.value.exit_code == 2
    return str(caught.value)


# --- the settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "expected peft_type LORA or PREFIX_TUNING .* got 'IA3'; .* merge it"),
        ({"peft_type": "ADALORA"}, "got 'ADALORA'"),
        ({"peft_type": ...}, "got None"),
        ({"r": 0}, "expected ranks from 1 to 16384 .* got 0"),
        ({"r": True}, "expected ranks from 1 .* got True"),
        ({"rank_pattern": {"dense": 0}}, "expected ranks from 1 .* got 0"),
        ({"rank_pattern": {"dense": "x"}}, "expected numbers by modules' names as rank_pattern"),
        ({"lora_alpha": None}, "expected a number as lora_alpha"),
        ({"lora_alpha": float("nan")}, "expected a number as lora_alpha"),
        ({"bias": "some"}, "expected none or all or lora_only as bias .* got 'some'"),
        ({"use_dora": "yes"}, "expected true or false as use_dora"),
        ({"init_lora_weights": "pissa"}, "expected a beginning that leaves the base .* got 'pissa'; let peft convert"),
        ({"init_lora_weights": "loftq"}, "as init_lora_weights"),
        ({"layer_replication": [[0, 2]]}, "got layer_replication ="),
        ({"trainable_token_indices": [1, 2]}, "got trainable_token_indices ="),
        ({"lora_bias": True}, "got lora_bias = True"),
        ({"use_qalora": True}, "got use_qalora = True"),
        ({"ensure_weight_tying": True}, "got ensure_weight_tying = True"),
        ({"a_setting_of_next_year": 3}, "got a_setting_of_next_year = 3"),
        ({"target_modules": ["query_key_value", "q_proj"]}, r"expected target_modules .*\(dense, .* got q_proj; is it"),
        ({"target_modules": ["lm_head"]}, "got lm_head"),
        ({"target_modules": 7}, "expected a list of modules' names as target_modules"),
        ({"target_modules": "(("}, "expected a simple regular expression as target_modules .* which is none"),
        ({"target_modules": r"(\w+\.?)+x"}, "which may search for hours"),
        ({"target_modules": r"(\w|\w)*x"}, "which may search for hours"),
        ({"target_modules": ".*" * 12}, "which may search for hours"),
        ({"target_modules": ".*nothing"}, r"got \.\*nothing; is it an adapter of another model"),
        ({"modules_to_save": ["classifier"]}, "expected modules_to_save among .* got classifier"),
        ({"modules_to_save": "lm_head"}, "expected a list of modules' names as modules_to_save"),
        ({"layers_to_transform": ["1"]}, "expected numbers of layers as layers_to_transform"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_are_not_supported_are_named(folder, changes, message):
    refused(settings(folder, **changes), message, ConfigError)


def test_a_folder_without_settings_is_refused_and_told_what_it_is(folder, tmp_path):
    (folder / "adapter_config.json").unlink()
    refused(folder, "expected adapter_config.json in .* got none; is this the folder", ConfigError)
    refused(FIXTURES / "v1_tiny", "this is a model, or a P-Tuning prefix, which is given with --prefix", ConfigError)
    (folder / "adapter_config.json").write_text("{")
    refused(folder, "expected JSON in .*adapter_config.json", ConfigError)
    refused(tmp_path / "nowhere", "expected an adapter folder or a hub id .* there is no such folder", InputError)
    refused(FIXTURES / "tokenizer_v1.json", "expected an adapter folder, got the file", InputError)


# --- the tensors ----------------------------------------------------------------------------------------


def test_missing_extra_and_misshapen_tensors_are_named(folder):
    stem = STEM.removeprefix("base_model.model.")

    def change(stored):
        del stored[f"{STEM}.lora_B.weight"]
        stored[f"{STEM}.lora_A.weight"] = torch.zeros(4, 128)
        stored[f"{STEM.replace('.0.', '.9.')}.lora_A.weight"] = torch.zeros(4, 64)

    message = refused(tensors(folder, change), "is it an adapter of this model", CheckpointError)
    assert f"missing {stem}.lora_B;" in message
    assert f"extra {stem.replace('.0.', '.9.')}.lora_A;" in message
    assert f"mis-shaped {stem}.lora_A (4, 128) instead of (4, 64);" in message


def test_an_adapter_of_a_wider_or_deeper_model_is_refused(folder, tmp_path):
    deeper = shutil.copytree(folder, tmp_path / "deeper")
    tensors(deeper, lambda stored: stored | {n.replace("layers.1.", "layers.2."): x for n, x in stored.items()})
    assert "extra transformer.layers.2." in refused(deeper, "extra", CheckpointError)
    tensors(folder, lambda stored: {n: x.repeat(1, 2) if "lora_A" in n else x.repeat(2, 1) for n, x in stored.items()})
    assert "(4, 128) instead of (4, 64)" in refused(folder, "mis-shaped", CheckpointError)


@pytest.mark.parametrize(
    ("adapter", "model", "names"),
    [("2", "1", "ChatGLM2-6B or ChatGLM3-6B"), ("1", "2", "ChatGLM-6B"), ("1", "3", "ChatGLM-6B")],
)
def test_an_adapter_of_another_version_is_told_by_its_names(adapter, model, names):
    message = refused(LORA / f"v{adapter}" / "official", "load the model it was made for", CheckpointError, model)
    assert f"these are names of {names}, this is" in message


def test_an_adapter_of_another_model_altogether_misses_with_every_key(folder):
    def change(stored):
        return {n.replace("transformer.layers", "model.layers").replace("attention", "self_attn"): x
                for n, x in stored.items()}  # fmt: skip

    assert "missing" in refused(tensors(folder, change), "these are names of another model", CheckpointError)
    tensors(folder, lambda stored: {"something.else": torch.zeros(3)})
    refused(folder, "expected tensors of a LoRA adapter in .* got something.else", CheckpointError)
    tensors(folder, lambda stored: {"x.lora_A.weight": torch.zeros(3)})
    refused(folder, "extra x.lora_A", CheckpointError)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(folder, value):
    def change(stored):
        stored[f"{STEM}.lora_A.weight"][1, 2] = value

    refused(tensors(folder, change), "expected finite weights, got inf or nan in lora_A of", CheckpointError)


def test_integers_are_no_weights(folder):
    def change(stored):
        stored[f"{STEM}.lora_A.weight"] = torch.zeros(4, 64, dtype=torch.int32)

    refused(tensors(folder, change), r"no floats .*lora_A torch.int32", CheckpointError)


def test_two_names_of_one_tensor_are_refused(folder):
    def change(stored):
        stored[f"{STEM}.lora_A.other.weight"] = stored[f"{STEM}.lora_A.weight"].clone()

    refused(tensors(folder, change), "expected one lora_A of .* got two", CheckpointError)


def test_files_that_are_damaged_are_refused(folder):
    path = folder / "adapter_model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    refused(folder, "the file is truncated", CheckpointError)
    claim = {"x": {"dtype": "F32", "shape": [2_500_000_000], "data_offsets": [0, 10_000_000_000]}}
    header = json.dumps(claim).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 64)
    refused(folder, "expected 100000000.. bytes .* the file is truncated", CheckpointError)
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(folder, "a Git LFS pointer", CheckpointError)
    path.unlink()
    refused(folder, "expected adapter_model.safetensors or adapter_model.bin in .* got none", CheckpointError)


def test_a_pickle_that_runs_code_is_not_run(folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({f"{STEM}.lora_A.weight": Evil()}))
    refused(folder, "nothing of it was run", CheckpointError)
    assert not (tmp_path / "owned").exists()


# --- several, and scales --------------------------------------------------------------------------------


def test_adapters_that_do_not_go_together_are_refused(folder, tmp_path):
    refused([folder, (folder.parent / "adapter" / ".." / "adapter", 0.5)], "expected every adapter once", InputError)
    other = shutil.copytree(LORA / "v1" / "bias", tmp_path / "bias")
    refused([LORA / "v1" / "bias", other], "expected adapters that replace different parts", InputError)
    prefix = shutil.copytree(LORA / "v3" / "peft_prefix", tmp_path / "prefix")
    refused([LORA / "v3" / "peft_prefix", prefix], "at most one adapter of PREFIX_TUNING", InputError, "3")
    with pytest.raises(InputError, match="expected one prefix, got"):
        glm_int4.load(
            FIXTURES / "v3_tiny", adapter=prefix, prefix=FIXTURES / "v3_tiny" / "prefix_proj0.safetensors",
            device="cpu", model_version="3",
        )  # fmt: skip


@pytest.mark.parametrize("name", ["dora", "bias"])
def test_what_is_no_product_has_no_scale(name):
    refused((LORA / "v1" / name, 0.5), "expected a scale of 1 .* got 0.5", InputError)
    glm_int4.load(FIXTURES / "v1_tiny", device="cpu", adapter=(LORA / "v1" / name, 1))


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (7, "expected a folder or a hub id as adapter, got 7"),
        ("", "expected a folder or a hub id as adapter, got ''"),
        ((LORA / "v1" / "lora", "2"), "expected a finite number as scale"),
        ((LORA / "v1" / "lora", float("inf")), "expected a finite number as scale"),
        ((LORA / "v1" / "lora", True), "expected a finite number as scale"),
        ((LORA / "v3" / "peft_prefix", 2), "which is a prefix, got 2"),
    ],
)
def test_names_and_scales_that_make_no_sense_are_refused(adapter, message):
    refused(adapter, message, InputError)


def test_what_follows_the_last_colon_is_a_scale_where_it_is_a_number():
    assert parse_adapter("my/lora") == "my/lora"
    assert parse_adapter("my/lora:0.5") == ("my/lora", 0.5)
    assert parse_adapter("my/lora:-1e-1") == ("my/lora", -0.1)
    for text in ("my/lora:latest", "C:\\lora", "lora:nan", "lora:", "a:0x1"):
        assert parse_adapter(text) == text


def test_the_newest_of_a_trainings_checkpoints_counts(tmp_path):
    for number in (20, 100):
        shutil.copytree(LORA / "v1" / "lora", tmp_path / f"checkpoint-{number}")
    assert [source.folder.name for source in find_adapters(tmp_path)] == ["checkpoint-100"]


def test_of_a_hub_id_only_the_adapters_own_files_are_downloaded(monkeypatch, tmp_path):
    asked = []

    def download(name, allow_patterns, **options):
        asked.append((name, allow_patterns))
        return str(LORA / "v1" / "lora")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert find_adapters(("owner/name", 2))[0].folder == LORA / "v1" / "lora"
    assert asked == [("owner/name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])]


# --- prefixes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "stored", "message"),
    [
        ({"num_virtual_tokens": 4}, None, "of 4 rows in .* as num_virtual_tokens says"),
        ({"num_virtual_tokens": None}, None, "expected a number as num_virtual_tokens"),
        ({"num_transformer_submodules": 2}, None, "expected 1 as num_transformer_submodules"),
        ({}, {"prompt_embeddings": torch.zeros(8, 64)}, "expected embedding.weight of shape"),
        ({}, {"prompt_embeddings": torch.zeros(8)}, "got shape"),
        ({}, {"embeddings": torch.zeros(8, 128)}, "expected prompt_embeddings alone in .* got embeddings"),
    ],
)
def test_a_prefix_that_does_not_fit_is_refused(tmp_path, changes, stored, message):
    folder = settings(shutil.copytree(LORA / "v3" / "peft_prefix", tmp_path / "prefix"), **changes)
    if stored:
        tensors(folder, lambda _: stored)
    refused(folder, message, UserError, "3")


# --- the base -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "names", "warns"),
    [
        ("THUDM/chatglm2-6b", [], True),
        ("THUDM/chatglm3-6b", [], False),
        ("/data/models/chatglm3-6b/", ["", "my-model"], False),
        ("zai-org/chatglm3-6b-base", ["zai-org/chatglm3-6b"], True),
        ("zai-org/chatglm3-6b", ["", "/models/chatglm3-6b-int4"], False),
        ("zai-org/glm-4-9b-chat", [], True),
        ("my-model", ["zai-org/chatglm3-6b"], False),
        ("", [], False),
    ],
)
def test_an_adapter_of_another_base_is_warned_of(base, names, warns, caplog):
    config = glm_int4.load(FIXTURES / "v3_tiny", device="cpu", model_version="3").config
    caplog.clear()
    reading._warn_of_another_base("folder", base, config, names)
    assert ("was trained on" in caplog.text) == warns
