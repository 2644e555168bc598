"""GLM-4's configs: told from ChatGLM3's, read, and refused where they are of a relative."""

import json
import math
import shutil

import pytest

import glm_int4
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.opening import tensor_specs
from glm_int4.conversion.quantization_options import QuantizationOptions
from glm_int4.errors import ConfigError, GLMError
from glm_int4.models.config_file import detect_version, is_base_model, parse_config
from glm_int4.models.presets import CONFIGS
from glm_int4.versions import contradiction, evidence
from tests.conftest import FIXTURES

RAW = json.loads((FIXTURES / "glm4_tiny" / "config.json").read_text())
UNNAMED = {key: value for key, value in RAW.items() if key != "_name_or_path"}
FULL_SIZE = {"_name_or_path": None, "padded_vocab_size": 151552}
ROLES = {"added_tokens_decoder": {"151336": {"content": "<|user|>"}}}
RANKS = b"IQ== 0\nIg== 1\n"


def parse(raw, **changes):
    return parse_config({key: value for key, value in (raw | changes).items() if value is not None})


def test_the_keys_of_both_official_sizes_are_read():
    config = parse(RAW)
    assert (config.version, config.num_heads, config.num_kv_heads, config.head_dim) == ("4", 4, 2, 16)
    assert (config.rope_ratio, config.rotary_base_factor, config.position_divisor) == (500, 500, 1)
    assert (config.eos_token_id, config.stop_token_ids, config.pad_token_id) == (139, (139, 146, 148), 139)
    assert not config.has_half_rotary
    long = parse(json.loads((FIXTURES / "glm4_tiny_1m" / "config.json").read_text()), seq_length=1048576)
    assert (long.rope_ratio, long.num_kv_heads, long.max_sequence_length) == (10000, 4, 1 << 20)


def test_the_preset_is_the_official_model():
    config = parse(CONFIGS["glm-4-9b"])
    assert (config.version, config.num_layers, config.vocab_size) == ("4", 40, 151552)
    assert config.stop_token_ids == (151329, 151336, 151338)
    assert layout.num_parameters(config) == 9_399_951_360
    options = QuantizationOptions(bits=4)
    vocabulary = {matrix.name for matrix in layout.vocabulary(config)}
    num_bytes = 2 * sum(map(math.prod, layout.vectors(config).values()))
    for name, matrix in layout.matrices(config).items():
        scheme = options.vocabulary_scheme(4096) if name in vocabulary else options.scheme
        num_bytes += sum(spec.num_bytes for spec in tensor_specs(matrix, scheme, official=False))
    assert 5.47e9 < num_bytes < 5.49e9


@pytest.mark.parametrize(
    ("raw", "tokenizer_config", "version", "decided_by"),
    [
        (RAW, None, "4", "the name glm-4 in config.json"),
        (UNNAMED | FULL_SIZE, ROLES, "4", "the vocabulary of 151552 in config.json"),
        (UNNAMED, ROLES | {"tokenizer_class": "ChatGLM4Tokenizer"}, "4", "the class ChatGLM4Tokenizer"),
        (UNNAMED, {"a": ROLES, "b": ["<|endoftext|>"]}, "4", r"the token <|endoftext|> in tokenizer_config.json"),
        (UNNAMED, ROLES, "3", "the token <|user|>"),
        (UNNAMED | {"_name_or_path": "THUDM/codegeex4-all-9b"}, ROLES, "4", "the name codegeex4"),
        (UNNAMED | {"_name_or_path": "chatglm-4bit"}, None, "2", "nothing"),
        (UNNAMED | {"_name_or_path": "my-glm-4bit"}, None, "2", "nothing"),
        (UNNAMED | {"padded_vocab_size": 65024}, {"tokenizer_class": "ChatGLM4Tokenizer"}, "2", "nothing"),
    ],
)
def test_glm4_is_told_from_chatglm3(raw, tokenizer_config, version, decided_by):
    detected, why = detect_version(raw, tokenizer_config)
    assert detected == version
    assert decided_by in why


def test_the_kind_of_the_tokenizers_file_tells_before_the_tokens_of_roles_do(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "chat_template.jinja").write_text("[gMASK]<sop><|user|>")
    assert detect_version(UNNAMED, ROLES, folder)[0] == "3"
    (folder / "tokenizer.model").write_bytes(RANKS)
    found = evidence(UNNAMED, ROLES, folder)
    assert found == [("4", "the lines of tokenizer.model, which is no SentencePiece model")]
    assert contradiction(found) is None
    named = evidence(UNNAMED | {"_name_or_path": "chatglm3-6b"}, ROLES, folder)
    assert contradiction(named).startswith("the name chatglm3 in config.json speaks for version 3, the lines of")


@pytest.mark.parametrize(
    ("raw", "version", "message"),
    [
        (UNNAMED | FULL_SIZE, "3", "expected the vocabulary of version 3 in config.json, got that of 4"),
        (UNNAMED | {"padded_vocab_size": 65024}, "4", "expected the vocabulary of version 4 .* got that of 2 and 3"),
    ],
)
def test_a_version_against_the_vocabulary_is_refused(raw, version, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(raw | {"eos_token_id": 2, "pad_token_id": 0, "_name_or_path": "x"}, version)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "glm4_moe"}, "got GLM-4.5 or a later mixture of experts"),
        ({"model_type": "glm4v"}, "got GLM-4V, which reads images"),
        ({"vision_config": {"hidden_size": 1792}}, "got GLM-4V .vision_config"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "expected rope_scaling null or absent"),
        ({"eos_token_id": [139, 160]}, "expected eos_token_id below padded_vocab_size 160 in config.json, got 160"),
        ({"eos_token_id": [139, "146"]}, "expected eos_token_id in config.json to be an integer"),
        ({"eos_token_id": []}, "expected eos_token_id in config.json to be an integer"),
        ({"rope_ratio": 10001}, "a number from 1 to 10000"),
    ],
)
def test_relatives_and_values_that_make_no_sense_are_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse(RAW, **changes)


@pytest.mark.parametrize(
    ("name", "base"), [("THUDM/glm-4-9b", True), ("zai-org/glm-4-9b-hf/", True), ("THUDM/glm-4-9b-chat-1m", False)]
)
def test_the_base_model_has_no_word_behind_its_size(name, base):
    assert is_base_model({"_name_or_path": name}) is base


def test_the_ids_that_end_an_answer_are_the_configs(tmp_path):
    assert glm_int4.load(FIXTURES / "glm4_tiny", device="cpu").stop_ids == (139, 146, 148)
    shutil.copytree(FIXTURES / "glm4_tiny", tmp_path / "one")
    (tmp_path / "one" / "config.json").write_text(json.dumps(RAW | {"eos_token_id": 146}))
    assert glm_int4.load(tmp_path / "one", device="cpu").stop_ids == (146,)
    with pytest.raises(GLMError, match="got those of version 4"):
        glm_int4.load(FIXTURES / "glm4_tiny", device="cpu", model_version="1")
