"""The time of one prompt, or of one decoding step.

Prompts are read for real. Decoding is measured behind a cache filled with noise, which costs what a prompt
that was read would cost, without the minutes that reading sixteen long ones takes on a CPU.
"""

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from glm_int4.generation.decoding import Decoder
from glm_int4.generation.engine import Engine
from glm_int4.generation.padded_batch import Batch
from glm_int4.generation.sampling import Sampler, SamplingParams

_GREEDY = SamplingParams(temperature=0)
_RUNS = 3
# Prompts of lengths that were not met before: some libraries plan anew for every shape.
_CHANGING = 5
# Decoding steps: those that warm up, and most of those that are timed.
_WARM_UP, _STEPS = {"cpu": 1, "cuda": 4}, {"cpu": 16, "cuda": 32}
# Calls of CUDA that start work on a GPU, as the profiler names them.
_LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cuGraphLaunch")


def random_row(engine: Engine, length: int, seed: int) -> list[int]:
    """Random ids; in version 1 they end as a prompt does."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(engine.config.vocab_size // 2, (length,), generator=generator).tolist()
    if end := engine.config.text_prefix_ids:
        special = set(engine.config.special_ids.values())
        ids = [0 if token in special else token for token in ids]
        ids[-2:] = end[-length:]
    return ids


def prompt_time(engine: Engine, tokens: int, limit_s: float) -> float:
    """Median seconds from a prompt to its first token."""
    decoder = Decoder(engine.model, engine.setup, tokens + 1)
    times: list[float] = []
    while len(times) < _RUNS and sum(times) < limit_s / 2:
        times.append(_reading_time(engine, decoder, tokens, seed=len(times)))
    return statistics.median(times[1:] or times)  # the first one compiles and allocates


def changing_lengths(most: int) -> list[int]:
    """Falling lengths below one that was met, of prompts that are read once each."""
    step = max(most // 12, 1)
    return [length for length in range(most - step, most - step * (_CHANGING + 1), -step) if length > 1]


def changing_times(engine: Engine, lengths: Sequence[int], limit_s: float) -> list[float]:
    """Seconds from a prompt to its first token, for falling lengths; fewer than those where the limit is reached."""
    decoder = Decoder(engine.model, engine.setup, lengths[0] + 1)
    times: list[float] = []
    for tokens in lengths:
        times.append(_reading_time(engine, decoder, tokens, seed=tokens))
        if sum(times) > limit_s:
            break
    return times


def _reading_time(engine: Engine, decoder: Decoder, tokens: int, seed: int) -> float:
    """Seconds to the first token behind a prompt; another one for each seed, so that none is kept."""
    batch = Batch(engine.model, [random_row(engine, tokens, seed)], engine.device)
    started = time.perf_counter()
    next(decoder.stream(batch, 1, Sampler(_GREEDY, engine.config.version), frozenset()))
    return time.perf_counter() - started


class FilledDecoder(Decoder):
    """Decodes as if prompts of the batch's length had been read; the cache holds noise."""

    @torch.inference_mode()
    def prefill(self, batch: Batch, sequence: Any) -> Tensor:
        """Logits (B, V) of zeros."""
        cache = sequence.cache
        for part in (cache.k, cache.v):
            if part.is_floating_point():
                part.normal_()
            else:
                part.random_(-127, 128)
        for scales in (cache.k_scales, cache.v_scales):
            scales.fill_(0.01)
        cache.length = batch.num_tokens
        return torch.zeros(batch.size, self._model.config.vocab_size, device=self._setup.device)


def num_steps(kind: str) -> int:
    """Steps of one measurement on a "cpu" or "cuda" device."""
    return _WARM_UP[kind] + _STEPS[kind]


def step_time(engine: Engine, batch_size: int, first: int, limit_s: float) -> tuple[float, dict[str, int]]:
    """Median seconds of a step behind ``first`` tokens; on a GPU also what a step launches."""
    kind = engine.device.type
    steps = num_steps(kind)
    decoder = FilledDecoder(engine.model, engine.setup, first + steps)
    rows = [random_row(engine, first, seed) for seed in range(batch_size)]
    batch = Batch(engine.model, rows, engine.device)
    sampler = Sampler(_GREEDY, engine.config.version)
    tokens = decoder.stream(batch, steps, sampler, frozenset())
    stamps: list[float] = []
    for _ in itertools.islice(tokens, steps - 1 if kind == "cuda" else steps):
        stamps.append(time.perf_counter())
        if len(stamps) > _WARM_UP[kind] + 2 and stamps[-1] - stamps[0] > limit_s:
            break
    times = [after - before for before, after in itertools.pairwise(stamps)][_WARM_UP[kind] - 1 :]
    extra = _count_launches(tokens) if kind == "cuda" else {}
    return statistics.median(times), extra


def _count_launches(tokens: Iterator[object]) -> dict[str, int]:
    """Launches by the host and kernels on the GPU of one more step."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        next(tokens, None)
        torch.cuda.synchronize()
    events = profile.events() or []
    launches = sum(event.name.startswith(_LAUNCHES) for event in events)
    on_gpu = [event for event in events if event.device_type.name == "CUDA"]
    kernels = sum(not event.name.startswith(("Memcpy", "Memset")) for event in on_gpu)
    return {"launches_per_token": launches, "kernels_per_token": kernels}
