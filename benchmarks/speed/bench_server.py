"""Many clients at a running server, beside the same requests one after another.

python -m benchmarks.speed.bench_server --json benchmarks/results/server.json

Starts ``glm-int4 serve`` on the mini model in INT4 (--model takes another one), and sends it the same seeded
requests of mixed lengths twice: by one client, and by 64 at a time. Every answer is compared with the engine's
own, run alone in this process beforehand. Clients and server share the processor.

At the size of ChatGLM-6B (random weights; answers go on to their limit whatever they say):

python -m benchmarks.speed.bench_server --model DIR --clients 16 --requests 16 --max-tokens 24 --threads 2 \\
    --json benchmarks/results/server_chatglm-6b.json
"""

import asyncio
import json
import random
import re
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import glm_int4
from benchmarks.machine import MINI, PROGRAM, facts, parser, write
from glm_int4.text.chat.chat_format import chat_format

# Sampled, so that a mix-up of two answers would show; the seed makes it repeatable.
SAMPLING: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}


@dataclass
class Answer:
    """What a client has measured."""

    text: str
    tokens: int
    first_token_s: float


def make_requests(engine: glm_int4.Engine, count: int, longest: int) -> list[dict[str, Any]]:
    """Ids of chats of one to four rounds, and answers of 4 to ``longest`` tokens, which go on to that length."""
    chance = random.Random(0)
    requests: list[dict[str, Any]] = []
    for seed in range(count):
        messages: list[dict[str, str]] = []
        for _ in range(chance.randrange(4)):
            a, b = chance.randrange(50), chance.randrange(50)
            messages += [
                {"role": "user", "content": f"{a}加{b}等于几?"},
                {"role": "assistant", "content": f"{a + b}"},
            ]
        messages.append({"role": "user", "content": chance.choice(["你好", "我叫小明。", "What is 3 plus 5?"])})
        prompt = chat_format(engine.config.version).encode(engine.tokenizer, messages)
        length = {"max_tokens": chance.randint(4, longest), "ignore_eos": True}
        requests.append({"prompt": prompt, "seed": seed, **length, **SAMPLING})
    return requests


def answer_alone(engine: glm_int4.Engine, request: dict[str, Any]) -> str:
    """What the engine says to a request when nothing else runs."""
    sampling = glm_int4.SamplingParams(seed=request["seed"], **SAMPLING)
    ids = engine.stream_ids(request["prompt"], request["max_tokens"], sampling, stop_ids=[])
    return engine.tokenizer.decode(ids)


async def send(port: int, request: dict[str, Any]) -> Answer:
    """One request over a connection of its own; a plain socket, so that the client costs little."""
    body = json.dumps(request | {"stream": True, "stream_options": {"include_usage": True}}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    started, first = time.perf_counter(), None
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + body)
    text, tokens = "", 0
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
            elif piece := event["choices"][0]["text"]:
                first = first or time.perf_counter()
                text += piece
    writer.close()
    return Answer(text, tokens, (first or time.perf_counter()) - started)


async def run_clients(port: int, requests: list[dict[str, Any]], clients: int) -> tuple[float, list[Answer]]:
    """Wall time and answers, in the requests' order; each client sends its next when it has its answer."""
    waiting = list(enumerate(requests))[::-1]
    answers: dict[int, Answer] = {}

    async def client() -> None:
        while waiting:
            index, request = waiting.pop()
            answers[index] = await send(port, request)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - started, [answers[i] for i in range(len(requests))]


def figures(seconds: float, answers: list[Answer], alone: list[str]) -> dict[str, float]:
    """Throughput, waiting times, and answers that are not what the engine says alone."""
    first = sorted(1000 * answer.first_token_s for answer in answers)
    tokens = sum(answer.tokens for answer in answers)
    return {
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_s": tokens / seconds,
        "requests_per_s": len(answers) / seconds,
        "ttft_p50_ms": statistics.median(first),
        "ttft_p95_ms": first[int(0.95 * (len(first) - 1))],
        "lost": sum(answer.tokens == 0 for answer in answers),
        "different": sum(answer.text != text for answer, text in zip(answers, alone, strict=True)),
    }


def main() -> None:
    """Start a server, send it the requests twice, and write the result."""
    options = parser(__doc__)
    options.add_argument("--model", type=Path, help="a checkpoint that runs; default: the mini model in INT4")
    options.add_argument("--clients", type=int, default=64)
    options.add_argument("--requests", type=int, default=256)
    options.add_argument("--parallel", type=int, default=8, help="answers at a time")
    options.add_argument("--max-tokens", type=int, default=64, help="of the longest answer")
    options.add_argument("--max-length", type=int, default=512)
    options.add_argument("--threads", type=int, default=1, help="of the engine; event loop and clients need some too")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as work:
        model = arguments.model or Path(work) / "mini-int4"
        if arguments.model is None:
            glm_int4.quantize_checkpoint(MINI, model, bits=4)
        engine = glm_int4.load(model, device="cpu", max_length=arguments.max_length, threads=arguments.threads)
        requests = make_requests(engine, arguments.requests, arguments.max_tokens)
        alone = [answer_alone(engine, request) for request in requests]
        del engine
        server = subprocess.Popen(
            [
                *(*PROGRAM, "serve", model, "--port", "0", "--device", "cpu"),
                *("--parallel", str(arguments.parallel), "--queue", str(arguments.clients)),
                *("--max-length", str(arguments.max_length), "--threads", str(arguments.threads)),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert server.stderr is not None
        try:
            line = server.stderr.readline()
            address = re.search(r":(\d+) \(", line)
            if address is None:
                raise SystemExit(f"expected a server, got: {line}{server.stderr.read()}")
            port = int(address[1])
            asyncio.run(run_clients(port, requests[:16], 4))  # warm up
            one = figures(*asyncio.run(run_clients(port, requests, 1)), alone)
            many = figures(*asyncio.run(run_clients(port, requests, arguments.clients)), alone)
        finally:
            server.terminate()
            server.wait()
    result = {
        "command": "python -m benchmarks.speed.bench_server",
        "model": str(arguments.model.name) if arguments.model else "examples/mini-chatglm, INT4",
        "clients": arguments.clients,
        "requests": arguments.requests,
        "parallel": arguments.parallel,
        "longest_answer": arguments.max_tokens,
        "one_by_one": one,
        "together": many,
        "throughput_ratio": many["tokens_per_s"] / one["tokens_per_s"],
    }
    write(result | facts() | {"threads": arguments.threads}, arguments.json)


if __name__ == "__main__":
    main()
