"""Decoding on a GPU: fused one-token steps, replayed from CUDA graphs.

A step of 28 layers is some 400 launches, and a GPU is done with most of them before Python has made the next.
A graph replays them all at once. Graphs are kept for a cache, by the power of two that bounds its length; they
are captured when a bound has been met for the second time, share one pool of memory, and go with their cache.
Where fused kernels or graphs fail, the log says so once, and decoding goes on without them.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from glm_int4.checkpoint.loading import ComputePlan
from glm_int4.models import Model
from glm_int4.models.attention import AttentionMask
from glm_int4.models.decode_step import DecodeStep
from glm_int4.models.kv_cache import KVCache
from glm_int4.quantization.kernels import decode_kernels

logger = logging.getLogger(__name__)

# Rows that decode together from a graph; more run eagerly. Every number of rows has graphs of its own.
MAX_ROWS = 16
_LEAST_COLUMNS = 256
# Steps within a bound before a graph is captured: the first compiles kernels, which a capture must not do.
_WARM_UP_STEPS = 2


def make_stepper(model: Model, plan: ComputePlan) -> "GraphStepper | None":
    """What decodes on this plan's device, or None where the model's own ``forward`` does."""
    if plan.device.type != "cuda" or plan.stream_dtype != torch.float16:
        return None
    head_dim = model.config.head_dim
    if head_dim < 16 or head_dim & (head_dim - 1):
        logger.info("GPU decoding: layer by layer, because a head of %d elements fits no kernel", head_dim)
        return None
    try:
        return GraphStepper(model, decode_kernels(plan.device))
    except Exception as error:  # no Triton, or a broken one
        logger.warning("GPU decoding: layer by layer in torch, because %s", _cause(error))
        return None


@dataclass(slots=True)
class _Graphs:
    """The steps of one cache: static inputs, and by their bound of the length a replay and its output."""

    step: DecodeStep
    token_ids: Tensor
    positions: Tensor
    column: Tensor
    padding: Tensor
    counts: dict[int, int] = field(default_factory=dict)
    replays: dict[int, Callable[[], Tensor]] = field(default_factory=dict)


class GraphStepper:
    """Decodes a token for every row of a cache.

    Args:
        ops: ``triton_kernels.decode``. capture: makes a replay of a function.
    """

    def __init__(
        self,
        model: Model,
        ops: ModuleType,
        capture: "Callable[[Callable[[], Tensor]], Callable[[], Tensor]] | None" = None,
    ) -> None:
        self._model, self._ops = model, ops
        self._capture = capture or _GraphPool()
        self._caches: WeakKeyDictionary[KVCache, _Graphs] = WeakKeyDictionary()
        self.fused = self.captures = True

    def step(self, token_ids: Tensor, positions: Tensor, mask: AttentionMask, cache: KVCache) -> Tensor:
        """Feed a token a row; returns the logits (B, 1, V) float32, which the next step may overwrite.

        Args:
            token_ids: (B, 1) int64. positions: (B, P, 1) int64. mask: of one new token. cache: is extended.
        Raises:
            ValueError: the cache is full.
        """
        if cache.length >= cache.max_length:
            raise ValueError(f"the cache holds {cache.max_length} tokens, {cache.length + 1} were asked for")
        if self.fused:
            try:
                logits = self._fused_step(token_ids[:, 0], positions[:, :, 0], mask, cache)
                cache.advance(1)
                return logits[:, None]
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of Triton, its compiler or the driver: any type
                self.fused = False
                self._caches.clear()
                logger.warning("GPU decoding: layer by layer in torch, because a fused step failed: %s", _cause(error))
        return self._model(token_ids, positions, mask, cache, last_only=True)

    def _fused_step(self, token_ids: Tensor, positions: Tensor, mask: AttentionMask, cache: KVCache) -> Tensor:
        graphs = self._caches.get(cache)
        if graphs is None:
            graphs = self._caches[cache] = self._new_graphs(token_ids, positions, cache)
        graphs.token_ids.copy_(token_ids)
        graphs.positions.copy_(positions)
        graphs.column.fill_(cache.length)
        if mask.padding is not None:
            graphs.padding.copy_(mask.padding)
        bound = column_bound(cache.length + 1, cache.max_length)
        if bound in graphs.replays:
            return graphs.replays[bound]()

        def run() -> Tensor:
            return graphs.step(
                graphs.token_ids,
                graphs.positions,
                graphs.column,
                graphs.padding,
                prefix_length=mask.prefix_length,
                max_columns=bound,
            )

        seen = graphs.counts[bound] = graphs.counts.get(bound, 0) + 1
        if seen >= _WARM_UP_STEPS and self.captures and len(token_ids) <= MAX_ROWS:
            replay = self._try_capture(run)
            if replay is not None:
                graphs.replays[bound] = replay
                return replay()
        return run()

    def _new_graphs(self, token_ids: Tensor, positions: Tensor, cache: KVCache) -> _Graphs:
        return _Graphs(
            step=DecodeStep(self._model, cache, self._ops),
            token_ids=torch.empty_like(token_ids, memory_format=torch.contiguous_format),
            positions=torch.empty_like(positions, memory_format=torch.contiguous_format),
            column=torch.zeros(1, dtype=torch.int64, device=token_ids.device),
            padding=torch.zeros(len(token_ids), dtype=torch.int64, device=token_ids.device),
        )

    def _try_capture(self, run: Callable[[], Tensor]) -> Callable[[], Tensor] | None:
        try:
            return self._capture(run)
        except Exception as error:  # whatever the driver says, or memory that a graph does not get
            self.captures = False
            logger.warning("GPU decoding: without CUDA graphs, because capturing one failed: %s", _cause(error))
            return None


class _GraphPool:
    """Captures functions as CUDA graphs that share their memory: one runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph, pool=self._pool):
            out = run()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


def column_bound(length: int, max_length: int) -> int:
    """The power of two, or the cache's end, that bounds a length."""
    return min(max(_LEAST_COLUMNS, 1 << (length - 1).bit_length()), max_length)


def _cause(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
