"""The clients that people use: openai's, and LangChain's chat model on top of it."""

import json
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch
from langchain_openai import ChatOpenAI, OpenAI

import glm_int4
from glm_int4.generation.sampling import SamplingParams
from tests.server.conftest import client, run_server

QUESTIONS = ["3加5等于几?", "What is 12 plus 30?", "我叫小明。"]
TOOL = {
    "type": "function",
    "function": {
        "name": "track",
        "description": "price of a stock",
        "parameters": {"type": "object", "properties": {"symbol": {"type": "string"}}, "required": ["symbol"]},
    },
}


def user(text):
    return [{"role": "user", "content": text}]


@pytest.fixture
def says(monkeypatch):
    """Let a server's model write a text, then stop."""

    def write(running, text):
        batcher, tokenizer = running.batcher, running.server.engine.tokenizer
        make = batcher.sequence

        def sequence(*arguments):
            made = make(*arguments)
            ids = iter([*tokenizer.encode(text), tokenizer.eos_id])
            monkeypatch.setattr(made.sampler, "choose", lambda logits, seen: torch.tensor([next(ids)]))
            return made

        monkeypatch.setattr(batcher, "sequence", sequence)

    return write


def test_a_chat_says_what_the_engine_says(mini_server, mini_engine):
    for question in QUESTIONS:
        reply = client(mini_server).chat.completions.create(model="mini", messages=user(question), temperature=0)
        (choice,) = reply.choices
        expected = mini_engine.chat(user(question), sampling=SamplingParams(temperature=0))
        assert (choice.message.role, choice.message.content) == ("assistant", expected)
        assert choice.finish_reason == "stop"
        assert reply.usage.prompt_tokens == mini_engine.count_tokens(user(question))
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
        assert reply.object == "chat.completion"
        assert reply.model == "mini"


