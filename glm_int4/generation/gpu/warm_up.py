"""Before the first prompt, a GPU compiles every kernel that the model will run, so that no answer waits for one.

Triton keeps what it has compiled on the disk: the first start on a machine takes a while, later ones do not.
"""

import logging
import threading
import time

import torch

from glm_int4.errors import GLMError, is_out_of_memory
from glm_int4.generation.cuda_graphs import MAX_ROWS
from glm_int4.generation.decoding import Decoder
from glm_int4.generation.engine import Engine
from glm_int4.generation.padded_batch import Batch
from glm_int4.generation.recovery import release_memory
from glm_int4.generation.sampling import Sampler, SamplingParams
from glm_int4.quantization.kernels import launch

logger = logging.getLogger(__name__)

# A start that takes longer is said to compile.
_SILENT_SECONDS = 2.0


def warm_up(engine: Engine) -> None:
    """Run prompts and steps with as many rows as each kernel serves; says so in a line where that takes a while.

    Memory that does not suffice is no fault here: the answer that needs it will say so.
    """
    if not _runs_kernels(engine):
        return
    started = time.perf_counter()
    line = threading.Timer(
        _SILENT_SECONDS, logger.warning, ["compiling kernels for this GPU; the next start finds them on the disk"]
    )
    line.daemon = True
    line.start()
    try:
        _run(engine, warm_up_batches(engine, architecture(engine.device)))
        torch.cuda.synchronize(engine.device)
    except Exception as error:
        if not (isinstance(error, GLMError) or is_out_of_memory(error)):
            raise
        release_memory(error, engine.device)
        logger.info("kernels were not all compiled beforehand: %s", error)
    finally:
        line.cancel()
    logger.info("kernels ready in %.1f s", time.perf_counter() - started)


def _runs_kernels(engine: Engine) -> bool:
    """Whether linears or steps run kernels that are compiled here."""
    return engine.device.type == "cuda" and engine.setup.backend != "cublas"


def architecture(device: torch.device) -> int:
    """A GPU's compute capability in tens: 86."""
    found = torch.cuda.get_device_properties(device)
    return 10 * found.major + found.minor


def warm_up_batches(engine: Engine, architecture: int) -> list[list[list[int]]]:
    """Prompts that run together: one as long as each kernel serves, and rows whose steps take each kernel.

    No two begin alike, so that nothing is found in the cache.
    """
    bits = {scheme.bits for scheme in engine.info.schemes.values() if scheme is not None}
    if engine.setup.backend != "triton":
        bits = set()
    counts = {count for each in bits for count in launch.row_counts(each, architecture)} | {2}
    longest = engine.max_length - 1  # a token follows
    lengths = sorted({min(count, longest) for count in counts})
    alone = [[[first] * length] for first, length in enumerate(lengths)]
    together = [[[0]] * num_rows for num_rows in sorted({min(count, MAX_ROWS) for count in counts})]
    return alone + together


def _run(engine: Engine, batches: list[list[list[int]]]) -> None:
    """Read prompts and run one step behind each; nothing of it is kept."""
    longest = max(len(rows[0]) for rows in batches)
    decoder = Decoder(engine.model, engine.setup, longest + 1, engine.prefix)
    sampler = Sampler(SamplingParams(temperature=0), engine.config.version)
    prefix_length = engine.prefix.length if engine.prefix else 0
    for rows in batches:
        batch = Batch(engine.model, rows, engine.device, prefix_length)
        for _ in decoder.stream(batch, 2, sampler, frozenset()):
            pass
