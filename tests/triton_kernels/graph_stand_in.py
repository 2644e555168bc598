"""Stands in for a GPU on which torch captures a CUDA graph, or fails to, as ATen's CUDAGraph.cpp does."""

import torch


class Stream:
    """A stream, by its identity."""


class GraphStandIn:
    """Takes the place of streams, graphs and pools in ``torch.cuda``.

    Attributes:
        default, current: streams. capturing: the graph that is being captured, or None. invalid: whether it was broken
        off. underway: pools that the allocator gives memory of, until a capture ends well. uses: pools -> graphs that
        live in them. modes, streams: of the captures. products: streams on which cuBLAS was used outside of a capture.
    """

    def __init__(self, monkeypatch):
        self.default = self.current = Stream()
        self.capturing = None
        self.invalid = False
        self.underway, self.uses, self.modes, self.products, self.streams = [], {}, [], [], []
        stand_in = self
        ones, mm = torch.ones, torch.mm

        class StreamContext:
            """``torch.cuda.stream``; only leaving it brings the former stream back."""

            def __init__(self, chosen):
                self.chosen = chosen

            def __enter__(self):
                self.before, stand_in.current = stand_in.current, self.chosen

            def __exit__(self, *raised):
                stand_in.current = self.before

        class Graph:
            """``torch.cuda.CUDAGraph``."""

            def capture_begin(self, pool=None, capture_error_mode="global", **options):
                if stand_in.current is stand_in.default:
                    raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
                if stand_in.uses.get(pool) == 0:
                    raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")
                stand_in.uses[pool] = stand_in.uses.get(pool, 0) + 1
                stand_in.underway.append(pool)
                stand_in.modes.append(capture_error_mode)
                stand_in.streams.append(stand_in.current)
                stand_in.capturing, self.pool, self.replays = self, pool, 0

            def capture_end(self):
                stand_in.capturing, invalid = None, stand_in.invalid
                stand_in.invalid = False
                if invalid:
                    raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
                stand_in.underway.remove(self.pool)

            def replay(self):
                self.replays += 1

        def product(*operands, **options):
            if not self.capturing:
                self.products.append(self.current)
            return mm(*operands, **options)

        self.graph_class = Graph
        for name, value in {
            "CUDAGraph": Graph,
            "Stream": Stream,
            "stream": StreamContext,
            "current_stream": lambda device=None: self.current,
            "current_device": lambda: 0,
            "synchronize": lambda device=None: None,
            "empty_cache": lambda: None,
            "graph_pool_handle": object,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch, "ones", lambda *shape, device=None, **options: ones(*shape, **options))
        monkeypatch.setattr(torch, "mm", product)
        monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self._end_allocate, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", self._release, raising=False)

    def invalidate(self):
        """What a call that a capture forbids does to it."""
        self.invalid = True

    def _end_allocate(self, device, pool):
        if pool not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove(pool)

    def _release(self, device, pool):
        self.uses[pool] -= 1
