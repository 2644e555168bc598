"""Compiles the cases of the gate for GPUs that need not be here, and reads what came out.

A result is kept in a file under what it follows from: the kernel's source, its arguments, the launch, Triton and this
code.
"""

import hashlib
import io
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from benchmarks.kernels import machine_code
from benchmarks.kernels.gate_cases import FAMILIES, KERNELS, SHARED_LIMITS, Case

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
TENSOR_CORES = ("wgmma", "tcgen05.mma", "mma.sync")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the compiler made of a case.

    instructions: per weight, where there is a loop over K. serialized: the code of ptxas for products that run one by
    one, "C7515" say. overwritten: the first of the operands that are written to while a product reads them.
    """

    kernel: str
    architecture: int
    constants: Mapping[str, Any]
    types: Mapping[str, str]
    num_warps: int
    num_stages: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    tensor_cores: str | None = None
    instructions: float | None = None
    serialized: str | None = None
    overwritten: str | None = None

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
            f"products run one by one ({self.serialized})": self.serialized is not None,
            f"{self.overwritten}, which is not waited for": self.overwritten is not None,
        }
        return [fault for fault, broken in rules.items() if broken]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A case that does not compile, and why."""

    kernel: str
    architecture: int
    constants: Mapping[str, Any]
    cause: str

    @property
    def is_unknown(self) -> bool:
        """Whether this Triton's ptxas is older than the architecture."""
        return "is not defined for option 'gpu-name'" in self.cause


@dataclass(frozen=True, slots=True)
class Compiled:
    """PTX, the log of its compiler, machine code, and bytes of shared memory."""

    ptx: str
    log: str
    cubin: bytes
    shared_bytes: int


class Known:
    """Results in a folder, in which a file of lines grows for every version of Triton.

    Args:
        folder: None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / f"{triton.__version__}.jsonl" if folder else None
        self._results: dict[str, dict[str, Any]] = {}
        if self._path and self._path.is_file():
            self._results = dict(map(json.loads, self._path.read_text(encoding="utf-8").splitlines()))

    def find(self, case: Case) -> Result | None:
        """The result of a case that was compiled before."""
        values = self._results.get(_name(case))
        return Result(**values) if values else None

    def keep(self, case: Case, result: Result) -> None:
        """Add a result to the file."""
        self._results[_name(case)] = asdict(result)
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([_name(case), asdict(result)]) + "\n")


def build_all(cases: Sequence[Case], known: Known, jobs: int) -> list[Result | Failure]:
    """The results of cases, in their order; in several processes."""
    found: list[Result | Failure | None] = [known.find(case) for case in cases]
    families: dict[str, list[int]] = {}
    for i, case in enumerate(cases):
        if found[i] is None:
            families.setdefault(_launch(case), []).append(i)
    groups = [[cases[i] for i in places] for places in families.values()]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        built = pool.map(_build_family, groups, _samples(groups))
        for places, results in zip(families.values(), built, strict=True):
            for i, result in zip(places, results, strict=True):
                found[i] = result
                if isinstance(result, Result):
                    known.keep(cases[i], result)
    return [result for result in found if result is not None]


def _samples(groups: Sequence[Sequence[Case]]) -> list[bool]:
    """Of every group of cases, whether it is the first with its kernel and tile in its family of architectures."""
    tiles = [
        (each[0].kernel, FAMILIES[each[0].architecture], *map(each[0].constants.get, ("BITS", "BLOCK_M")))
        for each in groups
    ]
    return [tile not in tiles[:i] for i, tile in enumerate(tiles)]


def _build_family(cases: Sequence[Case], is_sample: bool) -> list[Result | Failure]:
    """The results of cases that differ in their architecture alone, of one family.

    The first one's PTX is assembled for the others, which have the same. A sample is compiled for each to see that.
    """
    results: list[Result | Failure] = []
    first: Compiled | None = None
    for case in cases:
        try:
            if first is None:
                first = compiled = compile_case(case)
            else:
                compiled = assemble(first, case)
                if is_sample and compile_case(case).ptx != compiled.ptx:
                    raise RuntimeError(f"its PTX is not the one of sm_{cases[0].architecture}")
            results.append(read(case, compiled))
        except Exception as error:  # whatever the compiler raises is the finding
            cause = f"{type(error).__name__}: {error}"
            results.append(
                Failure(kernel=case.kernel, architecture=case.architecture, constants=case.constants, cause=cause)
            )
    return results


def build(case: Case) -> Result:
    """Compile a case to machine code and read it."""
    return read(case, compile_case(case))


def compile_case(case: Case) -> Compiled:
    """Compile a case from its source."""
    triton.knobs.compilation.always_compile = True
    with _log_of_ptxas() as log:
        compiled = triton.compile(_source(case), target=_target(case), options=_options(case))
    return Compiled(compiled.asm["ptx"], log.getvalue(), compiled.asm["cubin"], compiled.metadata.shared)


def assemble(other: Compiled, case: Case) -> Compiled:
    """Make machine code for a case's architecture from the PTX that another one of its family has."""
    ptx = re.sub(r"\.target sm_\d+", f".target sm_{case.architecture}", other.ptx, count=1)
    backend = make_backend(_target(case))
    with _log_of_ptxas() as log:
        cubin = backend.make_cubin(ptx, {}, backend.parse_options(_options(case)), case.architecture)
    return Compiled(ptx, log.getvalue(), cubin, other.shared_bytes)


