"""Where a decoding step's time goes on a GPU, and what bounds its slowest kernels.

python -m benchmarks.kernels.gpu_profile --output DIR          torch's profiler; with ncu on the PATH its counters too
python -m benchmarks.kernels.gpu_profile --dry --output DIR    without a GPU: steps of a small model, no counters

DIR/profile_PRESET.json holds every kernel's launches and microseconds in one step; DIR/ncu.csv, from Nsight
Compute with the clocks left alone, achieved bandwidth, occupancy and stalls of the kernels of two layers.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import device_facts
from glm_int4.generation.cuda_graphs import GraphStepper
from glm_int4.generation.engine import Engine
from glm_int4.generation.padded_batch import Batch
from glm_int4.generation.sampling import Sampler, SamplingParams
from glm_int4.measuring.speed import random_engine, weight_bytes_per_step
from glm_int4.measuring.timing import FilledDecoder, random_row
from glm_int4.models.presets import CONFIGS

METRICS = (
    "gpu__time_duration.sum,dram__bytes_read.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,"
    "sm__throughput.avg.pct_of_peak_sustained_elapsed,sm__warps_active.avg.pct_of_peak_sustained_active,"
    "launch__registers_per_thread,launch__grid_size,launch__waves_per_multiprocessor,"
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio,"
    "smsp__average_warps_issue_stalled_short_scoreboard_per_issue_active.ratio,"
    "smsp__average_warps_issue_stalled_math_pipe_throttle_per_issue_active.ratio,"
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio"
)
KERNELS = "regex:dot_kernel|gemv_kernel|finish_kernel|attend_kernel|merge_kernel|add_norm_kernel|rotary_kernel"


def steps(
    preset: str, num_layers: int, context: int, device: torch.device, graphs: bool
) -> tuple[Engine, Iterator[object]]:
    """Decoding steps of one answer behind ``context`` tokens, and the engine that makes them."""
    engine = random_engine(preset, CONFIGS[preset], 4, device, num_layers=num_layers)
    decoder = FilledDecoder(engine.model, engine.setup, context + 16)
    if isinstance(decoder._stepper, GraphStepper):
        decoder._stepper.captures = graphs
    batch = Batch(engine.model, [random_row(engine, context, seed=0)], device)
    sampler = Sampler(SamplingParams(temperature=0), engine.config.version)
    return engine, decoder.stream(batch, 16, sampler, frozenset())


def profile(preset: str, num_layers: int, context: int, device: torch.device) -> dict[str, Any]:
    """Kernels of one step, by the time they take; without graphs, whose kernels have the same times."""
    engine, tokens = steps(preset, num_layers, context, device, graphs=False)
    for _ in range(4):
        next(tokens)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as recorded:
        next(tokens)
        if device.type == "cuda":
            torch.cuda.synchronize()
    found: dict[str, list[float]] = defaultdict(list)
    for event in recorded.events() or []:
        on_gpu = event.device_type.name == "CUDA"
        if on_gpu or device.type == "cpu":
            found[event.name].append(event.time_range.elapsed_us())
    slowest = sorted(((sum(times), name, len(times)) for name, times in found.items()), reverse=True)
    stamps = []
    for _ in range(8):
        next(tokens)
        stamps.append(time.perf_counter())
    return {
        "preset": preset,
        "layers": num_layers,
        "context": context,
        "step_us": 1e6 * (stamps[-1] - stamps[0]) / (len(stamps) - 1),
        "weight_bytes": weight_bytes_per_step(engine),
        "kernels": [{"kernel": name, "launches": launches, "us": us} for us, name, launches in slowest],
    }


def counters(output: Path) -> None:
    """Nsight Compute over a run of this program."""
    ncu = shutil.which("ncu")
    if ncu is None:
        print("ncu is not on the PATH: no counters")
        return
    command = [ncu, "--clock-control", "none", "--csv", "--metrics", METRICS, "--kernel-name", KERNELS]
    # The first two steps compile and warm up: about 30 launches a step of two layers.
    command += ["--launch-skip", "60", "--launch-count", "30"]
    command += [sys.executable, "-m", "benchmarks.kernels.gpu_profile", "--run"]
    result = subprocess.run(command, capture_output=True, text=True)
    (output / "ncu.csv").write_text(result.stdout)
    print(f"ncu: exit code {result.returncode}, {output / 'ncu.csv'}")
    if result.returncode:
        print(result.stderr[-2000:], result.stdout[-2000:])


def main() -> None:
    """Profile models, and count with Nsight Compute where it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("build"))
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)  # what ncu watches
    arguments = parser.parse_args()
    device = torch.device("cpu" if arguments.dry else "cuda")
    if arguments.run:
        for _ in steps("chatglm-6b", 2, 512, device, graphs=False)[1]:
            pass
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    for preset in ("chatglm-6b",) if arguments.dry else ("chatglm-6b", "chatglm3-6b"):
        result = profile(preset, 1 if arguments.dry else 28, 128 if arguments.dry else 512, device)
        result |= {"command": "make gpu-profile"} | device_facts()
        if arguments.dry:
            result["device"] = "a trial on a CPU"
        path = arguments.output / f"profile_{preset}.json"
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"{preset}: a step takes {result['step_us']:.0f} us; the kernels in it:")
        for row in result["kernels"][:12]:
            print(f"  {row['us']:9.1f} us in {row['launches']:4d} launches  {row['kernel'][:90]}")
    if not arguments.dry:
        counters(arguments.output)


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)
    main()
