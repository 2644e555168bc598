"""What a machine's memory gives: the measure of every decoding speed."""

import time

import torch

# Read on a CPU, copied on a GPU: far beyond any cache.
CPU_BYTES = 2 << 30
CUDA_BYTES = 1 << 30
_RUNS = 10


def measure_bandwidth(device: torch.device) -> float:
    """Bytes per second: on a GPU of a copy, read and written; on a CPU of a sum with torch's threads. Best of 10."""
    if device.type != "cuda":
        source = torch.ones(CPU_BYTES // 4)
        return source.nbytes / min(_seconds(source.sum) for _ in range(_RUNS))
    source = torch.empty(CUDA_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(_RUNS + 1):  # the first maps the pages
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    del source, target
    torch.cuda.empty_cache()
    return 2 * CUDA_BYTES / min(times)


def _seconds(function: object) -> float:
    assert callable(function)
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
