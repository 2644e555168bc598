"""What is read from the machine code of a kernel: its loop, and operands that a product still reads."""

import pytest

from benchmarks.kernels.machine_code import instructions, longest_loop, overwritten_operands


def kernel(*lines):
    """Instructions from address 0x100 on, 16 bytes each, as cuobjdump prints them."""
    code = ["\t\tFunction : dot_kernel", '\t.headerflags\t@"EF_CUDA_TEXMODE_UNIFIED"']
    for i, line in enumerate(lines):
        code += [f"        /*{0x100 + 16 * i:04x}*/                   {line} ;   /* 0x000000a000147947 */"]
        code += ["                                                             /* 0x000fea0003800000 */"]
    return instructions("\n".join(code))


PRODUCT = "HGMMA.64x32x16.F32 R24, R4, gdesc[UR8], R24, gsb0"
WAIT_ALL, WAIT_ALL_BUT_ONE = "WARPGROUP.DEPBAR.LE gsb0, 0x0", "WARPGROUP.DEPBAR.LE gsb0, 0x1"


def test_instructions_are_read_with_their_operands():
    code = kernel("LDG.E.128 R8, desc[UR4][R2.64]", "@!P0 BRA 0x100", "EXIT")
    assert [(each.address, each.opcode) for each in code] == [(0x100, "LDG.E.128"), (0x110, "BRA"), (0x120, "EXIT")]
    assert code[1].target == 0x100


def test_the_longest_stretch_that_a_branch_goes_back_over_is_the_loop():
    code = kernel("NOP", "NOP", "@P1 BRA 0x110", "NOP", "NOP", "@P0 BRA 0x120", "BRA 0x160", "EXIT")
    assert [each.address for each in longest_loop(code)] == [0x120, 0x130, 0x140, 0x150]
    assert longest_loop(kernel("NOP", "BRA 0x120", "EXIT")) == []


@pytest.mark.parametrize(
    ("line", "written"),
    [
        ("IADD3 R4, P0, R6, R8, RZ", [4]),
        ("LDS.128 R4, [R2]", [4, 5, 6, 7]),
        ("LDSM.16.M88.4 R4, [R2]", [4, 5, 6, 7]),
        ("LDG.E.64 R4, desc[UR4][R2.64]", [4, 5]),
        ("IMAD.WIDE R4, R2, 0x2, R8", [4, 5]),
        ("CS2R R4, SRZ", [4, 5]),
        ("HMMA.16816.F32 R4, R8, R12, R4", [4, 5, 6, 7]),
        ("SHFL.BFLY PT, R6, R4, 0x1, 0x1f", [6]),
        ("STS.128 [R4], R8", []),
        ("STG.E desc[UR4][R2.64], R5", []),
        ("ISETP.GE.AND P0, PT, R4, R5, PT", []),
        ("UIADD3 UR4, UR4, 0x2, URZ", []),
    ],
)
def test_what_an_instruction_writes_to(line, written):
    assert list(kernel(line)[0].written) == written


@pytest.mark.parametrize("write", ["LOP3.LUT R5, R9, 0xf000f, R8, 0xf8, !PT", "LDS.64 R6, [R2]", "LDS.128 R4, [R2]"])
def test_an_operand_that_is_written_to_before_its_wait_is_a_fault(write):
    faults = overwritten_operands(kernel("WARPGROUP.ARRIVE", PRODUCT, write, WAIT_ALL, "EXIT"))
    assert faults == [f"{write.split()[0]} at 120 writes to an operand of HGMMA at 110"]
    assert overwritten_operands(kernel("WARPGROUP.ARRIVE", PRODUCT, WAIT_ALL, write, "EXIT")) == []


def test_other_registers_and_operands_in_shared_memory_are_free():
    assert overwritten_operands(kernel(PRODUCT, "MOV R8, R9", "MOV R3, R9", WAIT_ALL, "EXIT")) == []
    shared = "HGMMA.64x32x16.F32 R24, gdesc[UR4], R24, gsb0"
    assert overwritten_operands(kernel(shared, "MOV R4, R9", WAIT_ALL, "EXIT")) == []


def test_a_wait_that_leaves_the_youngest_group_frees_the_others_only():
    second = "HGMMA.64x32x16.F32 R24, R12, gdesc[UR8], R24, gsb0"
    assert overwritten_operands(kernel(PRODUCT, second, WAIT_ALL_BUT_ONE, "MOV R4, R9", "EXIT")) == []
    assert overwritten_operands(kernel(PRODUCT, second, WAIT_ALL_BUT_ONE, "MOV R12, R9", "EXIT"))


def test_products_are_closed_into_groups_together():
    open_one = "HGMMA.64x32x16.F32 R24, R12, gdesc[UR8], R24"  # of the group that the next one closes
    assert overwritten_operands(kernel(open_one, PRODUCT, WAIT_ALL_BUT_ONE, "MOV R12, R9", WAIT_ALL, "EXIT"))
    assert overwritten_operands(kernel(open_one, PRODUCT, WAIT_ALL, "MOV R12, R9", "EXIT")) == []


def test_the_next_turn_of_a_loop_may_not_write_either():
    """As in triton-lang/triton issue 9433: all but one group are waited for, and the next turn takes its registers."""
    loop = ("LDS.128 R4, [R2]", PRODUCT, WAIT_ALL_BUT_ONE, "@P0 BRA 0x100", "EXIT")
    assert overwritten_operands(kernel(*loop)) == ["LDS.128 at 100 writes to an operand of HGMMA at 110"]
    assert overwritten_operands(kernel(loop[0], PRODUCT, WAIT_ALL, *loop[3:])) == []
