"""Requests that are wrong, too large, too many or abandoned: an error in OpenAI's form, and the server lives on."""

import contextlib
import json
import socket
import threading
import time

import httpx
import pytest

from glm_int4.server import event_stream
from tests.server.conftest import run_server

GOOD = {"messages": [{"role": "user", "content": "3加5等于几?"}], "temperature": 0}
LONG = {"messages": [{"role": "user", "content": "你好"}], "temperature": 0, "stream": True}


def check_error(response, status):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"].startswith("expected ")
    assert "\n" not in error["message"]
    return error


@pytest.fixture(autouse=True)
def lives_on(request):
    """After every test here, the server still answers."""
    yield
    if "mini_server" in request.fixturenames:
        status, answer = request.getfixturevalue("mini_server").ask("3加5等于几?")
        assert (status, answer["choices"][0]["message"]["content"]) == (200, "8")


@pytest.mark.parametrize(
    "body",
    ["", "{", "[" * 100_000, "null", "[]", '"a"', '{"messages": NaN}', '{"a":' * 5000, "1" * 10_000, "\x00", "\udcff"],
    ids=lambda body: repr(body[:12]),
)
def test_malformed_json_is_named(mini_server, body):
    raw = body.encode("utf-8", "surrogateescape")
    check_error(mini_server.post(content=raw, headers={"Content-Type": "application/json"}), 400)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": "hi"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, None),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, None),
        ({"messages": [{"role": "user", "content": " \n"}]}, None),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"seed": 1.5}, "seed"),
        ({"stop": 5}, None),
        ({"stream": "yes"}, "stream"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"tool_choice": "never"}, "tool_choice"),
        ({"tools": "track"}, "tools"),
    ],
    ids=str,
)
def test_wrong_fields_are_named(mini_server, change, param):
    error = check_error(mini_server.post(json=GOOD | change), 400)
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param


def test_a_negative_seed_and_the_edges_of_sampling_are_taken(mini_server):
    for change in ({"seed": -5}, {"top_p": 0}, {"temperature": 1e-9}, {"stop": []}, {"max_tokens": 2**31 - 1}):
        assert mini_server.post(json=GOOD | change).status_code == 200, change


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_lone_surrogates_are_refused(mini_server, path):
    for body in (
        '{"messages": [{"role": "user", "content": "\\ud800"}]}',
        '{"prompt": "\\udfff"}',
        '{"messages": [{"role": "user", "content": "a"}], "stop": "\\ud800"}',
    ):
        check_error(mini_server.post(path, content=body, headers={"Content-Type": "application/json"}), 400)


def test_tools_that_are_no_definitions_are_refused(v3_server):
    deep = {}
    for _ in range(500):
        deep = {"a": deep}
    for tools in ([5], [{}], [{"name": "x", "parameters": deep}], [{"name": "\ud800"}]):
        body = json.dumps(GOOD | {"tools": tools})
        check_error(v3_server.post(content=body, headers={"Content-Type": "application/json"}), 400)
    calls = [{"id": "a", "type": "function", "function": {"name": "track", "arguments": "{"}}]
    messages = [*GOOD["messages"], {"role": "assistant", "content": None, "tool_calls": calls}]
    check_error(v3_server.post(json={"messages": messages}), 400)
    messages.append({"role": "tool", "tool_call_id": "a", "content": "5"})
    assert "expected JSON as arguments" in check_error(v3_server.post(json={"messages": messages}), 400)["message"]


def test_tools_that_cannot_fit_are_refused_before_they_are_encoded(v3_server, monkeypatch):
    encoded = []
    encode = v3_server.server.engine.tokenizer.encode
    monkeypatch.setattr(
        v3_server.server.engine.tokenizer, "encode", lambda text: (encoded.append(len(text)), encode(text))[1]
    )
    nested = [1] * 50_000
    for _ in range(20):
        nested = [nested]
    tool = {"name": "x", "parameters": {"type": "object", "properties": {"a": {"enum": nested}}}}
    error = check_error(v3_server.post(json=GOOD | {"tools": [tool]}), 400)
    assert error["code"] == "context_length_exceeded"
    assert sum(encoded) < 1000


