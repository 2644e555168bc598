"""Draw the plots of the documents from the committed results. Needs matplotlib.

python -m benchmarks.report.plots            writes docs/images/*.svg and docs/quality.png

What was not measured is not drawn. The files are the same from run to run, so that a diff shows changed numbers.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, read
from benchmarks.report.tables import COMMANDS, read_speed
from benchmarks.report.texts import MODELS, WAYS

IMAGES = ROOT / "docs" / "images"
COLORS = {"int4": "#1b7f79", "int8": "#e08e0b", "half": "#7a7a7a"}
CARDS_GB = (6, 8, 12)
Plot = Callable[[Any, dict[str, Any]], None]


def speed(axes: Any, result: dict[str, Any]) -> None:
    """Bars: tokens per second of one answer, by precision."""
    rows = [row for row in result["rows"] if row["kind"] == "decode" and row["batch"] == 1]
    context = min(row["context"] for row in rows)
    rows = [row for row in rows if row["context"] == context]
    models = list(dict.fromkeys(row["model"] for row in rows))
    ways = [way for way in WAYS if any(row["way"] == way for row in rows)]
    width = 0.8 / len(ways)
    for i, way in enumerate(ways):
        found = [(models.index(row["model"]), row["tokens_per_s"]) for row in rows if row["way"] == way]
        places = [place + (i - (len(ways) - 1) / 2) * width for place, _ in found]
        bars = axes.bar(places, [rate for _, rate in found], width, label=WAYS[way], color=COLORS.get(way))
        axes.bar_label(bars, fmt="%.2g", fontsize=7)
    axes.set_xticks(range(len(models)), [MODELS[model] for model in models])
    axes.set(ylabel="tokens/s", title=f"one answer, behind {context} tokens")
    axes.legend(fontsize=7)


def memory(axes: Any, result: dict[str, Any]) -> None:
    """Lines: weights and cache by context length; arithmetic from the measured sizes."""
    lengths = [2**i for i in range(7, 16)]
    for model, style in (("chatglm-6b", "-"), ("chatglm3-6b", "--")):
        for way, color in COLORS.items():
            row = next((r for r in result["rows"] if (r["model"], r["way"]) == (model, way)), None)
            if row:
                most = 2048 if model == "chatglm-6b" else 32768
                shown = [length for length in lengths if length <= most]
                size = [(row["memory_bytes"] + length * row["kv_bytes"]) / 1e9 for length in shown]
                axes.plot(shown, size, style, color=color, label=f"{MODELS[model]}, {WAYS[way]}")
    for card in CARDS_GB:
        axes.axhline(card, color="black", linewidth=0.5)
        axes.text(0.99, card, f"{card} GB", transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=7)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set(xlabel="tokens of context", ylabel="GB of weights and cache", ylim=(0, None))
    axes.set_title("memory by context length, cache in float16")
    axes.legend(fontsize=6)


def roofline(axes: Any, result: dict[str, Any]) -> None:
    """Points: tokens per second over bytes read for a token, under the line that the bandwidth draws."""
    rows = [row for row in result["rows"] if "share" in row]
    for way in dict.fromkeys(row["way"] for row in rows):
        points = [(row["bytes_per_token"] / 1e9, row["tokens_per_s"]) for row in rows if row["way"] == way]
        axes.scatter(*zip(*points, strict=True), label=WAYS[way], color=COLORS.get(way), s=14)
    sizes = sorted(row["bytes_per_token"] / 1e9 for row in rows)
    bandwidth = result["machine"]["bandwidth_gb_s"]
    axes.plot(sizes, [bandwidth / size for size in sizes], color="black", linewidth=0.8, label=f"{bandwidth:.0f} GB/s")
    axes.set(
        xscale="log", yscale="log", xlabel="GB read for a token", ylabel="tokens/s", title="decoding and bandwidth"
    )
    axes.xaxis.set_minor_formatter("")
    axes.set_xticks([2.0**i for i in range(-2, 5)], [f"{2.0**i:g}" for i in range(-2, 5)])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(fontsize=7)


def quality(axes: Any, result: dict[str, Any]) -> None:
    """Curves: KL divergence over bits per weight of the linear layers, for every method."""
    rows = [row for row in result["rows"] if row["method"] and row["linear_bits"] < 6]
    for method in dict.fromkeys(row["method"] for row in rows):
        found = sorted((r["linear_bits"], r["kl"], r["kl_standard_error"]) for r in rows if r["method"] == method)
        bits, values, errors = zip(*found, strict=True)
        axes.errorbar(bits, values, yerr=errors, label=method, marker="o", capsize=3, linewidth=1.2)
    axes.set(yscale="log", xlabel="bits per weight of the linear layers, as stored")
    axes.set_ylabel("KL divergence from FP16, nats per token")
    axes.set_title(f"Mini model, {rows[0]['tokens']} tokens, commit {result['machine']['commit']}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


PLOTS: dict[str, Plot] = {"speed": speed, "memory": memory, "roofline": roofline}


def draw(path: Path, plot: Plot, result: dict[str, Any], *, noted: bool = True) -> Path:
    """One plot as a file that is the same each time, and below it what it was measured on."""
    import matplotlib

    matplotlib.use("svg" if path.suffix == ".svg" else "agg")
    matplotlib.rcParams["svg.hashsalt"] = "glm-int4"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4) if noted else (8, 5))
    plot(axes, result)
    if noted:
        parts = [str(result["machine"].get(key, "")) for key in ("device", "torch", "date", "commit")]
        figure.text(0.01, 0.01, "{}, torch {}, {}, commit {}".format(*parts), fontsize=6)
    figure.tight_layout(rect=(0, 0.03 if noted else 0, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
    return path


def main() -> None:
    """Draw all plots."""
    for place in COMMANDS:
        result = read_speed(place)
        if result is None:
            print(f"{place}: not measured yet, {COMMANDS[place]}")
            continue
        for name, plot in PLOTS.items():
            print(draw(IMAGES / f"{name}_{place}.svg", plot, result))
    print(draw(ROOT / "docs" / "quality.png", quality, read("quality")["bench_perplexity"], noted=False))


if __name__ == "__main__":
    main()
