"""What GPTQ takes at full size: one layer of ChatGLM-6B's widths is measured, 28 are extrapolated.

python -m benchmarks.speed.gptq_layer --work . --json benchmarks/results/gptq_layer.json

The checkpoint is random (tools/make_random_checkpoint.py), so its figures are of time and memory alone. Peak
memory does not grow with the number of layers: one is in memory at a time. Seconds of the processor are
counted beside those of the clock, which other programs on the machine lengthen.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from random import Random

from benchmarks.kernels.cpu_switch import commit, cpu_name

ROOT = Path(__file__).parents[2]
LAYERS = 28
WORDS = "hello world the weather today is fine and 12 times 3 is 36 你好 世界 天气 很好 我们 一起 去 公园"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(), help="folder for what is written (4 GB)")
    parser.add_argument("--model", default="chatglm-6b")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    source, target, text = (arguments.work / f"gptq-layer-{end}" for end in ("source", "target", "text.txt"))
    rng = Random(0)
    text.write_text(" ".join(rng.choice(WORDS.split()) for _ in range(60_000)), encoding="utf-8")
    make = [sys.executable, ROOT / "tools" / "make_random_checkpoint.py", "--model", arguments.model]
    subprocess.run([*make, "--layers", "1", "--output", source], check=True, stdout=sys.stderr)
    command = [sys.executable, "-m", "glm_int4", "quantize", "--model", source, "--output", target, "--overwrite"]
    figures = {
        "rtn": run(command),
        "gptq": run([*command, "--method", "gptq", "--calibration", text]),
    }
    layer = {key: figures["gptq"][key] - figures["rtn"][key] for key in ("seconds", "cpu_seconds")}
    result = {
        "command": "python -m benchmarks.speed.gptq_layer",
        "model": arguments.model,
        "one_layer": figures,
        "layers": LAYERS,
        "all_layers_hours": LAYERS * layer["seconds"] / 3600,
        "all_layers_cpu_hours": LAYERS * layer["cpu_seconds"] / 3600,
        "cpu": cpu_name(),
        "threads": os.cpu_count(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
    shutil.rmtree(source)
    shutil.rmtree(target)
    text.unlink()
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def run(command: list) -> dict[str, object]:
    """Seconds, those of the processor, peak memory, and the time that was announced."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = process.stderr.read().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise subprocess.CalledProcessError(status, command, stderr="\n".join(lines))
    announced = next((line for line in lines if "will take about" in line), None)
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "announced": announced,
    }


if __name__ == "__main__":
    main()
