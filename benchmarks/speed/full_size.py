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

import torch

import glm_int4
from benchmarks.kernels.cpu_switch import commit, cpu_name
from glm_int4.checkpoint.build import resident_bytes
from glm_int4.generation.engine import Engine

GREEDY = glm_int4.SamplingParams(temperature=0)
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
        "weight_bytes": resident_bytes(glm.info, glm.plan),
        "load_rss_bytes": rss_bytes("VmRSS"),
    }
    glm.generate(prompt_ids(glm, 16), 16, GREEDY, stop_ids=[])
    result["short_chat_rss_bytes"] = rss_bytes("VmRSS")
    prefill = []
    for count in PROMPT_TOKENS:
        times = []
        for seed in range(RUNS):
            prompt = prompt_ids(glm, count, seed)  # another one each time: what was read would not be read again
            started = time.perf_counter()
            glm.generate(prompt, 1, GREEDY, stop_ids=[])
            times.append(time.perf_counter() - started)
        prefill.append({"tokens": count, "tokens_per_s": count / statistics.median(times)})
    result["prefill"] = prefill
    rates = []
    for seed in range(RUNS):
        ids = glm.stream_ids(prompt_ids(glm, 66, seed), DECODE_TOKENS + 1, GREEDY, stop_ids=[])
        stamps = [time.perf_counter() for _ in ids]
        rates.append(DECODE_TOKENS / (stamps[-1] - stamps[0]))
    result["decode"] = {"context": 66, "tokens_per_s": statistics.median(rates)}
    result["chat_rss_bytes"] = rss_bytes("VmRSS")
    result["peak_rss_bytes"] = rss_bytes("VmHWM")
    result["threads"] = torch.get_num_threads()
    return result


def prompt_ids(glm: Engine, count: int, seed: int = 0) -> list[int]:
    """Random ids as a prompt."""
    generator = torch.Generator().manual_seed(1000 * seed + count)
    ids = torch.randint(10, 60000, (count,), generator=generator).tolist()
    if glm.config.version == "1":
        ids[-2:] = glm.text_prefix
    return ids


def run_json(*command: str) -> dict[str, object]:
    """The JSON that a command prints."""
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="half-precision checkpoint")
    parser.add_argument("--work", type=Path, default=Path(), help="folder for the quantized checkpoints")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # the second process: memory is counted from zero
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    if not arguments.model:
        parser.error("--model is needed")
    rows = []
    for bits in arguments.bits:
        folder = arguments.work / f"full-size-int{bits}"
        command = [sys.executable, "-m", "glm_int4", "quantize", "--model", arguments.model, "--output", str(folder)]
        report = run_json(*command, "--bits", str(bits), "--overwrite", "--json")
        keys = ("bits", "group_size", "bits_per_weight", "seconds", "peak_rss_bytes", "source_bytes", "stored_bytes")
        row = {"quantize": {key: report[key] for key in keys}}
        row |= run_json(sys.executable, "-m", "benchmarks.speed.full_size", "--measure", str(folder))
        rows.append(row)
        print(json.dumps(row, indent=2), file=sys.stderr)
        shutil.rmtree(folder)
    result = {
        "command": "python -m benchmarks.speed.full_size",
        "model": Path(os.path.abspath(arguments.model)).name,
        "cpu": cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "rows": rows,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
