"""A real server on the loopback address, in a thread of the test's process."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import openai
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service as Driver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import glm_int4
from glm_int4.server.app import Server
from glm_int4.server.serving import Service, bind
from glm_int4.server.settings import LOOPBACK, Settings
from tests.conftest import EXAMPLES


@dataclass
class Running:
    """A server that runs, and what a test wants of it."""

    server: Server
    service: Service
    url: str

    @property
    def batcher(self):
        return self.server.worker.batcher

    def post(self, path="/v1/chat/completions", **options):
        return httpx.post(f"{self.url}{path}", timeout=60, **options)

    def get(self, path, **options):
        return httpx.get(f"{self.url}{path}", timeout=60, **options)

    def ask(self, text, **fields):
        """Status and JSON of a greedy chat with one question."""
        body = {"messages": [{"role": "user", "content": text}], "temperature": 0} | fields
        response = self.post(json=body)
        return response.status_code, response.json()

    def wait_until(self, condition, seconds=30):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.005)


@contextmanager
def run_server(engine, num_slots=4, **changes):
    """Serve an engine until the block ends."""
    changes = {"model_name": "mini", "host_names": LOOPBACK} | changes
    settings = Settings(port=0, **changes)
    listener = bind(settings)
    server = Server(engine, num_slots, settings)
    service = Service(server)
    thread = threading.Thread(target=lambda: asyncio.run(service.serve(sockets=[listener])))
    thread.start()
    running = Running(server, service, f"http://127.0.0.1:{listener.getsockname()[1]}")
    try:
        running.wait_until(lambda: service.started or not thread.is_alive())
        yield running
    finally:
        service.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


_CLIENTS: list[openai.OpenAI] = []


def client(running, key="none"):
    """OpenAI's own, of a server; closed after the test."""
    _CLIENTS.append(openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0, timeout=60))
    return _CLIENTS[-1]


@pytest.fixture(autouse=True)
def _closed_clients():
    """No connection is left for the garbage collector, which would warn in another test."""
    yield
    while _CLIENTS:
        _CLIENTS.pop().close()


@pytest.fixture(scope="session")
def mini_engine(mini_int4):
    """The mini model in INT4, as a user would load it."""
    return glm_int4.load(mini_int4, device="cpu")


@pytest.fixture
def start():
    """Start a server in a process of its own; returns the process, its URL and its first line."""
    processes = []

    def start(*arguments, env=None):
        process = subprocess.Popen(
            [sys.executable, "-m", "glm_int4", "serve", *map(str, arguments)],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=EXAMPLES.parent,
            env=os.environ | (env or {}),
        )
        processes.append(process)
        line = process.stderr.readline()
        assert " on http://" in line, line + process.stderr.read()
        return process, line.split(" on ")[1].split(" ")[0], line

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def mini_server(mini_engine):
    with run_server(mini_engine) as running:
        yield running


@pytest.fixture(scope="module")
def v3_server(v3_engine):
    with run_server(v3_engine, model_name="small-v3") as running:
        yield running


@pytest.fixture(scope="module")
def v4_server(v4_engine):
    with run_server(v4_engine, model_name="small-v4") as running:
        yield running


@pytest.fixture
def slow_model(monkeypatch):
    """Make every step of a server's model take a while, so that a test can act in between."""

    def slow(running, seconds=0.02):
        forward = running.batcher._forward

        def delayed(sequences):
            time.sleep(seconds)
            return forward(sequences)

        monkeypatch.setattr(running.batcher, "_forward", delayed)

    return slow


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--lang=en"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={profile}")
    options.add_argument("--host-resolver-rules=MAP chat.test 127.0.0.1")  # not localhost, so an insecure context
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Driver(driver))
    yield driver
    driver.quit()


# Stands for the server: what a test says is what is answered. A tab's requests are kept in window.asked.
_ANSWER_BY_HAND = """
window.fetch = async (path, { body, signal } = {}) => {
  if (!path.endsWith("completions")) return new Response(`{"data": [{"id": "by hand"}]}`);
  window.asked = JSON.parse(body).messages;
  return new Response(new ReadableStream({
    start(stream) {
      const send = (data) => stream.enqueue(new TextEncoder().encode(`data: ${data}\\n\\n`));
      window.say = (content) => send(JSON.stringify({ choices: [{ delta: { content } }] }));
      window.end = (usage) => {
        send(JSON.stringify({ choices: [], usage }));
        send("[DONE]");
        stream.close();
      };
      signal.addEventListener("abort", () => stream.error(signal.reason));
    },
  }));
};
"""


class Page:
    """What a person does and sees."""

    def __init__(self, browser, url):
        self.browser = browser
        browser.get(url)
        browser.execute_script("localStorage.clear()")
        browser.refresh()

    def find(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector):
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
        return self.browser.execute_script(script, selector)

    def wait(self, condition):
        return WebDriverWait(self.browser, 60, poll_frequency=0.02).until(lambda _: condition())

    def ask(self, question):
        self.find("#input").send_keys(question, Keys.ENTER)

    def wait_for_end(self):
        self.wait(lambda: self.find("#send").is_displayed() and not self.texts(".running"))

    def answer_by_hand(self):
        """Let ``say`` and ``end`` answer in place of the server, until the next reload of this tab."""
        self.browser.execute_script(_ANSWER_BY_HAND)

    def say(self, content):
        self.wait(lambda: self.browser.execute_script("return Boolean(window.say)"))
        self.browser.execute_script("window.say(arguments[0])", content)

    def end(self, usage=None):
        self.browser.execute_script("window.end(arguments[0])", usage)

    def asked(self):
        return self.browser.execute_script("return window.asked")

    def settings(self):
        return self.browser.execute_script("return JSON.parse(localStorage['glm-int4.settings'] ?? '{}')")

    def stored(self):
        """The conversations in the browser's storage."""
        script = "return Object.keys(localStorage).filter(k => k.includes('conversation')).map(k => localStorage[k])"
        return [json.loads(text) for text in self.browser.execute_script(script)]

    def set(self, **fields):
        self.find("#open-settings").click()
        for name, value in fields.items():
            field = self.find(f"[name={name}]")
            if field.tag_name == "select":
                field.find_element(By.CSS_SELECTOR, f"[value={value}]").click()
            else:
                field.clear()
                field.send_keys(value)
        self.find("#settings-form > button").click()
        # They are saved, and everything is shown anew, a moment after the click.
        self.wait(lambda: fields.items() <= self.settings().items())

    def faults(self):
        return [entry for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture
def page(browser, mini_server):
    page = Page(browser, mini_server.url)
    page.faults()  # of other tests
    yield page
    assert page.faults() == []