def test_a_stream_adds_up_to_the_answer(mini_server, mini_engine):
    stream = client(mini_server).chat.completions.create(
        model="mini",
        messages=user("我叫小明。"),
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == mini_engine.chat(user("我叫小明。"), sampling=SamplingParams(temperature=0))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == "stop"
    assert chunks[-1].usage.completion_tokens > 0
    assert len({c.id for c in chunks}) == 1


def test_sampling_fields_arrive(v2_engine):
    fields = dict(model="mini", messages=user("你好"), temperature=1.5, top_p=1, seed=3, max_tokens=12)
    fields |= {"presence_penalty": 0.5, "frequency_penalty": 0.5, "extra_body": {"top_k": 0}}
    with run_server(v2_engine) as running:
        answers = []
        for change in (
            {},
            {},
            {"seed": 4},
            {"frequency_penalty": -2},
            {"temperature": 0},
            {"extra_body": {"top_k": 1}},
        ):
            reply = client(running).chat.completions.create(**fields | change)
            answers.append(reply.choices[0].message.content)
    assert answers[0] == answers[1]
    assert answers[0] not in answers[2:]


def test_tokens_and_stop_texts_end_an_answer(mini_server):
    ask = client(mini_server).chat.completions.create
    fields = dict(model="mini", messages=user("我叫小明。"), temperature=0)
    whole = ask(**fields).choices[0].message.content
    short = ask(**fields, max_tokens=1).choices[0]
    assert whole.startswith(short.message.content)
    assert short.finish_reason == "length"
    stopped = ask(**fields, stop=[whole[2:4], "never"]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (whole[:2], "stop")


def test_completions_continue_a_text_or_ids(mini_server, mini_engine):
    complete = client(mini_server).completions.create
    prompt = mini_engine.tokenizer.encode_prompt("3加5等于几?")
    for given in ("3加5等于几?", prompt):
        reply = complete(model="mini", prompt=given, temperature=0)
        assert reply.choices[0].text.strip() == "8"
        assert reply.usage.prompt_tokens == len(prompt)
    stream = complete(model="mini", prompt=prompt, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream).strip() == "8"


def test_the_model_is_listed_and_described(mini_server):
    assert [model.id for model in client(mini_server).models.list()] == ["mini"]
    assert client(mini_server).models.retrieve("mini").owned_by == "glm-int4"
    with pytest.raises(openai.NotFoundError):
        client(mini_server).models.retrieve("gpt-4")


def test_another_model_is_not_found_by_a_strict_server(mini_engine):
    with run_server(mini_engine, strict=True, more_names=("other",)) as running:
        for name in ("mini", "other"):
            assert client(running).chat.completions.create(model=name, messages=user("hi"), max_tokens=1).model == name
        with pytest.raises(openai.NotFoundError, match="expected the model mini"):
            client(running).chat.completions.create(model="gpt-4", messages=user("hi"))
        assert [model.id for model in client(running).models.list()] == ["mini", "other"]


def test_a_key_is_checked(mini_engine):
    with run_server(mini_engine, api_key="right") as running:
        assert client(running, "right").models.list().data
        for wrong in ("wrong", "right2", "r"):
            with pytest.raises(openai.AuthenticationError):
                client(running, wrong).models.list()
        assert running.get("/health").status_code == 200
        assert running.get("/metrics").status_code == 401


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_goes_back(v3_server, says, stream):
    says(v3_server, "track\n ```python\ntool_call(symbol='10111')\n```")
    ask = client(v3_server).chat.completions.create
    reply = ask(model="small-v3", messages=user("price 10111"), tools=[TOOL], stream=stream)
    if stream:
        chunks = list(reply)
        assert not any(c.choices[0].delta.content for c in chunks)
        (call,) = next(c.choices[0].delta.tool_calls for c in chunks if c.choices[0].delta.tool_calls)
        end, content = chunks[-1].choices[0].finish_reason, None
    else:
        (call,) = reply.choices[0].message.tool_calls
        end, content = reply.choices[0].finish_reason, reply.choices[0].message.content
    assert (end, content, call.function.name) == ("tool_calls", None, "track")
    assert json.loads(call.function.arguments) == {"symbol": "10111"}
    called = {"role": "assistant", "content": None, "tool_calls": [call.model_dump(exclude={"index"})]}
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"price": 12412}'}
    says(v3_server, "\n the price is 12412")
    reply = ask(model="small-v3", messages=[*user("price 10111"), called, result], tools=[TOOL])
    assert reply.choices[0].message.content == "the price is 12412"
    assert reply.choices[0].finish_reason == "stop"


def test_a_conversation_with_a_call_becomes_the_same_prompt_as_in_python(v3_server, v3_engine):
    call = {"id": "a", "type": "function", "function": {"name": "track", "arguments": '{"symbol": "1"}'}}
    messages = [
        {"role": "system", "content": "Be brief."},
        *user([{"type": "text", "text": "price "}, {"type": "text", "text": "1"}]),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "12"},
    ]
    reply = client(v3_server).chat.completions.create(
        model="small-v3", messages=messages, tools=[TOOL], max_tokens=1, temperature=0
    )
    ours = [
        {"role": "system", "content": "Be brief."},
        *user("price 1"),
        {"role": "assistant", "metadata": "track", "content": " ```python\ntool_call(symbol='1')\n```"},
        {"role": "observation", "content": "12"},
    ]
    assert reply.usage.prompt_tokens == v3_engine.count_tokens(ours, [TOOL])


def test_what_nobody_knows_in_a_definition_is_not_shown_to_the_model(v3_server):
    more = {"type": "function", "cache_control": {}, "function": TOOL["function"] | {"strict": True, "returns": "text"}}
    fields = dict(model="small-v3", messages=user("price"), max_tokens=1)
    ask = client(v3_server).chat.completions.with_raw_response.create
    plain, other = ask(**fields, tools=[TOOL]), ask(**fields, tools=[more])
    assert plain.parse().usage.prompt_tokens == other.parse().usage.prompt_tokens
    assert plain.headers.get("X-Ignored-Fields") is None
    assert other.headers["X-Ignored-Fields"] == "tools.cache_control, tools.function.returns"


