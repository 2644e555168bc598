"""Compile every kernel of the launch table ahead of time and look at what comes out. Needs no GPU.

python -m benchmarks.kernels.kernel_gate                  everything; exit code 1 where a kernel breaks a rule
python -m benchmarks.kernels.kernel_gate --quick          INT4 in groups of 128 and INT8, the first and the last launch
python -m benchmarks.kernels.kernel_gate --json FILE      adds the results of this Triton to FILE
python -m benchmarks.kernels.kernel_gate --kernel dot     one kernel alone; may be repeated

Rules: no spills, shared memory within the GPU's limit, tensor-core instructions in every dot kernel, and
dot kernels from sm_80 on alone. Instructions per weight are those of the loop over K, from its first to
its last instruction in machine code: a measure of what a program issues, not of time.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.kernels.gate_cases import KERNELS, SHARED_LIMITS, Case, cases
from benchmarks.report.gpu_tables import gate

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# Arguments that every matrix of the models gives as multiples of 16; pointers are aligned too.
MULTIPLES_OF_16 = ("N", "K", "stride_xm")
WEIGHTS_A_BLOCK = 128
# Of arguments that are neither fp16 tensors nor integers, where a case says nothing else.
TYPES = {
    "zeros_ptr": "*u8",
    **dict.fromkeys(("bias_ptr", "parts_ptr", "stats_ptr", "cos_ptr", "sin_ptr", "factors_ptr"), "*fp32"),
    **dict.fromkeys(("slots_ptr", "columns_ptr", "lengths_ptr", "positions_ptr", "padding_ptr"), "*i64"),
    **dict.fromkeys(("alpha", "eps", "softmax_scale"), "fp32"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the compiler made of a case; ``instructions`` per weight where there is a loop over K."""

    kernel: str
    architecture: int
    constants: Mapping[str, Any]
    registers: int
    stack_bytes: int
    shared_bytes: int
    tensor_cores: str | None
    instructions: float | None

    @property
    def has_product(self) -> bool:
        """Whether this kernel is there for its tensor-core products."""
        return self.kernel == "dot" or (self.kernel == "attend" and self.constants["BLOCK_H"] > 1)

    @property
    def faults(self) -> list[str]:
        """The rules that this kernel breaks."""
        limit = SHARED_LIMITS[self.architecture]
        rules = {
            f"{self.stack_bytes} bytes of spills": self.stack_bytes > 0,
            f"{self.shared_bytes} bytes of shared memory, of {limit}": self.shared_bytes > limit,
            "no tensor-core instruction": self.has_product and self.tensor_cores is None,
            "a product before sm_80": self.has_product and self.architecture < 80,
        }
        return [fault for fault, broken in rules.items() if broken]


def build(case: Case) -> Result:
    """Compile a case to machine code and read it."""
    kernel = KERNELS[case.kernel]
    types = TYPES | case.types
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in case.constants:
            signature[name], constants[index,] = "constexpr", case.constants[name]
            continue
        signature[name] = types.get(name, "*fp16" if name.endswith("_ptr") else "i32")
        if name.endswith("_ptr") or name in MULTIPLES_OF_16:
            attributes[index,] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", case.architecture, 32),
        options={"num_warps": case.num_warps, "num_stages": case.num_stages, "maxnreg": case.max_registers},
    )
    usage, code = disassemble(compiled.asm["cubin"])
    instructions = None
    if "BLOCK_M" in case.constants:
        weights = case.constants["BLOCK_N"] * WEIGHTS_A_BLOCK
        instructions = round(longest_loop(code) * case.num_warps * 32 / weights, 2)
    ptx = compiled.asm["ptx"]
    return Result(
        kernel=case.kernel,
        architecture=case.architecture,
        constants=case.constants,
        registers=usage["REG"],
        stack_bytes=max(usage["STACK"], usage["LOCAL"]),
        shared_bytes=compiled.metadata.shared,
        tensor_cores=next((name for name in ("wgmma", "mma.sync") if name in ptx), None),
        instructions=instructions,
    )


def disassemble(cubin: bytes) -> tuple[dict[str, int], str]:
    """Resources and machine code of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def dump(option: str) -> str:
            command: list[str | Path] = [TOOLS / "cuobjdump", option, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", dump("-res-usage"))}
        return usage, dump("-sass")


def longest_loop(code: str) -> int:
    """Instructions of the longest stretch that a branch goes back over."""
    addresses = []
    longest = 0
    for line in code.splitlines():
        match = re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", line)
        if not match:
            continue
        address, text = int(match[1], 16), match[2]
        addresses.append(address)
        target = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            longest = max(longest, sum(a >= int(target[1], 16) for a in addresses))
    return longest


def write(path: Path, results: list[Result], kernels: list[str]) -> None:
    """Put the results of these kernels and this Triton into a file, a line for each; what else it holds stays."""
    known = json.loads(path.read_text()) if path.is_file() else {}
    kept = [result for result in known.get(triton.__version__, ()) if result["kernel"] not in kernels]
    known[triton.__version__] = kept + [asdict(result) for result in results]
    versions = []
    for version in sorted(known):
        lines = ",\n".join(json.dumps(result) for result in known[version])
        versions.append(f"{json.dumps(version)}: [\n{lines}\n]")
    path.write_text("{" + ",\n".join(versions) + "}\n")


def main() -> int:
    """Compile all cases, and count the rules that are broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--kernel", action="append", choices=KERNELS)
    arguments = parser.parse_args()
    kernels = arguments.kernel or list(KERNELS)
    results, faults = [], 0
    for case in cases(arguments.quick):
        if case.kernel not in kernels:
            continue
        try:
            result = build(case)
        except Exception as error:  # whatever the compiler raises is the finding
            print(f"sm_{case.architecture} {case.kernel} {case.constants}: does not compile: {error}")
            faults += 1
            continue
        results.append(result)
        for fault in result.faults:
            print(f"sm_{result.architecture} {result.kernel} {result.constants}: {fault}")
            faults += 1
    if results:
        print(gate({triton.__version__: [asdict(result) for result in results]}))
    print(f"Triton {triton.__version__}: {len(results)} kernels compiled, {faults} faults")
    if arguments.json:
        write(arguments.json, results, kernels)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
