"""What a machine's memory gives, and what a process has taken of it: the measure of every decoding speed."""

import contextlib
import sys
import time
from pathlib import Path

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


def reset_peak(device: torch.device) -> None:
    """Count the peak of memory from now on, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Most memory taken: of tensors on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text().splitlines()
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free for more, or None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    if not info.is_file():
        return None
    lines = info.read_text().splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None)
