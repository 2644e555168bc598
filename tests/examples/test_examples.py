"""The examples run, on the mini model and on a small random ChatGLM3."""

import io
import runpy
import sys

import pytest

from glm_int4.generation.engine import Engine
from tests.conftest import EXAMPLES, MINI


@pytest.fixture
def run(monkeypatch, capsys):
    """Run an example as a program; returns what it prints."""

    def run(name, *arguments, stdin=""):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_a_chat_prints_answers_as_they_come_and_remembers(run, monkeypatch):
    asked, stream_chat = [], Engine.stream_chat

    def watched(engine, messages, **options):
        asked.append([message["content"] for message in messages])
        return stream_chat(engine, messages, **options)

    monkeypatch.setattr(Engine, "stream_chat", watched)
    out = run("chat.py", MINI, stdin="我叫小明。\n我叫什么名字?\n")
    assert out.count("> ") == 3
    assert "小明" in out
    assert [len(messages) for messages in asked] == [1, 3]
    assert asked[1][1] in out


def test_a_batch_prints_the_answer_to_every_question(run):
    out = run("batch.py", MINI, "3加5等于几?", "What is 12 plus 30?", "法国的首都是哪里?")
    assert out.splitlines()[1::2] == ["    8", "    42", "    巴黎"]


def test_a_batch_runs_with_the_prompts_of_version_3(run, small_checkpoints):
    out = run("batch.py", small_checkpoints["3"], "hello", "price", "--max-new-tokens", 3)
    assert len(out.splitlines()) >= 4


@pytest.fixture
def says(monkeypatch):
    """Let a model say texts, one an answer; returns the prompts it gets."""

    def says(*texts):
        prompts = []

        def stream(engine, prompt, text, max_new_tokens, sampling, record, adapter):
            prompts.append(prompt)
            record.text = texts[len(prompts) - 1]
            yield record.text

        monkeypatch.setattr(Engine, "_stream", stream)
        return prompts

    return says


def test_a_tool_is_called_and_its_result_is_read(run, small_checkpoints, says):
    prompts = says("track\n ```python\ntool_call(symbol='10111')\n```", "\n It costs 12412.")
    out = run("tools.py", small_checkpoints["3"], "What is the price of stock 10111?")
    assert out == "it calls track with {'symbol': '10111'}\nIt costs 12412.\n"
    assert len(prompts[1]) > len(prompts[0])  # behind the call and what came back


def test_an_answer_without_a_call_is_printed(run, small_checkpoints, says):
    says("\n Hello!")
    assert run("tools.py", small_checkpoints["3"], "hello") == "Hello!\n"
