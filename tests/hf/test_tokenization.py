"""The tokenizers through transformers: ids and conversations as officially."""

import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer

import glm_int4.hf
from glm_int4.errors import InputError
from glm_int4.hf import ChatGLMTokenizer
from glm_int4.text import chat_format
from tests.conftest import FIXTURES, MINI

ORACLES = {v: json.loads((FIXTURES / f"tokenizer_v{v}.json").read_text(encoding="utf-8")) for v in "123"}
# The official class of version 1 maps these to control ids even when a user types them; here they stay text.
TYPED_SPECIALS = {"[MASK]", "<sop>", "<eop>", "<unk>", "<pad>"}
CHATS = [key for key in ORACLES["3"] if key.startswith("chat_")]


@pytest.fixture(scope="module", params=[None, True], ids=["", "trusting"])
def official(request, official_tokenizers, tmp_path_factory):
    """Tokenizers of official folders, with the files that name a class of remote code."""
    tokenizers = {}
    for version in "123":
        folder = tmp_path_factory.mktemp(f"official-v{version}")
        name = "ice_text.model" if version == "1" else "tokenizer.model"
        shutil.copy(official_tokenizers / ("v1" if version == "1" else "v2") / name, folder)
        config = json.loads((FIXTURES / f"v{version}_tiny" / "config.json").read_text())
        config |= {"_name_or_path": f"THUDM/chatglm{'' if version == '1' else version}-6b"}
        config["auto_map"] = {"AutoConfig": "configuration_chatglm.ChatGLMConfig"}
        (folder / "config.json").write_text(json.dumps(config))
        remote = {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]}
        own = {"tokenizer_class": "ChatGLMTokenizer", "auto_map": remote, "remove_space": False, "do_lower_case": False}
        if version == "1":
            own |= {"num_image_tokens": 0, "bos_token": "<sop>", "eos_token": "<eop>", "gmask_token": "[gMASK]"}
        (folder / "tokenizer_config.json").write_text(json.dumps(own))
        tokenizers[version] = AutoTokenizer.from_pretrained(folder, trust_remote_code=request.param)
    return tokenizers


@pytest.mark.parametrize("version", ["1", "2", "3"])
def test_ids_pieces_and_text_are_the_official_ones(official, version):
    tokenizer, oracle = official[version], ORACLES[version]
    assert type(tokenizer) is ChatGLMTokenizer
    assert tokenizer.version == version
    for case in oracle["cases"]:
        if version == "1" and case["text"] in TYPED_SPECIALS:
            assert tokenizer.decode(tokenizer(case["text"])["input_ids"]) == case["text"]
            continue
        assert tokenizer(case["text"])["input_ids"] == case["ids_special"]
        assert tokenizer.encode(case["text"], add_special_tokens=False) == case["ids"]
        assert tokenizer.convert_ids_to_tokens(case["ids"]) == case["tokens"]
        assert tokenizer.decode(case["ids_special"]) == case["decoded_special"]
        assert tokenizer.decode(case["ids_special"], skip_special_tokens=True) == case["decoded"]


def test_special_ids_are_the_official_ones(official):
    v1 = official["1"]
    expected = {key: value for key, value in ORACLES["1"]["props"].items()}
    assert {key: getattr(v1, key) for key in expected} == expected
    for version in "23":
        tokenizer = official[version]
        ids = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
        assert ids == ORACLES[version]["bos_eos_pad"]
        special = ORACLES[version]["special"]
        assert tokenizer.convert_tokens_to_ids(list(special)) == list(special.values())
        assert len(tokenizer) == tokenizer.vocab_size == ORACLES[version]["vocab_size"]
    assert len(v1) == v1.vocab_size == ORACLES["1"]["vocab_size"]


@pytest.mark.parametrize("version", ["1", "2", "3"])
def test_a_batch_is_left_padded_as_officially(official, version):
    tokenizer, batch = official[version], ORACLES[version]["batch"]
    texts = ["你好", "晚上睡不着应该怎么办"]
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    assert encoded["input_ids"].tolist() == batch["input_ids"]
    real = torch.tensor(batch["input_ids"]) != tokenizer.pad_token_id
    assert encoded["attention_mask"].tolist() == real.long().tolist()


@pytest.mark.parametrize("key", CHATS)
def test_conversations_of_version_3_give_the_official_ids(official, key):
    chat = ORACLES["3"][key]
    messages = [*(chat["history"] or []), {"role": chat["role"], "content": chat["query"]}]
    encoded = official["3"].apply_chat_template(messages, add_generation_prompt=True)
    inputs = official["3"].build_chat_input(chat["query"], history=chat["history"], role=chat["role"])
    assert inputs["input_ids"].tolist() == [chat["ids"]]
    assert encoded["input_ids"] == chat["ids"]
    assert encoded["attention_mask"] == [1] * len(chat["ids"])


def test_conversations_of_version_2_give_the_official_ids(official):
    oracle = ORACLES["2"]
    chat = [{"role": "user", "content": "你好"}]
    assert official["2"].apply_chat_template(chat, return_dict=False) == oracle["prompt_first_ids"]
    chat += [{"role": "assistant", "content": "你好👋！"}, {"role": "user", "content": "晚上睡不着应该怎么办"}]
    prompt = official["2"].build_prompt("晚上睡不着应该怎么办", [("你好", "你好👋！")])
    assert official["2"](prompt)["input_ids"] == oracle["prompt_second_ids"]
    both = official["2"].apply_chat_template([chat, chat[:1]], return_tensors="pt", padding=True)
    assert both["input_ids"][0].tolist() == oracle["prompt_second_ids"]
    assert both["input_ids"][1][both["attention_mask"][1].bool()].tolist() == oracle["prompt_first_ids"]


