"""The inner product of the "integer" backend as machine code, for processors that need not be this one."""

import re

import pytest

pytest.importorskip("llvmlite", reason="needs Numba")
from llvmlite import binding, ir

from glm_int4.quantization.cpu import integer_vectors
from glm_int4.quantization.cpu.instructions import AVX2, AVX512_VNNI
from glm_int4.quantization.cpu.integer_vectors import _fetch_locality, _TileProduct

# The instructions of each set, a processor that has it, and what must do the work.
SETS = {
    "AVX-512 VNNI of AMD": (AVX512_VNNI, "znver4", r"vpdpwssd\s.*%zmm"),
    "AVX-512 VNNI of Intel": (AVX512_VNNI, "cascadelake", r"vpdpwssd\s.*%zmm"),
    "AVX2": (AVX2, "znver3", r"vpmaddwd\s.*%ymm"),
}


def loops_of(bits, rows, instructions, processor):
    """The assembly of every loop of one tile product, compiled as Numba would on that processor."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module = ir.Module()
    module.triple = "x86_64-unknown-linux-gnu"
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * 12), "product")
    builder = ir.IRBuilder(function.append_basic_block())
    _TileProduct(builder, bits, rows, instructions, list(function.args)).write()
    builder.ret_void()
    machine = binding.Target.from_triple(module.triple).create_target_machine(cpu=processor, opt=3)
    parsed = binding.parse_assembly(str(module))
    passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(parsed, passes)
    return re.split(r"\n(?=\.L)", machine.emit_assembly(parsed))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 2, 4, 8])
@pytest.mark.parametrize("name", SETS)
def test_products_are_made_of_the_sets_own_instructions(name, rows, bits):
    instructions, processor, pattern = SETS[name]
    loops = [loop for loop in loops_of(bits, rows, instructions, processor) if re.search(pattern, loop)]
    found = sum(len(re.findall(pattern, loop)) for loop in loops)
    assert found >= rows * (32 // instructions.lanes) * (16 // bits)  # of one word of weights: rows, vectors, planes


@pytest.mark.parametrize(
    ("processor", "instruction"), [("znver4", "prefetcht0"), ("emeraldrapids", "prefetcht1"), ("haswell", "prefetcht1")]
)
def test_few_rows_ask_for_both_cache_lines_of_the_weights_to_come(monkeypatch, processor, instruction):
    monkeypatch.setattr(integer_vectors, "_LOCALITY", _fetch_locality(processor))
    few, many = ("\n".join(loops_of(4, rows, AVX2, processor)) for rows in (1, 8))
    assert re.findall(r"prefetch\w+", few) == [instruction] * 2
    assert "prefetch" not in many
