"""A table, and with matplotlib a roofline plot, from what bench_linear.py measured.

python -m benchmarks.kernels.linear_report linear.json                prints the table
python -m benchmarks.kernels.linear_report linear.json --plot FILE    draws achieved rates over arithmetic intensity
"""

import argparse
import json
from pathlib import Path


def table(rows: list[dict]) -> str:
    """Microseconds of every way, a line for each shape and number of rows; in brackets the share of bandwidth."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    cells = {
        (tuple(row["shape"]), row["rows"], row["way"]): f"{row['microseconds']:.1f} ({100 * row['share']:.0f} %)"
        for row in rows
    }
    lines = [f"| N x K | rows | {' | '.join(ways)} |", "|---" * (len(ways) + 2) + "|"]
    for shape, num_rows in dict.fromkeys((shape, num_rows) for shape, num_rows, _ in cells):
        values = [cells.get((shape, num_rows, way), "not measured") for way in ways]
        lines.append(f"| {shape[0]} x {shape[1]} | {num_rows} | {' | '.join(values)} |")
    facts = rows[0]
    lines += ["", f"Microseconds, and the weights' bytes over time as a share of {facts['bandwidth_gb_s']:.0f} GB/s."]
    lines += [f"{facts['device']}, torch {facts['torch']}, commit {facts['commit']}."]
    return "\n".join(lines)


def plot(rows: list[dict], path: Path) -> None:
    """Rates over operations per byte of this way's weights, under the measured bandwidth."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    intensity = [row["teraflops"] * 1e3 / row["weight_gb_s"] for row in rows]
    for way in dict.fromkeys(row["way"] for row in rows):
        points = [(i, row["teraflops"]) for i, row in zip(intensity, rows, strict=True) if row["way"] == way]
        axes.scatter(*zip(*points, strict=True), label=way, s=12)
    line = sorted(intensity)
    roof = [min(i * rows[0]["bandwidth_gb_s"] / 1e3, 2 * max(row["teraflops"] for row in rows)) for i in line]
    axes.plot(line, roof, color="grey", label="measured bandwidth")
    axes.set(xscale="log", yscale="log", xlabel="operations per byte of weights", ylabel="TFLOP/s")
    axes.set_title(f"{rows[0]['device']}, torch {rows[0]['torch']}, commit {rows[0]['commit']}")
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    benchmarks = json.loads(arguments.json.read_text(encoding="utf-8"))["benchmarks"]
    rows = [benchmark["extra_info"] for benchmark in benchmarks]
    print(table(rows))
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
