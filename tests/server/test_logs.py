"""The log of a server, its keys, and its options from a file and the environment."""

import json
import logging
import os
import signal
import subprocess
import sys

import httpx
import pytest

from glm_int4.errors import InputError
from glm_int4.server.access.keys import Key, find_key, read_keys
from glm_int4.server.options_file import read_options
from tests.conftest import EXAMPLES
from tests.server.conftest import run_server

ROOT = EXAMPLES.parent
PRIVATE = "a private text"


def lines(caplog):
    return [record.fields for record in caplog.records if record.name == "glm_int4.requests"]


def test_a_request_is_one_line_with_its_tokens_and_times(mini_engine, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(logging.getLogger("httpx"), "disabled", True)  # the client of this test
    with run_server(mini_engine, more_keys=(Key("alice", "alices-secret"),)) as running:
        headers = {"Authorization": "Bearer alices-secret", "X-Request-Id": "from-the-client.1"}
        body = {
            "messages": [{"role": "user", "content": PRIVATE}],
            "max_tokens": 3,
            "temperature": 0,
            "ignore_eos": True,
        }
        for count, stream in enumerate((False, True)):
            running.wait_until(lambda count=count: len(lines(caplog)) == count)
            answer = running.post(json=body | {"stream": stream}, headers=headers)
            assert answer.headers["X-Request-Id"] == "from-the-client.1"
        running.wait_until(lambda: len(lines(caplog)) == 2)  # a line is written once all of the answer is sent
        prompt_tokens = mini_engine.count_tokens(body["messages"])
        refused = running.post(json=body, headers={"Authorization": "Bearer wrong-secret", "X-Request-Id": "a b\tc"})
        running.wait_until(lambda: len(lines(caplog)) == 3)
        running.get(f"/{PRIVATE}?api_key=alices-secret", headers=headers)
        running.wait_until(lambda: len(lines(caplog)) == 4)
        running.get("/health")  # is asked for all the time
        running.post(json={"messages": PRIVATE}, headers=headers)
        running.wait_until(lambda: len(lines(caplog)) == 5)
        answered, streamed, without_key, lost, wrong = lines(caplog)
        for line in (answered, streamed):
            assert line | {"first_token_s": 0, "seconds": 0} == {
                "id": "from-the-client.1", "method": "POST", "route": "/v1/chat/completions", "status": 200,
                "key": "alice", "prompt_tokens": prompt_tokens, "new_tokens": 3, "first_token_s": 0, "seconds": 0,
            }  # fmt: skip
            assert 0 < line["first_token_s"] <= line["seconds"]
        assert (without_key["status"], without_key["id"]) == (401, refused.headers["X-Request-Id"])
        assert without_key["route"] == "/v1/chat/completions"
        assert "key" not in without_key
        assert (lost["route"], lost["status"]) == ("other", 404)
        assert (wrong["route"], wrong["status"]) == ("/v1/chat/completions", 400)
    assert PRIVATE not in caplog.text
    assert "secret" not in caplog.text


def test_metrics_tell_what_runs(mini_server):
    (line,) = [
        line for line in mini_server.get("/metrics").text.splitlines() if line.startswith("glm_int4_build_info{")
    ]
    for fact in ('bits="4"', 'model_version="1"', 'device="cpu"', 'version="'):
        assert fact in line


def test_keys_have_names(tmp_path):
    path = tmp_path / "keys"
    path.write_text("\ufeff# clients\nalice secret-a\n\nsecret-b # bob\n", encoding="utf-8")
    keys = read_keys(path)
    assert [(key.name, key.secret) for key in keys] == [("alice", "secret-a"), ("line-4", "secret-b")]
    assert find_key(keys, b"Bearer secret-b").name == "line-4"
    assert find_key(keys, b"bearer secret-a").name == "alice"
    for header in (b"Bearer secret", b"Basic secret-a", b"", b"Bearer alice"):
        assert find_key(keys, header) is None
    assert "secret" not in repr(keys)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "expected a file of keys"), ("# none\n", "expected a key"), ("a b c\n", "on line 1"), ("a k\nb k\n", "once")],
)
def test_files_without_keys_are_named(tmp_path, text, message):
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_keys(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port = ", "expected TOML in"),
        ("prot = 8000", "expected options of glm-int4 serve in .*, got prot"),
        ("[server]\nport = 1", "got server"),
        ("port = 2020-01-01", "expected a text, a number, true or false for port"),
    ],
)
def test_faulty_configs_are_named(tmp_path, text, message):
    path = tmp_path / "serve.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_options(path, {"port"})


@pytest.fixture
def start(tmp_path):
    """Start a server from a config; returns the process and its URL."""
    processes = []

    def start(config, *words, **variables):
        (tmp_path / "serve.toml").write_text(config)
        process = subprocess.Popen(
            [sys.executable, "-m", "glm_int4", "serve", *map(str, words), "--config", tmp_path / "serve.toml"],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | variables,
        )
        processes.append(process)
        line = process.stderr.readline()
        assert " on http://" in line, line
        return process, line

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_file_the_environment_and_the_command_line_give_options_in_this_order(start, mini_int4):
    config = f"""
        model = "{mini_int4}"
        port = 0
        device = "cpu"
        parallel = 3
        max-length = 64
        served-name = ["from-file", "other"]
        log-format = "json"
    """
    process, line = start(config, "--parallel", 1, GLM_INT4_MAX_LENGTH="48", GLM_INT4_PARALLEL="2")
    said = json.loads(line)["message"]
    assert said.startswith("serving from-file on http://")
    assert "(1 answer at a time, 48 tokens each;" in said
    url = said.split(" on ")[1].split(" ")[0]
    assert [model["id"] for model in httpx.get(f"{url}/v1/models", timeout=60).json()["data"]] == ["from-file", "other"]
    logged = json.loads(process.stderr.readline())
    assert (logged["route"], logged["status"], logged["level"]) == ("/v1/models", 200, "info")
    process.send_signal(signal.SIGTERM)
    for line in process.stderr:
        assert json.loads(line)["message"]
    assert process.wait(60) == 0


def test_an_end_waits_for_answers_no_longer_than_it_should(start, small_checkpoints):
    config = 'port = 0\ndevice = "cpu"\ndrain-timeout = 0.2\nlog-level = "error"'
    process, line = start(config, small_checkpoints["2"], "--max-new-tokens", 10**6)
    url = line.split(" on ")[1].split(" ")[0]
    body = {"messages": [{"role": "user", "content": "a"}], "stream": True, "ignore_eos": True, "n": 60}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as response:
        parts = response.iter_lines()
        while "content" not in next(parts):
            pass
        process.send_signal(signal.SIGTERM)
        rest = [part for part in parts if part]
    assert '"error"' in rest[-1]
    assert process.wait(60) == 0
    assert "ending what is not finished after 0.2 s" in process.stderr.read()