def test_a_body_of_10_megabytes_is_too_large(mini_server):
    body = b'{"messages": [{"role": "user", "content": "' + b"a" * 10_000_000 + b'"}]}'
    check_error(mini_server.post(content=body, headers={"Content-Type": "application/json"}), 413)
    pieces = (body[i : i + 100_000] for i in range(0, len(body), 100_000))  # sent without its length
    # The answer can come, and the connection end, while pieces are still on their way.
    with contextlib.suppress(httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        check_error(mini_server.post(content=pieces, headers={"Content-Type": "application/json"}), 413)


def test_10_000_messages_and_long_prompts_are_refused(mini_server):
    turns = [{"role": role, "content": "你好"} for _ in range(5000) for role in ("user", "assistant")]
    assert "4096 messages" in check_error(mini_server.post(json={"messages": turns}), 400)["message"]
    for text in ("你好 " * 2000, "a " * 20_000):
        for path, body in (
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}),
            ("/v1/completions", {"prompt": text}),
        ):
            assert check_error(mini_server.post(path, json=body), 400)["code"] == "context_length_exceeded"
    check_error(mini_server.post("/v1/completions", json={"prompt": [5] * 600}), 400)
    check_error(mini_server.post("/v1/completions", json={"prompt": [10**6]}), 400)


def test_other_paths_methods_types_and_hosts_are_refused(mini_server):
    check_error(mini_server.get("/v1/nothing"), 404)
    check_error(mini_server.get("/../../etc/passwd"), 404)
    check_error(mini_server.get("/v1/chat/completions"), 405)
    body = json.dumps(GOOD)
    check_error(mini_server.post(content=body, headers={"Content-Type": "text/plain"}), 400)  # what a form may send
    for host in ("evil.example", "127.0.0.1.evil.example", ""):
        check_error(mini_server.post(json=GOOD, headers={"Host": host}), 403)
    for host in ("localhost", "127.0.0.1:80", "[::1]:8000", "LOCALHOST"):
        assert mini_server.post(json=GOOD, headers={"Host": host}).status_code == 200


def raw_request(running, body, read=b""):
    """Send a chat request over a bare socket; returns it once ``read`` has come back."""
    content = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2])))
    connection.sendall(head.encode() + content)
    seen = b""
    while read not in seen:
        seen += connection.recv(1)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_slot_within_a_token(v2_engine, slow_model, stream):
    with run_server(v2_engine, num_slots=1) as running:
        slow_model(running, 0.1)
        connection = raw_request(running, LONG | {"stream": stream})
        running.wait_until(lambda: running.batcher._running)
        sequence = running.batcher._running[0]
        running.wait_until(lambda: len(sequence.ids) >= 3)
        connection.close()
        before = len(sequence.ids)
        running.wait_until(lambda: running.batcher.num_running == 0, 5)
        assert len(sequence.ids) - before <= 2  # the one being made, and one before the news came
        assert running.ask("你好", max_tokens=2)[0] == 200


def test_a_client_that_goes_away_while_it_waits_never_runs(v2_engine, slow_model):
    with run_server(v2_engine, num_slots=1) as running:
        slow_model(running)
        first = raw_request(running, LONG)
        running.wait_until(lambda: running.batcher.num_running == 1)
        second = raw_request(running, LONG)
        running.wait_until(lambda: running.server.worker.num_waiting == 1)
        second.close()
        running.wait_until(lambda: running.server.worker.num_waiting == 0)
        first.close()
        running.wait_until(lambda: running.server.worker.num_pending == 0)
        assert 'end="gone"} 2.0' in running.get("/metrics").text


def test_a_body_that_stops_in_the_middle_is_let_go(mini_engine):
    with (
        run_server(mini_engine, body_seconds=0.3) as running,
        socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2]))) as connection,
    ):
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        connection.settimeout(10)
        assert b" 408 " in connection.recv(4096)
        running.get("/health")


def test_a_slow_reader_holds_up_nobody_and_is_left_in_the_end(v2_engine, monkeypatch):
    monkeypatch.setattr(
        event_stream, "event", lambda value, make=event_stream.event: make(value) + b":" + b" " * 500_000
    )
    monkeypatch.setattr("glm_int4.server.protocol.answer_writer.event", event_stream.event)
    with run_server(v2_engine, num_slots=2, send_seconds=1.0) as running:
        slow = raw_request(running, LONG)  # reads nothing
        running.wait_until(lambda: running.batcher.num_running == 1)
        assert running.ask("你好", max_tokens=20)[0] == 200
        running.wait_until(lambda: running.server.worker.num_pending == 0)
        slow.close()


