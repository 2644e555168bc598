"""``glm-int4 serve`` as a process: its first line, its end, and what it refuses before it loads anything."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest

import glm_int4
from glm_int4.errors import InputError
from glm_int4.generation.memory_plan import slots_scratch_bytes
from glm_int4.server.access.waiting_room import answering_while_loading
from glm_int4.server.serving import bind
from glm_int4.server.settings import Settings, choose_slots
from tests.conftest import EXAMPLES

ROOT = EXAMPLES.parent


def ask(url, **fields):
    body = {"messages": [{"role": "user", "content": "你好"}], "temperature": 0} | fields
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)


@pytest.fixture
def long_folder(small_checkpoints, tmp_path):
    """A model whose answers go on to 2048 tokens, which takes seconds."""
    folder = shutil.copytree(small_checkpoints["2"], tmp_path / "long")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"seq_length": 2048}))
    return folder


def test_what_runs_is_finished_and_what_comes_later_is_refused(start, long_folder):
    process, url, line = start(long_folder, "--port", 0, "--device", "cpu", "--parallel", 1, "--served-name", "small")
    assert line == f"serving small on {url} (1 answer at a time, 2048 tokens each; Ctrl-C ends)\n"
    with httpx.stream(
        "POST",
        f"{url}/v1/chat/completions",
        json={"messages": [{"role": "user", "content": "你好"}], "temperature": 0, "stream": True},
        timeout=60,
    ) as response:
        lines = response.iter_lines()
        while "content" not in next(lines):
            pass
        process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in rest[-2]
    assert process.wait(30) == 0
    said = process.stderr.read()
    assert "finishing 1 answer;" in said
    assert "Traceback" not in said
    with pytest.raises(httpx.ConnectError):
        ask(url)


def test_a_second_signal_ends_at_once_and_cleanly(start, long_folder):
    process, url, _ = start(long_folder, "--port", 0, "--device", "cpu", "--max-new-tokens", 10**6)
    ended = []
    for _ in range(8):  # one after another would take a while
        threading.Thread(target=lambda: ended.append(ask(url)), daemon=True).start()
    while not httpx.get(f"{url}/metrics").text.count("glm_int4_running 8.0"):
        pass
    process.send_signal(signal.SIGINT)
    assert "finishing" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert "Traceback" not in process.stderr.read()
    assert len(ended) == 8
    for response in ended:
        if response.status_code != 200:  # one that had just come to its end
            assert (response.status_code, "shutting down" in response.text) == (503, True)


def test_the_readmes_example_runs_against_it(start, mini_int4):
    process, url, _ = start(mini_int4, "--port", 0, "--device", "cpu", env={"GLM_INT4_API_KEY": "secret"})
    try:
        result = subprocess.run(
            [sys.executable, EXAMPLES / "openai_client.py", "3加5等于几?"],
            capture_output=True,
            text=True,
            env=os.environ | {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "secret"},
            timeout=60,
        )
        assert result.returncode == 0, result.stderr
        assert "8" in result.stdout.splitlines()
        assert ask(url).status_code == 401  # the key came from the environment
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert json.dumps(process.stdout.read()) == '""'


def refusal(*arguments, code="from glm_int4.cli.main import main; main()"):
    result = subprocess.run(
        [sys.executable, "-c", code, "serve", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: expected ")
    return line


def test_a_missing_extra_is_named_with_the_command_that_installs_it(mini_int4):
    hide = "import sys; sys.modules['fastapi'] = None; sys.modules['uvicorn'] = None; "
    code = hide + "from glm_int4.cli.main import main; main()"
    line = refusal(mini_int4, code=code)
    assert "got none of fastapi, uvicorn" in line
    assert "pip install 'glm-int4[serve]'" in line


def test_an_address_that_is_taken_is_named():
    first = bind(Settings(model_name="m", port=0))  # another server, which still loads its model
    with first, pytest.raises(InputError, match=r"expected a free address, got 127.0.0.1:\d+: .*choose another"):
        bind(Settings(model_name="m", port=first.getsockname()[1]))
    with pytest.raises(InputError, match=r"expected a free address, got 192\.0\.2\.1:0"):
        bind(Settings(model_name="m", port=0, host="192.0.2.1"))


@pytest.mark.parametrize(
    "fault",
    [{"port": 70000}, {"max_waiting": -1}, {"max_new_tokens": 0}, {"max_body_bytes": 5}, {"api_key": " "}],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(fault):
    with pytest.raises(InputError, match="expected "):
        Settings(model_name="m", **fault)


def test_answers_at_a_time_are_planned_from_the_memory_that_is_left(mini_int4, monkeypatch):
    from glm_int4.server import settings

    engine = glm_int4.load(mini_int4, device="cpu")
    each = settings.slot_bytes(engine)
    assert each == 2 * 7 * 256 * 2 * 512
    scratch = [slots_scratch_bytes(engine.config, engine.setup, number, engine.max_length) for number in range(9)]
    for left, slots in ((100 * each + scratch[8], 8), (8 * each + scratch[4], 4), (each // 2, 1)):
        monkeypatch.setattr(settings, "available_bytes", lambda device, left=left: left)
        assert choose_slots(engine) == slots
    monkeypatch.setattr(settings, "available_bytes", lambda device: 3 * each + scratch[3])
    assert choose_slots(engine, 3) == 3
    with pytest.raises(
        InputError,
        match=r"expected room for 4 answers of 512 tokens, which take 0\.\d GB with scratch, got .*--parallel 3",
    ):
        choose_slots(engine, 4)
    monkeypatch.setattr(settings, "available_bytes", lambda device: 3 * each)  # none for a prompt
    with pytest.raises(InputError, match="try --kv-bits 8 or a smaller --max-length"):
        choose_slots(engine, 3)
    with pytest.raises(InputError, match="expected from 1 to 16 answers at a time, got 17"):
        choose_slots(engine, 17)
    monkeypatch.undo()
    assert settings.available_bytes(engine.device) > 1 << 20


def test_a_model_without_a_tokenizer_is_refused_before_serving():
    assert "expected a tokenizer" in refusal(EXAMPLES.parent / "tests" / "fixtures" / "v1_tiny", "--port", 0)


def test_the_port_answers_while_the_model_is_loaded():
    listener = bind(Settings(model_name="m", port=0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with listener:
        for _ in range(2):  # the socket survives it
            with answering_while_loading(listener):
                for path in ("/health", "/v1/models", "/"):
                    response = httpx.get(f"{url}{path}", timeout=60)
                    assert (response.status_code, response.json()["error"]["code"]) == (503, "loading")
                    assert response.headers["Retry-After"] == "2"


def test_a_client_that_comes_while_the_model_is_loaded_is_told_and_answered_later(mini_int4):
    code = """
import time
from glm_int4.cli import options
from glm_int4.cli.main import main
load = options.Loading.load
def slow(self, model):
    input()
    return load(self, model)
options.Loading.load = slow
main()
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [sys.executable, "-c", code, "serve", mini_int4, "--port", port, "--device", "cpu"]
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    process = subprocess.Popen([str(word) for word in words], text=True, cwd=ROOT, **pipes)
    try:
        url, seen = f"http://127.0.0.1:{port}", 0
        while not seen:
            with contextlib.suppress(httpx.ConnectError):
                seen = httpx.get(f"{url}/health", timeout=60).status_code
        assert seen == 503
        process.stdin.write("\n")
        process.stdin.flush()
        assert " on http://" in process.stderr.readline()
        assert httpx.get(f"{url}/health", timeout=60).status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
