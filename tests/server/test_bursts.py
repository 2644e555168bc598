"""Many clients at once, and what is left of them in the server."""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time

import httpx
import pytest

from glm_int4.generation.continuous import Batcher
from glm_int4.generation.sampling import SamplingParams
from glm_int4.text.chat.chat_format import chat_format
from tests.server.conftest import run_server

SLOTS, TOKENS = 8, 96
# The client computes on the same cores.
MOST_TIMES_LONGER = 1.5
MOST_GROWTH_BYTES = 20e6

# A program of its own, as a client is: prints how many were answered, with all tokens, and in how many seconds.
CLIENT = """
import asyncio, json, sys, time
import openai

async def main(url, number, tokens):
    client = openai.AsyncOpenAI(base_url=url, api_key="none", timeout=300)
    fields = {"temperature": 0, "max_tokens": tokens, "extra_body": {"ignore_eos": True}}
    def ask(index):
        question = [{"role": "user", "content": f"{index % 50}加{index // 50}等于几?"}]
        return client.chat.completions.create(model="mini", messages=question, **fields)
    await client.models.list()
    begun = time.monotonic()
    replies = await asyncio.gather(*map(ask, range(number)))
    seconds = time.monotonic() - begun
    print(json.dumps([sum(reply.usage.completion_tokens == tokens for reply in replies), seconds]))

asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
"""


def run_client(url, number):
    command = [sys.executable, "-c", CLIENT, f"{url}/v1", str(number), str(TOKENS)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def seconds_by_the_batcher(engine, number):
    """What the same questions take without a server around them."""
    chat, batcher = chat_format(engine.config.version), Batcher(engine, SLOTS)
    for index in range(number):
        question = [{"role": "user", "content": f"{index % 50}加{index // 50}等于几?"}]
        prompt = chat.encode(engine.tokenizer, question)
        batcher.add(batcher.sequence(prompt, TOKENS, SamplingParams(temperature=0), frozenset()))
    begun = time.monotonic()
    while batcher.num_running or batcher.num_waiting:
        batcher.step()
    return time.monotonic() - begun


@pytest.mark.slow(60)
def test_a_burst_is_answered_in_hardly_more_than_the_models_time(mini_engine):
    """150 at a time, of which 72 are taken: the others wait as long as they are told, in the client."""
    seconds_by_the_batcher(mini_engine, SLOTS)
    times_longer = []
    with run_server(mini_engine, num_slots=SLOTS) as running:
        run_client(running.url, 2 * SLOTS)
        for _ in range(3):
            answered, seconds = run_client(running.url, 150)
            assert answered == 150
            times_longer.append(seconds / seconds_by_the_batcher(mini_engine, 150))
    assert statistics.median(times_longer) <= MOST_TIMES_LONGER, times_longer


def resident_bytes(process):
    with open(f"/proc/{process.pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))


async def send_many(url, number, at_a_time=16):
    """Answers of one token, streamed or not, with connections of their own or not."""
    limits = httpx.Limits(max_connections=at_a_time, max_keepalive_connections=at_a_time // 2)
    async with httpx.AsyncClient(limits=limits, timeout=300) as client:

        async def ask(index):
            question = [{"role": "user", "content": f"{index}加{index + 1}等于几?"}]
            body = {"messages": question, "max_tokens": 1 + index % 4, "stream": index % 2 == 0}
            response = await client.post(f"{url}/v1/chat/completions", json=body)
            assert response.status_code == 200, response.text

        for first in range(0, number, at_a_time):
            await asyncio.gather(*map(ask, range(first, first + at_a_time)))


@pytest.mark.slow(60)
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux' /proc")
def test_two_thousand_requests_leave_the_memory_as_it_was(start, mini_int4):
    process, url, _ = start(mini_int4, "--port", 0, "--device", "cpu", "--log-level", "warning")
    asyncio.run(send_many(url, 400))
    before = resident_bytes(process)
    asyncio.run(send_many(url, 2000))
    assert resident_bytes(process) - before < MOST_GROWTH_BYTES


async def stream_some(url, number):
    """Streams of which every second one is left after its first text; returns the last events of the others."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(limits=limits, timeout=300) as client:

        async def stream(index):
            question = [{"role": "user", "content": f"{index}加{index + 1}等于几?"}]
            body = {"messages": question, "max_tokens": 24, "ignore_eos": True, "stream": True}
            last = ""
            async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
                assert response.status_code == 200
                async for line in response.aiter_lines():
                    last = line or last
                    if index % 2 and '"content":"' in line and '"content":""' not in line:
                        return None
            return last

        return [last for last in await asyncio.gather(*map(stream, range(number))) if last]


def figure(url, name):
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


@pytest.mark.parametrize("number", [20, pytest.param(100, marks=pytest.mark.slow(20))])
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux' /proc")
def test_clients_that_leave_leave_nothing_behind(start, mini_int4, number):
    options = ("--port", 0, "--device", "cpu", "--log-level", "warning", "--queue", number)
    process, url, _ = start(mini_int4, *options)
    files = f"/proc/{process.pid}/fd"
    asyncio.run(stream_some(url, 2))
    figure(url, "glm_int4_running")
    before, end = len(os.listdir(files)), time.monotonic() + 60
    assert asyncio.run(stream_some(url, number)) == ["data: [DONE]"] * (number // 2)
    while len(os.listdir(files)) > before or figure(url, "glm_int4_running") or figure(url, "glm_int4_waiting"):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
