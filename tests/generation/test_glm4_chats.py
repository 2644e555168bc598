"""Conversations with GLM-4: prompts, kept caches, tools, in Python and in the terminal. A small random model."""

import shutil

import pytest

import glm_int4
from glm_int4.cli.terminal import status
from glm_int4.cli.terminal.conversation import Conversation
from glm_int4.errors import TokenizerError
from glm_int4.generation.records import StreamRecord
from glm_int4.generation.sampling import SamplingParams
from tests.generation.test_chat_versions import GREEDY, TOOL, says, user


def test_prompt_stops_and_sampling_are_the_versions(v4_engine):
    tokenizer = v4_engine.tokenizer
    assert (v4_engine.config.version, tokenizer.version) == ("4", "4")
    assert v4_engine.stop_ids == tokenizer.stop_ids == (400, 407, 409)
    record = StreamRecord()
    list(v4_engine.stream_chat([user("你好")], 3, GREEDY, record))
    prompt = v4_engine._format.encode(tokenizer, [user("你好")])
    assert record.prompt_tokens == len(prompt) == v4_engine.count_tokens([user("你好")])
    assert record.ids == v4_engine.generate(prompt, 3, GREEDY)
    assert v4_engine.perplexity("你好 world 12 345").tokens == len(tokenizer.encode("你好 world 12 345"))


def test_a_second_turn_reads_only_new_tokens(v4_engine):
    messages = [user("你好 world")]
    first, answer = v4_engine.count_tokens(messages), v4_engine.chat(messages, 8, GREEDY)
    messages += [{"role": "assistant", "content": answer}, user("the weather")]
    v4_engine.chat(messages, 8, GREEDY)
    assert v4_engine._decoder.num_reused >= first


def test_a_call_of_a_tool_comes_back_as_data_and_its_result_goes_on(v4_engine, monkeypatch):
    says(v4_engine, monkeypatch, 'track\n{"symbol": "10111"}')
    messages = [user("price 10111")]
    reply = v4_engine.reply(messages, tools=[TOOL])
    assert (reply.tool_call.name, reply.tool_call.arguments) == ("track", {"symbol": "10111"})
    messages += [*reply.as_messages(), {"role": "observation", "content": '{"price": 12412}'}]
    says(v4_engine, monkeypatch, "\nthe price")
    assert v4_engine.reply(messages, tools=[TOOL]).content == v4_engine.chat(messages, tools=[TOOL]) == "the price"


def test_what_is_typed_after_a_call_in_the_terminal_is_its_result(v4_engine, monkeypatch):
    chat = Conversation(v4_engine, SamplingParams(), name="four", tools=[TOOL])
    for asked, text in (("price", 'track\n{"symbol": "1"}'), ('{"price": 12}', "\nIt is 12."), ("thanks", "\nbye")):
        says(v4_engine, monkeypatch, text)
        assert "".join(chat.ask(asked)) == text.strip()
        if asked == "price":
            note = status.after_answer(chat, chat.turns[-1])
            assert "(the model calls track(symbol='1'); what you type next is its result)" in note
    roles = ["user", "assistant", "observation", "assistant", "user", "assistant"]
    assert [message["role"] for message in chat.messages] == roles


def test_a_tokenizer_of_chatglm3_beside_glm4_is_refused_and_the_reverse(small_glm4, small_checkpoints, tmp_path):
    for name, model, other in (("a", small_glm4, small_checkpoints["3"]), ("b", small_checkpoints["3"], small_glm4)):
        shutil.copytree(model, tmp_path / name)
        shutil.copy(other / "tokenizer.model", tmp_path / name / "tokenizer.model")
    with pytest.raises(TokenizerError, match=r"expected lines of tokens and ranks in .* got a SentencePiece model"):
        glm_int4.load(tmp_path / "a", device="cpu")
    with pytest.raises(TokenizerError, match=r"expected a SentencePiece model in .* got the lines of GLM-4's"):
        glm_int4.load(tmp_path / "b", device="cpu")
