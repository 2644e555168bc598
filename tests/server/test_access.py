"""The way to the routes: pages of other origins, old and half-closed clients."""

import json
import socket
import subprocess
import sys

import httpx
import pytest

from glm_int4.errors import InputError
from glm_int4.server.access.cors import check_origin
from tests.server.conftest import run_server

PAGE = "https://chat.example"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}


@pytest.fixture(scope="module")
def open_server(mini_engine):
    with run_server(mini_engine, api_key="secret", origins=(PAGE,)) as running:
        yield running


def test_a_page_of_an_allowed_origin_may_ask(open_server):
    asked = httpx.options(f"{open_server.url}/v1/chat/completions", headers=PREFLIGHT, timeout=60)  # without the key
    assert (asked.status_code, asked.headers["Access-Control-Allow-Origin"]) == (200, PAGE)
    assert "x-stainless-os" in asked.headers["Access-Control-Allow-Headers"]
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "keep_alive": 1}
    answer = open_server.post(json=body, headers={"Origin": PAGE, "Authorization": "Bearer secret"})
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert "X-Ignored-Fields" in answer.headers["Access-Control-Expose-Headers"]
    refused = open_server.post(json=body, headers={"Origin": PAGE})
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, PAGE)


def test_other_pages_may_not_and_by_default_none(open_server, mini_server):
    for running in (open_server, mini_server):
        other = PREFLIGHT | {"Origin": "https://evil.example"}
        asked = httpx.options(f"{running.url}/v1/chat/completions", headers=other, timeout=60)
        assert asked.status_code >= 400
        assert "Access-Control-Allow-Origin" not in asked.headers
    asked = httpx.options(f"{mini_server.url}/v1/models", headers=PREFLIGHT, timeout=60)
    assert "Access-Control-Allow-Origin" not in asked.headers


def test_origins_are_checked():
    assert [check_origin(text) for text in ("HTTPS://Chat.Example/", "*", "null", "chrome-extension://abc")] == [
        "https://chat.example", "*", "null", "chrome-extension://abc"
    ]  # fmt: skip
    for text in ("chat.example", "https://chat.example/path", "https://", "", "https://a b"):
        with pytest.raises(InputError, match="expected an origin such as"):
            check_origin(text)


def talk(running, request, *, half_close):
    """What comes back over a connection until the server ends it."""
    with socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2])), timeout=60) as connection:
        connection.sendall(request)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(4096), b""))


def test_http_1_0_without_a_host_is_served(mini_server):
    answer = talk(mini_server, b"GET /health HTTP/1.0\r\n\r\n", half_close=False)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"}")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_has_ended_its_side_gets_its_whole_answer(v2_engine, slow_model, version, stream):
    fields = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 5, "ignore_eos": True, "stream": stream}
    body = json.dumps(fields).encode()
    head = b"POST /v1/chat/completions HTTP/%s\r\nHost: localhost\r\nContent-Type: application/json\r\n" % version
    request = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with run_server(v2_engine) as running:
        slow_model(running, 0.05)
        answer = talk(running, request, half_close=True)
        assert b'"finish_reason":"length"' in answer
        assert (b"data: [DONE]" in answer) == stream
        assert version == b"1.1" or b"100 Continue" not in answer
        assert b"HTTP/1.1 200 " in talk(running, b"GET /health HTTP/1.0\r\n\r\n", half_close=True)
        assert 'end="gone"' not in running.get("/metrics").text


def test_half_a_request_and_its_end_are_let_go(mini_server):
    assert (
        talk(mini_server, b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{", half_close=True)
        == b""
    )


def test_any_origin_without_a_key_is_warned_of(mini_int4):
    words = [
        sys.executable,
        "-m",
        "glm_int4",
        "serve",
        mini_int4,
        "--port",
        "0",
        "--device",
        "cpu",
        "--allow-origin",
        "*",
    ]
    process = subprocess.Popen([str(word) for word in words], stderr=subprocess.PIPE, text=True)
    try:
        assert " on http://" in process.stderr.readline()
        assert "warning: any web page that is open here can use the model" in process.stderr.readline()
    finally:
        process.terminate()
        process.communicate(timeout=60)
