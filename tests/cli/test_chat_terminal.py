"""A chat in a terminal: a real process with the mini model at INT4, in a pseudo-terminal."""

import json
import os
import signal

import pytest

from tests.cli.pseudo_terminal import PseudoTerminal
from tests.cli.test_commands import glm, refused, text


@pytest.fixture
def open_terminal(tmp_path):
    """A function that opens a chat, and the end of all that it opened."""
    terminals = []

    def open_one(*arguments, script=None, env=None, prompt=True, **size):
        program = ["glm_int4"]
        if script is not None:  # a model that says what it is told to
            path = tmp_path / "script.json"
            path.write_text(json.dumps(script), encoding="utf-8")
            program = ["tests.cli.scripted_chat", path]
        env = {"XDG_STATE_HOME": str(tmp_path / "state")} | (env or {})
        terminal = PseudoTerminal(*program, "chat", *arguments, "--threads", "1", env=env, **size)
        terminals.append(terminal)
        if prompt:
            terminal.wait_for_prompt()
        return terminal

    yield open_one
    for terminal in terminals:
        terminal.close()


# Without stop ids in reach, a sampled answer at a high temperature goes on for hundreds of tokens.
ENDLESS = ("--temperature", "50", "--top-p", "1", "--top-k", "0")


def test_a_conversation_from_greeting_to_exit(mini_int4, open_terminal, tmp_path):
    terminal = open_terminal(mini_int4, "--greedy")
    assert "loaded in" in terminal.text
    assert "INT4 · cpu · context 0 of 512 tokens" in terminal.text
    assert "小明" in terminal.ask("我叫小明。")
    said = terminal.ask("我叫什么名字?")
    assert "小明" in said
    assert "the first after" in said
    assert "tokens/s" in said
    assert "context 0 of" not in said
    assert "小明" in terminal.ask("/retry")
    assert "2 rounds" in terminal.ask("/stats")
    assert "expected a command, got /stat; did you mean /stats?" in terminal.ask("/stat")
    assert "forgotten" in terminal.ask("/clear")
    assert "expected a question to ask again" in " ".join(terminal.ask("/retry").split())
    terminal.type("/exit")
    assert terminal.wait_for_end() == 0
    assert terminal.is_sane()
    history = tmp_path / "state" / "glm-int4" / "chat_history"
    assert "我叫小明。" in history.read_text(encoding="utf-8")
    assert history.stat().st_mode & 0o777 == 0o600


def test_a_saved_conversation_goes_on_in_the_next_session(mini_int4, open_terminal, tmp_path):
    file = tmp_path / "talk.json"
    terminal = open_terminal(mini_int4, "--greedy", columns=200)
    terminal.ask("我叫小明。")
    assert f"saved 1 round to {file}" in terminal.ask(f"/save {file}")
    terminal.type("\x04", enter=False)  # Ctrl-D
    assert terminal.wait_for_end() == 0
    terminal = open_terminal(mini_int4, columns=200)
    (tmp_path / "other.json").write_text("{}")
    assert "error: expected a conversation written by /save" in terminal.ask(f"/load {tmp_path / 'other.json'}")
    assert "loaded 1 round" in terminal.ask(f"/load {file}")
    assert "temperature: 0" in terminal.ask("/temperature")  # the settings came along
    assert "小明" in terminal.ask("我叫什么名字?")


def test_several_lines_are_one_question(mini_int4, open_terminal, tmp_path):
    terminal = open_terminal(mini_int4, script={"answer": "ok"}, columns=200)
    for keys in ("a\\\rb", "a\x1b\rb", "a\nb", "\x1b[200~a\r\nb\x1b[201~"):  # backslash, Alt-Enter, Ctrl-J, a paste
        terminal.type(keys, enter=False)
        terminal.wait_for("b")
        assert "tokens/s" in terminal.ask("")
    terminal.ask(f"/save {tmp_path / 'talk.json'}")
    messages = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [m["content"] for m in messages if m["role"] == "user"] == ["a\nb"] * 4


