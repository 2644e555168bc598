"""Conversations with ChatGLM2 and ChatGLM3: prompts, kept caches, tools. Small random models."""

import json
import shutil

import pytest
import torch

import glm_int4
from glm_int4.errors import InputError, TokenizerError
from glm_int4.generation.records import StreamRecord
from glm_int4.generation.sampling import SamplingParams
from tests.conftest import FIXTURES, MINI

GREEDY = SamplingParams(temperature=0)
TOOL = {
    "name": "track",
    "description": "price of a stock",
    "parameters": {"type": "object", "properties": {"symbol": {"type": "string"}}, "required": ["symbol"]},
}


@pytest.fixture(scope="module")
def engines(small_checkpoints):
    return {v: glm_int4.load(folder, device="cpu", dtype=torch.float32) for v, folder in small_checkpoints.items()}


def user(text):
    return {"role": "user", "content": text}


def says(engine, monkeypatch, text):
    """Let the model write a text."""
    monkeypatch.setattr(engine, "_decode", lambda *arguments: ([token] for token in engine.tokenizer.encode(text)))


@pytest.mark.parametrize("version", ["2", "3"])
def test_the_version_comes_from_the_config_and_decides_prompt_stops_and_sampling(engines, version):
    engine = engines[version]
    tokenizer = engine.tokenizer
    assert engine.config.version == tokenizer.version == version
    roles = (tokenizer.role_ids["user"], tokenizer.role_ids["observation"]) if version == "3" else ()
    assert engine.stop_ids == (tokenizer.eos_id, *roles)
    record = StreamRecord()
    list(engine.stream_chat([user("你好")], 3, GREEDY, record))
    prompt = engine._format.encode(tokenizer, [user("你好")])
    assert record.prompt_tokens == len(prompt) == engine.count_tokens([user("你好")])
    assert record.ids == engine.generate(prompt, 3, GREEDY)


@pytest.mark.parametrize("version", ["2", "3"])
def test_a_second_turn_of_a_chat_reads_only_new_tokens_and_says_the_same(engines, small_checkpoints, version):
    engine = engines[version]
    fresh = glm_int4.load(small_checkpoints[version], device="cpu", dtype=torch.float32)
    messages = [user("你好 world")]
    first = engine.count_tokens(messages)
    answer = engine.chat(messages, 8, GREEDY)
    messages += [{"role": "assistant", "content": answer}, user("the weather")]
    record, again = StreamRecord(), StreamRecord()
    kept = "".join(engine.stream_chat(messages, 8, GREEDY, record))
    assert engine._decoder.num_reused >= first - 2
    assert kept == "".join(fresh.stream_chat(messages, 8, GREEDY, again))
    assert record.ids == again.ids
    assert fresh._decoder.num_reused == 0


def test_version_1_reads_everything_again():
    engine = glm_int4.load(MINI, device="cpu", dtype=torch.float32)
    for _ in range(2):
        engine.chat([user("3加5等于几?")], 4, GREEDY)
        assert engine._decoder.num_reused == 0


def test_a_call_of_a_tool_comes_back_as_data(engines, monkeypatch):
    engine = engines["3"]
    says(engine, monkeypatch, "track\n ```python\ntool_call(symbol='10111')\n```")
    messages = [user("price 10111")]
    reply = engine.reply(messages, tools=[TOOL])
    assert (reply.tool_call.name, reply.tool_call.arguments) == ("track", {"symbol": "10111"})
    messages += [*reply.as_messages(), {"role": "observation", "content": '{"price": 12412}'}]
    says(engine, monkeypatch, "\n the price")
    assert engine.reply(messages, tools=[TOOL]).content == "the price"
    assert engine.chat(messages, tools=[TOOL]) == "the price"


@pytest.mark.parametrize(
    "call",
    [
        "tool_call(symbol=__import__('os').getcwd())",
        "tool_call(symbol=",
        "other(symbol='1')",
        "tool_call('1', '2')",
        "(" * 5000,
    ],
)
def test_a_malformed_call_is_told_and_never_run(engines, monkeypatch, call):
    engine = engines["3"]
    says(engine, monkeypatch, f"track\n ```python\n{call}\n```")
    reply = engine.reply([user("price")], tools=[TOOL])
    assert reply.tool_call is None
    assert reply.fault.startswith("expected ")
    assert reply.metadata == "track"


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        ({"description": "no name"}, "to have a name"),
        ({"name": "track", "parameters": {"type": "array"}}, '"type": "object"'),
        ({"name": "track", "parameters": {"type": "object", "properties": ["symbol"]}}, "properties"),
        ({"name": "track", "parameters": {"type": "object", "properties": {}, "required": ["a"]}}, "required"),
        ("track", "to be an object"),
    ],
)
def test_tools_that_are_no_json_schema_are_named(engines, tool, message):
    with pytest.raises(InputError, match=message):
        engines["3"].chat([user("price")], tools=[tool])


@pytest.mark.parametrize("version", ["1", "2"])
def test_only_version_3_takes_tools(engines, version):
    engine = glm_int4.load(MINI, device="cpu") if version == "1" else engines["2"]
    with pytest.raises(InputError, match=f"expected no tools for version {version}"):
        engine.chat([user("price")], tools=[TOOL])


def test_an_explicit_version_changes_the_prompt(small_checkpoints):
    engine = glm_int4.load(small_checkpoints["2"], device="cpu", model_version="3")
    assert engine.tokenizer.version == "3"
    assert engine.count_tokens([user("你好")]) < 20


@pytest.mark.parametrize("version", ["2", "3"])
def test_perplexity_puts_the_special_ids_in_front(engines, version):
    engine = engines[version]
    ids = engine.tokenizer.encode("你好 world 12 345")
    logits = engine.logits([*engine.tokenizer.prefix_ids, *ids])[0, 1:-1]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(ids)).exp().item()
    assert engine.perplexity("你好 world 12 345").perplexity == pytest.approx(expected, rel=1e-4)


def test_a_tokenizer_of_another_version_is_refused(small_checkpoints, tmp_path):
    shutil.copytree(small_checkpoints["2"], tmp_path / "mixed")
    (tmp_path / "mixed" / "tokenizer.model").unlink()
    shutil.copy(MINI / "ice_text.model", tmp_path / "mixed" / "ice_text.model")
    with pytest.raises(TokenizerError, match=r"expected tokenizer.model .* got ice_text.model, which is of another"):
        glm_int4.load(tmp_path / "mixed", device="cpu")


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(small_bpe, tmp_path):
    shutil.copytree(FIXTURES / "v2_tiny", tmp_path / "tiny")
    shutil.copy(small_bpe, tmp_path / "tiny" / "tokenizer.model")
    with pytest.raises(TokenizerError, match="expected a tokenizer of at most 160 ids"):
        glm_int4.load(tmp_path / "tiny", device="cpu")


def test_a_base_model_is_warned_of_once(small_checkpoints, tmp_path, caplog):
    folder = tmp_path / "base"
    shutil.copytree(small_checkpoints["3"], folder)
    raw = json.loads((folder / "config.json").read_text()) | {"_name_or_path": "THUDM/chatglm3-6b-base"}
    (folder / "config.json").write_text(json.dumps(raw))
    engine = glm_int4.load(folder, device="cpu")
    for _ in range(2):
        engine.chat([user("你好")], 2, GREEDY)
    assert caplog.text.count("this is a base model") == 1
