"""What ``kernel_gate.py`` compiles: every kernel as the package launches it, on every architecture."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from triton_kernels import launch
from triton_kernels.dequantize import dequantize_kernel
from triton_kernels.dot import dot_kernel
from triton_kernels.epilogue import finish_kernel
from triton_kernels.gather import gather_kernel
from triton_kernels.gemv import gemv_kernel
from triton_kernels.norm import add_norm_kernel
from triton_kernels.one_token_attention import attend_kernel, merge_kernel
from triton_kernels.rotary import rotary_kernel
from triton_kernels.row_scaling import scale_rows_kernel

# Shared memory that a block may have, by architecture: CUDA C++ Programming Guide, table of technical specifications.
SHARED_LIMITS = {
    75: 64 << 10,
    **dict.fromkeys((80, 87), 163 << 10),
    **dict.fromkeys((86, 89, 120, 121), 99 << 10),
    **dict.fromkeys((90, 100, 103, 110), 227 << 10),
}
# Architectures whose PTX is the same, by the first of them. sm_103 and 110 share none with sm_100, whose maximum of
# floats (redux.f32) is no instruction of sm_110, for one.
FAMILIES = {75: 75, 80: 80, 86: 80, 87: 80, 89: 80, 90: 90, 100: 100, 103: 103, 110: 110, 120: 120, 121: 120}
SAMPLE = (75, 80, 90, 100, 120)
GROUP_SIZES = (32, 64, 128, None)
KERNELS = {
    "dot": dot_kernel,
    "gemv": gemv_kernel,
    "dequantize": dequantize_kernel,
    "finish": finish_kernel,
    "gather": gather_kernel,
    "norm": add_norm_kernel,
    "rotary": rotary_kernel,
    "attend": attend_kernel,
    "merge": merge_kernel,
    "scale": scale_rows_kernel,
}
HEAD_DIM, HIDDEN_SIZE = 128, 4096
# Query heads that share a key head: ChatGLM-6B, and ChatGLM2-6B and ChatGLM3-6B.
HEADS_PER_GROUP = (1, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A kernel as the package launches it on one architecture; ``types`` of arguments that are not the usual ones."""

    kernel: str
    architecture: int
    constants: Mapping[str, Any]
    types: dict[str, str] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 3
    max_registers: int | None = None


def cases(quick: bool) -> Iterator[Case]:
    """What the package can launch: whole, or a sample that compiles in under a minute."""
    for architecture in SAMPLE if quick else FAMILIES:
        for bits in (4, 8):
            types = {"qweight_ptr": "*i16" if bits == 4 else "*u8"}
            for group_size in [(128 if bits == 4 else None)] if quick else GROUP_SIZES:
                for zeros in [bits == 4] if quick else (False, True):
                    common: dict[str, Any] = {"USE_ASM": True} | ({} if zeros else {"zeros_ptr": None})
                    yield from product_cases(architecture, bits, group_size, types, common, quick)
                    constants: dict[str, Any] = {
                        "BITS": bits,
                        "GROUP_SIZE": group_size,
                        "BLOCK_N": launch.DEQUANTIZE_BLOCK,
                        "PLANE": launch.plane(bits, group_size),
                    }
                    yield Case(
                        kernel="dequantize", architecture=architecture, constants=constants | common, types=types
                    )
        for activation in ["swiglu"] if quick else (None, "gelu", "swiglu"):
            constants = {"ACTIVATION": activation, "BLOCK_N": launch.FINISH_BLOCK}
            yield Case(kernel="finish", architecture=architecture, constants=constants)
        if not quick or architecture in (75, 90):
            every = streams(architecture)
            for stream in (every[0], every[-1]) if quick else every:
                yield from decode_cases(architecture, stream)


