"""Write the README's tables from the committed results.

python benchmarks/tables.py            rewrites README.md
python benchmarks/tables.py --check    fails where README.md is not what the results say
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def mini() -> str:
    """The table of ``make demo``."""
    result = json.loads((RESULTS / "mini.json").read_text(encoding="utf-8"))
    lines = ["| weights | size | bits per weight | perplexity | accuracy | tokens/s |", "|---|---|---|---|---|---|"]
    for row in result["rows"]:
        lines.append(
            f"| {row['weights']} | {row['weight_bytes'] / 1e6:.2f} MB | {row['bits_per_weight']:.2f} "
            f"| {row['perplexity']:.4f} ± {row['standard_error']:.4f} | {100 * row['accuracy']:.1f} % "
            f"| {row['tokens_per_s']:.0f} |"
        )
    first, machine = result["rows"][0], result["machine"]
    lines.append("")
    lines.append(
        f"Perplexity over {first['tokens']} tokens and exact answers to {first['questions']} questions. "
        "Their number pairs never occur in training in that order (a sum's mirror image mostly does); "
        "the other kinds of question repeat it; "
        f"one sequence, {machine['threads']} thread(s) of {machine['cpu']} ({machine['capability']}), "
        f"torch {machine['torch']}, {machine['date']}, commit {machine['commit']}."
    )
    return "\n".join(lines)


def full_size() -> str:
    """What the 6-billion-parameter checkpoint takes on a CPU."""
    result = json.loads((RESULTS / "full_size.json").read_text(encoding="utf-8"))
    heads = "|quantizing|its peak memory|size on disk|bits per weight|loading|memory once loaded|peak memory of a chat"
    columns = [[head] for head in f"{heads}|prompt of 128 tokens|prompt of 512|answer".split("|")]
    for row in result["rows"]:
        quantize = row["quantize"]
        speed = quantize["source_bytes"] / quantize["seconds"] / 1e9
        cells = [
            f"INT{quantize['bits']}",
            f"{quantize['seconds']:.0f} s ({speed:.2f} GB/s)",
            f"{quantize['peak_rss_bytes'] / 1e9:.2f} GB",
            f"{quantize['stored_bytes'] / 1e9:.2f} GB",
            f"{quantize['bits_per_weight']:.2f}",
            f"{row['load_s']:.1f} s",
            f"{row['load_rss_bytes'] / 1e9:.2f} GB",
            f"{row['chat_peak_rss_bytes'] / 1e9:.2f} GB",
            *(f"{prefill['tokens_per_s']:.1f} tokens/s" for prefill in row["prefill"]),
            f"{row['decode']['tokens_per_s']:.1f} tokens/s",
        ]
        for column, cell in zip(columns, cells, strict=True):
            column.append(cell)
    lines = [f"| {' | '.join(columns[0])} |", "|---" * len(columns[0]) + "|"]
    lines += [f"| {' | '.join(column)} |" for column in columns[1:]]
    lines.append("")
    lines.append(
        f"{result['rows'][0]['threads']} threads of {result['cpu']} ({result['capability']}), a shared machine; "
        f"torch {result['torch']}, {result['date']}, commit {result['commit']}. GB = 1e9 bytes; "
        "files in the page cache; medians of 3 runs."
    )
    return "\n".join(lines)


def ptuning() -> str:
    """What the prefix of the walk-through learns, and a step at full size."""
    result = json.loads((RESULTS / "ptuning.json").read_text(encoding="utf-8"))
    step = result["full_size"]
    return (
        f"{result['parameters']:,} parameters, {result['settings']['max_steps']} steps, {result['seconds']:.0f} s: "
        f"word for word right are {100 * result['exact_before']:.1f} % of {result['questions']} held-out questions "
        f"before and {100 * result['exact_after']:.1f} % after. At the size of ChatGLM-6B (random weights, INT4, "
        f"128 columns, one sample of 64 and 64 tokens) a step takes {step['seconds']:.0f} s and at most "
        f"{step['peak_rss_bytes'] / 1e9:.2f} GB of memory.\n\n"
        f"{result['threads']} threads of {result['cpu']} ({result['capability']}), a shared machine; "
        f"torch {result['torch']}, {result['date']}, commit {result['commit']}."
    )


TABLES: dict[str, Callable[[], str]] = {"mini": mini, "full-size": full_size, "ptuning": ptuning}


def render(readme: str) -> str:
    """Return the README with every table replaced by what the results say."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        readme = re.sub(pattern, lambda match, table=table: f"{match[1]}{table()}\n{match[2]}", readme, flags=re.S)
    return readme


def main() -> int:
    path = ROOT / "README.md"
    readme = path.read_text(encoding="utf-8")
    if "--check" in sys.argv[1:]:
        return int(render(readme) != readme)
    path.write_text(render(readme), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
