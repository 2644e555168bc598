"""Configs of converted checkpoints (``-hf``), whose keys are transformers': turned into the official keys.

Everything behind this reads the official keys alone; so does what is written.
"""

from collections.abc import Mapping
from typing import Any

from glm_int4.downloads import shown
from glm_int4.errors import ConfigError
from glm_int4.models.config_file import OUTPUT_NORMS_KEY
from glm_int4.versions import CONVERTED_FROM, CONVERTED_TYPES

# Official key to transformers' key.
_KEYS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "multi_query_group_num": "num_key_value_heads",
    "kv_channels": "head_dim",
    "ffn_hidden_size": "intermediate_size",
    "padded_vocab_size": "vocab_size",
    "seq_length": "max_position_embeddings",
    "layernorm_epsilon": "rms_norm_eps",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
_KEPT = ("_name_or_path", "bos_token_id", "quantization_config", "torch_dtype", "dtype", "use_cache")
# What transformers' key must be, if it is there; another value would be another network.
_FIXED: dict[str, Any] = {"attention_bias": True, "hidden_act": "silu", "tie_word_embeddings": False}
_OFFICIAL = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_residual_connection_post_layernorm": False,
    "multi_query_attention": True,
    "original_rope": True,
    "post_layer_norm": True,
    "rmsnorm": True,
    "tie_word_embeddings": False,
}
_WITH_OUTPUT_NORMS = "glm4"  # GLM-4-0414 and GLM-Z1
_BASE, _ROTATED = 10000.0, 0.5


def is_converted(raw: Mapping[str, Any]) -> bool:
    """Whether a parsed ``config.json`` has transformers' keys."""
    return raw.get("model_type") in CONVERTED_TYPES


def official_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A parsed ``config.json`` with the official keys; one that has them is returned as it is.

    Raises:
        ConfigError: a value that no published model has.
    """
    if not is_converted(raw):
        return dict(raw)
    for key, fixed in _FIXED.items():
        if raw.get(key, fixed) != fixed:
            raise ConfigError(
                f"expected {key} {str(fixed).lower()} in config.json, as in every converted GLM-4-9B, got "
                f"{shown(raw[key])}; take the file from the official repository"
            )
    keys = {official: raw[key] for official, key in _KEYS.items() if raw.get(key) is not None}
    kept = {key: raw[key] for key in _KEPT if raw.get(key) is not None}
    made = {CONVERTED_FROM: raw["model_type"], "rope_ratio": _ratio(raw)}
    if raw["model_type"] == _WITH_OUTPUT_NORMS:
        made[OUTPUT_NORMS_KEY] = True
    return _OFFICIAL | keys | kept | made


def _ratio(raw: Mapping[str, Any]) -> float:
    """By how much the rotary base is larger than the first models'."""
    rope: dict[str, Any] = {key: raw.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    for key in ("rope_scaling", "rope_parameters"):
        given = raw.get(key)
        if given is not None and not isinstance(given, Mapping):
            raise ConfigError(f"expected {key} in config.json to be an object, got {shown(given)}")
        rope |= {name: value for name, value in (given or {}).items() if value is not None}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ConfigError(
            f"expected plain rotary positions in config.json, got {shown(kind)} scaling; leave rope_scaling out: the "
            "model then has the context that it was trained for"
        )
    theta, rotated = rope["rope_theta"], rope["partial_rotary_factor"]
    if rotated not in (None, _ROTATED):
        raise ConfigError(f"expected partial_rotary_factor {_ROTATED} in config.json, got {shown(rotated)}")
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not theta >= _BASE:
        raise ConfigError(f"expected rope_theta in config.json to be a number of {_BASE:g} or more, got {shown(theta)}")
    ratio = theta / _BASE
    return int(ratio) if ratio == int(ratio) else ratio
