"""Checkpoints for vLLM: what its ChatGLM loader and its compressed-tensors kernels take.

The names, shapes and keys are those of vLLM's models/chatglm.py and configs/chatglm.py: parameters under the
official names, packed weights unpacked by compressed-tensors' WNA16 scheme, everything else in half precision.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import glm_int4
from glm_int4.errors import InputError
from glm_int4.text import load_tokenizer
from tests.conftest import FIXTURES

# Keys of config.json that vLLM's model reads without a default of its own that fits.
CONFIG_KEYS = {
    "num_layers", "padded_vocab_size", "hidden_size", "ffn_hidden_size", "kv_channels", "num_attention_heads",
    "seq_length", "layernorm_epsilon", "rmsnorm", "apply_residual_connection_post_layernorm", "post_layer_norm",
    "add_bias_linear", "add_qkv_bias", "multi_query_attention", "multi_query_group_num", "original_rope",
    "architectures", "model_type",
}  # fmt: skip


@pytest.fixture(scope="module", params=["2", "3"])
def written(request, small_checkpoints, tmp_path_factory):
    """A checkpoint with a tokenizer, written for vLLM."""
    out = tmp_path_factory.mktemp("vllm") / request.param
    glm_int4.quantize_checkpoint(small_checkpoints[request.param], out, vllm=True, model_version=request.param)
    return request.param, out


def tensors_of(folder):
    tensors = {}
    for shard in folder.glob("*.safetensors"):
        tensors |= load_file(shard)
    return tensors


def test_every_tensor_has_the_name_shape_and_dtype_that_vllm_takes(written):
    _, folder = written
    config = json.loads((folder / "config.json").read_text())
    hidden, ffn, vocab = config["hidden_size"], config["ffn_hidden_size"], config["padded_vocab_size"]
    qkv = (config["num_attention_heads"] + 2 * config["multi_query_group_num"]) * config["kv_channels"]
    expected = {
        "transformer.embedding.word_embeddings.weight": ((vocab, hidden), torch.float16),
        "transformer.encoder.final_layernorm.weight": ((hidden,), torch.float16),
        "transformer.output_layer.weight": ((vocab, hidden), torch.float16),
    }
    shapes = {
        "self_attention.query_key_value": (qkv, hidden),
        "self_attention.dense": (hidden, hidden),
        "mlp.dense_h_to_4h": (2 * ffn, hidden),
        "mlp.dense_4h_to_h": (hidden, ffn),
    }
    for i in range(config["num_layers"]):
        prefix = f"transformer.encoder.layers.{i}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            expected[f"{prefix}.{norm}.weight"] = ((hidden,), torch.float16)
        expected[f"{prefix}.self_attention.query_key_value.bias"] = ((qkv,), torch.float16)
        for name, (n, k) in shapes.items():
            expected[f"{prefix}.{name}.weight_packed"] = ((n, k // 8), torch.int32)
            expected[f"{prefix}.{name}.weight_scale"] = ((n, k // 128), torch.float16)
            expected[f"{prefix}.{name}.weight_shape"] = ((2,), torch.int64)
    found = {name: (tuple(t.shape), t.dtype) for name, t in tensors_of(folder).items()}
    assert found == expected


def test_the_config_says_what_vllm_reads(written):
    _, folder = written
    config = json.loads((folder / "config.json").read_text())
    assert config.keys() >= CONFIG_KEYS
    quantization = config["quantization_config"]
    assert (quantization["quant_method"], quantization["format"]) == ("compressed-tensors", "pack-quantized")
    assert quantization["ignore"] == ["transformer.output_layer"]
    (group,) = quantization["config_groups"].values()
    assert group["targets"] == ["Linear"]
    weights = group["weights"]
    assert (weights["num_bits"], weights["symmetric"], weights["strategy"], weights["group_size"]) == (
        4, True, "group", 128
    )  # fmt: skip


def test_transformers_reads_the_tokenizer_and_gives_the_same_ids(written):
    from transformers import AutoTokenizer

    version, folder = written
    ours, theirs = load_tokenizer(folder, version), AutoTokenizer.from_pretrained(folder)
    for text in ("你好", "Hello world", "the weather 12 345\n  tool_call", "<|user|> sop [gMASK]", "😀"):
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)
        assert theirs.encode(text) == ours.encode_prompt(text)


def test_our_engine_reads_it_too(written):
    version, folder = written
    engine = glm_int4.load(folder, device="cpu", model_version=version)
    assert len(engine.chat([{"role": "user", "content": "你好"}], max_new_tokens=3)) >= 0
    assert engine.info.linear_scheme.symmetric


def test_a_folder_without_a_tokenizer_is_warned_of(tmp_path, caplog):
    glm_int4.quantize_checkpoint(FIXTURES / "v2_tiny", tmp_path / "out", vllm=True, group_size="channel")
    assert "no tokenizer.json is written" in caplog.text


def test_the_positions_of_chatglm2_32k_are_not_what_vllm_computes(tmp_path):
    shutil.copytree(FIXTURES / "v2_tiny", tmp_path / "long")
    config = json.loads((tmp_path / "long" / "config.json").read_text()) | {"rope_ratio": 16}
    (tmp_path / "long" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="which divides positions by 16"):
        glm_int4.quantize_checkpoint(tmp_path / "long", tmp_path / "out", vllm=True, group_size="channel")
