"""A sample of the kernels compiles for every architecture and keeps the rules; ``make gpu-gate`` compiles all."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: nothing is compiled", allow_module_level=True)

from benchmarks.kernels import kernel_build, machine_code
from benchmarks.kernels.gate_cases import FAMILIES, SAMPLE, SHARED_LIMITS, Case, cases
from benchmarks.kernels.kernel_build import Failure, Known, Result, build_all
from benchmarks.report.gpu_tables import gate, gate_rows
from tests.conftest import EXAMPLES

FINISH = [case for case in cases(False) if case.kernel == "finish" and case.constants["ACTIVATION"] is None]
RESULT = Result(
    kernel="dot",
    architecture=90,
    constants={"BITS": 4, "BLOCK_M": 8, "GROUP_SIZE": 128, "USE_ASM": True, "ACTIVATION": None},
    types={"qweight_ptr": "*i16"},
    num_warps=4,
    num_stages=3,
    registers=100,
    stack_bytes=0,
    shared_bytes=1024,
    tensor_cores="wgmma",
    instructions=2.5,
)


def test_kernels_compile_without_spills_and_with_tensor_cores():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.kernels.kernel_gate", "--quick"]
    result = subprocess.run(command, cwd=EXAMPLES.parent, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 faults" in result.stdout


def test_every_case_is_compiled_for_eleven_architectures():
    assert set(SHARED_LIMITS) == set(FAMILIES) == {75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121}
    found = {(case.architecture, case.kernel) for case in cases(False)}
    assert found == {(a, kernel) for a in SHARED_LIMITS for kernel in kernel_build.KERNELS} - (
        {(75, "dot")} | {(a, "gemv") for a in SHARED_LIMITS if a > 75}
    )


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"stack_bytes": 8}, "8 bytes of spills"),
        ({"shared_bytes": 228 << 10}, "233472 bytes of shared memory, of 232448"),
        ({"tensor_cores": None}, "no tensor-core instruction"),
        ({"serialized": "C7515"}, "products run one by one (C7515)"),
        ({"overwritten": "MOV at 10 writes to an operand"}, "MOV at 10 writes to an operand, which is not waited for"),
    ],
)
def test_rules_that_a_kernel_breaks(changes, fault):
    assert RESULT.faults == []
    assert replace(RESULT, **changes).faults == [fault]


def test_what_the_compiler_says_of_products_that_run_one_by_one_is_read():
    case = next(case for case in FINISH if case.architecture == 90)
    compiled = kernel_build.compile_case(case)
    assert kernel_build.read(case, compiled).serialized is None
    line = (
        "ptxas info    : (C7515) Potential Performance Loss: wgmma.mma_async instructions are serialized due to non "
        "wgmma instructions defining accumulator registers of a wgmma between start and end of the pipeline stage in "
        "the function 'dot_kernel'\n"
    )
    said = replace(compiled, log=line + compiled.log)
    assert kernel_build.read(case, said).serialized == "C7515"


@pytest.mark.parametrize("architecture", SAMPLE)
def test_the_loop_is_as_long_in_the_code_as_in_the_disassembly(architecture):
    case = next(case for case in cases(False) if case.kernel == "merge" and case.architecture == architecture)
    compiled = kernel_build.compile_case(case)
    loop = machine_code.longest_loop(machine_code.instructions(kernel_build.disassemble(compiled.cubin)))
    assert machine_code.loop_length(compiled.cubin, architecture) == len(loop) > 20


def test_architectures_of_a_family_share_what_is_compiled_and_results_are_kept(tmp_path, monkeypatch):
    chosen = [case for case in FINISH if case.architecture in (80, 86, 120, 121)]
    results = build_all(chosen, Known(tmp_path), 1)
    assert results == [kernel_build.build(case) for case in chosen]
    monkeypatch.setattr(kernel_build, "_build_family", lambda *arguments: pytest.fail("was compiled again"))
    assert build_all(chosen, Known(tmp_path), 1) == results
    monkeypatch.setattr(kernel_build, "_code", lambda: "changed")
    assert Known(tmp_path).find(chosen[0]) is None


def test_an_architecture_whose_ptx_is_another_is_a_failure(monkeypatch):
    chosen = [case for case in FINISH if case.architecture in (80, 89)]
    compile_case = kernel_build.compile_case

    def compile_otherwise(case):
        compiled = compile_case(case)
        return replace(compiled, ptx=compiled.ptx + "//") if case.architecture == 89 else compiled

    monkeypatch.setattr(kernel_build, "compile_case", compile_otherwise)
    first, second = kernel_build._build_family(chosen, True)
    assert isinstance(first, Result)
    assert isinstance(second, Failure)
    assert second.cause == "RuntimeError: its PTX is not the one of sm_80"


def test_a_case_that_does_not_compile_is_a_failure():
    case = Case(kernel="finish", architecture=80, constants={"ACTIVATION": None, "BLOCK_N": 3})
    (failure,) = build_all([case], Known(None), 1)
    assert isinstance(failure, Failure)
    assert failure.cause


def test_the_table_has_a_column_for_every_architecture():
    rows = gate_rows([RESULT, replace(RESULT, architecture=100, instructions=3.25)])
    assert len(rows) == 1
    loops, seen = gate({"3.7.1": rows}).split("\n\n")[:2]
    assert "| INT4 dot | 8 | 2.50 | 3.25 |" in loops
    assert "| 3.7.1 | 2 | 0 | 100 | 1 KiB |" in seen
