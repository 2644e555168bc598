"""How much of its fair share do we keep beside other programs? For a CPU.

pytest benchmarks/speed/bench_busy.py --benchmark-json=build/busy.json --results benchmarks/results/busy.json

Every measurement is taken on the quiet machine first and beside the others then, seven times each. Fair is what the
processors' number divided by that of all busy threads leaves: a half, a quarter and, beside two programs whose OpenMP
threads spin, a third. One row for each: medians, and the least of the seven as a share of what is fair. Rates are
tokens a second, of a prompt, an answer, eight answers in the server, perplexity and training; of quantizing, millions
of weights a second.
Choose with -k, for example -k "decode and six and 2-loops". It takes half an hour on two cores; nothing else may run.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pytest
import torch

import glm_int4
from benchmarks.machine import EXAMPLES, MINI
from glm_int4.generation.continuous import Batcher
from glm_int4.generation.engine import Engine
from glm_int4.generation.sampling import SamplingParams
from glm_int4.measuring.speed import random_engine
from glm_int4.measuring.timing import random_row
from glm_int4.models.prefix_encoder import PrefixEncoder
from glm_int4.models.presets import CONFIGS
from glm_int4.quantization.rounding.rtn import quantize_rtn
from glm_int4.quantization.scheme import QuantizationScheme
from glm_int4.tuning.loss import prefix_loss

RUNS, PROMPT_TOKENS, ANSWERS = 7, 128, 8
GREEDY = SamplingParams(temperature=0)
INT4 = QuantizationScheme(bits=4, group_size=128, symmetric=False)
NEW_TOKENS = {"mini": 64, "six": 16}
LOOP = "while True: pass"
SPINNING = "import torch\nx = torch.ones(300000)\nwhile True: x.mul_(1.0)"
# Program, how many of it, the share of the processors that is fair, and seconds until they are busy.
CROWDS = {
    "2-loops": (LOOP, 2, 1 / 2, 0.5),
    "6-loops": (LOOP, 6, 1 / 4, 0.5),
    "2-spinning": (SPINNING, 2, 1 / 3, 4.0),
}


@lru_cache(maxsize=1)
def engine(model: str, folder: str) -> Engine:
    """The mini model in INT4, or four layers of ChatGLM2-6B's shapes with its head."""
    if model == "six":
        return random_engine("chatglm2-6b", CONFIGS["chatglm2-6b"], 4, torch.device("cpu"), num_layers=4)
    glm_int4.quantize_checkpoint(MINI, folder, bits=4, overwrite=True)
    return glm_int4.load(folder, device="cpu")


@contextmanager
def crowd(name: str) -> Iterator[None]:
    """Other programs for a while."""
    code, number, _, wait_s = CROWDS[name]
    programs = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(number)]
    time.sleep(wait_s)
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def decode(glm: Engine, new_tokens: int) -> float:
    """Tokens a second behind a short prompt."""
    tokens = glm.stream_ids(random_row(glm, 16, seed=0), new_tokens, GREEDY, stop_ids=[])
    next(tokens)
    started = time.perf_counter()
    return sum(1 for _ in tokens) / (time.perf_counter() - started)


def prompt(glm: Engine, new_tokens: int) -> float:
    """Tokens of a prompt a second; another prompt each time, of which nothing is kept."""
    ids = random_row(glm, PROMPT_TOKENS, seed=time.perf_counter_ns() % 2**31)
    started = time.perf_counter()
    glm.generate(ids, 1, GREEDY, [])
    return PROMPT_TOKENS / (time.perf_counter() - started)


def server(glm: Engine, new_tokens: int) -> float:
    """Tokens a second of eight answers that run together, as in the server."""
    batcher = Batcher(glm, ANSWERS)
    sequences = [batcher.sequence(random_row(glm, 16, i), new_tokens, GREEDY, frozenset()) for i in range(ANSWERS)]
    for sequence in sequences:
        batcher.add(sequence)
    while len(sequences[-1].ids) < 1:
        batcher.step()
    before, started = sum(len(sequence.ids) for sequence in sequences), time.perf_counter()
    while batcher.num_running:
        batcher.step()
    return (sum(len(sequence.ids) for sequence in sequences) - before) / (time.perf_counter() - started)


def perplexity(glm: Engine, new_tokens: int) -> float:
    """Tokens of a text a second, in windows that overlap."""
    text = (EXAMPLES / "heldout.txt").read_text(encoding="utf-8")[:1000]
    started = time.perf_counter()
    result = glm.perplexity(text, window=128, stride=64)
    return result.tokens / (time.perf_counter() - started)


def training(glm: Engine, new_tokens: int) -> float:
    """Tokens a second of steps that train a prefix, four rows each."""
    encoder = PrefixEncoder(glm.model.config, 16)
    ids = torch.tensor([random_row(glm, 64, seed=i) for i in range(4)])
    started = time.perf_counter()
    for _ in range(2):
        prefix_loss(glm, encoder, ids, ids).backward()
    return 2 * ids.numel() / (time.perf_counter() - started)


def quantizing(glm: Engine, new_tokens: int) -> float:
    """Millions of weights a second that are rounded to INT4, of a matrix of ChatGLM2-6B."""
    weight = torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0))
    started = time.perf_counter()
    quantize_rtn(weight, INT4)
    return weight.numel() / 1e6 / (time.perf_counter() - started)


CASES = [(kind, model, 2) for kind in (decode, prompt, server) for model in NEW_TOKENS]
CASES += [(decode, "six", threads) for threads in (1, 3, 4)]
CASES += [(perplexity, "mini", 2), (training, "mini", 2), (quantizing, "six", 2)]


@pytest.mark.parametrize("others", CROWDS)
@pytest.mark.parametrize(("kind", "model", "threads"), CASES)
def test_share(
    benchmark: Any,
    tmp_path_factory: pytest.TempPathFactory,
    kind: Callable[[Engine, int], float],
    model: str,
    threads: int,
    others: str,
    rows: list[dict[str, Any]],
) -> None:
    glm = engine(model, str(tmp_path_factory.getbasetemp() / "mini"))
    torch.set_num_threads(threads)
    kind(glm, NEW_TOKENS[model])
    quiet = [kind(glm, NEW_TOKENS[model]) for _ in range(RUNS)]
    rates: list[float] = []
    with crowd(others):
        benchmark.pedantic(lambda: rates.append(kind(glm, NEW_TOKENS[model])), rounds=RUNS, warmup_rounds=1)
    # One thread has a processor of its own to share, however many there are.
    processors = os.cpu_count() or 1
    _, number, fair, _ = CROWDS[others]
    if threads < processors:
        fair = min(1.0, processors / (threads + number * (processors if others == "2-spinning" else 1)))
    row = {
        "kind": kind.__name__,
        "model": {"mini": "mini", "six": "ChatGLM2-6B, 4 layers"}[model],
        "threads": threads,
        "others": others,
        "quiet_rate": statistics.median(quiet),
        "busy_rate": statistics.median(rates[1:]),
        "fair_share": fair,
        "median_of_fair": statistics.median(rates[1:]) / statistics.median(quiet) / fair,
        "least_of_fair": min(rates[1:]) / statistics.median(quiet) / fair,
        "load_average": os.getloadavg()[0],
    }
    benchmark.extra_info |= row
    rows.append(row)