def test_a_full_queue_says_when_to_come_back(v2_engine, slow_model):
    with run_server(v2_engine, num_slots=1, max_waiting=2) as running:
        slow_model(running)
        waiting = [raw_request(running, LONG) for _ in range(3)]
        running.wait_until(lambda: running.server.worker.num_pending == 3)
        response = running.post(json=GOOD)
        assert check_error(response, 429)["code"] == "queue_full"
        seconds = int(response.headers["Retry-After"])
        assert 1 <= seconds <= 60
        assert seconds == max(round(int(response.headers["Retry-After-Ms"]) / 1000), 1)
        for connection in waiting:
            connection.close()
        running.wait_until(lambda: running.server.worker.num_pending == 0)
        assert running.ask("你好", max_tokens=2)[0] == 200


def test_a_queue_of_answers_that_have_waited_themselves_is_not_counted_twice(v2_engine, slow_model):
    """The time in the queue is no part of what an answer takes."""
    with run_server(v2_engine, num_slots=1, max_waiting=24) as running, contextlib.ExitStack() as stack:
        slow_model(running, 0.03)
        began = time.monotonic()
        for _ in range(12):
            stack.enter_context(raw_request(running, GOOD | {"max_tokens": 3, "ignore_eos": True}))
        running.wait_until(lambda: running.server.metrics.text().count(b'answers_total{end="length"} 12.0'))
        each = (time.monotonic() - began) / 12
        slow_model(running, 0.5)  # none of the next ones ends before the queue is full
        for _ in range(25):
            stack.enter_context(raw_request(running, LONG))
        running.wait_until(lambda: running.server.worker.num_pending == 25)
        response = running.post(json=GOOD)
    check_error(response, 429)
    assert 0.3 * 24 * each <= int(response.headers["Retry-After"]) <= 2 * 24 * each + 1


@pytest.mark.parametrize("fault", [RuntimeError("boom"), MemoryError("boom"), RuntimeError("boom: a memory of old")])
@pytest.mark.parametrize("stream", [True, False])
def test_a_fault_of_one_answer_is_told_and_ends_no_other(mini_engine, slow_model, monkeypatch, fault, stream):
    with run_server(mini_engine) as running:
        slow_model(running)
        forward = running.batcher._forward

        def faulty(sequences):
            if any(sequence.limit == 77 for sequence in sequences):
                raise fault
            return forward(sequences)

        monkeypatch.setattr(running.batcher, "_forward", faulty)
        answers = []
        other = threading.Thread(target=lambda: answers.append(running.ask("我叫小明。")))
        other.start()
        response = running.post(json=GOOD | {"max_tokens": 77, "stream": stream})
        other.join()
        if stream:
            last = [line for line in response.text.splitlines() if line][-1]
            error = json.loads(last.removeprefix("data: "))["error"]
        else:
            error = check_error(response, 500)
        assert error["type"] == "server_error"
        assert "boom" not in error["message"]  # what went wrong inside is for the log
        assert ("expected enough memory" in error["message"]) == isinstance(fault, MemoryError)
        assert answers[0][0] == 200
        assert "小明" in answers[0][1]["choices"][0]["message"]["content"]


def test_a_fault_of_the_batcher_itself_ends_the_answers_and_not_the_thread(mini_engine, monkeypatch):
    with run_server(mini_engine) as running:
        step = running.batcher.step
        faults = [RuntimeError("boom")]
        monkeypatch.setattr(running.batcher, "step", lambda: (_ for _ in ()).throw(faults.pop()) if faults else step())
        check_error(running.post(json=GOOD), 500)
        assert running.ask("3加5等于几?")[0] == 200
        assert running.get("/health").status_code == 200


def test_health_tells_a_thread_that_has_ended(mini_engine):
    with run_server(mini_engine) as running:
        running.server.worker.stop()
        check_error(running.get("/health"), 503)
        check_error(running.post(json=GOOD), 503)


def test_metrics_count_what_happened(mini_engine):
    with run_server(mini_engine) as running:
        running.ask("3加5等于几?")
        running.post(json={})
        text = running.get("/metrics").text
    for line in (
        'glm_int4_requests_total{route="/v1/chat/completions",status="200"} 1.0',
        'glm_int4_requests_total{route="/v1/chat/completions",status="400"} 1.0',
        'glm_int4_answers_total{end="stop"} 1.0',
        "glm_int4_new_tokens_total 2.0",
        "glm_int4_running 0.0",
        "glm_int4_slots 4.0",
        "glm_int4_first_token_seconds_count 1.0",
    ):
        assert line in text


def test_two_threads_of_requests_and_wrong_ones_between_them(mini_server):
    end = time.monotonic() + 1.0
    seen = set()

    def ask():
        while time.monotonic() < end:
            seen.add(mini_server.ask("3加5等于几?")[1]["choices"][0]["message"]["content"])
            mini_server.post(json={"messages": 5})

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"8"}
