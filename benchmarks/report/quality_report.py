"""The tables of bench_perplexity.py and bench_outliers.py, and the plot of loss against bits per weight.

python -m benchmarks.report.quality_report            draws docs/quality.png; the tables are written by tables.py
"""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PLOT = ROOT / "docs" / "quality.png"
REFERENCE = "INT4 official, per channel"


def read(key: str) -> tuple[list[dict], dict]:
    """Rows of a benchmark, and what they were measured on; none where it was not run."""
    result = json.loads((RESULTS / "quality.json").read_text(encoding="utf-8")).get(key, {"rows": [], "machine": {}})
    return result["rows"], result["machine"]


def methods() -> str:
    """Every method on the mini model."""
    rows, machine = read("bench_perplexity")
    official = next(row["kl"] for row in rows if row["name"] == REFERENCE)
    lines = [
        "| weights | bits per weight | perplexity | more than FP16 | KL divergence, 1e-4 | of official | answers "
        "| quantizing |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        quantized = "cpu_seconds" in row
        increase = row["loss_increase"]
        lines.append(
            f"| {row['name']} | {row['bits_per_weight']:.2f} "
            f"| {row['perplexity']:.4f} ± {row['standard_error']:.4f} | {_percent(increase)} "
            f"| {_kl(row)} | {_share(row, official) if quantized else ''} "
            f"| {100 * row['accuracy']:.1f} % "
            f"| {_seconds(row['cpu_seconds']) if quantized else ''} |"
        )
    first = rows[0]
    lines += [
        "",
        f"{first['tokens']} tokens, windows of {first['window']} moved by {first['stride']}. "
        "Differences are paired token by token; ± is their standard error, "
        "and those of less than two of them are in brackets. KL divergence is in 1e-4 nats per token, from the "
        "unquantized predictions; *of official* compares it with the official layout's. "
        f"Everything is computed in float32, but for the last row; {first['questions']} questions are answered as in "
        "a chat. Bits per weight count everything that is stored, embedding and norms included. Seconds of one "
        f"processor, {machine['cpu']} ({machine['capability']}), torch {machine['torch']}, {machine['date']}, "
        f"commit {machine['commit']}.",
    ]
    return "\n".join(lines)


def _percent(increase: dict) -> str:
    text = f"{100 * increase['mean']:+.3f} ± {100 * increase['standard_error']:.3f} %"
    return text if increase["counts"] or not increase["mean"] else f"({text})"


def _kl(row: dict) -> str:
    return f"{1e4 * row['kl']:.3f} ± {1e4 * row['kl_standard_error']:.3f}" if row["kl"] > 1e-9 else "0"


def _share(row: dict, official: float) -> str:
    text = f"{row['kl'] / official:.2f}"
    if row["name"] == REFERENCE or "kl_less_official" not in row:
        return text
    return text if row["kl_less_official"]["counts"] else f"({text})"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s"


def outliers() -> str:
    """Outlier channels in the mini model, and layers of 6B widths."""
    rows, machine = read("bench_outliers")
    if not rows:
        return "Not measured yet (`pytest benchmarks/quality/bench_outliers.py`)."
    cases = list(dict.fromkeys(row["case"] for row in rows))
    lines = [
        f"| loss, as a share of the official INT4's | {' | '.join(cases)} |",
        "|---" * (len(cases) + 1) + "|",
    ]
    for name in dict.fromkeys(row["name"] for row in rows):
        found = {row["case"]: row for row in rows if row["name"] == name}
        cells = []
        for case in cases:
            row = found[case]
            share = row["share_of_official"]
            cells.append(f"{share:.4f}" if share < 0.01 else f"{share:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    int8 = next(row for row in rows if row["name"] == "INT8" and "loss_increase" in row)
    lines += [
        "",
        "Loss is the KL divergence of the predictions, or the squared error of the layer's output on inputs that the "
        f"calibration has not seen. INT8 changes the perplexity of the mini model with outliers by "
        f"{_percent(int8['loss_increase'])}. torch {machine['torch']}, {machine['date']}, commit {machine['commit']}.",
    ]
    return "\n".join(lines)


def full_size() -> str:
    """One line: what GPTQ takes for a 6-billion-parameter model."""
    result = json.loads((RESULTS / "gptq_layer.json").read_text(encoding="utf-8"))
    layer = result["one_layer"]["gptq"]
    return (
        f"At the size of ChatGLM-6B, GPTQ on 32 x 512 tokens took {layer['cpu_seconds'] / 60:.0f} minutes of processor "
        f"time and {layer['seconds'] / 60:.0f} minutes on the clock for one layer, and "
        f"{layer['peak_rss_bytes'] / 1e9:.2f} GB of memory at most; {result['layers']} layers come to "
        f"{result['all_layers_cpu_hours']:.1f} hours of processor time (extrapolated). {result['threads']} threads of "
        f"{result['cpu']}, a machine shared with other work, {result['date']}, commit {result['commit']}."
    )


def plot(path: Path) -> None:
    """KL divergence over bits per weight of the linear layers, a curve for every method."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows, machine = read("bench_perplexity")
    figure, axes = plt.subplots(figsize=(8, 5))
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] and row["linear_bits"] < 6):
        points = sorted(
            (row["linear_bits"], row["kl"], row["kl_standard_error"]) for row in rows if row["method"] == method
        )
        bits, values, errors = zip(*points, strict=True)
        axes.errorbar(bits, values, yerr=errors, label=method, marker="o", capsize=3, linewidth=1.2)
    axes.set(yscale="log", xlabel="bits per weight of the linear layers, as stored")
    axes.set_ylabel("KL divergence from FP16, nats per token")
    axes.set_title(f"Mini model, {rows[0]['tokens']} tokens, commit {machine['commit']}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    plot(PLOT)
    print(f"wrote {PLOT}")