@pytest.mark.parametrize("call", ["tool_call(symbol=__import__('os').getcwd())", "other()", "(" * 500])
def test_a_call_that_cannot_be_read_is_text(v3_server, says, call):
    says(v3_server, f"track\n ```python\n{call}\n```")
    reply = client(v3_server).chat.completions.create(model="small-v3", messages=user("price"), tools=[TOOL])
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].message.tool_calls is None
    assert call[:20] in reply.choices[0].message.content


def test_text_around_a_call_is_streamed_and_the_call_is_not(v3_server, says):
    says(v3_server, "\n let me look<|assistant|>")  # typed special tokens are text: one message
    stream = client(v3_server).chat.completions.create(
        model="small-v3", messages=user("price"), tools=[TOOL], stream=True
    )
    assert "let me look" in "".join(c.choices[0].delta.content or "" for c in stream)


def test_langchain_chats_streams_and_calls_tools(mini_server, v3_server, mini_engine, says):
    options = {"api_key": "none", "max_retries": 0, "timeout": 60}
    model = ChatOpenAI(base_url=f"{mini_server.url}/v1", model="mini", temperature=0, **options)
    expected = mini_engine.chat(user("3加5等于几?"), sampling=SamplingParams(temperature=0))
    answer = model.invoke("3加5等于几?")
    assert answer.content == expected
    assert answer.usage_metadata["output_tokens"] > 0
    assert "".join(piece.content for piece in model.stream("3加5等于几?")) == expected
    assert [reply.content for reply in model.batch(["3加5等于几?"] * 3)] == [expected] * 3
    says(v3_server, "track\n ```python\ntool_call(symbol='10111')\n```")
    model = ChatOpenAI(base_url=f"{v3_server.url}/v1", model="small-v3", **options).bind_tools([TOOL])
    (call,) = model.invoke("price 10111").tool_calls
    assert (call["name"], call["args"]) == ("track", {"symbol": "10111"})


def test_a_batch_of_different_chats_is_not_mixed_up(mini_engine):
    questions = [f"{a}加{b}等于几?" for a in (3, 7, 12) for b in (5, 9)]
    alone = [mini_engine.chat(user(q), sampling=SamplingParams(temperature=0)) for q in questions]
    with run_server(mini_engine, num_slots=3) as running, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda q: running.ask(q)[1]["choices"][0]["message"]["content"], questions * 2))
    assert answers == alone * 2


def test_a_seeded_answer_is_the_engines(mini_server, mini_int4):
    engine = glm_int4.load(mini_int4, device="cpu")
    sampling = SamplingParams(temperature=1.2, seed=5)
    reply = client(mini_server).chat.completions.create(model="mini", messages=user("你好"), temperature=1.2, seed=5)
    assert reply.choices[0].message.content == engine.chat(user("你好"), sampling=sampling)


@pytest.mark.parametrize("name", ["mini_server", "v3_server"])
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_goes_on_where_the_assistants_last_message_ends(request, says, name, stream):
    running = request.getfixturevalue(name)
    tokenizer = running.server.engine.tokenizer
    for begun in ("b", "b c", "b,"):
        messages = [*user("a"), {"role": "assistant", "content": begun}]
        says(running, "c d, b")
        ids = [*tokenizer.encode(begun), *tokenizer.encode("c d, b")]
        reply = client(running).chat.completions.create(model="m", messages=messages, stop=["b"], stream=stream)
        text = (
            reply.choices[0].message.content if not stream else "".join(c.choices[0].delta.content or "" for c in reply)
        )
        assert text == tokenizer.decode(ids)[len(begun) :].removesuffix("b").rstrip()
        assert "c d," in text


