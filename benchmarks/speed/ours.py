"""Prompts and answers of an engine, timed as another program's are: prompts that are new to it, single steps."""

import itertools
import statistics
import time

from glm_int4.generation.engine import Engine
from glm_int4.generation.sampling import SamplingParams
from glm_int4.measuring.timing import random_row

GREEDY = SamplingParams(temperature=0)


def our_prefill(engine: Engine, tokens: int, seed: int = 0) -> float:
    """Tokens a second of a prompt that is new to the engine: what was read would not be read again."""
    row = random_row(engine, tokens, seed=seed)
    started = time.perf_counter()
    engine.generate(row, 1, GREEDY, stop_ids=[])
    return tokens / (time.perf_counter() - started)


def our_decode(engine: Engine, context: int, steps: int, seed: int = 0) -> float:
    """Tokens a second behind a prompt, from the median of single steps."""
    ids = engine.stream_ids(random_row(engine, context, seed=seed), steps + 1, GREEDY, stop_ids=[])
    stamps = [time.perf_counter() for _ in ids]
    return 1 / statistics.median(b - a for a, b in itertools.pairwise(stamps))
