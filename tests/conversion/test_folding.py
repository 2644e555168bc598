"""Outlier channels between norm and matrix: found, moved without changing the function, and harmless then."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import glm_int4
from glm_int4.checkpoint.opening import open_checkpoint
from glm_int4.conversion.folding import find_folding
from glm_int4.generation.scoring import measure
from tests.conftest import TINY

CHANNELS, FACTOR = [5, 77], 32.0
TEXT = "the weather price 12 world 你好 tool call python"


def load(folder):
    return glm_int4.load(folder, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def with_outliers(small_checkpoints, tmp_path_factory):
    """ChatGLM2 with two channels 32 times as large behind every norm, and weights 32 times as small."""
    source, folder = small_checkpoints["2"], tmp_path_factory.mktemp("outliers") / "model"
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if "layernorm.weight" in name:
            tensor.abs_().add_(1)
            tensor[CHANNELS] *= FACTOR
        elif name.endswith(("query_key_value.weight", "dense_h_to_4h.weight", "output_layer.weight")):
            tensor[:, CHANNELS] /= FACTOR
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_the_channels_are_found_and_nothing_else(with_outliers, small_checkpoints):
    reader, info = open_checkpoint(with_outliers)
    schemes = dict.fromkeys(info.schemes, "any")
    folding = find_folding(reader, info.config, schemes)
    assert len(folding.columns) == 2 * info.config.num_layers + 1
    for factors in folding.columns.values():
        assert (factors != 1).nonzero().flatten().tolist() == CHANNELS
        assert set(factors[CHANNELS].tolist()) <= {16.0, 32.0, 64.0}
    assert not find_folding(reader, info.config, info.schemes).columns, "matrices that stay as they are keep their norm"
    for folder in (small_checkpoints["3"], TINY):
        reader, info = open_checkpoint(folder)
        assert not find_folding(reader, info.config, dict.fromkeys(info.schemes, "any")).columns


@pytest.mark.parametrize("method", ["rtn", "hqq", "gptq", "mixed", "int8"])
def test_outliers_cost_hardly_more_than_none(with_outliers, tmp_path, monkeypatch, method):
    text = tmp_path / "text.txt"
    text.write_text("你好 world the weather price 12 " * 60, encoding="utf-8")
    options = {"method": method, "calibration": text} if method == "gptq" else {"method": method}
    if method == "mixed":
        options = {"target_bits": 6}
    if method == "int8":
        options = {"bits": 8}
    glm_int4.quantize_checkpoint(with_outliers, tmp_path / "folded", **options)
    monkeypatch.setattr("glm_int4.conversion.folding._LEAST_FACTOR", 1e9)
    glm_int4.quantize_checkpoint(with_outliers, tmp_path / "plain", **options)
    reference = load(with_outliers)
    folded, plain = (measure(load(tmp_path / name), TEXT, reference=reference).kl for name in ("folded", "plain"))
    assert folded < 0.8 * plain


def test_gains_keep_their_type_and_norms_without_outliers_their_bits(with_outliers, tmp_path):
    glm_int4.quantize_checkpoint(with_outliers, tmp_path / "out", head_bits=16)
    before = load_file(with_outliers / "model.safetensors")
    after = load_file(tmp_path / "out" / "model-00001-of-00001.safetensors")
    for name, gain in before.items():
        if not name.endswith("layernorm.weight"):
            continue
        assert after[name].dtype == gain.dtype
        same = after[name] == gain
        moved = [] if "final" in name else CHANNELS  # the head is unquantized here
        assert (~same).nonzero().flatten().tolist() == moved
    official = glm_int4.quantize_checkpoint(with_outliers, tmp_path / "official", format="official")
    assert official.method == "official"
    stored = load_file(tmp_path / "official" / "model-00001-of-00001.safetensors")
    assert all(torch.equal(stored[name], gain) for name, gain in before.items() if name.endswith("layernorm.weight"))
