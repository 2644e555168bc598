"""Reading ``config.json``: which ChatGLM it describes, and whether its values make sense.

The official Python classes' defaults differ from the published JSON files, so nothing is taken
from a default that shapes a tensor: such a key must stand in the file.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glm_int4.downloads import shown
from glm_int4.errors import ConfigError
from glm_int4.models.config import ChatGLM2Config, ChatGLMConfig, Config, GLM4Config
from glm_int4.versions import EARLIER_VOCAB_SIZE, GLM4_VOCAB_SIZE, later_version

VERSIONS = ("1", "2", "3", "4")

logger = logging.getLogger(__name__)

# Keys that only one generation's config carries; all of them say model_type "chatglm".
_V1_KEYS = ("position_encoding_2d", "inner_hidden_size")
_V2_KEYS = ("ffn_hidden_size", "multi_query_group_num", "padded_vocab_size")

# What ChatGLM2, ChatGLM3 and GLM-4 share; another value would be another network.
_V2_FIXED = {
    "rmsnorm": True,
    "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False,
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "multi_query_attention": True,
    "tie_word_embeddings": False,
}
OUTPUT_NORMS_KEY = "post_sublayer_norms"  # our own, for GLM-4-0414, which has no official layout
_VERSIONS_OF_VOCABULARIES = {EARLIER_VOCAB_SIZE: ("2", "3"), GLM4_VOCAB_SIZE: ("4",)}
_V3_PLAIN_LENGTH = 8192  # tokens that ChatGLM3-6B was made for; with more, the rotary base grows

# Relatives by their model_type.
_OTHER_MODELS = {
    "glm4_moe": "GLM-4.5 or a later mixture of experts (model_type glm4_moe)",
    "glm4_moe_lite": "a mixture of experts (model_type glm4_moe_lite)",
    "glm4v": "GLM-4V, which reads images (model_type glm4v)",
    "glm4v_moe": "GLM-4V, which reads images (model_type glm4v_moe)",
}

# Before mask_token_id and gmask_token_id were written to the file, the class supplied them; the
# values belong to the first vocabulary (defaults of the official ChatGLMConfig class).
_OLD_VOCAB_SIZE = 150528
_OLD_MASK_ID, _OLD_GMASK_ID = 150000, 150001


def detect_version(
    raw: Mapping[str, Any], tokenizer_config: Mapping[str, Any] | None = None, folder: Path | None = None
) -> tuple[str, str]:
    """Tell the ChatGLM generation of a parsed ``config.json``.

    Args:
        raw: the JSON object.
        tokenizer_config: that of ``tokenizer_config.json``, which can tell 4 and 3 from 2.
        folder: where they lie; its other files can tell too.
    Returns:
        The version ("1", "2", "3" or "4") and what decided.
    Raises:
        ConfigError: another model type, or no key that tells.
    """
    model_type = raw.get("model_type")
    if name := _OTHER_MODELS.get(model_type) if isinstance(model_type, str) else None:
        raise ConfigError(f"expected a ChatGLM or GLM-4-9B checkpoint, got {name}, which this release does not run")
    if model_type != "chatglm":
        raise ConfigError(
            f'expected model_type "chatglm" in config.json, got {shown(model_type)}; this is not a ChatGLM checkpoint'
        )
    if raw.get("vision_config"):
        raise ConfigError(
            "expected a ChatGLM or GLM-4-9B checkpoint, got GLM-4V (vision_config in config.json), which reads images "
            "and which this release does not run"
        )
    for key in _V1_KEYS:
        if key in raw:
            return "1", key
    for key in _V2_KEYS:
        if key in raw:
            return later_version(raw, tokenizer_config or {}, folder)
    raise ConfigError(
        f"expected one of the keys {', '.join(_V1_KEYS + _V2_KEYS)} in config.json, got none; "
        "take config.json from the official repository"
    )


def is_base_model(raw: Mapping[str, Any]) -> bool:
    """Whether a model calls itself a base model: it continues texts and was not trained to answer."""
    name = str(raw.get("_name_or_path") or "").lower()
    name = name.rstrip("/")
    return name.endswith(("-base", "glm-4-9b", "glm-4-9b-hf")) or "-base-" in name or "codegeex2" in name


def parse_config(
    raw: Mapping[str, Any],
    model_version: str = "auto",
    tokenizer_config: Mapping[str, Any] | None = None,
    folder: Path | None = None,
) -> Config:
    """Turn a parsed ``config.json`` into a checked config.

    Args:
        raw: the JSON object.
        model_version: "auto", "1", "2", "3" or "4"; an explicit value overrides detection.
        tokenizer_config, folder: as in ``detect_version``.
    Raises:
        ConfigError: a key is missing, mis-typed, contradictory, or the model is another one.
    """
    if model_version not in ("auto", *VERSIONS):
        raise ConfigError(f"expected model_version auto, 1, 2, 3 or 4, got {model_version!r}")
    version, decided_by = detect_version(raw, tokenizer_config, folder)
    if model_version != "auto" and (model_version == "1") != (version == "1"):
        raise ConfigError(
            f"expected the keys of version {model_version} in config.json, got those of version {version} "
            f"({decided_by}); leave the model version out"
        )
    if model_version != "auto":
        version, decided_by = model_version, "the caller"
    logger.info("ChatGLM version %s, decided by %s", version, decided_by)
    for key in ("quantization_embeddings", "prefix_projection"):
        if raw.get(key) not in (None, 0, 1):  # False and True are 0 and 1
            raise ConfigError(f"expected {key} true or false in config.json, got {shown(raw[key])}")
    return _parse_v1(raw) if version == "1" else _parse_v2(raw, version)


def _parse_v2(raw: Mapping[str, Any], version: str) -> ChatGLM2Config:
    for key, fixed in _V2_FIXED.items():
        if raw.get(key, fixed if key == "tie_word_embeddings" else None) is not fixed:
            raise ConfigError(
                f"expected {key} {str(fixed).lower()} in config.json, as in every ChatGLM2-6B, ChatGLM3-6B and "
                f"GLM-4-9B, got {shown(raw.get(key))}; take the file from the official repository"
            )
    vocab_size = _integer(raw, "padded_vocab_size", high=2**24)
    if version not in (versions := _VERSIONS_OF_VOCABULARIES.get(vocab_size, (version,))):
        raise ConfigError(
            f"expected the vocabulary of version {version} in config.json, got that of {' and '.join(versions)} "
            f"(padded_vocab_size {vocab_size}); leave the model version out"
        )
    sizes: dict[str, Any] = dict(
        num_layers=_integer(raw, "num_layers", high=1000),
        hidden_size=_integer(raw, "hidden_size", high=2**17),
        num_heads=_integer(raw, "num_attention_heads", high=2**10),
        num_kv_heads=_integer(raw, "multi_query_group_num", high=2**10),
        head_dim=_integer(raw, "kv_channels", high=2**10),
        ffn_size=_integer(raw, "ffn_hidden_size", high=2**20),
        vocab_size=vocab_size,
        max_sequence_length=_integer(raw, "seq_length", high=2**20),
        layernorm_epsilon=_number(raw, "layernorm_epsilon"),
        eos_token_id=_token_id(raw, "eos_token_id"),
        pad_token_id=_token_id(raw, "pad_token_id", default=0),
        rope_ratio=_rope_ratio(raw, version),
    )
    config = (
        GLM4Config(**sizes, stop_token_ids=_stop_ids(raw), has_output_norms=_flag(raw, OUTPUT_NORMS_KEY))
        if version == "4"
        else ChatGLM2Config(version=version, **sizes)
    )
    if config.num_heads % config.num_kv_heads:
        raise ConfigError(
            f"expected multi_query_group_num to divide num_attention_heads in config.json, "
            f"got {config.num_kv_heads} for {config.num_heads} heads"
        )
    if config.num_heads * config.head_dim != config.hidden_size:
        raise ConfigError(
            "expected num_attention_heads * kv_channels to be hidden_size in config.json, "
            f"got {config.num_heads} * {config.head_dim} for {config.hidden_size}"
        )
    if config.head_dim % 4:
        raise ConfigError(f"expected kv_channels divisible by 4 in config.json, got {config.head_dim}")
    stops = (config.eos_token_id, *config.stop_token_ids)
    for key, ids in (("eos_token_id", stops), ("pad_token_id", (config.pad_token_id,))):
        if max(ids) >= vocab_size:
            raise ConfigError(f"expected {key} below padded_vocab_size {vocab_size} in config.json, got {max(ids)}")
    return config


def _rope_ratio(raw: Mapping[str, Any], version: str) -> float:
    if scaling := raw.get("rope_scaling"):
        raise ConfigError(
            f"expected rope_scaling null or absent in config.json, got {shown(scaling)}; leave it out: the model then "
            "has the context that it was trained for"
        )
    value = raw.get("rope_ratio")
    if value is None:
        name, length = str(raw.get("_name_or_path") or ""), raw.get("seq_length")
        if "32k" in name.lower():
            raise ConfigError(
                f"expected rope_ratio in config.json of a 32k model ({shown(name)}), got none; "
                "take the file from its official repository (16 for chatglm2-6b-32k, 50 for chatglm3-6b-32k)"
            )
        if version == "3" and isinstance(length, int) and length > _V3_PLAIN_LENGTH:
            logger.warning(
                "config.json has seq_length %s and no rope_ratio; if this is chatglm3-6b-32k, its answers will be "
                "nonsense: take the file from its official repository",
                shown(length),
            )
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 1e4:
        raise ConfigError(f"expected rope_ratio in config.json to be a number from 1 to 10000, got {shown(value)}")
    return float(value)


def _parse_v1(raw: Mapping[str, Any]) -> ChatGLMConfig:
    if raw.get("position_encoding_2d", True) is not True:
        raise ConfigError(
            f"expected position_encoding_2d true in config.json, got {shown(raw['position_encoding_2d'])}; "
            "every published ChatGLM-6B uses two-dimensional positions"
        )
    if raw.get("tie_word_embeddings", True) is not True:
        raise ConfigError(
            f"expected tie_word_embeddings true or absent in config.json, got {shown(raw['tie_word_embeddings'])}; "
            "ChatGLM-6B's head is its embedding"
        )
    vocab_size = _integer(raw, "vocab_size", high=2**24)
    old_vocab = vocab_size == _OLD_VOCAB_SIZE
    config = ChatGLMConfig(
        num_layers=_integer(raw, "num_layers", high=1000),
        hidden_size=_integer(raw, "hidden_size", high=2**17),
        num_heads=_integer(raw, "num_attention_heads", high=2**10),
        ffn_size=_integer(raw, "inner_hidden_size", high=2**20),
        vocab_size=vocab_size,
        max_sequence_length=_integer(raw, "max_sequence_length", high=2**20),
        layernorm_epsilon=_number(raw, "layernorm_epsilon"),
        bos_token_id=_integer(raw, "bos_token_id", low=0),
        eos_token_id=_token_id(raw, "eos_token_id"),
        mask_token_id=_integer(raw, "mask_token_id", low=0, default=_OLD_MASK_ID if old_vocab else None),
        gmask_token_id=_integer(raw, "gmask_token_id", low=0, default=_OLD_GMASK_ID if old_vocab else None),
        pad_token_id=_token_id(raw, "pad_token_id", default=3),
    )
    if config.hidden_size % config.num_heads:
        raise ConfigError(
            f"expected num_attention_heads to divide hidden_size in config.json, "
            f"got {config.num_heads} heads for {config.hidden_size}"
        )
    if config.head_dim % 4:
        raise ConfigError(
            "expected a head size (hidden_size / num_attention_heads) divisible by 4 for two-dimensional "
            f"rotary positions, got {config.head_dim}; check config.json"
        )
    for key in ("bos_token_id", "eos_token_id", "mask_token_id", "gmask_token_id", "pad_token_id"):
        if getattr(config, key) >= vocab_size:
            raise ConfigError(
                f"expected {key} below vocab_size {vocab_size} in config.json, got {getattr(config, key)}"
            )
    return config


def _integer(
    raw: Mapping[str, Any], key: str, *, low: int = 1, high: int = 2**31 - 1, default: int | None = None
) -> int:
    value = raw.get(key)
    if value is None:
        if default is not None:
            return default
        raise ConfigError(
            f"expected the key {key} in config.json, got none; take the file from the official repository"
        )
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"expected {key} in config.json to be an integer from {low} to {high}, got {shown(value)}")
    return value


def _token_id(raw: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A token's id; of a list, as newer files have it, the first: version 3's other stop tokens are its roles."""
    value = raw.get(key)
    first = {key: value[0]} if isinstance(value, list) and value else raw
    return _integer(first, key, low=0, default=default)


def _flag(raw: Mapping[str, Any], key: str) -> bool:
    value = raw.get(key, False)
    if not isinstance(value, bool):
        raise ConfigError(f"expected {key} true or false in config.json, got {shown(value)}")
    return value


def _stop_ids(raw: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids of a list under eos_token_id; none where there is no list."""
    value = raw.get("eos_token_id")
    if not isinstance(value, list):
        return ()
    return tuple(dict.fromkeys(_integer({"eos_token_id": item}, "eos_token_id", low=0) for item in value))


def _number(raw: Mapping[str, Any], key: str) -> float:
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ConfigError(f"expected {key} in config.json to be a number between 0 and 1, got {shown(value)}")
    return float(value)
