"""How fast a model reads and writes here, and what share of the memory's bandwidth that is.

Prompts are read for real. Decoding is measured behind a cache filled with noise, which costs what a prompt
that was read would cost, without the minutes that reading sixteen long ones takes on a CPU.
"""

import gc
import itertools
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glm_int4.checkpoint.build import build_model
from glm_int4.checkpoint.files.folder import read_config, resolve_folder
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.opening import CheckpointInfo, open_checkpoint
from glm_int4.generation.decoding import Decoder
from glm_int4.generation.engine import Engine
from glm_int4.generation.loading import check_threads, choose_device, choose_setup, load
from glm_int4.generation.padded_batch import Batch
from glm_int4.generation.sampling import Sampler, SamplingParams
from glm_int4.measuring import bandwidth
from glm_int4.measuring.random_weights import open_random
from glm_int4.models.kv_cache import kv_bytes_per_token
from glm_int4.models.presets import CONFIGS
from glm_int4.system import free_bytes, peak_bytes, reset_peak

logger = logging.getLogger(__name__)

PREFILL, BATCHES, CONTEXTS = (128, 512, 2048), (1, 4, 16), (128, 2048)
_GREEDY = SamplingParams(temperature=0)
_RUNS = 3
# Decoding steps: those that warm up, and most of those that are timed.
_WARM_UP, _STEPS = {"cpu": 1, "cuda": 4}, {"cpu": 16, "cuda": 32}
_MEMORY_SHARE = 0.9
# Calls of CUDA that start work on a GPU, as the profiler names them.
_LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cuGraphLaunch")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """What to measure.

    prefill: lengths of prompts. batches, contexts: rows that decode together, behind so many tokens each.
    seconds: most that one measurement may take; a longer prompt is left out.
    """

    prefill: Sequence[int] = PREFILL
    batches: Sequence[int] = BATCHES
    contexts: Sequence[int] = CONTEXTS
    seconds: float = 60.0


def bench(
    model: str | Path,
    *,
    bits: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    kv_bits: int = 16,
    num_layers: int | None = None,
    settings: BenchSettings | None = None,
    report: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Measure a checkpoint, or a model of random weights.

    Args:
        model: a folder or hub id, or the name of a preset ("chatglm-6b", "chatglm2-6b", "chatglm3-6b").
        bits: 4, 8 or 16; None for what the checkpoint has, 4 for a preset. A checkpoint of other bits lends
            its shapes to random weights.
        kv_bits: of the cache. num_layers: fewer layers, with random weights.
        report: called with lines on what has been measured or left out.
    Returns:
        model, bits, device, threads, load_s, prefill, decode, bandwidth_gb_s and peak_bytes.
    Raises:
        UserError: the model or an argument cannot be used.
    """
    settings = settings or BenchSettings()
    if threads is not None:
        torch.set_num_threads(check_threads(threads))
    place = choose_device(device)
    before = bandwidth.measure_bandwidth(place)
    report(f"bandwidth: {before / 1e9:.1f} GB/s ({'copy' if place.type == 'cuda' else 'sum'})")
    reset_peak(place)
    started = time.perf_counter()
    engine = _load(model, bits, place, kv_bits, num_layers, report)
    load_s = time.perf_counter() - started
    report(f"loaded in {load_s:.1f} s: {weight_bytes_per_step(engine) / 1e9:.2f} GB to read for a token")
    prefill = list(_prefill(engine, settings, report))
    decode = list(_decode(engine, settings, report))
    peak = peak_bytes(place)
    best = max(before, bandwidth.measure_bandwidth(place))
    for row in decode:
        row["share_of_bandwidth"] = row["bytes_per_token"] * row["tokens_per_s"] / best
    scheme = engine.info.linear_scheme
    return {
        "model": str(model),
        "bits": scheme.bits if scheme else 16,
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "load_s": load_s,
        "prefill": prefill,
        "decode": decode,
        "bandwidth_gb_s": best / 1e9,
        "peak_bytes": peak,
    }


def _load(
    model: str | Path,
    bits: int | None,
    device: torch.device,
    kv_bits: int,
    num_layers: int | None,
    report: Callable[[str], None],
) -> Engine:
    raw = CONFIGS.get(str(model))
    if raw is None or Path(model).is_dir():
        folder = resolve_folder(model)
        stored = _stored_bits(open_checkpoint(folder)[1])
        if num_layers is None and bits in (None, stored):
            return load(folder, device=device.type, kv_bits=kv_bits)
        raw = read_config(folder)
        report(f"the checkpoint has {stored} bits: random weights of its shapes instead")
    return random_engine(str(model), raw, bits or 4, device, kv_bits, num_layers)


