"""A page of another origin in a headless Chromium, which asks the server where it may."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.server.conftest import run_server

PAGE = b"<!doctype html><meta charset=utf-8><title>somebody's page</title>"
# What a page does that shows an answer as it comes; gives the pieces and a header, or the browser's refusal.
ASK = """
const [url, headers, done] = arguments;
(async () => {
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers },
    body: JSON.stringify({
      messages: [{ role: "user", content: "3加5等于几?" }], temperature: 0, stream: true, keep_alive: 1,
    }),
  });
  const pieces = [];
  let text = "";
  for await (const bytes of response.body) {
    text += new TextDecoder().decode(bytes, { stream: true });
  }
  for (const line of text.split("\\n")) {
    if (line.startsWith("data: {")) pieces.push(JSON.parse(line.slice(6)).choices[0].delta.content ?? "");
  }
  done([response.status, pieces.join(""), response.headers.get("X-Ignored-Fields")]);
})().catch((error) => done(String(error)));
"""


class _Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *args):
        pass


@pytest.fixture
def elsewhere(browser):
    """The origin of a page that the browser shows."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    origin = f"http://127.0.0.1:{server.server_port}"
    browser.get(origin)
    yield origin
    browser.get("about:blank")
    server.shutdown()
    server.server_close()
    thread.join()


def ask(browser, running, **headers):
    return browser.execute_async_script(ASK, running.url, headers)


def test_a_page_of_an_origin_that_is_allowed_gets_an_answer(browser, mini_engine, elsewhere):
    with run_server(mini_engine, origins=(elsewhere,)) as running:
        assert ask(browser, running) == [200, "8", "keep_alive"]


def test_a_page_sends_its_key_and_is_asked_for_it(browser, mini_engine, elsewhere):
    with run_server(mini_engine, origins=("*",), api_key="right") as running:
        assert ask(browser, running, Authorization="Bearer right")[:2] == [200, "8"]
        assert ask(browser, running, Authorization="Bearer wrong")[:2] == [401, ""]


@pytest.mark.parametrize("origins", [(), ("https://chat.example",)])
def test_a_browser_refuses_a_page_of_any_other_origin(browser, mini_engine, elsewhere, origins):
    with run_server(mini_engine, origins=origins) as running:
        assert ask(browser, running) == "TypeError: Failed to fetch"
        assert running.server.worker.num_pending == 0