def test_tab_completes_commands_and_file_names(mini_int4, open_terminal, tmp_path):
    (tmp_path / "unlikely_name.json").write_text("{}")
    terminal = open_terminal(mini_int4, columns=200)
    terminal.type("/temp\t", enter=False)
    terminal.wait_for("erature")
    assert "temperature: 0.5" in terminal.ask(" 0.5")
    terminal.type(f"/load {tmp_path}/unlik\t", enter=False)
    terminal.wait_for("ely_name.json")


def test_ctrl_c_stops_the_answer_and_a_second_one_leaves(mini_int4, open_terminal):
    terminal = open_terminal(mini_int4, *ENDLESS)
    terminal.type("hello")
    terminal.wait_for("\n")
    end = len(terminal.text) + 20
    terminal.wait_until(lambda: len(terminal.text) >= end, "answer")
    terminal.type("\x03", enter=False)
    terminal.wait_for("(stopped; Ctrl-C again leaves)")
    terminal.wait_for_prompt()
    assert "1 round" in terminal.ask("/stats")  # what was said counts
    terminal.type("\x03", enter=False)
    assert terminal.wait_for_end() == 0
    assert terminal.is_sane()


def test_ctrl_c_clears_a_line_before_it_leaves(mini_int4, open_terminal):
    terminal = open_terminal(mini_int4)
    terminal.type("hello", enter=False)
    terminal.wait_for("hello")
    terminal.type("\x03", enter=False)
    terminal.wait_for_prompt()
    terminal.type("\x03", enter=False)
    assert terminal.wait_for_end() == 0


def test_a_question_that_is_too_long_does_not_cost_the_conversation(mini_int4, open_terminal):
    terminal = open_terminal(mini_int4, "--greedy", "--max-length", 128)
    assert "小明" in terminal.ask("我叫小明。")
    assert "less than 128 tokens" in " ".join(terminal.ask("3加5" * 60).split())
    assert "小明" in terminal.ask("我叫什么名字?")


def test_a_full_context_and_a_cut_answer_are_said(mini_int4, open_terminal):
    terminal = open_terminal(mini_int4, *ENDLESS, "--max-length", 96, "--max-new-tokens", 30, "--seed", 1)
    assert "(cut after 30 tokens: --max-new-tokens)" in terminal.ask("hello")
    assert "dropped the oldest 1 round" in terminal.ask("hello" * 12)


@pytest.mark.parametrize("fault", ["memory", "torch"])
def test_memory_that_runs_out_costs_the_answer_and_not_the_session(mini_int4, open_terminal, fault):
    terminal = open_terminal(mini_int4, script={"answer": "", "fail": fault})
    said = " ".join(terminal.ask("hello").split())
    assert "error: expected enough memory for the answer, got too little; /clear" in said
    assert "0 rounds" in terminal.ask("/stats")
    terminal.type("/quit")
    assert terminal.wait_for_end() == 0


MARKDOWN = """# 标题

| 城市 | 国家 |
|---|---|
| 巴黎 | 法国 |
| Washington | 美国 😀 |

```python
print("你好")
```

""" + "\n".join(f"{i}. item {i} of a list that is taller than the screen" for i in range(1, 31))


def test_markdown_is_rendered_and_nothing_is_lost(mini_int4, open_terminal):
    terminal = open_terminal(mini_int4, script={"answer": MARKDOWN + "\n\nend <br> [1]: x\n"}, rows=16)
    said = terminal.ask("hello")
    assert "\n 城市        国家\n" in said
    assert "\n Washington  美国 😀\n" in said
    assert "```" not in said
    assert said.count("\n 30. item 30 of") == 1
    assert "end <br> [1]: x" in said