def random_engine(
    name: str, raw: dict[str, Any], bits: int, device: torch.device, kv_bits: int = 16, num_layers: int | None = None
) -> Engine:
    """An engine with random weights in the shapes of a config; without a tokenizer."""
    reader, info = open_random(name, raw, bits, device, num_layers)
    setup = choose_setup(info, device, kv_bits=kv_bits)
    return Engine(build_model(reader, info, setup), info, setup, None, info.config.max_sequence_length)


def _stored_bits(info: CheckpointInfo) -> int:
    return info.linear_scheme.bits if info.linear_scheme else 16


def weight_bytes_per_step(engine: Engine) -> int:
    """Bytes of weights that a decoding step reads: everything but an embedding that is not the head too."""
    skipped = ""
    if len(layout.vocabulary(engine.config)) > 1:
        skipped = layout.embedding(engine.config).name
    return sum(tensor.nbytes for name, tensor in _tensors(engine.model) if not skipped or not name.startswith(skipped))


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return itertools.chain(model.named_parameters(), model.named_buffers())


def random_row(engine: Engine, length: int, seed: int) -> list[int]:
    """Random ids; in version 1 they end as a prompt does."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(engine.config.vocab_size // 2, (length,), generator=generator).tolist()
    if end := engine.config.text_prefix_ids:
        special = set(engine.config.special_ids.values())
        ids = [0 if token in special else token for token in ids]
        ids[-2:] = end[-length:]
    return ids


# --- reading ------------------------------------------------------------------------------------------


def _prefill(engine: Engine, settings: BenchSettings, report: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    rate = None
    for tokens in sorted(settings.prefill):
        if tokens > engine.config.max_sequence_length:
            report(f"prompt of {tokens} tokens left out: the model was made for {engine.config.max_sequence_length}")
            continue
        if rate and tokens / rate > settings.seconds:
            report(f"prompt of {tokens} tokens left out: about {tokens / rate:.0f} s; give --seconds to wait for it")
            continue
        decoder = Decoder(engine.model, engine.setup, tokens + 1)
        times: list[float] = []
        while len(times) < _RUNS and sum(times) < settings.seconds / 2:
            prompt = random_row(engine, tokens, seed=len(times))  # another one each time: none is kept
            batch = Batch(engine.model, [prompt], engine.device)
            started = time.perf_counter()
            next(decoder.stream(batch, 1, Sampler(_GREEDY, engine.config.version), frozenset()))
            times.append(time.perf_counter() - started)
        seconds = statistics.median(times[1:] or times)  # the first one compiles and allocates
        rate = tokens / seconds
        report(f"prompt of {tokens} tokens: {rate:.1f} tokens/s, first token after {seconds:.2f} s")
        yield {"tokens": tokens, "tokens_per_s": rate, "ttft_ms": 1e3 * seconds}


# --- writing ------------------------------------------------------------------------------------------


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


def _decode(engine: Engine, settings: BenchSettings, report: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    kind = engine.device.type
    steps = _WARM_UP[kind] + _STEPS[kind]
    config, setup = engine.config, engine.setup
    kv_bytes = kv_bytes_per_token(config.num_layers, config.num_kv_heads, config.head_dim, setup.kv_dtype)
    weight_bytes = weight_bytes_per_step(engine)
    for batch_size, context in itertools.product(settings.batches, settings.contexts):
        what = f"decoding {batch_size} x {context} tokens"
        if context > config.max_sequence_length:
            report(f"{what} left out: the model was made for {config.max_sequence_length}")
            continue
        first = max(context - steps, 2)
        needed, free = batch_size * (first + steps) * kv_bytes, free_bytes(engine.device)
        if free is not None and needed > _MEMORY_SHARE * free:
            report(f"{what} left out: its cache takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
            continue
        seconds, extra = _step_time(engine, batch_size, first, settings.seconds)
        gc.collect()  # the cache, before the next one
        rate = batch_size / seconds
        report(f"{what}: {rate:.1f} tokens/s")
        yield {
            "batch": batch_size,
            "context": context,
            "tokens_per_s": rate,
            "bytes_per_token": weight_bytes // batch_size + (first + steps // 2) * kv_bytes,
            "share_of_bandwidth": 0.0,  # once the bandwidth has been measured again
        } | extra


def _step_time(engine: Engine, batch_size: int, first: int, limit_s: float) -> tuple[float, dict[str, int]]:
    """Median seconds of a step behind ``first`` tokens; on a GPU also what a step launches."""
    kind = engine.device.type
    steps = _WARM_UP[kind] + _STEPS[kind]
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
