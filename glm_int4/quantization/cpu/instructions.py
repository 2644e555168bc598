"""Which integer instructions this processor has, and which backend suits it."""

import functools
import logging
from dataclasses import dataclass

import torch

from glm_int4.quantization.cpu.threads import has_numba

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionSet:
    """Vector instructions that multiply pairs of 16-bit integers and add them up.

    name: as it is logged. lanes: 32-bit values of a vector register. registers: how many there are. has_dot:
    whether multiplying and adding to a sum is one instruction (VNNI). features: all that is used, in LLVM's names.
    """

    name: str
    lanes: int
    registers: int
    has_dot: bool
    features: frozenset[str]


AVX512_VNNI = InstructionSet(
    name="AVX-512 VNNI", lanes=16, registers=32, has_dot=True,
    features=frozenset({"avx512f", "avx512bw", "avx512vl", "avx512vnni", "f16c"}),
)  # fmt: skip
AVX2 = InstructionSet(
    name="AVX2", lanes=8, registers=16, has_dot=False, features=frozenset({"avx2", "fma", "f16c"})
)  # fmt: skip


@functools.cache
def instruction_set() -> InstructionSet | None:
    """The best set of this processor that Numba and torch may use, or None."""
    if not has_numba():
        return None
    import numba
    from llvmlite import binding

    if numba.config.CPU_NAME or numba.config.CPU_FEATURES:  # type: ignore[attr-defined]  # set by hand: may be less
        return None
    features = binding.get_host_cpu_features()
    capability = torch.backends.cpu.get_cpu_capability()  # may be held down by ATEN_CPU_CAPABILITY
    if not capability.startswith("AVX"):
        return None
    allowed = (AVX512_VNNI, AVX2) if capability.startswith("AVX512") else (AVX2,)
    return next((each for each in allowed if all(features.get(name) for name in each.features)), None)


@functools.cache
def choose_backend() -> str:
    """What suits this machine: "integer", "float32" or "reference"."""
    if not has_numba():
        logger.warning("CPU backend: reference (plain torch, slow), because numba is not installed")
        return "reference"
    instructions = instruction_set()
    if instructions is None:
        logger.info("CPU backend: float32, because this processor has no AVX2 (or Numba or torch may not use it)")
        return "float32"
    logger.info("CPU backend: integer (%s)", instructions.name)
    return "integer"
