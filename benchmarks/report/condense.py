"""Keep what bench_generate.py measured, without what changes from run to run and says nothing.

python -m benchmarks.report.condense generate.json --json benchmarks/results/generate_cpu.json

Of several files, a figure is that of the last one that has it: what was disturbed can be measured again with -k.
The tables and plots are drawn from the kept file: ``make report``.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.machine import parser, write_rows

MACHINE = ("device", "capability", "threads", "torch", "commit", "date", "bandwidth_gb_s")


def condense(*runs: dict[str, Any]) -> dict[str, Any]:
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
    """Join files of pytest-benchmark into one result."""
    options = parser(__doc__)
    options.add_argument("measured", type=Path, nargs="+")
    arguments = options.parse_args()
    if arguments.json is None:
        options.error("--json is needed")
    result = condense(*(json.loads(path.read_text(encoding="utf-8")) for path in arguments.measured))
    write_rows(result, "rows", result.pop("rows"), arguments.json)


if __name__ == "__main__":
    main()
