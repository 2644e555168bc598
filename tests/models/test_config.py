"""Config values: what is taken, and what is refused in one line."""

import json

import pytest

from glm_int4.errors import ConfigError
from glm_int4.models.config_file import detect_version, is_base_model, parse_config
from glm_int4.versions import contradiction, evidence
from tests.conftest import FIXTURES, TINY

RAW = json.loads((TINY / "config.json").read_text())
RAW_V2 = json.loads((FIXTURES / "v2_tiny" / "config.json").read_text())


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


@pytest.mark.parametrize(
    ("raw", "tokenizer_config", "version", "decided_by"),
    [
        (RAW, None, "1", "position_encoding_2d"),
        (RAW_V2, None, "2", "nothing that speaks for version 3"),
        (RAW_V2 | {"_name_or_path": "THUDM/chatglm3-6b-32k", "rope_ratio": 50}, None, "3", "chatglm3 in config.json"),
        (RAW_V2 | {"_name_or_path": "THUDM/chatglm2-6b"}, {"x": "<|user|>"}, "2", "chatglm2 in config.json"),
        (RAW_V2 | {"_name_or_path": "THUDM/codegeex2-6b"}, None, "2", "codegeex2"),
        (
            RAW_V2 | {"_name_or_path": "model"},
            {"added_tokens_decoder": {"64795": "<|user|>"}},
            "3",
            "<|user|>",
        ),
        (RAW_V2, {"name_or_path": "THUDM/chatglm3-6b"}, "3", "tokenizer_config.json"),
        (RAW_V2, {"tokenizer_class": "ChatGLMTokenizer"}, "2", "--model-version 3"),
    ],
)
def test_the_version_is_detected_and_what_decided_is_said(raw, tokenizer_config, version, decided_by, caplog):
    caplog.set_level("INFO")
    detected, why = detect_version(raw, tokenizer_config)
    assert detected == version
    assert decided_by in why
    assert parse_config(raw, tokenizer_config=tokenizer_config).version == version
    assert f"version {version}, decided by {why}" in caplog.text


@pytest.mark.parametrize("version", ["2", "3"])
def test_the_keys_of_the_second_and_third_generation_are_read(version):
    config = parse_config(RAW_V2 | {"rope_ratio": 16}, version)
    assert (config.num_layers, config.hidden_size, config.ffn_size, config.vocab_size) == (2, 64, 176, 160)
    assert (config.num_heads, config.num_kv_heads, config.head_dim, config.version) == (4, 2, 16, version)
    assert (config.max_sequence_length, config.rope_ratio) == (128, 16.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rmsnorm": False}, "expected rmsnorm true"),
        ({"add_qkv_bias": None}, "expected add_qkv_bias true"),
        ({"tie_word_embeddings": True}, "expected tie_word_embeddings false"),
        ({"multi_query_group_num": 3}, "got 3 for 4 heads"),
        ({"multi_query_group_num": None}, "the key multi_query_group_num"),
        ({"kv_channels": 32}, "got 4 \\* 32 for 64"),
        ({"kv_channels": 2, "num_attention_heads": 32}, "kv_channels divisible by 4"),
        ({"eos_token_id": 160}, "below padded_vocab_size"),
        ({"vision_config": {"num_hidden_layers": 63}}, "got GLM-4V"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "expected rope_scaling null or absent"),
        ({"rope_ratio": 0}, "rope_ratio in config.json to be a number"),
        ({"rope_ratio": "50"}, "rope_ratio in config.json to be a number"),
        ({"_name_or_path": "THUDM/chatglm3-6b-32k"}, "expected rope_ratio in config.json of a 32k model"),
        ({"quantization_embeddings": "yes"}, "expected quantization_embeddings true or false"),
    ],
)
def test_values_of_the_second_generation_that_make_no_sense_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse_config({k: v for k, v in (RAW_V2 | changes).items() if v is not None})


def test_a_long_context_without_its_rope_ratio_is_warned_of(caplog):
    parse_config(RAW_V2 | {"seq_length": 32768}, "3")
    assert "no rope_ratio; if this is chatglm3-6b-32k" in caplog.text
    caplog.clear()
    parse_config(RAW_V2 | {"seq_length": 32768}, "2")
    assert not caplog.text


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("THUDM/chatglm3-6b-base", True),
        ("THUDM/chatglm3-6b-base/", True),
        ("codegeex2-6b", True),
        ("THUDM/chatglm3-6b", False),
        ("/data/baseline/chatglm2-6b", False),
        (None, False),
    ],
)
def test_base_models_are_known_by_their_name(name, base):
    assert is_base_model({"_name_or_path": name}) is base


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


@pytest.mark.parametrize(
    ("raw", "version", "message"), [(RAW, "2", "got those of version 1"), (RAW_V2, "1", "got those of version 2")]
)
def test_a_version_of_the_other_family_is_named(raw, version, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(raw, version)


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
    if key == "pad_token_id" and value == [28]:
        value = [[28]]
    with pytest.raises(ConfigError, match=key) as caught:
        parse(**{key: value})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", [0, 1, -1e-5, float("nan"), float("inf"), "1e-5", True, [1e-5], 10**400])
def test_absurd_epsilons_are_refused(value):
    with pytest.raises(ConfigError, match="layernorm_epsilon"):
        parse(layernorm_epsilon=value)


def test_lists_of_stop_tokens_and_no_padding_are_taken():
    """As transformers writes them into configs of today."""
    config = parse(eos_token_id=[5, 6], pad_token_id=None)
    assert (config.eos_token_id, config.pad_token_id) == (5, 3)


def test_an_unknown_version_is_refused():
    with pytest.raises(ConfigError, match="auto, 1, 2, 3 or 4"):
        parse_config(RAW, "5")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("added_tokens.json", '{"<|user|>": 64795}'),
        ("special_tokens_map.json", '{"additional_special_tokens": ["<|user|>"]}'),
        ("chat_template.jinja", "[gMASK]sop{% for m in messages %}<|user|>{% endfor %}"),
        ("tokenization_chatglm.py", 'role_special_tokens = ["<|system|>", "<|user|>"]'),
        ("", ""),
    ],
)
def test_other_files_and_the_folders_name_are_evidence_of_the_version(tmp_path, file, text):
    folder = tmp_path / ("models" if file else "chatglm3-6b-int4")
    folder.mkdir()
    assert detect_version(RAW_V2, None, folder)[0] == ("2" if file else "3")
    if file:
        (folder / file).write_text(text)
        version, why = detect_version(RAW_V2, None, folder)
        assert version == "3"
        assert file in why


def test_the_name_of_a_hub_folder_is_evidence_and_contradictions_are_words(tmp_path):
    folder = tmp_path / "models--zai-org--chatglm3-6b" / "snapshots" / "0123abcd"
    folder.mkdir(parents=True)
    assert detect_version(RAW_V2, None, folder) == ("3", "the name chatglm3 in the folder's name")
    found = evidence(RAW_V2 | {"_name_or_path": "THUDM/chatglm2-6b"}, {}, folder)
    assert [version for version, _ in found] == ["2", "3"]
    assert contradiction(found) == (
        "the name chatglm2 in config.json speaks for version 2, the name chatglm3 in the folder's name against it"
    )
    assert contradiction(found[:1]) is None
    assert contradiction([]) is None
