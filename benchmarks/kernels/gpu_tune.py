"""Measure the launch parameters of the linears on this GPU: rows for triton_kernels/launch.py, and every time.

python -m benchmarks.kernels.gpu_tune --json launch.json       under 10 minutes on an H200
python -m benchmarks.kernels.gpu_tune --dry --json launch.json without a GPU: interpreted, times mean nothing

``glm-int4 bench MODEL --tune`` does the same and keeps the rows for this machine alone.
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from benchmarks.machine import device_facts, parser, write_rows

PARSER = parser(__doc__)
PARSER.add_argument("--seconds", type=float, default=480.0)
PARSER.add_argument("--dry", action="store_true")
ARGUMENTS = PARSER.parse_args()
if ARGUMENTS.dry:
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

import torch  # noqa: E402
import triton  # noqa: E402

from glm_int4.measuring.launches import GROUP_SIZES, real_shapes  # noqa: E402
from triton_kernels import launch_search  # noqa: E402
from triton_kernels.launch import Launch  # noqa: E402


def wall_seconds(function: Callable[[], object]) -> float:
    """Of one call, the interpreter's."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def as_code(row: Launch) -> str:
    """A row as launch.py holds it."""
    changed = {key: value for key, value in asdict(row).items() if value != Launch.__dataclass_fields__[key].default}
    return f"    Launch({', '.join(f'{key}={value!r}' for key, value in changed.items())}),"


def main() -> None:
    """Tune both kinds of weights, print their rows and keep everything."""
    dry = ARGUMENTS.dry
    device = torch.device("cpu" if dry else "cuda")
    architecture = 90 if dry else int("{}{}".format(*torch.cuda.get_device_capability()))
    options: dict[str, Any] = {"timer": wall_seconds, "num_copies": 1} if dry else {}
    shapes = [(128, 256)] if dry else real_shapes()
    started, tables, times = time.monotonic(), {}, []
    for i, (bits, group_size) in enumerate(GROUP_SIZES.items(), start=1):
        deadline = started + i * (2 if dry else ARGUMENTS.seconds) / len(GROUP_SIZES)
        rows, timings = launch_search.search(
            bits,
            device,
            shapes,
            group_size=group_size,
            report=lambda line: print(line, flush=True),
            deadline=deadline,
            architecture=architecture,
            **options,
        )
        tables[bits] = rows
        times += timings
        print(f"    ({bits}, {architecture}):")
        print("\n".join(map(as_code, rows)), flush=True)
    if ARGUMENTS.json:
        known = device_facts()
        result = {
            "command": "make gpu-tune",
            "gpu": "none, a trial" if dry else known["device"],
            "architecture": architecture,
            "triton": triton.__version__,
            **{key: known[key] for key in ("torch", "commit", "date")},
            "rows": {bits: [asdict(row) for row in rows] for bits, rows in tables.items()},
        }
        lines = [
            [t.bits, t.rows, *t.shape, launch_search.describe(t.launch) if t.launch else "dequantize", t.microseconds]
            for t in times
            if t.microseconds < float("inf")
        ]
        write_rows(result, "times", lines, ARGUMENTS.json)


if __name__ == "__main__":
    main()
