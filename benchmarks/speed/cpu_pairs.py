"""glm-int4 and another program in turn on a CPU: INT4 against Q4_0, in the same shapes, within one process.

pip install llama-cpp-python gguf
python -m benchmarks.speed.cpu_pairs --threads 2 --json benchmarks/results/cpu_pairs_2_threads.json
python -m benchmarks.speed.cpu_pairs --peer chatglm.cpp ...      see peers/chatglm_cpp_peer.py

Both hold random weights. Every figure is the median of single runs in turn; a ratio above 1 is in favour of
glm-int4, its spread from the least to the largest pair. Bandwidth: a sum over 2 GiB by the same threads, best
of 10, before and after each decoding: memory shared with other machines changes its speed within seconds.
"""

import importlib.metadata
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.machine import facts, parser, write
from benchmarks.peers.peer import DISTRIBUTIONS, Peer, measure_decode, measure_prefill, open_peer
from benchmarks.speed.ours import our_decode, our_prefill
from glm_int4.generation.engine import Engine
from glm_int4.measuring import bandwidth
from glm_int4.measuring.speed import random_engine, weight_bytes_per_step
from glm_int4.models.presets import CONFIGS


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


def measure(preset: str, layers: int, peer: Peer, prompts: list[int], context: int, pairs: int) -> dict[str, object]:
    """Run everything in turn."""
    engine = random_engine(preset, CONFIGS[preset], 4, torch.device("cpu"), num_layers=layers)
    our_decode(engine, 16, 4, 99)  # compiles
    prefill = [
        {"tokens": n} | in_turn(partial(our_prefill, engine, n), partial(measure_prefill, peer, n), pairs)
        for n in prompts
    ]
    step_bytes = weight_bytes_per_step(engine)
    shares = [share_of_bandwidth(engine, context, step_bytes, seed) for seed in range(pairs)]
    decode = in_turn(
        lambda seed: our_decode(engine, context, 16, seed + 50),
        lambda seed: measure_decode(peer, context, 16),
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
    """Measure ours and another program, and write the result."""
    options = parser(__doc__)
    options.add_argument("--preset", choices=CONFIGS, default="chatglm2-6b")
    options.add_argument("--layers", type=int, default=28)
    options.add_argument("--threads", type=int, default=os.cpu_count())
    options.add_argument("--peer", choices=DISTRIBUTIONS, default="llama.cpp")
    options.add_argument("--file", type=Path, help="the peer's model, written where it is missing and then kept")
    options.add_argument("--prompt", type=int, nargs="*", default=[128, 512])
    options.add_argument("--context", type=int, default=128)
    options.add_argument("--pairs", type=int, default=5)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.file or Path(folder) / "random.bin"
        peer = open_peer(arguments.peer, path, arguments.preset, arguments.layers)
        figures = measure(
            arguments.preset, arguments.layers, peer, arguments.prompt, arguments.context, arguments.pairs
        )
    head = {
        "command": f"python -m benchmarks.speed.cpu_pairs --peer {arguments.peer} --preset {arguments.preset} "
        f"--layers {arguments.layers} --threads {arguments.threads}",
        "peer": arguments.peer,
        "preset": arguments.preset,
        "layers": arguments.layers,
        "pairs": arguments.pairs,
        "peer_version": importlib.metadata.version(DISTRIBUTIONS[arguments.peer]),
    }
    write(head | facts() | figures, arguments.json)


if __name__ == "__main__":
    main()
