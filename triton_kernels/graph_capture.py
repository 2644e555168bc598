"""A function's work on a GPU, captured once as a CUDA graph and replayed."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


class GraphRecorder:
    """Captures functions on one stream of its own, on the current device.

    Where a capture fails, torch's own context for that stays on the capture's stream, and raises what the end of the
    capture says of it in place of what failed.
    """

    def __init__(self) -> None:
        self._stream: Any = None

    def new_pool(self) -> Any:
        """Memory for graphs of which one runs at a time.

        It is of no use any more once its last graph is gone: what needs graphs again takes a new one.
        """
        return torch.cuda.graph_pool_handle()

    def capture(self, run: Callable[[], Result], pool: Any) -> Callable[[], Result]:
        """A replay of ``run``, which returns the same tensors each time, with new values in them.

        Args:
            run: works on the current device, allocates as it likes, and waits for nothing. It has run before: a capture
                must not compile kernels.
            pool: of ``new_pool``.
        Raises:
            Exception: what ``run`` or the driver raises; the thread's stream is then what it was before.
        """
        self._stream = self._stream or torch.cuda.Stream()
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # a graph takes no memory that others have left in torch's cache
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            _start_cublas()
            try:
                out = _record(graph, run, pool)
            except BaseException:
                _leave_pool(pool)
                raise

        def replay() -> Result:
            graph.replay()
            return out

        return replay


def _record(graph: torch.cuda.CUDAGraph, run: Callable[[], Result], pool: Any) -> Result:
    # Of this thread alone: what others allocate meanwhile is none of its business.
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        out = run()
    except BaseException:
        with suppress(Exception):  # which says no more than that something has failed before
            graph.capture_end()
        raise
    graph.capture_end()
    return out


def _start_cublas() -> None:
    """Let cuBLAS take its workspace for this stream now: taken in a capture, it would stay in that graph's pool."""
    ones = torch.ones(16, 16, dtype=torch.float16, device="cuda")
    torch.mm(ones, ones)


def _leave_pool(pool: Any) -> None:
    """End what torch leaves open where the end of a capture fails: its allocator would release no memory any more."""
    bindings: Any = torch._C
    with suppress(Exception):  # it has ended well
        device = torch.cuda.current_device()
        bindings._cuda_endAllocateToPool(device, pool)
        bindings._cuda_releasePool(device, pool)
