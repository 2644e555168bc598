"""The configs of the official models, for models that are made without their files.

What their ``config.json`` says, less the keys that no reader of it looks at.
"""

from typing import Any

_V2 = {
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "architectures": ["ChatGLMModel"],
    "attention_softmax_in_fp32": True,
    "eos_token_id": 2,
    "ffn_hidden_size": 13696,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 1e-05,
    "model_type": "chatglm",
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_layers": 28,
    "original_rope": True,
    "pad_token_id": 0,
    "padded_vocab_size": 65024,
    "post_layer_norm": True,
    "rmsnorm": True,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "chatglm-6b": {
        "_name_or_path": "chatglm-6b-random",
        "architectures": ["ChatGLMModel"],
        "bos_token_id": 130004,
        "eos_token_id": 130005,
        "gmask_token_id": 130001,
        "hidden_size": 4096,
        "inner_hidden_size": 16384,
        "layernorm_epsilon": 1e-05,
        "mask_token_id": 130000,
        "max_sequence_length": 2048,
        "model_type": "chatglm",
        "num_attention_heads": 32,
        "num_layers": 28,
        "pad_token_id": 3,
        "position_encoding_2d": True,
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": 130528,
    },
    "chatglm2-6b": {"_name_or_path": "chatglm2-6b-random", "seq_length": 32768} | _V2,
    "chatglm3-6b": {"_name_or_path": "chatglm3-6b-random", "seq_length": 8192} | _V2,
    "glm-4-9b": _V2
    | {
        "_name_or_path": "glm-4-9b-chat-random",
        "eos_token_id": [151329, 151336, 151338],
        "layernorm_epsilon": 1.5625e-07,
        "num_layers": 40,
        "pad_token_id": 151329,
        "padded_vocab_size": 151552,
        "rope_ratio": 500,
        "seq_length": 131072,
        "torch_dtype": "bfloat16",
    },
}
