"""glm-int4 and another program in turn on a CPU: INT4 against Q4_0, in the same shapes, within one process.

pip install llama-cpp-python gguf
python -m benchmarks.speed.cpu_pairs --threads 2 --json benchmarks/results/cpu_pairs_2_threads.json
python -m benchmarks.speed.cpu_pairs --peer chatglm.cpp ...      see chatglm_cpp_peer.py

Both hold random weights. Every figure is the median of single runs in turn; a ratio above 1 is in favour of
glm-int4, its spread from the least to the largest pair. Bandwidth: a sum over 2 GiB by the same threads, best
of 10, before and after each decoding: memory shared with other machines changes its speed within seconds.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.kernels.cpu_switch import commit, cpu_name
from benchmarks.peers import chatglm_cpp_peer, llama_peer
from glm_int4.generation.engine import Engine
from glm_int4.generation.sampling import SamplingParams
from glm_int4.measuring import bandwidth
from glm_int4.measuring.speed import random_engine, random_row, weight_bytes_per_step
from glm_int4.models.presets import CONFIGS

GREEDY = SamplingParams(temperature=0)
PACKAGES = {"llama.cpp": "llama_cpp_python", "chatglm.cpp": "chatglm_cpp"}
Peer = llama_peer.Llama | chatglm_cpp_peer.ChatGLMCpp


def our_prefill(engine: Engine, tokens: int, seed: int) -> float:
    """Tokens a second of a prompt that is new to the engine."""
    row = random_row(engine, tokens, seed=seed)
    started = time.perf_counter()
    engine.generate(row, 1, GREEDY, stop_ids=[])
    return tokens / (time.perf_counter() - started)


def our_decode(engine: Engine, context: int, steps: int, seed: int) -> float:
    """Tokens a second behind a prompt, from the median of single steps."""
    stamps = []
    for _ in engine.stream_ids(random_row(engine, context, seed=seed), steps + 1, GREEDY, stop_ids=[]):
        stamps.append(time.perf_counter())
    return 1 / statistics.median(b - a for a, b in itertools.pairwise(stamps))


def share_of_bandwidth(engine: Engine, context: int, step_bytes: int, seed: int) -> dict[str, float]:
    """Decoding between two measurements of the bandwidth, of which the larger counts."""
    before = bandwidth.measure_bandwidth(torch.device("cpu")) / 1e9
    reached = step_bytes * our_decode(engine, context, 16, seed + 20) / 1e9
    largest = max(before, bandwidth.measure_bandwidth(torch.device("cpu")) / 1e9)
    return {"bandwidth_gb_s": largest, "decode_gb_s": reached, "share": reached / largest}


def in_turn(ours: Callable[[int], float], theirs: Callable[[int], float], pairs: int) -> dict[str, object]:
    """Run both in turn; rates, and the ratio pair by pair."""
    rates: list[tuple[float, float]] = []
    for seed in range(pairs):
        rates.append((ours(seed), theirs(seed)))
        time.sleep(0.1)  # until idle threads of both sleep
    ratios = [a / b for a, b in rates]
    return {
        "glm_int4": statistics.median(a for a, _ in rates),
        "peer": statistics.median(b for _, b in rates),
        "ratio": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
    }


def load_peer(name: str, path: Path, preset: str, layers: int) -> Peer:
    """Another program's model, from a file that is written where it is missing."""
    if not path.exists():
        write = llama_peer.write_gguf if name == "llama.cpp" else chatglm_cpp_peer.write_model
        write(path, preset, layers)
    if name == "llama.cpp":
        return llama_peer.Llama(path, torch.get_num_threads())
    return chatglm_cpp_peer.ChatGLMCpp(path)


def measure(preset: str, layers: int, peer: Peer, prompts: list[int], context: int, pairs: int) -> dict[str, object]:
    """Run everything in turn."""
    engine = random_engine(preset, CONFIGS[preset], 4, torch.device("cpu"), num_layers=layers)
    our_decode(engine, 16, 4, 99)  # compiles
    peer.clear()
    peer.read(llama_peer.tokens_of(16))

    def their_prefill(tokens: int, seed: int) -> float:
        peer.clear()
        return tokens / peer.read(llama_peer.tokens_of(tokens, seed + 1))

    prefill = [
        {"tokens": n}
        | in_turn(lambda seed, n=n: our_prefill(engine, n, seed), lambda seed, n=n: their_prefill(n, seed), pairs)
        for n in prompts
    ]
    step_bytes = weight_bytes_per_step(engine)
    shares = [share_of_bandwidth(engine, context, step_bytes, seed) for seed in range(pairs)]
    decode = in_turn(
        lambda seed: our_decode(engine, context, 16, seed + 50),
        lambda seed: llama_peer.measure_decode(peer, context, 16),
        pairs,
    )
    return {
        "prefill": prefill,
        "decode": [{"context": context} | decode],
        "weight_bytes_per_token": step_bytes,
        "bandwidth_gb_s": [share["bandwidth_gb_s"] for share in shares],
        "decode_gb_s": [share["decode_gb_s"] for share in shares],
        "share_of_bandwidth": statistics.median(share["share"] for share in shares),
        "share_spread": [min(share["share"] for share in shares), max(share["share"] for share in shares)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=llama_peer.PRESETS, default="chatglm2-6b")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peer", choices=PACKAGES, default="llama.cpp")
    parser.add_argument("--file", type=Path, help="the peer's model, written where it is missing and then kept")
    parser.add_argument("--prompt", type=int, nargs="*", default=[128, 512])
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.file or Path(folder) / "random.bin"
        with llama_peer.quiet_stderr():
            peer = load_peer(arguments.peer, path, arguments.preset, arguments.layers)
            figures = measure(
                arguments.preset, arguments.layers, peer, arguments.prompt, arguments.context, arguments.pairs
            )
    result = {
        "command": f"python -m benchmarks.speed.cpu_pairs --peer {arguments.peer} --preset {arguments.preset} "
        f"--layers {arguments.layers} --threads {arguments.threads}",
        "peer": arguments.peer,
        "preset": arguments.preset,
        "layers": arguments.layers,
        "threads": arguments.threads,
        "pairs": arguments.pairs,
        "cpu": cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "peer_version": importlib.metadata.version(PACKAGES[arguments.peer]),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    } | figures
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