@pytest.mark.parametrize("name", ["mini_server", "v3_server"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_space_that_ends_the_assistants_last_message_is_there_once(request, says, name, stream):
    running = request.getfixturevalue(name)
    for begun, written, text in (("b ", "c d", "c d"), ("b c ", ", d", ", d"), ("b", "c", " c")):
        messages = [*user("a"), {"role": "assistant", "content": begun}]
        says(running, written)
        reply = client(running).chat.completions.create(model="m", messages=messages, stream=stream)
        parts = [chunk.choices[0].delta for chunk in reply] if stream else [reply.choices[0].message]
        assert "".join(part.content or "" for part in parts) == text


@pytest.mark.parametrize("prompt", ["price", "price "])
def test_a_completion_has_the_space_between_it_and_its_prompt_once(v3_server, says, prompt):
    complete = client(v3_server).completions.create
    for fields in ({}, {"echo": True}):
        says(v3_server, "track")
        (choice,) = complete(model="m", prompt=prompt, **fields).choices
        text = choice.text if fields else prompt + choice.text
        assert text == "price track"


def test_a_list_of_prompts_gives_what_each_gives_alone(v2_engine):
    fields = dict(model="mini", temperature=1.5, max_tokens=6)
    prompts = ["a b", "你好"]
    with run_server(v2_engine) as running:
        ask = client(running).completions.create
        alone = [ask(**fields, prompt=prompt, seed=seed).choices[0].text for prompt in prompts for seed in (5, 6)]
        assert len(set(alone)) == 4
        together = ask(**fields, prompt=prompts, n=2, seed=5)
        single = [ask(**fields, prompt=prompt).usage.prompt_tokens for prompt in prompts]
        texts, ends = ["", "", "", ""], []
        for chunk in ask(**fields, prompt=prompts, n=2, seed=5, stream=True, echo=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text
            ends += [chunk.choices[0].index] if chunk.choices[0].finish_reason else []
    assert [choice.text for choice in together.choices] == alone
    assert [choice.index for choice in together.choices] == [0, 1, 2, 3]
    assert together.usage.prompt_tokens == sum(single)
    assert texts == [f"{prompt}{text}" for prompt, text in zip(["a b", "a b", "你好", "你好"], alone, strict=True)]
    assert sorted(ends) == [0, 1, 2, 3]


def test_several_answers_to_a_chat_are_those_of_the_next_seeds(v2_engine):
    fields = dict(model="mini", messages=user("你好"), temperature=1.5, max_tokens=8)
    with run_server(v2_engine) as running:
        ask = client(running).chat.completions.create
        alone = [ask(**fields, seed=seed).choices[0].message.content for seed in (7, 8, 9)]
        together = ask(**fields, seed=7, n=3)
        texts = ["", "", ""]
        for chunk in ask(**fields, seed=7, n=3, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert len(set(alone)) == 3
    assert [choice.message.content for choice in together.choices] == alone == texts


def test_langchains_completions_send_lists(mini_server):
    model = OpenAI(
        base_url=f"{mini_server.url}/v1", model="any", temperature=0, api_key="none", max_retries=0, timeout=60
    )
    assert model.invoke("3加5等于几?").strip() == "8"
    assert [text.strip() for text in model.batch(["3加5等于几?"] * 2)] == ["8", "8"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_function_is_called_in_the_form_that_came_before_tools(v3_server, says, stream):
    says(v3_server, "track\n ```python\ntool_call(symbol='1')\n```")
    ask = client(v3_server).chat.completions.create
    reply = ask(model="m", messages=user("price 1"), functions=[TOOL["function"]], stream=stream)
    choices = [chunk.choices[0] for chunk in reply] if stream else [reply.choices[0]]
    calls = [call for c in choices if (call := (c.delta if stream else c.message).function_call)]
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [("track", {"symbol": "1"})]
    assert choices[-1].finish_reason == "function_call"


def test_a_field_without_effect_is_logged_once_and_its_value_is_not(mini_engine, caplog):
    with run_server(mini_engine) as running:
        for _ in range(3):
            assert running.ask("你好", max_tokens=1, keep_alive="private")[0] == 200
    assert [message for message in caplog.messages if "keep_alive" in message] == [
        "requests have the field keep_alive, which is ignored"
    ]
    assert "private" not in caplog.text
