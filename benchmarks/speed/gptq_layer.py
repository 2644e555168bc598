"""What GPTQ takes at full size: one layer of ChatGLM-6B's widths is measured, 28 are extrapolated.

python -m benchmarks.speed.gptq_layer --work . --json benchmarks/results/gptq_layer.json

The checkpoint is random (tools/make_random_checkpoint.py), so its figures are of time and memory alone. Peak
memory does not grow with the number of layers: one is in memory at a time. Seconds of the processor are
counted beside those of the clock, which other programs on the machine lengthen.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

from benchmarks.machine import PROGRAM, ROOT, facts, parser, timed, write

LAYERS = 28
WORDS = "hello world the weather today is fine and 12 times 3 is 36 你好 世界 天气 很好 我们 一起 去 公园"


def main() -> None:
    """Measure one layer with and without GPTQ, and write the result."""
    options = parser(__doc__)
    options.add_argument("--work", type=Path, default=Path(), help="folder for what is written (4 GB)")
    options.add_argument("--model", default="chatglm-6b")
    arguments = options.parse_args()
    source, target, text = (arguments.work / f"gptq-layer-{end}" for end in ("source", "target", "text.txt"))
    rng = Random(0)
    text.write_text(" ".join(rng.choice(WORDS.split()) for _ in range(60_000)), encoding="utf-8")
    make = [sys.executable, ROOT / "tools" / "make_random_checkpoint.py", "--model", arguments.model]
    subprocess.run([*make, "--layers", "1", "--output", source], check=True, stdout=sys.stderr)
    command = [*PROGRAM, "quantize", "--model", source, "--output", target, "--overwrite"]
    rtn, _ = timed(command)
    gptq, lines = timed([*command, "--method", "gptq", "--calibration", text])
    announced = next((line for line in lines.splitlines() if "will take about" in line), None)
    result = {
        "command": "python -m benchmarks.speed.gptq_layer",
        "model": arguments.model,
        "one_layer": {"rtn": rtn, "gptq": gptq | {"announced": announced}},
        "layers": LAYERS,
        "all_layers_hours": LAYERS * (gptq["seconds"] - rtn["seconds"]) / 3600,
        "all_layers_cpu_hours": LAYERS * (gptq["cpu_seconds"] - rtn["cpu_seconds"]) / 3600,
    }
    shutil.rmtree(source)
    shutil.rmtree(target)
    text.unlink()
    write(result | facts() | {"threads": os.cpu_count()}, arguments.json)


if __name__ == "__main__":
    main()