def product_cases(
    architecture: int, bits: int, group_size: int | None, types: dict[str, str], common: dict[str, Any], quick: bool
) -> Iterator[Case]:
    """Every launch as one of several splits; also of scaled rows, with a fused epilogue, and once without assembly."""
    scaled: dict[str, Any] = {"ACTIVATION": None, "bias_ptr": None, "residual_ptr": None}
    parts = scaled | {"factors_ptr": None}
    variants = [(parts, "*fp32")]
    usual = group_size == (128 if bits == 4 else None) and ("zeros_ptr" not in common) == (bits == 4)
    if usual and (not quick or architecture in (75, 90)):
        variants.insert(0, (scaled, "*fp32"))  # the table of reports shows the other one
    if not quick:
        variants.append(({"ACTIVATION": "gelu", "factors_ptr": None}, "*fp16"))
        if group_size == 128 and "zeros_ptr" not in common:
            variants.append((parts | {"USE_ASM": False}, "*fp32"))
    rows = launch.launches(bits, architecture)
    for row in dict.fromkeys((rows[0], rows[-1])) if quick else rows:
        for variant, out in variants:
            wider = {"x_ptr": "*fp32"} if variant is scaled and row.kernel == "gemv" else {}
            yield Case(
                kernel=row.kernel,
                architecture=architecture,
                constants=row.constants(bits, group_size) | common | variant,
                types=types | {"out_ptr": out} | wider,
                num_warps=row.num_warps,
                num_stages=row.num_stages,
                max_registers=row.max_registers,
            )


def streams(architecture: int) -> tuple[str, ...]:
    """What the residual stream may be in."""
    return ("*fp16", "*fp32", "*bf16") if architecture >= 80 else ("*fp16", "*fp32")


def decode_cases(architecture: int, stream: str) -> Iterator[Case]:
    """The kernels of a one-token step that are no products with weights."""
    floats = dict.fromkeys(("x_ptr", "residual_ptr", "total_ptr", "out_ptr", "qkv_ptr", "q_ptr"), stream)
    if stream == "*fp16":
        types = {"table_ptr": "*u8", "ids_ptr": "*i64", "out_ptr": "*u8"}
        yield Case(kernel="gather", architecture=architecture, constants={"BLOCK_W": launch.GATHER_BLOCK}, types=types)
    else:
        types = {"x_ptr": stream}
        scaled = {"BLOCK_K": launch.SCALE_BLOCK}
        yield Case(kernel="scale", architecture=architecture, constants=scaled, types=types, num_warps=8)
    for parts in ({}, {"bias_ptr": None}, {"bias_ptr": None, "residual_ptr": None, "total_ptr": None}):
        constants = {"BLOCK_K": HIDDEN_SIZE} | parts
        types = floats | {"weight_ptr": stream, "bias_ptr": stream}
        warps = launch.norm_warps(HIDDEN_SIZE)
        yield Case(kernel="norm", architecture=architecture, constants=constants, types=types, num_warps=warps)
    for int8 in (False, True):
        types = floats | dict.fromkeys(("k_ptr", "v_ptr"), "*i8" if int8 else stream)
        for two_dimensional in (False, True):
            constants = {"HEAD_DIM": HEAD_DIM, "TWO_DIMENSIONAL": two_dimensional, "INT8": int8}
            yield Case(kernel="rotary", architecture=architecture, constants=constants, types=types, num_warps=1)
        for heads in HEADS_PER_GROUP:
            row = launch.attention(heads, tensor_cores=architecture >= 80 and stream != "*fp32")
            constants = {
                "HEADS": heads,
                "BLOCK_H": row.block_h,
                "BLOCK_S": row.block_s,
                "HEAD_DIM": HEAD_DIM,
                "INT8": int8,
            }
            yield Case(
                kernel="attend", architecture=architecture, constants=constants, types=types, num_warps=row.num_warps
            )
    constants = {"BLOCK_S": row.block_s, "BLOCK_P": launch.MERGE_BLOCK, "HEAD_DIM": HEAD_DIM}
    yield Case(kernel="merge", architecture=architecture, constants=constants, types=floats)
