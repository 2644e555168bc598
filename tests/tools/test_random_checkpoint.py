"""Random checkpoints of presets, in small: what lies there loads, and answers."""

import sys

import pytest
import torch

import glm_int4
from glm_int4.checkpoint.opening import open_checkpoint
from glm_int4.generation.sampling import SamplingParams
from glm_int4.models.presets import CONFIGS
from tools import make_random_checkpoint

SMALL = {"hidden_size": 64, "num_layers": 2, "num_attention_heads": 4, "ffn_hidden_size": 128, "kv_channels": 16}


@pytest.mark.parametrize("preset", ["chatglm3-6b", "glm-4-9b"])
def test_a_preset_is_written_with_a_tokenizer_of_its_kind(preset, tmp_path, monkeypatch):
    monkeypatch.setitem(CONFIGS, preset, CONFIGS[preset] | SMALL | {"padded_vocab_size": 1024})
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["make_random_checkpoint.py", "--model", preset, "--output", str(out)])
    make_random_checkpoint.main()
    reader, info = open_checkpoint(out)
    dtype = torch.bfloat16 if preset == "glm-4-9b" else torch.float16
    assert {reader.spec(name).dtype for name in reader} == {dtype}
    glm = glm_int4.load(out, device="cpu")
    assert glm.tokenizer.version == info.config.version == ("4" if preset == "glm-4-9b" else "3")
    assert glm.tokenizer.decode(glm.tokenizer.encode("你好 <|user|>")) == "你好 <|user|>"
    if preset == "glm-4-9b":
        assert glm.stop_ids == glm.tokenizer.stop_ids
    assert isinstance(glm.chat([{"role": "user", "content": "你好"}], 3, SamplingParams(temperature=0)), str)
