"""A real server on the loopback address, in a thread of the test's process."""

import asyncio
import json
import shutil
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest

import glm_int4
from glm_int4.server.app import Server
from glm_int4.server.serving import Service, bind
from glm_int4.server.settings import LOOPBACK, Settings


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


@pytest.fixture(scope="session")
def mini_engine(mini_int4):
    """The mini model in INT4, as a user would load it."""
    return glm_int4.load(mini_int4, device="cpu")


@pytest.fixture(scope="session")
def v2_engine(small_checkpoints):
    """A small random ChatGLM2, whose answers go on until a limit."""
    return glm_int4.load(small_checkpoints["2"], device="cpu")


@pytest.fixture(scope="session")
def v3_engine(small_checkpoints, tmp_path_factory):
    """A small random ChatGLM3 with room for the definitions of tools."""
    folder = tmp_path_factory.mktemp("v3") / "long"
    shutil.copytree(small_checkpoints["3"], folder)
    config = json.loads((folder / "config.json").read_text()) | {"seq_length": 2048}
    (folder / "config.json").write_text(json.dumps(config))
    return glm_int4.load(folder, device="cpu")


@pytest.fixture(scope="module")
def mini_server(mini_engine):
    with run_server(mini_engine) as running:
        yield running


@pytest.fixture(scope="module")
def v3_server(v3_engine):
    with run_server(v3_engine, model_name="small-v3") as running:
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
