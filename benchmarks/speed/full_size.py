"""Quantize and run a full-size checkpoint on a CPU, and write down times and memory.

python tools/make_random_checkpoint.py --model chatglm-6b --output chatglm-6b-random
python -m benchmarks.speed.full_size --model chatglm-6b-random --json benchmarks/results/full_size_chatglm-6b.json
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import glm_int4
from benchmarks.machine import PROGRAM, facts, parser, write
from benchmarks.speed.ours import our_decode, our_prefill
from glm_int4.checkpoint.build import resident_bytes

PROMPT_TOKENS, DECODE_TOKENS, RUNS = (128, 512), 32, 3


def rss_bytes(field: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(folder: str) -> dict[str, object]:
    """Load a checkpoint in this process and time a prompt and an answer; medians of ``RUNS`` runs."""
    started = time.perf_counter()
    glm = glm_int4.load(folder, device="cpu")
    result: dict[str, object] = {
        "load_s": time.perf_counter() - started,
        "weight_bytes": resident_bytes(glm.info, glm.setup),
        "load_rss_bytes": rss_bytes("VmRSS"),
    }
    our_decode(glm, 16, 16)
    result["short_chat_rss_bytes"] = rss_bytes("VmRSS")
    result["prefill"] = [
        {"tokens": tokens, "tokens_per_s": statistics.median(our_prefill(glm, tokens, seed) for seed in range(RUNS))}
        for tokens in PROMPT_TOKENS
    ]
    rates = [our_decode(glm, 66, DECODE_TOKENS, seed) for seed in range(RUNS)]
    result["decode"] = {"context": 66, "tokens_per_s": statistics.median(rates)}
    result["chat_rss_bytes"] = rss_bytes("VmRSS")
    result["peak_rss_bytes"] = rss_bytes("VmHWM")
    result["threads"] = torch.get_num_threads()
    return result


def run_json(*command: str | Path) -> dict[str, Any]:
    """The JSON that a command prints."""
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    """Quantize, measure in another process, and write the result."""
    options = parser(__doc__)
    options.add_argument("--model", help="half-precision checkpoint")
    options.add_argument("--work", type=Path, default=Path(), help="folder for the quantized checkpoints")
    options.add_argument("--bits", type=int, nargs="+", default=[4, 8])
    options.add_argument("--measure", help=argparse.SUPPRESS)  # the second process: memory is counted from zero
    arguments = options.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    if not arguments.model:
        options.error("--model is needed")
    rows = []
    for bits in arguments.bits:
        folder = arguments.work / f"full-size-int{bits}"
        command = [*PROGRAM, "quantize", "--model", arguments.model, "--output", folder]
        report = run_json(*command, "--bits", str(bits), "--overwrite", "--json")
        keys = ("bits", "group_size", "bits_per_weight", "seconds", "peak_rss_bytes", "source_bytes", "stored_bytes")
        row: dict[str, Any] = {"quantize": {key: report[key] for key in keys}}
        row |= run_json(sys.executable, "-m", "benchmarks.speed.full_size", "--measure", folder)
        rows.append(row)
        print(json.dumps(row, indent=2), file=sys.stderr)
        shutil.rmtree(folder)
    result = {
        "command": "python -m benchmarks.speed.full_size",
        "model": Path(os.path.abspath(arguments.model)).name,
    }
    write(result | facts() | {"rows": rows}, arguments.json)


if __name__ == "__main__":
    main()
