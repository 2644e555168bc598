"""Draw the plots of the documents from the committed results.

python -m benchmarks.report.plots            writes docs/images/*.svg; what was not measured is not drawn

Needs matplotlib. The files are the same from run to run, so that a diff shows changed numbers.
"""

from pathlib import Path
from typing import Any

from benchmarks.report import generate_tables

IMAGES = Path(__file__).parents[2] / "docs" / "images"
COLORS = {"int4": "#1b7f79", "int8": "#e08e0b", "half": "#7a7a7a"}
CARDS_GB = (6, 8, 12)


def speed(axes: Any, result: dict) -> None:
    """Bars: tokens per second of one answer, by precision."""
    rows = [row for row in result["rows"] if row["kind"] == "decode" and row["batch"] == 1]
    context = min(row["context"] for row in rows)
    rows = [row for row in rows if row["context"] == context]
    models = list(dict.fromkeys(row["model"] for row in rows))
    ways = [way for way in generate_tables.WAYS if any(row["way"] == way for row in rows)]
    width = 0.8 / len(ways)
    for i, way in enumerate(ways):
        found = [(models.index(row["model"]), row["tokens_per_s"]) for row in rows if row["way"] == way]
        places = [place + (i - (len(ways) - 1) / 2) * width for place, _ in found]
        bars = axes.bar(
            places, [rate for _, rate in found], width, label=generate_tables.WAYS[way], color=COLORS.get(way)
        )
        axes.bar_label(bars, fmt="%.2g", fontsize=7)
    axes.set_xticks(range(len(models)), [generate_tables.NAMES[model] for model in models])
    axes.set(ylabel="tokens/s", title=f"one answer, behind {context} tokens")
    axes.legend(fontsize=7)


def memory(axes: Any, result: dict) -> None:
    """Lines: weights and cache by context length; arithmetic from the measured sizes."""
    lengths = [2**i for i in range(7, 16)]
    for model, style in (("chatglm-6b", "-"), ("chatglm3-6b", "--")):
        for way, color in COLORS.items():
            row = next((r for r in result["rows"] if (r["model"], r["way"]) == (model, way)), None)
            if row:
                most = 2048 if model == "chatglm-6b" else 32768
                shown = [length for length in lengths if length <= most]
                size = [(row["memory_bytes"] + length * row["kv_bytes"]) / 1e9 for length in shown]
                label = f"{generate_tables.NAMES[model]}, {generate_tables.WAYS[way]}"
                axes.plot(shown, size, style, color=color, label=label)
    for card in CARDS_GB:
        axes.axhline(card, color="black", linewidth=0.5)
        axes.text(0.99, card, f"{card} GB", transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=7)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set(xlabel="tokens of context", ylabel="GB of weights and cache", ylim=(0, None))
    axes.set_title("memory by context length, cache in float16")
    axes.legend(fontsize=6)


def roofline(axes: Any, result: dict) -> None:
    """Points: tokens per second over bytes read for a token, under the line that the bandwidth draws."""
    rows = [row for row in result["rows"] if "share" in row]
    for way in dict.fromkeys(row["way"] for row in rows):
        points = [(row["bytes_per_token"] / 1e9, row["tokens_per_s"]) for row in rows if row["way"] == way]
        axes.scatter(*zip(*points, strict=True), label=generate_tables.WAYS[way], color=COLORS.get(way), s=14)
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


PLOTS = {"speed": speed, "memory": memory, "roofline": roofline}


def draw(name: str, place: str, result: dict, folder: Path = IMAGES) -> Path:
    """One plot as an SVG file."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "glm-int4"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    PLOTS[name](axes, result)
    machine = result["machine"]
    note = f"{machine['device']}, torch {machine['torch']}, {machine['date']}, commit {machine['commit']}"
    figure.text(0.01, 0.01, note, fontsize=6)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_{place}.svg"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


def main() -> None:
    for place in generate_tables.COMMANDS:
        result = generate_tables.read(place)
        if result is None:
            print(f"{place}: not measured yet, {generate_tables.COMMANDS[place]}")
            continue
        for name in PLOTS:
            print(draw(name, place, result))


if __name__ == "__main__":
    main()
