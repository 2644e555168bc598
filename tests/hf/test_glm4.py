"""GLM-4 through transformers: its tokenizer under the name in its files, prompts, answers."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import glm_int4.hf
from glm_int4.text import GLM4Tokenizer, chat_format
from tests.conftest import FIXTURES
from tests.text.test_tokenizer_v4 import write_fast

ORACLE = json.loads((FIXTURES / "tokenizer_glm4.json").read_text(encoding="utf-8"))
REMOTE = {"tokenizer_class": "ChatGLM4Tokenizer", "auto_map": {"AutoTokenizer": ["tokenization_chatglm.X", None]}}


@pytest.fixture(scope="module")
def folder(small_glm4, tmp_path_factory):
    """The small model with the files that name a class of remote code."""
    folder = tmp_path_factory.mktemp("glm4") / "model"
    shutil.copytree(small_glm4, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(REMOTE))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def test_ids_are_the_official_ones(official_glm4, tmp_path):
    shutil.copy(official_glm4, tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(REMOTE))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "chatglm", "padded_vocab_size": 151552}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.version == "4"
    assert len(tokenizer) == ORACLE["vocab_size"]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (ORACLE["eos_ids"][0], ORACLE["pad_id"])
    for case in ORACLE["cases"]:
        assert tokenizer(case["text"])["input_ids"] == case["ids_special"]
        assert tokenizer.decode(case["ids_special"], skip_special_tokens=True) == case["decoded"]
    for name, chat in ORACLE["chats"].items():
        assert tokenizer.apply_chat_template(chat["messages"], return_dict=False) == chat["ids"], name
        assert tokenizer.apply_chat_template(chat["messages"], tokenize=False) == chat["text"], name


def test_a_tokenizer_json_alone_is_enough(small_ranks, tmp_path):
    write_fast(tmp_path, GLM4Tokenizer(small_ranks))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(REMOTE))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "chatglm", "_name_or_path": "glm-4-9b-chat"}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("你好 <|user|>")["input_ids"] == GLM4Tokenizer(small_ranks).encode_prompt("你好 <|user|>")


def test_what_is_saved_loads_as_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.version == "4"
    assert again("你好")["input_ids"] == tokenizer("你好")["input_ids"]


def test_a_chat_is_the_engines(folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    engine = glm_int4.load(folder, device="cpu", dtype=torch.float32)
    messages = [{"role": "user", "content": "你好"}]
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt")
    assert ids["input_ids"][0].tolist() == chat_format("4").encode(tokenizer.inner, messages)
    greedy = glm_int4.SamplingParams(temperature=0)
    answer, history = model.chat(tokenizer, "你好", do_sample=False, max_length=40)
    assert answer == engine.chat(messages, 40 - ids["input_ids"].shape[1], greedy)
    assert [message["role"] for message in history] == ["user", "assistant"]
    assert model.generation_config.eos_token_id == [400, 407, 409]
