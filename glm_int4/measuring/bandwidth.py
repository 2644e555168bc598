"""What a machine's memory gives: the measure of every decoding speed."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from glm_int4.errors import is_out_of_memory
from glm_int4.system import free_bytes

# Read on a CPU, copied on a GPU: far beyond any cache. Less where no more is free, but not less than the last.
CPU_BYTES = 2 << 30
CUDA_BYTES = 1 << 30
LEAST_BYTES = 128 << 20
_CACHE_FACTOR = 4  # so many times a GPU's cache at least
_RUNS = 10


def measure_bandwidth(device: torch.device) -> float:
    """Bytes per second: on a GPU of a copy, read and written; on a CPU of a sum with torch's threads. Best of 10.

    Takes at most half of the memory that is free; 0 where that would measure a cache.
    """
    on_gpu = device.type == "cuda"
    most, parts = (CUDA_BYTES, 2) if on_gpu else (CPU_BYTES, 1)
    least, free = min(LEAST_BYTES, most), free_bytes(device)
    if on_gpu:
        least = max(least, _CACHE_FACTOR * torch.cuda.get_device_properties(device).L2_cache_size)
    size = most if free is None else min(most, free // (2 * parts))
    while size >= least:
        rate = _measure(_copy_on_gpu if on_gpu else _sum_on_cpu, size, device)
        if rate:
            return rate
        size //= 2
    return 0.0


def _measure(measure: Callable[[int, torch.device], float], size: int, device: torch.device) -> float:
    """Bytes per second with tensors of ``size`` bytes; 0 where memory is out, whatever was said to be free."""
    try:
        return measure(size, device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return 0.0
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _sum_on_cpu(size: int, device: torch.device) -> float:
    source = torch.ones(size // 4, device=device)
    return source.nbytes / min(_seconds(source.sum) for _ in range(_RUNS))


def _copy_on_gpu(size: int, device: torch.device) -> float:
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(_RUNS + 1):  # the first maps the pages
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return 2 * size / min(times)


def _seconds(function: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
