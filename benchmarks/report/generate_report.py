"""Keep what bench_generate.py measured, without what changes from run to run and says nothing.

python -m benchmarks.report.generate_report generate.json --json benchmarks/results/generate_cpu.json

Of several files, a figure is that of the last one that has it: what was disturbed can be measured again with -k.
The tables and plots are drawn from the kept file: ``make report``.
"""

import argparse
import json
from pathlib import Path

MACHINE = ("device", "capability", "threads", "torch", "commit", "date", "bandwidth_gb_s")


def condense(*runs: dict) -> dict:
    """The machine once, and a row for every figure. Other machines in one table are an error."""
    found = {benchmark["name"]: benchmark["extra_info"] for run in runs for benchmark in run["benchmarks"]}
    rows = [info for info in found.values() if info]
    machine = {key: rows[0][key] for key in MACHINE}
    for key in ("device", "capability", "threads", "torch"):
        if any(row[key] != machine[key] for row in rows):
            raise SystemExit(f"expected runs on one machine, got {key} {sorted({str(row[key]) for row in rows})}")
    for key in ("commit", "date"):
        machine[key] = ", ".join(sorted({row[key] for row in rows}))
    machine["bandwidth_gb_s"] = max(row["bandwidth_gb_s"] for row in rows)
    return {
        "command": "pytest benchmarks/speed/bench_generate.py",
        "machine": machine,
        "rows": [{key: value for key, value in row.items() if key not in MACHINE} for row in rows],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path, nargs="+")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    result = condense(*(json.loads(path.read_text(encoding="utf-8")) for path in arguments.measured))
    lines = ",\n".join(json.dumps(row) for row in result.pop("rows"))
    head = json.dumps(result, indent=1)[:-2]
    arguments.json.write_text(f'{head},\n "rows": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
