"""A few figures of every commit, so that one sees when something became slower. Under three minutes on two cores.

python -m benchmarks.history            measures and appends a row to benchmarks/results/history.csv
python -m benchmarks.history --again    replaces the row of this commit and machine

ChatGLM2-6B has four of its layers and random weights; the mini model runs in INT4 on one thread. Rows of one machine
can be compared with each other, where nothing else ran on it.
"""

import argparse
import csv
import tempfile
import timeit
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

import glm_int4
from benchmarks.machine import MINI, RESULTS, facts
from glm_int4.measuring.speed import BenchSettings, bench
from glm_int4.quantization.rounding.rtn import quantize_rtn
from glm_int4.quantization.scheme import QuantizationScheme
from tools.compare import tokens_per_second

HISTORY = RESULTS / "history.csv"
MACHINE = ("cpu", "capability", "threads")
RUNS = 4
SHAPE = (13696, 4096)


def measure() -> dict[str, float]:
    """The figures of a row."""
    settings = BenchSettings(prefill=(128, 512), batches=(1,), contexts=(128,))
    result = bench("chatglm2-6b", bits=4, device="cpu", num_layers=4, settings=settings)
    found = {f"prefill_{row['tokens']}_tokens_per_s": row["tokens_per_s"] for row in result["prefill"]}
    found["decode_tokens_per_s"] = result["decode"][0]["tokens_per_s"]
    found["bandwidth_gb_s"] = result["bandwidth_gb_s"]
    found["quantize_gb_s"] = quantize_gb_s()
    with tempfile.TemporaryDirectory() as folder:
        glm_int4.quantize_checkpoint(MINI, folder, bits=4, overwrite=True)
        found["mini_tokens_per_s"] = tokens_per_second(glm_int4.load(folder, device="cpu", threads=1))
    return found


def quantize_gb_s() -> float:
    """GB of float16 weights that rounding to INT4 in groups of 128 takes a second, the best of some runs."""
    weight = torch.randn(SHAPE).half()
    scheme = QuantizationScheme(bits=4, group_size=128, symmetric=False)
    seconds = timeit.repeat(lambda: quantize_rtn(weight, scheme), number=1, repeat=RUNS)  # the first one compiles
    return weight.nbytes / 1e9 / min(seconds)


def read_history(path: Path) -> list[dict[str, str]]:
    """Rows, the oldest first; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def add_row(
    path: Path, known: Mapping[str, object], measured: Callable[[], dict[str, float]], *, again: bool = False
) -> dict[str, str]:
    """Measure and append a row.

    Args:
        known: date, commit, cpu, capability and threads; more is left out.
        measured: called where the row may be written.
        again: replace the row of the same commit and machine.
    Raises:
        SystemExit: that row is there, and ``again`` was not asked for.
    """
    head = {key: str(known[key]) for key in ("date", "commit", *MACHINE)}
    key = [head[name] for name in ("commit", *MACHINE)]
    rows = read_history(path)
    others = [row for row in rows if [row[name] for name in ("commit", *MACHINE)] != key]
    if len(others) < len(rows) and not again:
        raise SystemExit(f"expected no row of commit {head['commit']} on {head['cpu']}; use --again to replace it")
    row = head | {name: f"{figure:.4g}" for name, figure in measured().items()}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(row), restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows([*others, row])
    return row


def main() -> None:
    """Add a row of this commit and machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--file", type=Path, default=HISTORY)
    arguments = parser.parse_args()
    known = facts()  # before the mini model's one thread
    for name, value in add_row(arguments.file, known, measure, again=arguments.again).items():
        print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
