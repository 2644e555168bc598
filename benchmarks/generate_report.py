"""Keep what bench_generate.py measured, without what changes from run to run and says nothing.

python benchmarks/generate_report.py generate.json --json benchmarks/results/generate_cpu.json

The tables and plots are drawn from the kept file: ``make report``.
"""

import argparse
import json
from pathlib import Path

MACHINE = ("device", "capability", "threads", "torch", "commit", "date", "bandwidth_gb_s")


def condense(measured: dict) -> dict:
    """The machine once, and a row for every figure."""
    rows = [benchmark["extra_info"] for benchmark in measured["benchmarks"] if benchmark["extra_info"]]
    machine = {key: rows[0][key] for key in MACHINE}
    machine["bandwidth_gb_s"] = max(row["bandwidth_gb_s"] for row in rows)
    return {
        "command": "pytest benchmarks/bench_generate.py",
        "machine": machine,
        "rows": [{key: value for key, value in row.items() if key not in MACHINE} for row in rows],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    result = condense(json.loads(arguments.measured.read_text(encoding="utf-8")))
    lines = ",\n".join(json.dumps(row) for row in result.pop("rows"))
    head = json.dumps(result, indent=1)[:-2]
    arguments.json.write_text(f'{head},\n "rows": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