def test_a_resize_in_the_middle_of_an_answer(mini_int4, open_terminal):
    terminal = open_terminal(mini_int4, script={"answer": MARKDOWN, "delay": 0.002}, rows=16)
    terminal.type("hello")
    terminal.wait_for("item 5 of")
    terminal.resize(40, 10)
    terminal.wait_for("item 12 of")
    terminal.resize(100, 30)
    terminal.wait_for("tokens/s")
    assert "\n 30. item 30 of a list that is taller than the screen\n" in terminal.text
    terminal.wait_for_prompt()
    terminal.resize(30, 8)
    assert "1 round" in " ".join(terminal.ask("/stats").split())


def test_what_is_typed_during_an_answer_waits_for_the_prompt(mini_int4, open_terminal):
    terminal = open_terminal(mini_int4, script={"answer": "slowly " * 10, "delay": 0.02})
    terminal.type("hello")
    terminal.wait_for("slowly")
    os.write(terminal.master, b"/stats\r")
    terminal.wait_for("top_p")
    assert terminal.text.index("tokens/s") < terminal.text.index("/stats")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["prompt", "answer"])
def test_signals_leave_the_terminal_sane(mini_int4, open_terminal, number, moment):
    terminal = open_terminal(mini_int4, script={"answer": "slowly " * 1000, "delay": 0.02})
    if moment == "answer":
        terminal.type("hello")
        terminal.wait_for("slowly")
    os.kill(terminal.process.pid, number)
    assert terminal.wait_for_end() == 128 + number
    assert terminal.is_sane()
    assert "Traceback" not in terminal.text


@pytest.mark.parametrize("moment", ["prompt", "answer"])
def test_a_terminal_that_goes_away_ends_the_chat(mini_int4, open_terminal, moment):
    terminal = open_terminal(mini_int4, script={"answer": "slowly " * 1000, "delay": 0.02})
    if moment == "answer":
        terminal.type("hello")
        terminal.wait_for("slowly")
    terminal.hang_up()
    assert terminal.process.wait(timeout=30) != 0


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"TERM": ""}])
def test_a_dumb_terminal_gets_plain_text(mini_int4, open_terminal, env):
    terminal = open_terminal(mini_int4, "--greedy", env=env, prompt=False)
    terminal.wait_for("> ")
    terminal.type("3加5等于几?")
    terminal.wait_for("the first after")
    assert "\n8\n" in terminal.text
    terminal.type("/nonsense")
    terminal.wait_for("/help lists them\n> ")
    # Ctrl-C leaves, and so does Ctrl-D. A Ctrl-C between the prompt and the system's read waits there for another key.
    assert terminal.wait_for_end(key="\x03" if env["TERM"] else "\x04") == 0
    assert b"\x1b" not in terminal.written


def test_no_color_means_no_color(mini_int4, open_terminal):
    terminal = open_terminal(mini_int4, script={"answer": MARKDOWN}, env={"NO_COLOR": "1"})
    terminal.ask("hello")
    assert not any(b"\x1b[%dm" % color in terminal.written for color in (31, 33, 35, 36, 94, 95, 96))


def test_a_home_that_cannot_be_written_does_not_break_the_chat(mini_int4, open_terminal, tmp_path):
    (tmp_path / "file").write_text("")
    terminal = open_terminal(mini_int4, "--greedy", env={"XDG_STATE_HOME": str(tmp_path / "file")}, columns=120)
    assert "what you type is not kept" in terminal.text
    said = terminal.ask("3加5等于几?")
    assert "8" in said
    assert "(this conversation is not kept for --continue: " in said  # its autosave
    assert "not kept" not in terminal.ask("3加6等于几?")


def kept(tmp_path):
    """The messages of every conversation that was kept."""
    files = (tmp_path / "state" / "glm-int4" / "chats").glob("*.json")
    return [[m["content"] for m in json.loads(file.read_text(encoding="utf-8"))["messages"]] for file in files]


