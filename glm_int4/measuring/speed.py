"""How fast a model reads and writes here, and what share of the memory's bandwidth that is.

``timing.py`` times one prompt or step.
"""

import gc
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from glm_int4.adapters.adapter_source import Adapters, find_adapters
from glm_int4.adapters.applying import apply_loras
from glm_int4.adapters.reading import read_adapters
from glm_int4.checkpoint.build import build_model
from glm_int4.checkpoint.files.folder import read_config, resolve_folder
from glm_int4.checkpoint.formats import layout
from glm_int4.checkpoint.opening import CheckpointInfo, open_checkpoint
from glm_int4.errors import GLMError, is_out_of_memory
from glm_int4.generation.engine import Engine
from glm_int4.generation.loading import check_threads, choose_device, choose_setup, load
from glm_int4.generation.memory_plan import size_pieces
from glm_int4.generation.recovery import release_memory
from glm_int4.measuring import bandwidth
from glm_int4.measuring.random_weights import open_random
from glm_int4.measuring.timing import changing_lengths, changing_times, num_steps, prompt_time, step_time
from glm_int4.models.kv_cache import kv_bytes_per_token
from glm_int4.models.presets import CONFIGS
from glm_int4.quantization.gpu.gpu_probe import ANY_MODEL
from glm_int4.system import free_bytes, peak_bytes, reset_peak

logger = logging.getLogger(__name__)

Measured = TypeVar("Measured")

PREFILL, BATCHES, CONTEXTS = (128, 512, 2048), (1, 4, 16), (128, 2048)
_MEMORY_SHARE = 0.9


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


class UnfinishedError(GLMError):
    """Something ended the measurements after the first of them; ``result`` has those. The cause is ``__cause__``."""

    def __init__(self, result: dict[str, Any], cause: BaseException) -> None:
        self.result = result
        super().__init__(f"measuring stopped: {type(cause).__name__}: {cause}")


