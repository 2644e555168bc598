"""GLM-4 quantized: the same bytes from both layouts, and bfloat16 weights that float16 does not hold."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import glm_int4
from glm_int4.errors import InputError
from glm_int4.generation.sampling import SamplingParams
from tests.conftest import FIXTURES

TINY = FIXTURES / "glm4_tiny"
GREEDY = SamplingParams(temperature=0)
WAYS = {
    "int4": {"bits": 4, "group_size": "channel"},
    "int8": {"bits": 8},
    "hqq": {"bits": 4, "group_size": "channel", "method": "hqq"},
    "official": {"bits": 4, "format": "official"},
    "fp16 head": {"bits": 4, "group_size": "channel", "head_bits": 16},
}


def shards(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["glm4_tiny", "glm4_tiny_1m"])
def test_both_layouts_give_the_same_bytes(tmp_path, name, way):
    for layout in ("", "hf"):
        glm_int4.quantize_checkpoint(FIXTURES / name / layout, tmp_path / f"out{layout}", **WAYS[way])
    if way == "official":  # which copies what else there is: the official layout's inverse frequencies
        ours, theirs = (load_file(next((tmp_path / out).glob("*.safetensors"))) for out in ("outhf", "out"))
        theirs.pop("transformer.rotary_pos_emb.inv_freq")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    else:
        assert shards(tmp_path / "outhf") == shards(tmp_path / "out") != {}
    engines = [glm_int4.load(tmp_path / out, device="cpu", dtype=torch.float32) for out in ("out", "outhf")]
    ids = [141, 143, 7, 12, 33, 5, 90]
    assert [engine.config.version for engine in engines] == ["4", "4"]
    assert torch.equal(engines[0].logits(ids), engines[1].logits(ids))
    assert engines[0].stop_ids == engines[1].stop_ids == (139, 146, 148)


def test_a_converted_config_is_written_with_the_official_keys(tmp_path):
    glm_int4.quantize_checkpoint(TINY / "hf", tmp_path / "out", bits=8)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["num_layers"], config["rope_ratio"]) == ("chatglm", 2, 500)
    assert config["eos_token_id"] == [139, 146, 148]
    assert config["converted_from"] == "glm"
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert "rope_theta" not in config


def test_what_vllm_would_lack_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected ChatGLM2-6B or ChatGLM3-6B with --vllm, got GLM-4-9B"):
        glm_int4.quantize_checkpoint(TINY, tmp_path / "out", bits=4, group_size="channel", vllm=True)


@pytest.mark.parametrize("way", ["int8", "int4"])
def test_quantized_models_stay_near_the_half_precision_one(small_glm4, tmp_path, way):
    glm_int4.quantize_checkpoint(small_glm4, tmp_path / way, bits=int(way[-1]))
    exact = glm_int4.load(small_glm4, device="cpu", dtype=torch.float32)
    for options in ({"dtype": torch.float32}, {}, {"kv_bits": 8}):
        glm = glm_int4.load(tmp_path / way, device="cpu", **options)
        ids = glm.tokenizer.encode_prompt("你好 world 12 345 the weather")
        error = (glm.logits(ids) - exact.logits(ids)).norm() / exact.logits(ids).norm()
        assert error < (0.05 if way == "int8" else 0.5)
        assert len(glm.generate(ids, 8, GREEDY, stop_ids=[])) == 8
    assert glm.chat([{"role": "user", "content": "你好"}], 4, GREEDY) is not None


@pytest.mark.parametrize("way", ["int4", "int8", "hqq", "official"])
def test_weights_that_float16_does_not_hold_survive(tmp_path, way):
    shutil.copytree(TINY, tmp_path / "large")
    tensors = load_file(TINY / "model.safetensors")
    name = "transformer.encoder.layers.0.mlp.dense_4h_to_h.weight"
    tensors[name][3] = torch.linspace(-1e5, 1e5, 176).bfloat16()
    tensors["transformer.encoder.final_layernorm.weight"][0] = 1e5
    save_file(tensors, tmp_path / "large" / "model.safetensors")
    glm_int4.quantize_checkpoint(tmp_path / "large", tmp_path / "out", **WAYS[way])
    glm = glm_int4.load(tmp_path / "out", device="cpu", dtype=torch.float32)
    row = glm.model.layers[0].mlp.dense_4h_to_h.matrix.dequantize(slice(3, 4))[0].float()
    assert (row - tensors[name][3].float()).abs().max() < 1e5 / (4 if "8" not in way else 100)
    assert glm.model.norm.weight[0] == tensors["transformer.encoder.final_layernorm.weight"][0]