@pytest.mark.parametrize("version", ["1", "2", "3"])
def test_a_conversation_written_out_gives_the_same_ids(small_checkpoints, version):
    folder = MINI if version == "1" else small_checkpoints[version]
    tokenizer = AutoTokenizer.from_pretrained(folder, split_special_tokens=False)
    chat = [
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "你好"},
        {"role": "user", "content": "x"},
    ]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    ids = tokenizer.apply_chat_template(chat)["input_ids"]
    assert tokenizer(text)["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"] == ids


def test_a_function_is_a_tool_of_version_3(small_checkpoints):
    def track(symbol: str) -> str:
        """Track a stock's price.

        Args:
            symbol: the stock's symbol.
        """
        raise AssertionError("is never called")

    tokenizer = AutoTokenizer.from_pretrained(small_checkpoints["3"])
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "你好"}], tools=[track])["input_ids"]
    assert "track" in tokenizer.decode(ids)
    with pytest.raises(InputError, match="expected no tools for version 2"):
        AutoTokenizer.from_pretrained(small_checkpoints["2"]).apply_chat_template(
            [{"role": "user", "content": "你好"}], tools=[track]
        )


def test_an_answer_at_the_end_is_closed_or_left_open(hf_mini_tokenizer, small_checkpoints):
    question, answer = {"role": "user", "content": "3加5等于几?"}, {"role": "assistant", "content": "8"}
    prompt = hf_mini_tokenizer.apply_chat_template([question], return_dict=False)
    text = hf_mini_tokenizer.encode("8", add_special_tokens=False)
    template = hf_mini_tokenizer.apply_chat_template
    assert template([question, answer], return_dict=False) == [*prompt, *text, hf_mini_tokenizer.eos_token_id]
    assert template([question, answer], return_dict=False, continue_final_message=True) == [*prompt, *text]
    v3 = AutoTokenizer.from_pretrained(small_checkpoints["3"])
    line, text = (v3.encode(text, add_special_tokens=False) for text in ("\n", "8"))
    prompt = v3.apply_chat_template([question], return_dict=False)
    assert v3.apply_chat_template([question, answer], return_dict=False) == [*prompt, *line, *text, v3.eos_token_id]


@pytest.mark.parametrize("version", ["1", "2", "3"])
def test_a_space_that_ends_an_open_answer_is_left_to_the_next_word(official, version):
    question = {"role": "user", "content": "a"}
    spaced, plain = (
        official[version].apply_chat_template(
            [question, {"role": "assistant", "content": text}], return_dict=False, continue_final_message=True
        )
        for text in ("The sky is ", "The sky is")
    )
    assert spaced == plain


def test_wrong_conversations_are_named(hf_mini_tokenizer):
    for wrong in ([], "你好", [{"role": "tool", "content": "x"}]):
        with pytest.raises(InputError, match="expected"):
            hf_mini_tokenizer.apply_chat_template(wrong)


def test_special_tokens_in_a_text_are_text_unless_asked_for(hf_mini_tokenizer):
    mask = hf_mini_tokenizer.mask_token_id
    assert mask not in hf_mini_tokenizer("今天[MASK]。")["input_ids"]
    assert mask in hf_mini_tokenizer("今天[MASK]。", split_special_tokens=False)["input_ids"]


def test_a_text_to_score_stands_behind_its_special_tokens_saved_too(hf_mini_tokenizer, tmp_path):
    scoring = AutoTokenizer.from_pretrained(MINI, add_bos_token=True)
    text = scoring.encode("你好", add_special_tokens=False)
    assert scoring.encode("你好") == [*hf_mini_tokenizer.encode("你好")[-2:], *text]
    scoring.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).encode("你好") == scoring.encode("你好")


def test_a_pair_is_a_prompt_and_its_answer(hf_mini_tokenizer):
    pair = hf_mini_tokenizer("你好", "再见")
    answer = hf_mini_tokenizer.encode("再见", add_special_tokens=False)
    assert pair["input_ids"] == [*hf_mini_tokenizer.encode("你好"), *answer, hf_mini_tokenizer.eos_token_id]
    mask = hf_mini_tokenizer.get_special_tokens_mask(pair["input_ids"], already_has_special_tokens=True)
    assert sum(mask) == 3


@pytest.mark.parametrize("version", ["1", "2", "3"])
def test_a_saved_tokenizer_is_the_same_wherever_it_lies(small_checkpoints, tmp_path, version):
    folder = MINI if version == "1" else small_checkpoints[version]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(tmp_path)
    again = ChatGLMTokenizer.from_pretrained(tmp_path)
    assert again.version == version
    chat = [{"role": "user", "content": "你好"}]
    assert again.apply_chat_template(chat) == tokenizer.apply_chat_template(chat)
    assert again.get_vocab() == tokenizer.get_vocab()


def test_conversations_are_those_of_the_text_room(small_checkpoints):
    for version in "23":
        tokenizer = AutoTokenizer.from_pretrained(small_checkpoints[version])
        chat = [{"role": "user", "content": "hello"}]
        inner = chat_format(version).encode(glm_int4.text.load_tokenizer(small_checkpoints[version], version), chat)
        assert tokenizer.apply_chat_template(chat, return_dict=False) == inner
