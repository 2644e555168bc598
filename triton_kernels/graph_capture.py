"""A function's work on a GPU, captured once as a CUDA graph and replayed."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def capture(run: Callable[[], Result], *, pool: Any = None, warm_up: bool = False) -> Callable[[], Result]:
    """A replay of ``run``, which returns the same tensors each time, with new values in them.

    Args:
        run: works on the current device, allocates as it likes, and waits for nothing.
        pool: of ``torch.cuda.graph_pool_handle``, for graphs of which one runs at a time; None for memory of its own.
        warm_up: run once beforehand, on another stream: a capture must not compile kernels.
    """
    if warm_up:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph, pool=pool):
        out = run()

    def replay() -> Result:
        graph.replay()
        return out

    return replay
