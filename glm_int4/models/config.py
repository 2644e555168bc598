"""Reading ``config.json``: which ChatGLM it describes, and whether its values make sense.

The official Python classes' defaults differ from the published JSON files, so nothing is taken
from a default that shapes a tensor: such a key must stand in the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glm_int4.errors import ConfigError
from glm_int4.files import shown

VERSIONS = ("1", "2", "3")

# Keys that only one generation's config carries; all of them say model_type "chatglm".
_V1_KEYS = ("position_encoding_2d", "inner_hidden_size")
_V2_KEYS = ("ffn_hidden_size", "multi_query_group_num", "padded_vocab_size")

# Before mask_token_id and gmask_token_id were written to the file, the class supplied them; the
# values belong to the first vocabulary (defaults of the official ChatGLMConfig class).
_OLD_VOCAB_SIZE = 150528
_OLD_MASK_ID, _OLD_GMASK_ID = 150000, 150001


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatGLMConfig:
    """Shape and special tokens of a ChatGLM-6B (v1) model. Sizes are counts of elements."""

    num_layers: int
    hidden_size: int
    num_heads: int
    ffn_size: int
    vocab_size: int
    max_sequence_length: int
    layernorm_epsilon: float
    bos_token_id: int
    eos_token_id: int
    mask_token_id: int
    gmask_token_id: int
    pad_token_id: int

    version = "1"

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def num_kv_heads(self) -> int:
        return self.num_heads


def detect_version(raw: Mapping[str, Any]) -> tuple[str, str]:
    """Tell the ChatGLM generation of a parsed ``config.json``.

    Returns:
        The version ("1" or "2") and the key that decided.
    Raises:
        ConfigError: another model type, or no key that tells.
    """
    model_type = raw.get("model_type")
    if model_type != "chatglm":
        raise ConfigError(
            f'expected model_type "chatglm" in config.json, got {shown(model_type)}; this is not a ChatGLM checkpoint'
        )
    for key in _V1_KEYS:
        if key in raw:
            return "1", key
    for key in _V2_KEYS:
        if key in raw:
            return "2", key
    raise ConfigError(
        f"expected one of the keys {', '.join(_V1_KEYS + _V2_KEYS)} in config.json, got none; "
        "take config.json from the official repository"
    )


def parse_config(raw: Mapping[str, Any], model_version: str = "auto") -> ChatGLMConfig:
    """Turn a parsed ``config.json`` into a checked config.

    Args:
        raw: the JSON object.
        model_version: "auto", "1", "2" or "3"; an explicit value overrides detection.
    Raises:
        ConfigError: a key is missing, mis-typed, contradictory, or the version is not supported.
    """
    if model_version not in ("auto", *VERSIONS):
        raise ConfigError(f"expected model_version auto, 1, 2 or 3, got {model_version!r}")
    detected, decided_by = detect_version(raw)
    version = detected if model_version == "auto" else model_version
    if version != "1":
        raise ConfigError(
            f"expected a ChatGLM-6B (version 1) checkpoint, got version {version} (decided by {decided_by!r}); "
            "this release runs version 1 only"
        )
    return _parse_v1(raw)


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
        eos_token_id=_integer(raw, "eos_token_id", low=0),
        mask_token_id=_integer(raw, "mask_token_id", low=0, default=_OLD_MASK_ID if old_vocab else None),
        gmask_token_id=_integer(raw, "gmask_token_id", low=0, default=_OLD_GMASK_ID if old_vocab else None),
        pad_token_id=_integer(raw, "pad_token_id", low=0),
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


def _number(raw: Mapping[str, Any], key: str) -> float:
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ConfigError(f"expected {key} in config.json to be a number between 0 and 1, got {shown(value)}")
    return float(value)
