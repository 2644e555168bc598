"""How fast do whole models read and write, beside other ways to run them? On a GPU, or on a CPU without one.

pytest benchmarks/speed/bench_generate.py --benchmark-json=generate.json
python -m benchmarks.report.condense generate.json --json benchmarks/results/generate_cpu.json

Random weights in the shapes of the real models: nothing is downloaded. Ways whose package is missing skip.
Choose with -k, for example -k "chatglm-6b and int4 and decode"; with LAYERS=4 models have four layers of 28,
with THREADS=1 a CPU takes one thread. One model at a time is in memory: half precision takes 12.4 GB.
"""

import functools
import gc
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.machine import device_facts
from benchmarks.peers.official import OfficialLinear
from benchmarks.peers.peer import Peer, measure_decode, measure_prefill, open_peer
from glm_int4.generation.decoding import Decoder
from glm_int4.generation.engine import Engine
from glm_int4.generation.padded_batch import Batch
from glm_int4.generation.sampling import Sampler, SamplingParams
from glm_int4.measuring import bandwidth
from glm_int4.measuring.speed import random_engine, weight_bytes_per_step
from glm_int4.measuring.timing import FilledDecoder, changing_lengths, random_row
from glm_int4.models.kv_cache import kv_bytes_per_token
from glm_int4.models.presets import CONFIGS
from glm_int4.quantization.linear import QuantizedLinear

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
LAYERS = int(os.environ.get("LAYERS", "28"))
GREEDY = SamplingParams(temperature=0)
OURS = {"int4": 4, "int8": 8, "half": 16}
PEERS = ("llama.cpp q4_0", "chatglm.cpp q4_0")
PROMPTS = (128, 512, 2048) if ON_GPU else (128, 512)
# (rows, context). On a CPU the way of one conversation; ``glm-int4 bench`` measures more.
DECODING = [(b, c) for b in (1, 2, 4, 8, 16) for c in (128, 2048)] if ON_GPU else [(1, 128)]
if os.environ.get("QUICK"):  # a sample for a lent GPU
    DECODING = [pair for pair in DECODING if pair in ((1, 128), (1, 2048), (4, 128), (16, 128), (16, 2048))]
STEPS = 32 if ON_GPU else 16
if "THREADS" in os.environ:
    torch.set_num_threads(int(os.environ["THREADS"]))


@functools.cache
def machine() -> dict[str, object]:
    """What is measured on."""
    return device_facts() | {"bandwidth_gb_s": bandwidth.measure_bandwidth(DEVICE) / 1e9}


@functools.lru_cache(maxsize=1)
def engine(preset: str, way: str) -> Engine:
    """A model of random weights; the last one goes first."""
    engine.cache_clear()
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()
    made = random_engine(preset, CONFIGS[preset], OURS.get(way, 4), DEVICE, num_layers=LAYERS)
    if way == "official int4":
        for module in made.model.modules():
            if isinstance(module, QuantizedLinear) and module.out_features != made.config.vocab_size:
                module.matrix = OfficialLinear(module.out_features, module.in_features, DEVICE)
    return made


def facts(made: Engine) -> dict[str, Any]:
    """Bytes of a model and of its cache."""
    config, setup = made.config, made.setup
    return {
        "weight_bytes": weight_bytes_per_step(made),
        "memory_bytes": sum(t.nbytes for t in (*made.model.parameters(), *made.model.buffers())),
        "kv_bytes": kv_bytes_per_token(config.num_layers, config.num_kv_heads, config.head_dim, setup.kv_dtype),
        "backend": setup.backend,
    }


@functools.lru_cache(maxsize=1)
def open_other(way: str, preset: str) -> Peer:
    """A model of another program with random weights, or skip."""
    name = way.split()[0]
    for module in {"llama.cpp": ("llama_cpp", "gguf"), "chatglm.cpp": ("chatglm_cpp",)}[name]:
        pytest.importorskip(module, reason=f"{module} is not installed: see benchmarks/peers")
    with tempfile.TemporaryDirectory() as folder:  # loaded, it needs no name
        return open_peer(name, Path(folder) / "random.bin", preset, LAYERS)


def peer(way: str, preset: str, kind: str, length: int) -> float:
    """Tokens per second of another program, or skip."""
    if ON_GPU:
        pytest.skip("a comparison on the CPU")
    other = open_other(way, preset)
    if kind == "decode":
        return measure_decode(other, length, STEPS)
    runs = 3 if way.startswith("llama") else 1  # chatglm.cpp takes a minute and a half for 512 tokens
    return statistics.median(measure_prefill(other, length, seed) for seed in range(runs))


