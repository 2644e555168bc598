"""Compile every kernel of the launch table ahead of time and look at what comes out. Needs no GPU.

python -m benchmarks.kernels.kernel_gate                  everything; exit code 1 where a kernel breaks a rule
python -m benchmarks.kernels.kernel_gate --quick          INT4 in groups of 128 and INT8, the first and the last launch
python -m benchmarks.kernels.kernel_gate --json FILE      adds the results of this Triton to FILE
python -m benchmarks.kernels.kernel_gate --kernel dot     one kernel alone; may be repeated, as --architecture 90

Rules: no spills, shared memory within the GPU's limit, tensor-core instructions in every dot kernel, and dot kernels
from sm_80 on alone; on sm_90 no products that run one by one, and no operand that is overwritten while a product reads
it. Instructions per weight are those of the loop over K, from its first to its last instruction in machine code: a
measure of what a program issues, not of time. What was compiled before is taken from build/gate.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import triton

from benchmarks.kernels.gate_cases import KERNELS, SHARED_LIMITS, cases
from benchmarks.kernels.kernel_build import Failure, Known, Result, build_all
from benchmarks.report.gpu_tables import gate, gate_rows


def write(path: Path, results: list[Result]) -> None:
    """Put the results of this Triton into a file; what it holds of others stays."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known[triton.__version__] = gate_rows(results)
    versions = []
    for version in sorted(known):
        lines = ",\n".join(json.dumps(row) for row in known[version])
        versions.append(f"{json.dumps(version)}: [\n{lines}\n]")
    path.write_text("{" + ",\n".join(versions) + "}\n", encoding="utf-8")


def main() -> int:
    """Compile all cases, and count the rules that are broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--kernel", action="append", choices=KERNELS)
    parser.add_argument("--architecture", action="append", type=int, choices=SHARED_LIMITS)
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 8), help="processes that compile")
    arguments = parser.parse_args()
    kernels, architectures = arguments.kernel or KERNELS, arguments.architecture or SHARED_LIMITS
    if arguments.json and (arguments.quick or arguments.kernel or arguments.architecture):
        parser.error("expected all cases with --json, got some of them")
    chosen = [case for case in cases(arguments.quick) if case.kernel in kernels and case.architecture in architectures]
    results, faults, unknown = [], 0, set()
    known = Known(None if arguments.quick else Path("build/gate"))
    for result in build_all(chosen, known, arguments.jobs):
        if isinstance(result, Failure):
            if result.is_unknown:
                unknown.add(result.architecture)
                continue
            found = [f"does not compile: {result.cause}"]
        else:
            results.append(result)
            found = result.faults
        for fault in found:
            print(f"sm_{result.architecture} {result.kernel} {result.constants}: {fault}", flush=True)
        faults += len(found)
    if results:
        print(gate({triton.__version__: gate_rows(results)}))
    for architecture in sorted(unknown):
        print(f"sm_{architecture} is newer than Triton {triton.__version__}, which compiles nothing for it")
    print(f"Triton {triton.__version__}: {len(results)} kernels compiled, {faults} faults")
    if arguments.json:
        write(arguments.json, results)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
