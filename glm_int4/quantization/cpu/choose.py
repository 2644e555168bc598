"""Which backend suits this machine's processor."""

import functools
import logging

from glm_int4.quantization.cpu.instructions import instruction_set
from glm_int4.quantization.cpu.threads import has_numba

logger = logging.getLogger(__name__)


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
