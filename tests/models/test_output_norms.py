"""GLM-4-0414's layers, which have two more norms: quantized, stored, and kept out of fused steps."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import glm_int4
from glm_int4.checkpoint.formats.converted_config import official_config
from glm_int4.errors import CheckpointError, ConfigError
from glm_int4.generation.cuda_graphs import GraphStepper
from glm_int4.generation.sampling import SamplingParams
from glm_int4.models.config_file import parse_config
from glm_int4.models.cpu_step import FusedLayers
from tests.conftest import FIXTURES
from triton_kernels import reference

TINY = FIXTURES / "glm4_0414_tiny"
RAW = json.loads((TINY / "config.json").read_text())
GREEDY = SamplingParams(temperature=0)
IDS = [141, 143, 7, 12, 33, 5, 90]


def test_the_config_tells_of_them():
    config = parse_config(official_config(RAW))
    assert (config.version, config.has_output_norms, config.rope_ratio) == ("4", True, 1)
    assert config.layer_norms[2:] == ("post_self_attn_layernorm", "post_mlp_layernorm")
    assert not parse_config(official_config(RAW | {"model_type": "glm"})).has_output_norms
    with pytest.raises(ConfigError, match=r"expected plain rotary positions in config.json, got 'yarn' scaling"):
        official_config(RAW | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}})


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_model_is_known_again_and_computes_layer_by_layer(tmp_path, bits):
    glm_int4.quantize_checkpoint(TINY, tmp_path / "out", bits=bits, group_size="channel")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["post_sublayer_norms"]) == ("chatglm", True)
    with pytest.raises(ConfigError, match="expected post_sublayer_norms true or false"):
        parse_config(config | {"post_sublayer_norms": 1})
    exact = glm_int4.load(TINY, device="cpu", dtype=torch.float32)
    glm, fast = (glm_int4.load(tmp_path / "out", device="cpu", dtype=dtype) for dtype in (torch.float32, None))
    assert glm.config == exact.config
    error = (glm.logits(IDS) - exact.logits(IDS)).norm() / exact.logits(IDS).norm()
    assert error < (0.05 if bits == 8 else 0.5)
    assert fast.generate(IDS, 8, GREEDY, stop_ids=[]) == glm.generate(IDS, 8, GREEDY, stop_ids=[])
    assert not FusedLayers.fit(fast.model.layers)
    assert not GraphStepper(fast.model, reference).fused


@pytest.mark.parametrize("name", ["post_self_attn_layernorm", "post_mlp_layernorm"])
def test_each_of_them_counts_and_none_may_be_missing(tmp_path, name):
    shutil.copytree(TINY, tmp_path / "changed")
    tensors = load_file(TINY / "model.safetensors")
    stored = f"model.layers.1.{name}.weight"
    save_file(tensors | {stored: 2 * tensors[stored]}, tmp_path / "changed" / "model.safetensors")
    before, after = (glm_int4.load(f, device="cpu", dtype=torch.float32) for f in (TINY, tmp_path / "changed"))
    assert not torch.allclose(before.logits(IDS), after.logits(IDS), atol=1e-3)
    save_file(
        {key: value for key, value in tensors.items() if key != stored}, tmp_path / "changed" / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match=f"missing transformer.encoder.layers.1.{name}.weight"):
        glm_int4.load(tmp_path / "changed", device="cpu")
