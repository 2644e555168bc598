"""The kernels as compiled for GPUs, on the emulator; and the emulator sees what is wrong with a kernel.

The grid runs in processes of their own, a sample of it: ``make emulate`` runs all.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: nothing is compiled", allow_module_level=True)

from tests.tolerances import FLOAT16_RELATIVE_RMS, relative_rms
from tests.triton_kernels.emulator.arithmetic import OPERATIONS
from tests.triton_kernels.emulator.launching import emulated
from tests.triton_kernels.emulator.machine import IGNORED, Machine
from tests.triton_kernels.emulator.memory import GlobalMemory, KernelError
from tests.triton_kernels.emulator.ptx import parse
from tests.triton_kernels.matrices import linear64, quantized
from triton_kernels import gpu, launch
from triton_kernels.operands import Epilogue

FOLDER = Path(__file__).parent / "on_cpu"


@pytest.mark.parametrize(
    "architecture", [90, *(pytest.param(sm, marks=pytest.mark.slow(50)) for sm in (75, 80, 86, 89, 120))]
)
def test_compiled_kernels_agree_with_the_reference(architecture):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER)]
    environment = os.environ | {"EMULATED_SM": str(architecture), "QUICK": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout
    assert "skipped" not in result.stdout


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("abs.bf16x2 d, 0xC0403F80;", 0x40403F80),
        ("add.rn.f32.f16 d, 0x3C00, 0f3F000000;", 1.5),
        ("bfe.s32 d, 0xF8, 4, 4;", -1),
        ("bfe.u32 d, 0xF8, 4, 4;", 15),
        ("cvt.f32.bf16 d, 0xC040;", -3),
        ("cvt.rn.bf16.f32 d, 0f3F808000;", 0x3F80),  # a tie goes to the even one
        ("cvt.rn.bf16.f32 d, 0f7F7FFFFF;", 0x7F80),
        ("cvt.rn.bf16x2.f32 d, 0f3F818000, 0fC0400000;", 0x3F82C040),
        ("cvt.rn.f16x2.f32 d, 0f3F800000, 0f40000000;", 0x3C004000),
        ("cvt.rzi.s16.f32 d, 0fC7C35000;", -32768),  # -1e5
        ("cvt.rni.s32.f32 d, 0f40200000;", 2),  # 2.5
        ("div.s32 d, -7, 2;", -3),
        ("fma.rn.f32x2 d, 0x3F80000040000000, 0x3F80000040000000, 0x3F80000000000000;", 0x4000000040800000),
        ("lop3.b32 d, 12, 10, 9, 0xEA;", 12 & 10 | 9),
        ("mad.wide.s32 d, -2, 3, 0x100000000;", (1 << 32) - 6),
        ("prmt.b32 d, 0x83020100, 0x07060504, 0x7B31;", 0x07FF8301),
        ("setp.neu.f32 d, 0f7FC00000, 0f7FC00000;", True),
        ("setp.ne.f32 d, 0f7FC00000, 0f7FC00000;", False),
        ("shf.l.wrap.b32 d, 0x80000000, 1, 33;", 3),
        ("shr.s32 d, -8, 40;", -1),
        ("shr.u32 d, -8, 40;", 0),
        ("sub.bf16x2 d, 0x43054180, 0x43003F81;", 0x40A04170),  # 133 - 128, and 16 - 1.0078 rounded
        ("sub.f16x2 d, 0x40004200, 0x3C003C00;", 0x3C004000),
    ],
)
def test_an_instruction_computes_what_the_isa_says(instruction, expected):
    program = parse(f".entry k()\n.reqntid 32\n{{\n.reg .b64 %d;\n{instruction}\n}}")
    (parsed,) = program.instructions
    modifiers = tuple(m for m in parsed.modifiers if m not in IGNORED)
    machine = Machine(program, (1, 1, 1), [], GlobalMemory([]), 0)
    assert OPERATIONS[parsed.name](modifiers, parsed.operands[1:], machine.read).item() == expected


def test_registers_of_floats_hold_their_bits():
    """As assembly declares them that Triton makes bfloat16 of bytes with."""
    lines = "mov.b32 r, 5;\n{\n.reg .s8 s<4>;\n.reg .f32 f<4>;\nmov.b32 {s0, s1, s2, s3}, r;\n"
    lines += "cvt.rn.f32.s8 f0, s0;\ncvt.rn.f32.s8 f1, s1;\nprmt.b32 r, f0, f1, 0x7632;\n}\nst.global.b32 [a], r;\nret;"
    out = torch.zeros(1, dtype=torch.int32)
    program = parse(
        f".entry k()\n.reqntid 32\n{{\n.reg .b32 r;\n.reg .b64 a;\nmov.b64 a, {out.data_ptr()};\n{lines}\n}}"
    )
    memory = GlobalMemory([out])
    Machine(program, (1, 1, 1), [], memory, 0).run()
    memory.write_back()
    assert out.view(torch.bfloat16).tolist() == [5, 0]


def product(architecture, edit, num_rows=8, shape=(176, 640), splits=1):
    """Run one product with the PTX of its kernel changed, and say how far it is off."""
    matrix = quantized(4, shape, 128, True)
    x = torch.randn(num_rows, shape[1], generator=torch.Generator().manual_seed(0)).half()
    row = launch.choose(4, architecture, num_rows)
    with emulated(architecture, gpu, edit=edit):
        return relative_rms(gpu.run(row, splits, x, matrix, Epilogue()), linear64(x, matrix))


@pytest.mark.parametrize("architecture", [75, 80, 90])
def test_the_bounds_of_every_tensor_are_watched(architecture):
    def without_guards(ptx):
        return re.sub(r"@!?%p\d+ (st\.global)", r"\1", ptx)

    assert product(architecture, str, num_rows=1) < FLOAT16_RELATIVE_RMS
    with pytest.raises(KernelError, match="outside of every tensor: st"):
        product(architecture, without_guards, num_rows=1)


def test_a_missing_barrier_shows():
    def without_barriers(ptx):
        return re.sub(r"bar\.sync\s+0;", "", ptx)

    with pytest.raises(KernelError, match="no barrier since another warp wrote"):
        product(80, without_barriers)


def test_a_barrier_of_some_threads_shows():
    def with_a_guard(ptx):
        return ptx.replace("bar.sync", "setp.lt.u32 %p1, %tid.x, 5;\n@%p1 bar.sync", 1)

    with pytest.raises(KernelError, match="not every thread"):
        product(80, with_a_guard)


def test_blocks_that_depend_on_each_other_show():
    tensor = torch.zeros(4, dtype=torch.int32)
    blocks, both = np.arange(2), np.full(2, tensor.data_ptr())
    values = np.array([[7], [7]], dtype=np.uint32)
    memory = GlobalMemory([tensor])
    memory.store(blocks, both, values)
    memory.write_back()
    assert tensor.tolist() == [7, 0, 0, 0]
    with pytest.raises(KernelError, match="write different values"):
        memory.store(blocks, both, values + np.arange(2, dtype=np.uint32)[:, None])
    with pytest.raises(KernelError, match="reads what another one writes"):
        memory.load(blocks, both, values.dtype, 1)
    memory = GlobalMemory([tensor])
    assert memory.load(blocks, both, values.dtype, 1).tolist() == values.tolist()
    with pytest.raises(KernelError, match="writes what another one reads"):
        memory.store(blocks[:1], both[:1], values[:1])


@pytest.mark.parametrize("shift", [-8, 2, 16])
def test_addresses_beside_a_tensor_and_misaligned_ones_are_faults(shift):
    tensor = torch.zeros(4, dtype=torch.int32)
    with pytest.raises(KernelError, match="misaligned" if shift == 2 else "outside of every tensor"):
        GlobalMemory([tensor]).load(np.zeros(1, int), np.array([tensor.data_ptr() + shift]), np.dtype("u4"), 2)


def test_what_is_read_before_it_was_copied_shows():
    def waiting_less(ptx):
        return re.sub(r"cp\.async\.wait_group\s+(\d+)", r"cp.async.wait_group 99", ptx)

    with pytest.raises(KernelError, match="before an asynchronous copy has arrived"):
        product(80, waiting_less)


def test_what_is_read_before_it_was_computed_shows():
    def waiting_less(ptx):
        return ptx.replace("wgmma.wait_group.sync.aligned 0", "wgmma.wait_group.sync.aligned 9")

    # The product is still to be computed when the next copy takes its rows of x.
    with pytest.raises(KernelError, match="before an asynchronous copy has arrived: wgmma"):
        product(90, waiting_less, num_rows=64)


def test_assembly_and_constants_are_computed():
    def another_nibble(ptx):
        assert "0x000F000F" in ptx
        return ptx.replace("0x000F000F", "0x00070007")

    assert product(80, another_nibble) > 0.1
