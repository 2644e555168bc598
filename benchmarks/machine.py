"""What every benchmark needs besides measuring: where results lie, what they were measured on, how they are written."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
EXAMPLES = ROOT / "examples"
MINI = EXAMPLES / "mini-chatglm"
# What is measured, as a process of its own; arguments follow.
PROGRAM: list[str | Path] = [sys.executable, "-m", "glm_int4"]


def cpu_name() -> str:
    """The processor as the system names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def commit() -> str:
    """The commit that is measured."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def facts() -> dict[str, object]:
    """What a CPU's figures were measured on: cpu, capability, threads, torch, commit and date."""
    import torch  # here, because the tables take no torch, and a folder from this file

    return {
        "cpu": cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def device_facts() -> dict[str, object]:
    """The same with the GPU's name and capability, where there is one; the name is ``device``."""
    import torch

    found = facts()
    found = {"device": found.pop("cpu")} | found
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
        found["capability"] = str(torch.cuda.get_device_capability())
    return found


def parser(description: str | None) -> argparse.ArgumentParser:
    """The start of a benchmark's arguments: its docstring as help, and --json."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, help="file for the result")
    return made


def read(file: str) -> Any:
    """A kept result."""
    return json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8"))


def write(result: Mapping[str, object], path: Path | None) -> None:
    """Print a result, and keep it in the file of --json."""
    text = json.dumps(result, indent=2)
    print(text)
    if path:
        path.write_text(f"{text}\n", encoding="utf-8")


def write_rows(head: Mapping[str, object], key: str, rows: Sequence[object], path: Path) -> None:
    """Write a result whose rows stand on a line each, so that a diff shows the figures that changed."""
    lines = ",\n".join(map(json.dumps, rows))
    path.write_text(f'{json.dumps(head, indent=1)[:-2]},\n "{key}": [\n{lines}\n]}}\n', encoding="utf-8")


def timed(command: Sequence[str | Path]) -> tuple[dict[str, float], str]:
    """Seconds on the clock and of the processor, and peak memory, of a process; and what it wrote to stderr."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    written = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise subprocess.CalledProcessError(status, command, stderr=written)
    seconds, peak = time.perf_counter() - started, usage.ru_maxrss * 1024
    return {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_rss_bytes": peak}, written