def bench(
    model: str | Path,
    *,
    bits: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    kv_bits: int = 16,
    adapter: Adapters | None = None,
    num_layers: int | None = None,
    settings: BenchSettings | None = None,
    report: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Measure a checkpoint, or a model of random weights.

    Args:
        model: a folder or hub id, or the name of a preset ("chatglm-6b", "chatglm2-6b", "chatglm3-6b", "glm-4-9b").
        bits: 4, 8 or 16; None for what the checkpoint has, 4 for a preset. A checkpoint of other bits lends
            its shapes to random weights.
        kv_bits: of the cache. adapter: as of ``load``; a prefix has no effect here.
        num_layers: fewer layers, with random weights.
        report: called with lines on what has been measured or left out.
    Returns:
        model, bits, device, threads, load_s, prefill, prefill_changing (None where nothing was read), decode,
        bandwidth_gb_s and peak_bytes.
    Raises:
        UserError: the model or an argument cannot be used.
        UnfinishedError: not everything could be measured, or Ctrl-C; it holds what was.
    """
    settings = settings or BenchSettings()
    if threads is not None:
        torch.set_num_threads(check_threads(threads))
    place = choose_device(device, ANY_MODEL if _bits(model, bits) != 16 else ())
    before = bandwidth.measure_bandwidth(place)
    if before:
        report(f"bandwidth: {before / 1e9:.1f} GB/s ({'copy' if place.type == 'cuda' else 'sum'})")
    reset_peak(place)
    started = time.perf_counter()
    engine = _load(model, bits, place, kv_bits, adapter, num_layers, report)
    load_s = time.perf_counter() - started
    report(f"loaded in {load_s:.1f} s: {weight_bytes_per_step(engine) / 1e9:.2f} GB to read for a token")
    scheme = engine.info.linear_scheme
    result: dict[str, Any] = {
        "model": str(model),
        "bits": scheme.bits if scheme else 16,
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "load_s": load_s,
        "prefill": [],
        "prefill_changing": None,
        "decode": [],
        "bandwidth_gb_s": 0.0,
        "peak_bytes": 0,
    }
    fault: BaseException | None = None
    try:
        for name, measure in (("prefill", _prefill), ("decode", _decode)):
            for row in measure(engine, settings, report):
                result[name].append(row)
                result["peak_bytes"] = peak_bytes(place)
            if name == "prefill":
                result["prefill_changing"] = _prefill_changing(engine, result["prefill"], settings, report)
        after = bandwidth.measure_bandwidth(place)
    except (Exception, KeyboardInterrupt) as error:
        if not result["prefill"] and not result["decode"]:
            raise
        fault, after = error, 0.0
    best = max(before, after)
    result["bandwidth_gb_s"] = best / 1e9
    for row in result["decode"]:
        row["share_of_bandwidth"] = row["bytes_per_token"] * row["tokens_per_s"] / best if best else 0.0
    if fault is not None:
        raise UnfinishedError(result, fault) from fault
    return result


def _unless_memory_is_out(
    what: str, measure: Callable[[], Measured], device: torch.device, report: Callable[[str], None]
) -> Measured | None:
    """What was measured; None, and a line, where memory did not suffice for it."""
    try:
        return measure()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        release_memory(error, device)
        report(f"{what} left out: memory ran out")
        return None


def _load(
    model: str | Path,
    bits: int | None,
    device: torch.device,
    kv_bits: int,
    adapter: Adapters | None,
    num_layers: int | None,
    report: Callable[[str], None],
) -> Engine:
    raw = CONFIGS[str(model)] if _is_preset(model) else None
    if raw is None:
        folder = resolve_folder(model)
        stored = _stored_bits(open_checkpoint(folder)[1])
        if num_layers is None and bits in (None, stored):
            return load(folder, device=device.type, kv_bits=kv_bits, adapter=adapter)
        raw = read_config(folder)
        report(f"the checkpoint has {stored} bits: random weights of its shapes instead")
    engine = random_engine(str(model), raw, bits or 4, device, kv_bits, num_layers)
    if adapter is not None:
        read = read_adapters(find_adapters(adapter), engine.config, engine.setup, [str(model)])
        apply_loras(engine.model, read.loras, engine.setup)
    return engine


def random_engine(
    name: str, raw: dict[str, Any], bits: int, device: torch.device, kv_bits: int = 16, num_layers: int | None = None
) -> Engine:
    """An engine with random weights in the shapes of a config; without a tokenizer."""
    reader, info = open_random(name, raw, bits, device, num_layers)
    setup = size_pieces(info, choose_setup(info, device, kv_bits=kv_bits))
    return Engine(build_model(reader, info, setup), info, setup, None, info.config.max_sequence_length)


def _bits(model: str | Path, bits: int | None) -> int:
    """Of the weights that will run."""
    if bits is not None or _is_preset(model):
        return bits or 4
    return _stored_bits(open_checkpoint(resolve_folder(model))[1])


def _is_preset(model: str | Path) -> bool:
    return str(model) in CONFIGS and not Path(model).is_dir()


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


def _prefill(engine: Engine, settings: BenchSettings, report: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    rate = None
    for tokens in sorted(settings.prefill):
        if tokens > engine.config.max_sequence_length:
            report(f"prompt of {tokens} tokens left out: the model was made for {engine.config.max_sequence_length}")
            continue
        if rate and tokens / rate > settings.seconds:
            report(f"prompt of {tokens} tokens left out: about {tokens / rate:.0f} s; give --seconds to wait for it")
            continue
        what = f"prompt of {tokens} tokens"
        seconds = _unless_memory_is_out(
            what, partial(prompt_time, engine, tokens, settings.seconds), engine.device, report
        )
        if seconds is None:
            continue
        rate = tokens / seconds
        report(f"{what}: {rate:.1f} tokens/s, first token after {seconds:.2f} s")
        yield {"tokens": tokens, "tokens_per_s": rate, "ttft_ms": 1e3 * seconds}


def _prefill_changing(
    engine: Engine, prefill: Sequence[dict[str, Any]], settings: BenchSettings, report: Callable[[str], None]
) -> dict[str, Any] | None:
    """Prompts a little shorter than the shortest of ``prefill``, each of a length that comes up for the first time."""
    lengths = changing_lengths(prefill[0]["tokens"]) if prefill else []
    if not lengths:
        return None
    what = f"prompts of {lengths[-1]} to {lengths[0]} tokens"
    measure = partial(changing_times, engine, lengths, settings.seconds)
    times = _unless_memory_is_out(what, measure, engine.device, report)
    if times is None:
        return None
    read = lengths[: len(times)]
    rate, slowest = sum(read) / sum(times), max(times)
    report(f"prompts of {read[-1]} to {read[0]} tokens: {rate:.1f} tokens/s, first token after {slowest:.2f} s at most")
    return {"tokens": read, "tokens_per_s": rate, "slowest_ttft_ms": 1e3 * slowest}


def _decode(engine: Engine, settings: BenchSettings, report: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    steps = num_steps(engine.device.type)
    config, setup = engine.config, engine.setup
    kv_bytes = kv_bytes_per_token(config.num_layers, config.num_kv_heads, config.head_dim, setup.kv_dtype)
    weight_bytes = weight_bytes_per_step(engine)
    for batch_size, context in itertools.product(settings.batches, settings.contexts):
        what = f"decoding {batch_size} x {context} tokens"
        if context > config.max_sequence_length:
            report(f"{what} left out: the model was made for {config.max_sequence_length}")
            continue
        gc.collect()  # the caches of what was measured before
        first = max(context - steps, 2)
        needed, free = batch_size * (first + steps) * kv_bytes, free_bytes(engine.device)
        if free is not None and needed > _MEMORY_SHARE * free:
            report(f"{what} left out: its cache takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
            continue
        measured = _unless_memory_is_out(
            what, partial(step_time, engine, batch_size, first, settings.seconds), engine.device, report
        )
        if measured is None:
            continue
        seconds, extra = measured
        rate = batch_size / seconds
        report(f"{what}: {rate:.1f} tokens/s")
        yield {
            "batch": batch_size,
            "context": context,
            "tokens_per_s": rate,
            "bytes_per_token": weight_bytes // batch_size + (first + steps // 2) * kv_bytes,
            "share_of_bandwidth": 0.0,  # once the bandwidth has been measured again
        } | extra
