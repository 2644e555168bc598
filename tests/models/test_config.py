"""Config values: what is taken, and what is refused in one line."""

import json

import pytest

from glm_int4.errors import ConfigError
from glm_int4.models.config import detect_version, parse_config
from tests.conftest import TINY

RAW = json.loads((TINY / "config.json").read_text())


def parse(**changes):
    return parse_config({k: v for k, v in (RAW | changes).items() if v is not None})


def test_the_official_keys_are_read():
    config = parse()
    assert (config.num_layers, config.hidden_size, config.ffn_size, config.vocab_size) == (2, 64, 256, 160)
    assert (config.num_heads, config.num_kv_heads, config.head_dim, config.version) == (4, 4, 16, "1")


@pytest.mark.parametrize("value", [False, 0, None])
def test_switched_off_prefix_and_quantization_keys_are_accepted(value):
    off = {
        "quantization_bit": value,
        "quantization_embeddings": value,
        "pre_seq_len": value,
        "prefix_projection": value,
    }
    assert parse_config(RAW | off) == parse_config(RAW)


def test_the_first_vocabulary_may_lack_the_mask_ids():
    config = parse(vocab_size=150528, mask_token_id=None, gmask_token_id=None, bos_token_id=150004, eos_token_id=150005)
    assert (config.mask_token_id, config.gmask_token_id) == (150000, 150001)


def test_the_version_is_detected_and_the_key_is_named():
    assert detect_version(RAW) == ("1", "position_encoding_2d")
    assert detect_version({"model_type": "chatglm", "multi_query_group_num": 2}) == ("2", "multi_query_group_num")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "expected model_type"),
        ({"num_attention_heads": 7}, "7 heads for 64"),
        ({"num_attention_heads": 32}, "divisible by 4"),
        ({"hidden_size": None}, "the key hidden_size"),
        ({"hidden_size": "64"}, "hidden_size in config.json to be an integer"),
        ({"num_layers": True}, "num_layers"),
        ({"num_layers": 10**9}, "num_layers"),
        ({"num_layers": -1}, "num_layers"),
        ({"vocab_size": 100}, "below vocab_size 100"),
        ({"mask_token_id": None}, "mask_token_id"),
        ({"layernorm_epsilon": 0}, "layernorm_epsilon"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"position_encoding_2d": False}, "position_encoding_2d"),
        ({"position_encoding_2d": None, "inner_hidden_size": None}, "one of the keys"),
    ],
)
def test_values_that_make_no_sense_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse(**changes)


SIZES = ("num_layers", "hidden_size", "inner_hidden_size", "num_attention_heads", "vocab_size", "max_sequence_length")
ABSURD = [
    0,
    -1,
    10**9,
    10**12,
    10**4000,
    2.5,
    2.0,
    float("nan"),
    float("inf"),
    "28",
    "x" * 10**6,
    [28],
    {"a": [[1]]},
    True,
]


@pytest.mark.parametrize("key", [*SIZES, "bos_token_id", "pad_token_id"])
@pytest.mark.parametrize("value", ABSURD, ids=lambda value: f"{type(value).__name__}-{str(value)[:9]}")
def test_absurd_sizes_are_refused_in_one_short_line(key, value):
    if key.endswith("_id") and value == 0:
        value = -7
    with pytest.raises(ConfigError, match=key) as caught:
        parse(**{key: value})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", [0, 1, -1e-5, float("nan"), float("inf"), "1e-5", True, [1e-5], 10**400])
def test_absurd_epsilons_are_refused(value):
    with pytest.raises(ConfigError, match="layernorm_epsilon"):
        parse(layernorm_epsilon=value)


@pytest.mark.parametrize("version", ["2", "3"])
def test_an_explicit_version_overrides_detection(version):
    with pytest.raises(ConfigError, match=f"got version {version}"):
        parse_config(RAW, version)


def test_an_unknown_version_is_refused():
    with pytest.raises(ConfigError, match="auto, 1, 2 or 3"):
        parse_config(RAW, "4")
