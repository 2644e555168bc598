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
        f"Perplexity over {first['tokens']} tokens and exact answers to {first['questions']} questions, "
        "both with number pairs that training never saw; "
        f"one sequence, {machine['threads']} thread(s) of {machine['cpu']} ({machine['capability']}), "
        f"torch {machine['torch']}, {machine['date']}."
    )
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {"mini": mini}


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
