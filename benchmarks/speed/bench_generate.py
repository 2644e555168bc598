"""How fast do whole models read and write, beside other ways to run them? On a GPU, or on a CPU without one.

pytest benchmarks/speed/bench_generate.py --benchmark-json=generate.json
python -m benchmarks.report.generate_report generate.json --json benchmarks/results/generate_cpu.json

Random weights in the shapes of the real models: nothing is downloaded. Ways whose package is missing skip.
Choose with -k, for example -k "chatglm-6b and int4 and decode"; with LAYERS=4 models have four layers of 28,
with THREADS=1 a CPU takes one thread. One model at a time is in memory: half precision takes 12.4 GB.
"""

import functools
import gc
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.kernels.cpu_switch import commit, cpu_name
from benchmarks.peers import chatglm_cpp_peer, llama_peer
from glm_int4.generation.decoding import Decoder
from glm_int4.generation.engine import Engine
from glm_int4.generation.padded_batch import Batch
from glm_int4.generation.sampling import Sampler, SamplingParams
from glm_int4.measuring import bandwidth
from glm_int4.measuring.speed import FilledDecoder, random_engine, random_row, weight_bytes_per_step
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


class OfficialLinear(nn.Module):
    """As ChatGLM's own code: the whole matrix to half precision on every call, then a product. Emulated in torch."""

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.dtype = torch.float16 if ON_GPU else torch.bfloat16
        packed = torch.randint(-128, 128, (out_features, in_features // 2), dtype=torch.int8, device=DEVICE)
        self.register_buffer("packed", packed)
        self.register_buffer("scales", torch.full((out_features, 1), 0.004, dtype=self.dtype, device=DEVICE))

    def forward(self, x: Tensor, **options: object) -> Tensor:
        q = torch.stack((self.packed >> 4, self.packed << 4 >> 4), dim=-1).flatten(1)
        return F.linear(x.to(self.dtype), q.to(self.dtype) * self.scales)


@functools.cache
def machine() -> dict[str, object]:
    """What is measured on."""
    name = torch.cuda.get_device_name() if ON_GPU else cpu_name()
    return {
        "device": name,
        "capability": str(torch.cuda.get_device_capability()) if ON_GPU else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "bandwidth_gb_s": bandwidth.measure_bandwidth(DEVICE) / 1e9,
    }


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
                module.matrix = OfficialLinear(module.out_features, module.in_features)
    return made


def facts(made: Engine) -> dict[str, object]:
    config, plan = made.config, made.plan
    return {
        "weight_bytes": weight_bytes_per_step(made),
        "memory_bytes": sum(t.nbytes for t in (*made.model.parameters(), *made.model.buffers())),
        "kv_bytes": kv_bytes_per_token(config.num_layers, config.num_kv_heads, config.head_dim, plan.kv_dtype),
        "backend": plan.backend,
    }


@functools.cache
def llama(preset: str) -> dict[str, object]:
    """What llama.cpp's figures are for matrices of the same shapes, from a process of its own."""
    for name in ("llama_cpp", "gguf"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install -c constraints.txt -e '.[peers]'")
    command = [sys.executable, "-m", "benchmarks.peers.llama_peer", "--preset", preset, "--layers", str(LAYERS)]
    command += ["--threads", str(torch.get_num_threads()), "--prompt", *map(str, PROMPTS), "--context", "128"]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(result.stdout)


@functools.lru_cache(maxsize=1)
def chatglm_cpp(preset: str) -> chatglm_cpp_peer.ChatGLMCpp:
    """A model of chatglm.cpp with random weights."""
    pytest.importorskip("chatglm_cpp", reason="chatglm-cpp is not installed: see chatglm_cpp_peer.py")
    with tempfile.TemporaryDirectory() as folder:  # loaded, it needs no name
        path = chatglm_cpp_peer.write_model(Path(folder) / "random.bin", preset, LAYERS)
        return chatglm_cpp_peer.ChatGLMCpp(path)


def peer(way: str, preset: str, kind: str, length: int) -> float:
    """Tokens per second of another program, or skip."""
    if ON_GPU:
        pytest.skip("a comparison on the CPU")
    if way.startswith("llama"):
        key = {"prefill": "tokens", "decode": "context"}[kind]
        found = [row["tokens_per_s"] for row in llama(preset)[kind] if row[key] == length]
        return found[0] if found else pytest.skip(f"llama_peer.py has no {kind} of {length}")
    model = chatglm_cpp(preset)
    if kind == "decode":
        return llama_peer.measure_decode(model, length, STEPS)
    model.clear()
    return length / model.read(llama_peer.tokens_of(length))


def record(benchmark, preset: str, way: str, what: dict[str, object], rate: float) -> None:
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
    decoder, sampler = Decoder(made.model, made.plan, tokens + 1), Sampler(GREEDY, made.config.version)
    prompts = (Batch(made.model, [random_row(made, tokens, seed)], made.device) for seed in range(100))

    def read() -> None:
        next(decoder.steps(next(prompts), 1, sampler, frozenset()))

    benchmark.pedantic(read, rounds=5 if ON_GPU else 2, warmup_rounds=1)
    record(benchmark, preset, way, what | facts(made), tokens / benchmark.stats.stats.median)


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
    decoder = FilledDecoder(made.model, made.plan, context)
    sampler = Sampler(GREEDY, made.config.version)
    tokens = decoder.steps(Batch(made.model, rows, made.device), steps, sampler, frozenset())
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