def record(benchmark: Any, preset: str, way: str, what: dict[str, Any], rate: float) -> None:
    """Keep a figure, beside what it was measured on."""
    benchmark.extra_info |= machine() | {"model": preset, "layers": LAYERS, "way": way, "tokens_per_s": rate} | what


@pytest.mark.parametrize("tokens", PROMPTS)
@pytest.mark.parametrize("way", [*OURS, "official int4", *PEERS])
@pytest.mark.parametrize("preset", CONFIGS)
def test_prefill(benchmark, preset, way, tokens):
    what = {"kind": "prefill", "tokens": tokens}
    if way in PEERS:
        rate = peer(way, preset, "prefill", tokens)
        benchmark.pedantic(lambda: None)
        return record(benchmark, preset, way, what, rate)
    made = engine(preset, way)
    decoder, sampler = Decoder(made.model, made.setup, tokens + 1), Sampler(GREEDY, made.config.version)
    prompts = (Batch(made.model, [random_row(made, tokens, seed)], made.device) for seed in range(100))

    def read() -> None:
        next(decoder.stream(next(prompts), 1, sampler, frozenset()))

    benchmark.pedantic(read, rounds=5 if ON_GPU else 2, warmup_rounds=1)
    record(benchmark, preset, way, what | facts(made), tokens / benchmark.stats.stats.median)


@pytest.mark.parametrize("way", OURS)
@pytest.mark.parametrize("preset", CONFIGS)
def test_prompts_of_changing_lengths(benchmark, preset, way):
    """Each length once: what a library does for every shape that it has not met is not hidden by rounds of the same."""
    made = engine(preset, way)
    decoder, sampler = Decoder(made.model, made.setup, PROMPTS[0] + 1), Sampler(GREEDY, made.config.version)
    lengths = (PROMPTS[0], *changing_lengths(PROMPTS[0]))
    prompts = iter([Batch(made.model, [random_row(made, tokens, tokens)], made.device) for tokens in lengths])

    def read() -> None:
        next(decoder.stream(next(prompts), 1, sampler, frozenset()))

    benchmark.pedantic(read, rounds=len(lengths) - 1, warmup_rounds=1)
    what = {"kind": "prefill", "tokens": f"{lengths[-1]} to {lengths[1]}", "slowest_s": benchmark.stats.stats.max}
    record(benchmark, preset, way, what | facts(made), sum(lengths[1:]) / benchmark.stats.stats.total)


@pytest.mark.parametrize(("batch", "context"), DECODING)
@pytest.mark.parametrize("way", [*OURS, "official int4", *PEERS])
@pytest.mark.parametrize("preset", CONFIGS)
def test_decode(benchmark, preset, way, batch, context):
    what = {"kind": "decode", "batch": batch, "context": context}
    if way in PEERS:
        rate = peer(way, preset, "decode", context)
        benchmark.pedantic(lambda: None)
        return record(benchmark, preset, way, what, rate)
    made = engine(preset, way)
    warm_up, rounds = (4, STEPS) if ON_GPU else (1, 2 if way == "official int4" else STEPS)
    steps = warm_up + rounds + 1
    rows = [random_row(made, context - steps, seed) for seed in range(batch)]
    decoder = FilledDecoder(made.model, made.setup, context)
    sampler = Sampler(GREEDY, made.config.version)
    tokens = decoder.stream(Batch(made.model, rows, made.device), steps, sampler, frozenset())
    next(tokens)  # of the noise
    before = bandwidth.measure_bandwidth(DEVICE)
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    benchmark.pedantic(lambda: next(tokens), rounds=rounds, warmup_rounds=warm_up)
    known = facts(made)
    read = known["weight_bytes"] / batch + (context - rounds // 2) * known["kv_bytes"]
    rate = batch / benchmark.stats.stats.median
    if ON_GPU:
        what["peak_bytes"] = torch.cuda.max_memory_allocated()
    largest = max(before, bandwidth.measure_bandwidth(DEVICE)) / 1e9  # a shared machine's changes within seconds
    what |= known | {"bytes_per_token": read, "bandwidth_gb_s": largest, "share": read * rate / largest / 1e9}
    record(benchmark, preset, way, what, rate)
