"""Converted checkpoints (-hf): the official code's figures from transformers' names and keys."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import glm_int4
from glm_int4.checkpoint.files.reader import CheckpointReader
from glm_int4.checkpoint.formats.converted_config import official_config
from glm_int4.checkpoint.opening import open_checkpoint
from glm_int4.errors import CheckpointError, ConfigError
from glm_int4.generation.sampling import SamplingParams
from glm_int4.models.config_file import parse_config
from tests.conftest import FIXTURES
from tests.tolerances import ORACLE_ABSOLUTE

TINY = FIXTURES / "glm4_tiny"
RAW = json.loads((TINY / "hf" / "config.json").read_text())
QKV = "transformer.encoder.layers.1.self_attention.query_key_value"


@pytest.fixture
def edited(tmp_path):
    """A copy of the converted tiny model whose tensors a test changes."""

    def edit(change):
        folder = tmp_path / "hf"
        shutil.copytree(TINY / "hf", folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        return folder

    return edit


@pytest.mark.parametrize("name", ["glm4_tiny", "glm4_tiny_1m"])
def test_logits_and_greedy_tokens_are_the_official_ones(name):
    glm = glm_int4.load(FIXTURES / name / "hf", device="cpu", dtype=torch.float32)
    official = glm_int4.load(FIXTURES / name, device="cpu", dtype=torch.float32)
    cases = load_file(FIXTURES / name / "cases.safetensors")
    for case in ("prompt", "short", "long", "chat"):
        ids = cases[f"{case}.input_ids"][0].tolist()
        assert torch.equal(glm.logits(ids), official.logits(ids))
        torch.testing.assert_close(glm.logits(ids), cases[f"{case}.logits"], atol=ORACLE_ABSOLUTE, rtol=0)
        greedy = cases[f"{case}.greedy"][0].tolist()
        assert glm.generate(ids, len(greedy), SamplingParams(temperature=0), stop_ids=[]) == greedy


def test_rows_are_joined_when_they_are_read_and_never_kept():
    reader, info = open_checkpoint(TINY / "hf")
    assert info.version_from == "the model_type glm in config.json"
    assert (info.config.version, info.config.rope_ratio, info.config.stop_token_ids) == ("4", 500, (139, 146, 148))
    official, stored = load_file(TINY / "model.safetensors"), CheckpointReader(TINY)
    names = {name for name in stored if not name.endswith("inv_freq")}
    assert set(reader) == names
    for name in names:
        assert torch.equal(reader[name], official[name])
        assert reader.spec(name) == stored.spec(name)
    assert reader[f"{QKV}.weight"].data_ptr() != reader[f"{QKV}.weight"].data_ptr()
    one = "transformer.embedding.word_embeddings.weight"
    assert reader[one].data_ptr() == reader[one].data_ptr()  # a single part is not copied
    for start in range(0, len(official[f"{QKV}.weight"]), 5):
        rows = slice(start, start + 5)
        assert torch.equal(reader.rows(f"{QKV}.weight", rows), official[f"{QKV}.weight"][rows])
    assert "model.layers.1.self_attn.q_proj.weight" not in reader
    reader.release(f"{QKV}.weight", slice(0, 3))
    assert torch.equal(reader[f"{QKV}.weight"], official[f"{QKV}.weight"])


def test_a_tensor_that_is_missing_is_named(edited):
    folder = edited(lambda tensors: tensors.pop("model.layers.1.self_attn.k_proj.weight"))
    with pytest.raises(CheckpointError, match=rf"missing {QKV}.weight; extra model.layers.1.self_attn.q_proj.weight"):
        open_checkpoint(folder)


def test_rows_that_do_not_fit_together_are_named(edited):
    name = "model.layers.0.self_attn.v_proj.weight"
    folder = edited(lambda tensors: tensors.update({name: tensors[name].float()}))
    with pytest.raises(CheckpointError, match=f"expected rows of the same length and dtype in .*{name}"):
        open_checkpoint(folder)


def test_a_matrix_of_another_size_is_named(edited):
    name = "model.layers.0.self_attn.v_proj.weight"
    folder = edited(lambda tensors: tensors.update({name: tensors[name][:16].clone()}))
    with pytest.raises(CheckpointError, match=r"query_key_value.weight \(112, 64\) instead of \(128, 64\)"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "ratio"),
    [
        ({"rope_theta": 10000.0}, 1),
        ({"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e6}}, 500),
        ({"rope_scaling": {"type": "default"}}, 500),
        ({"partial_rotary_factor": None, "rope_parameters": {"partial_rotary_factor": 0.5}}, 500),
    ],
)
def test_the_rotary_base_is_found_where_transformers_writes_it(changes, ratio):
    assert parse_config(official_config(RAW | changes)).rope_ratio == ratio


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "got 'yarn' scaling; leave rope_scaling out"),
        ({"rope_scaling": {"type": "linear"}}, "got 'linear' scaling"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "got 'yarn' scaling"),
        ({"rope_scaling": "yarn"}, "expected rope_scaling in config.json to be an object"),
        ({"partial_rotary_factor": 1.0}, "expected partial_rotary_factor 0.5"),
        ({"rope_theta": 1000.0}, "expected rope_theta in config.json to be a number of 10000 or more"),
        ({"rope_theta": None}, "expected rope_theta in config.json to be a number"),
        ({"rope_theta": "5e6"}, "expected rope_theta in config.json to be a number"),
        ({"hidden_act": "gelu"}, "expected hidden_act silu"),
        ({"attention_bias": False}, "expected attention_bias true"),
        ({"tie_word_embeddings": True}, "expected tie_word_embeddings false"),
        ({"num_hidden_layers": None}, "the key num_layers"),
    ],
)
def test_values_that_no_published_model_has_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(official_config(RAW | changes))


def test_the_official_keys_say_the_same_as_the_official_config():
    official = json.loads((TINY / "config.json").read_text())
    for key, value in official_config(RAW).items():
        assert official.get(key, value) == value
    assert parse_config(official_config(RAW)) == parse_config(official)
