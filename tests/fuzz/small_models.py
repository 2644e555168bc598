"""Small checkpoints and tokenizers of every version, the same on every run."""

import json

import torch
from safetensors.torch import save

import glm_int4
from glm_int4.checkpoint.formats import layout
from glm_int4.models.config_file import parse_config
from tests.conftest import MINI, train_bpe

CONFIG = {
    "architectures": ["ChatGLMModel"], "model_type": "chatglm", "position_encoding_2d": True, "num_layers": 1,
    "hidden_size": 16, "inner_hidden_size": 32, "num_attention_heads": 2, "vocab_size": 352, "layernorm_epsilon": 1e-5,
    "max_sequence_length": 64, "bos_token_id": 8, "eos_token_id": 9, "mask_token_id": 4, "gmask_token_id": 5,
    "pad_token_id": 3, "torch_dtype": "float16",
}  # fmt: skip


CONFIG_V2 = {
    "architectures": ["ChatGLMModel"], "model_type": "chatglm", "num_layers": 1, "padded_vocab_size": 416,
    "hidden_size": 16, "ffn_hidden_size": 32, "kv_channels": 8, "num_attention_heads": 2, "seq_length": 64,
    "layernorm_epsilon": 1e-5, "rmsnorm": True, "apply_residual_connection_post_layernorm": False,
    "post_layer_norm": True, "add_bias_linear": False, "add_qkv_bias": True, "multi_query_attention": True,
    "multi_query_group_num": 1, "original_rope": True, "eos_token_id": 2, "pad_token_id": 0,
    "tie_word_embeddings": False, "torch_dtype": "float16",
}  # fmt: skip


def random_tensors(raw_config):
    """Tensors that a config describes, the same on every run."""
    config = parse_config(raw_config)
    shapes = layout.vectors(config)
    for name, matrix in layout.matrices(config).items():
        shapes[f"{name}.weight"] = (matrix.out_features, matrix.in_features)
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator).half() for name, shape in shapes.items()}


def write_folder(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def small_engine(folder, version, max_length):
    """A model of version "1" or "3" with its tokenizer, on the exact path."""
    if version == "1":
        raw = CONFIG | {"max_sequence_length": max_length}
        files = {"ice_text.model": small_tokenizer(False), "tokenizer_config.json": b'{"num_image_tokens": 0}'}
    else:
        raw = CONFIG_V2 | {"seq_length": max_length, "_name_or_path": "chatglm3-6b"}
        files = {"tokenizer.model": bpe_tokenizer(folder)}
    files |= {"config.json": json.dumps(raw).encode(), "model.safetensors": save(random_tensors(raw))}
    write_folder(folder, files)
    return glm_int4.load(folder, device="cpu", dtype=torch.float32)


def bpe_tokenizer(work):
    """The bytes of a ``tokenizer.model`` of 400 pieces."""
    work.mkdir(parents=True, exist_ok=True)
    return train_bpe(work / "trained.model").read_bytes()


def small_tokenizer(with_normalizer):
    """The mini model's tokenizer with its first pieces and the bytes; its normalizer's table has 240 KB."""
    data = (MINI / "ice_text.model").read_bytes()
    out, position, num_pieces = b"", 0, 0
    while position < len(data):
        start = position
        tag, position = varint(data, position)
        size, position = varint(data, position)
        assert tag & 7 == 2, "every top-level field of the message has a length"
        position += size
        num_pieces += tag >> 3 == 1
        is_piece, is_normalizer = tag >> 3 == 1, tag >> 3 == 3
        wanted = (
            num_pieces <= 300 or b"<0x" in data[start:position] if is_piece else with_normalizer or not is_normalizer
        )
        if wanted:
            out += data[start:position]
    return out


def varint(data, position):
    value = shift = 0
    while True:
        value |= (data[position] & 127) << shift
        shift, position = shift + 7, position + 1
        if data[position - 1] < 128:
            return value, position