@pytest.mark.parametrize("way", ["Ctrl-C twice", "Ctrl-D", signal.SIGTERM, signal.SIGHUP, "hang-up"])
def test_an_autosave_is_there_however_the_terminal_is_left_during_an_answer(mini_int4, open_terminal, tmp_path, way):
    terminal = open_terminal(mini_int4, script={"answer": "slowly " * 1000, "delay": 0.02})
    terminal.type("hello")
    terminal.wait_for("slowly slowly")
    if way in ("Ctrl-C twice", "Ctrl-D"):
        terminal.type("\x03", enter=False)
        terminal.wait_for_prompt()
        terminal.type("\x03" if way == "Ctrl-C twice" else "\x04", enter=False)
        assert terminal.wait_for_end() == 0
    elif way == "hang-up":
        terminal.hang_up()
        terminal.process.wait(timeout=30)
    else:
        os.kill(terminal.process.pid, way)
        assert terminal.wait_for_end() == 128 + way
    ((question, answer),) = kept(tmp_path)
    assert question == "hello"
    assert answer.startswith("slowly slowly")


def test_an_autosave_is_there_after_the_answer_though_the_chat_is_killed(mini_int4, open_terminal, tmp_path):
    terminal = open_terminal(mini_int4, script={"answer": "ok"})
    terminal.ask("hello")
    terminal.process.kill()
    terminal.process.wait()
    assert kept(tmp_path) == [["hello", "ok"]]


def test_continue_goes_on_with_the_last_conversation(mini_int4, open_terminal, tmp_path):
    terminal = open_terminal(mini_int4, "--greedy", columns=200)
    terminal.ask("我叫小明。")
    terminal.type("\x03", enter=False)
    assert terminal.wait_for_end() == 0
    terminal = open_terminal(mini_int4, "--continue", columns=200)
    assert "(continues 1 round of 20" in terminal.text
    assert f"last answered by {mini_int4})" in terminal.text
    assert "temperature: 0" in terminal.ask("/temperature")  # the settings came along
    assert "小明" in terminal.ask("我叫什么名字?")
    assert sorted(map(len, kept(tmp_path))) == [2, 4]


def test_continue_works_without_a_terminal_too(mini_int4, tmp_path):
    env = {"XDG_STATE_HOME": str(tmp_path / "state")}
    result = glm("chat", mini_int4, "--continue", stdin="hello\n", env=env)
    refused(result, "expected a conversation to continue, got none in ")
    glm("chat", mini_int4, "--greedy", stdin="我叫小明。\n", env=env)
    result = glm("chat", mini_int4, "--continue", stdin="我叫什么名字?\n", env=env)
    assert "小明" in text(result)
    assert "continues 1 round" in result.stderr.decode()
    result = glm("chat", mini_int4, "--continue", "--prompt", "我叫什么名字?", env=env)
    assert "小明" in text(result)
    assert "continues 2 rounds" in result.stderr.decode()
    assert sorted(map(len, kept(tmp_path))) == [2, 4, 6]


def test_markdown_of_an_answer_is_shown_as_it_was_written_on_request(mini_int4, open_terminal):
    answer = "# **a**\n\n1. `b`\n1. | c |\n\n```py\nd\n```"
    terminal = open_terminal(mini_int4, script={"answer": answer})
    assert "expected an answer to show, got none so far" in terminal.ask("/raw")
    assert answer not in terminal.ask("hello")
    assert f"{answer}\n" in terminal.ask("/raw")
    terminal = open_terminal(mini_int4, "--plain", script={"answer": answer})
    assert f"{answer}\n" in terminal.ask("hello")


def test_a_plain_answer_without_markdown_can_be_stopped_too(mini_int4, open_terminal):
    terminal = open_terminal(mini_int4, "--plain", script={"answer": "slowly " * 1000, "delay": 0.02})
    terminal.type("hello")
    terminal.wait_for("slowly slowly")
    terminal.type("\x03", enter=False)
    terminal.wait_for("(stopped; Ctrl-C again leaves)")
    terminal.wait_for_prompt()
    assert "1 round" in terminal.ask("/stats")