@contextmanager
def _log_of_ptxas() -> Iterator[io.StringIO]:
    log = io.StringIO()
    triton.knobs.nvidia.dump_ptxas_log = True
    with redirect_stdout(log):
        yield log


def _target(case: Case) -> GPUTarget:
    return GPUTarget("cuda", case.architecture, 32)


def _options(case: Case) -> dict[str, int | None]:
    return {"num_warps": case.num_warps, "num_stages": case.num_stages, "maxnreg": case.max_registers}


def read(case: Case, compiled: Compiled) -> Result:
    """What PTX, the log of its compiler and machine code say of a case."""
    per_weight = None
    if "BLOCK_M" in case.constants:
        weights = case.constants["BLOCK_N"] * WEIGHTS_A_BLOCK
        length = machine_code.loop_length(compiled.cubin, case.architecture)
        per_weight = round(length * case.num_warps * 32 / weights, 2)
    tensor_cores = next((name for name in TENSOR_CORES if name in compiled.ptx), None)
    overwritten = []
    if tensor_cores == "wgmma":
        overwritten = machine_code.overwritten_operands(machine_code.instructions(disassemble(compiled.cubin)))
    spills = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", compiled.log)
    registers = re.search(r"Used (\d+) registers", compiled.log)
    if not spills or not registers:
        raise ValueError(f"expected registers and spills in the log of ptxas, got {compiled.log!r}")
    serialized = re.search(r"\((C\d+)\)[^\n]*wgmma[^\n]* serialized", compiled.log)
    return Result(
        kernel=case.kernel,
        architecture=case.architecture,
        constants=case.constants,
        types=case.types,
        num_warps=case.num_warps,
        num_stages=case.num_stages,
        registers=int(registers[1]),
        stack_bytes=max(map(int, spills.groups())),
        shared_bytes=compiled.shared_bytes,
        tensor_cores=tensor_cores,
        instructions=per_weight,
        serialized=serialized[1] if serialized else None,
        overwritten=next(iter(overwritten), None),
    )


def _source(case: Case) -> ASTSource:
    kernel, types = KERNELS[case.kernel], TYPES | case.types
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in case.constants:
            signature[name], constants[index,] = "constexpr", case.constants[name]
            continue
        signature[name] = types.get(name, "*fp16" if name.endswith("_ptr") else "i32")
        if name.endswith("_ptr") or name in MULTIPLES_OF_16:
            attributes[index,] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)


def _launch(case: Case) -> str:
    """What cases that differ in their architecture alone have in common, if those are of one family."""
    return json.dumps([FAMILIES[case.architecture], asdict(case) | {"architecture": None}], sort_keys=True)


def _name(case: Case) -> str:
    """What the result of a case follows from."""
    parts = [triton.__version__, _code(), KERNELS[case.kernel].cache_key, asdict(case)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def _code() -> str:
    return "".join(Path(module).read_text(encoding="utf-8") for module in (__file__, machine_code.__file__))


def disassemble(cubin: bytes) -> str:
    """Machine code of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command: list[str | Path] = [TOOLS / "cuobjdump", "-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
