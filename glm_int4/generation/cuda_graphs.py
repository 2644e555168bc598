"""Decoding on a GPU: fused one-token steps, replayed from CUDA graphs.

A step of 28 layers is some 400 launches, and a GPU is done with most of them before Python has made the next.
A graph replays them all at once. Graphs are kept for a cache, by the powers of two that bound the number of rows
and their length; they are captured when the two have been met for the second time, share a pool of memory, which is the
cache's own, and go with it. Rows are filled up with copies of the first.
Where fused kernels or graphs fail, the log says so once, and decoding goes on without them.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from glm_int4.checkpoint.build import ComputeSetup
from glm_int4.errors import is_out_of_memory
from glm_int4.models import Model
from glm_int4.models.gpu_step import DecodeStep, PromptPass
from glm_int4.models.kv_cache import KVCache, RunningRows
from glm_int4.models.past import AttentionMask, Past
from glm_int4.quantization.gpu.kernel_faults import fault_of
from glm_int4.quantization.kernels import GraphRecorder, decode_kernels

logger = logging.getLogger(__name__)

# Rows that decode together from a graph; more run eagerly.
MAX_ROWS = 16
_LEAST_COLUMNS = 256
# Steps within a bound before a graph is captured: the first compiles kernels, which a capture must not do.
_WARM_UP_STEPS = 2


class Stepper(Protocol):
    """One new token for every row of a cache, or of some of its slots: a ``Model``, or a ``GraphStepper``.

    runs_ahead: whether a step is only begun when ``step`` returns, so that the next can be asked for meanwhile.
    """

    runs_ahead: bool

    def step(self, tokens: Tensor, positions: Tensor, cache: KVCache | RunningRows) -> Tensor:
        """Feed a token a row; returns the logits (B, V) float32, which the next step may overwrite.

        Args:
            tokens: (B,) int64. positions: (B, P) int64.
            cache: of rows, which is extended; or slots, whose caches the caller extends.
        Raises:
            ValueError: the cache is full.
        """

    def last_hidden_state(self, token_ids: Tensor, positions: Tensor, mask: AttentionMask, past: Past) -> Tensor:
        """Read a prompt or a piece of one; as of ``Model``."""


def make_stepper(model: Model, setup: ComputeSetup) -> Stepper:
    """What decodes in this setup: fused steps on a GPU, or else the model itself."""
    if setup.device.type != "cuda" or setup.backend == "cublas":
        return model
    head_dim = model.config.head_dim
    if head_dim < 16 or head_dim & (head_dim - 1):
        logger.info("GPU decoding: layer by layer, because a head of %d elements fits no kernel", head_dim)
        return model
    try:
        return GraphStepper(model, decode_kernels(setup.device))
    except Exception as error:  # no Triton, or a broken one
        logger.warning("GPU decoding: layer by layer in torch, because %s", _cause(error))
        return model


@dataclass(slots=True)
class _Graphs:
    """The steps of one cache: the tensors that graphs read their inputs from, and the graphs captured so far.

    counts, replays: by (rows, columns), the powers of two that bound how many rows run and how long they are.
    too_large: those that there was no memory for. pool: the graphs' memory, which goes with them: a pool that has lost
    all of its graphs while a tensor in it lives can never be used again.
    """

    step: DecodeStep
    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    columns: Tensor
    padding: Tensor
    adapters: Tensor
    pool: Any
    counts: Counter[tuple[int, int]] = field(default_factory=Counter)
    replays: dict[tuple[int, int], Callable[[], Tensor]] = field(default_factory=dict)
    too_large: set[tuple[int, int]] = field(default_factory=set)


class GraphStepper:
    """A ``Stepper`` of fused kernels and graphs.

    Args:
        ops: ``triton_kernels.decode``. recorder: what captures.
    """

    runs_ahead = True

    def __init__(self, model: Model, ops: ModuleType, recorder: GraphRecorder | None = None) -> None:
        self._model, self._ops, self._recorder = model, ops, recorder or GraphRecorder()
        self._caches: WeakKeyDictionary[KVCache, _Graphs] = WeakKeyDictionary()
        self._prompt = PromptPass(model, ops)
        self._changes = model.choice.changes
        self.captures = True
        self.fused = not any(layer.parts.output_norms for layer in model.layers)
        self._said_too_large = False

    def step(self, tokens: Tensor, positions: Tensor, cache: KVCache | RunningRows) -> Tensor:
        """As of ``Stepper``."""
        if isinstance(cache, KVCache):
            cache.check_room(1)
        if self.fused:
            try:
                logits = self._fused_step(tokens, positions, cache)
                if isinstance(cache, KVCache):
                    cache.advance(1)
                return logits
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of Triton, its compiler or the driver: any type
                self.fused = False
                self._caches.clear()
                logger.warning(
                    "GPU decoding: layer by layer in torch, because a fused step failed: %s; %s",
                    _cause(error),
                    fault_of(error).cure,
                )
        return self._model.step(tokens, positions, cache)

    def last_hidden_state(self, token_ids: Tensor, positions: Tensor, mask: AttentionMask, past: Past) -> Tensor:
        """As of ``Stepper``."""
        if self.fused and PromptPass.takes(token_ids, mask, past):
            try:
                return self._prompt(token_ids, positions, mask, past)  # type: ignore[arg-type]
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # as above
                self.fused = False
                self._caches.clear()
                logger.warning(
                    "GPU prompts: layer by layer in torch, because a fused pass failed: %s; %s",
                    _cause(error),
                    fault_of(error).cure,
                )
        return self._model.last_hidden_state(token_ids, positions, mask, past)

    def _fused_step(self, tokens: Tensor, positions: Tensor, past: KVCache | RunningRows) -> Tensor:
        num_rows = row_bucket(len(tokens))
        self._forget_changed()
        if isinstance(past, KVCache):
            cache, length = past, past.length + 1
        else:
            cache, length = past.cache, max(end for _, end in past.numbers)
        graphs = self._caches.get(cache)
        if graphs is None:
            graphs = self._caches[cache] = self._new_graphs(positions, cache)
        fill_rows(graphs.token_ids[:num_rows], tokens)
        fill_rows(graphs.positions[:num_rows], positions)
        if isinstance(past, KVCache):
            graphs.columns.fill_(past.length)
            if past.padding is not None:
                fill_rows(graphs.padding[:num_rows], past.padding)
        else:
            fill_rows(graphs.slots[:num_rows], past.slots)
            fill_rows(graphs.columns[:num_rows], past.columns)
        adapters = self._adapters_of(graphs, len(tokens), num_rows)
        key, prefix_length = (num_rows, column_bound(length, cache.max_length)), cache.prefix_length

        def run() -> Tensor:
            with self._model.choice.of(adapters):
                return graphs.step(
                    graphs.token_ids[:num_rows],
                    graphs.positions[:num_rows],
                    graphs.slots[:num_rows],
                    graphs.columns[:num_rows],
                    graphs.padding[:num_rows],
                    prefix_length=prefix_length,
                    max_columns=key[1],
                )

        replay = graphs.replays.get(key)
        if replay is None:
            graphs.counts[key] += 1
            if graphs.counts[key] >= _WARM_UP_STEPS and self.captures and num_rows <= MAX_ROWS:
                replay = self._try_capture(run, graphs, key)
        return (replay or run)()[: len(tokens)]

    def _forget_changed(self) -> None:
        """Drop the graphs of layers that have been exchanged: they would run the old ones."""
        if self._changes != self._model.choice.changes:
            self._changes = self._model.choice.changes
            self._caches.clear()

    def _adapters_of(self, graphs: _Graphs, batch_size: int, num_rows: int) -> int | Tensor:
        """What a step's rows choose of several adapters, where a graph reads it."""
        choice = self._model.choice
        if choice.count == 1:
            return 0
        chosen = choice.of_rows(batch_size)
        adapters = graphs.adapters[:num_rows]
        fill_rows(adapters, adapters.new_zeros(batch_size) if chosen is None else chosen.to(adapters.device))
        return adapters

    def _new_graphs(self, positions: Tensor, cache: KVCache) -> _Graphs:
        num_slots = cache.k.shape[1]

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=positions.device)

        num_rows = row_bucket(num_slots)
        graphs = _Graphs(
            step=DecodeStep(self._model, cache, self._ops),
            token_ids=zeros(num_rows),
            positions=zeros(num_rows, positions.shape[1]),
            slots=zeros(num_rows),
            columns=zeros(num_rows),
            padding=zeros(num_rows),
            adapters=zeros(num_rows),
            pool=self._recorder.new_pool(),
        )
        fill_rows(graphs.slots, torch.arange(num_slots, device=positions.device))
        return graphs

    def _try_capture(
        self, run: Callable[[], Tensor], graphs: _Graphs, key: tuple[int, int]
    ) -> Callable[[], Tensor] | None:
        """A replay, which is kept; None where there is none, for want of memory or for good."""
        if key in graphs.too_large:
            return None
        try:
            graphs.replays[key] = replay = self._recorder.capture(run, graphs.pool)
            return replay
        except Exception as error:  # whatever the driver says
            if is_out_of_memory(error):
                self._note_too_large(graphs, key)
            else:
                self.captures = False
                logger.warning("GPU decoding: without CUDA graphs, because capturing one failed: %s", _cause(error))
            return None

    def _note_too_large(self, graphs: _Graphs, key: tuple[int, int]) -> None:
        """Run these rows and columns without a graph, as long as the cache lives; say so the first time."""
        graphs.too_large.add(key)
        if not graphs.replays:  # the pool has lost its only graph
            graphs.pool = self._recorder.new_pool()
        if not self._said_too_large:
            self._said_too_large = True
            logger.warning(
                "GPU decoding: without a CUDA graph for %d rows of %d tokens, because there is no memory for one; "
                "a smaller --max-length leaves some",
                *key,
            )


class TokenReading:
    """Tokens (B,) on their way to the host: what a GPU is given next runs while they are read."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens, self._host = tokens, tokens
        self._arrival: torch.cuda.Event | None = None
        if tokens.is_cuda:
            self._host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            self._host.copy_(tokens, non_blocking=True)
            self._arrival = torch.cuda.Event()
            self._arrival.record()

    def read(self) -> list[int]:
        """The tokens, once they have arrived."""
        if self._arrival is not None:
            self._arrival.synchronize()
        numbers: list[int] = self._host.tolist()
        return numbers


def row_bucket(num_rows: int) -> int:
    """The power of two of rows that a step computes for so many; more than ``MAX_ROWS`` stay as many as they are."""
    return 1 << (num_rows - 1).bit_length() if num_rows <= MAX_ROWS else num_rows


def fill_rows(target: Tensor, rows: Tensor) -> None:
    """Copy rows, and the first of them into what is left: a copy writes to the cache what its original writes."""
    target[: len(rows)].copy_(rows)
    if len(rows) < len(target):
        target[len(rows) :] = rows[0]


def column_bound(length: int, max_length: int) -> int:
    """The power of two, or the cache's end, that bounds a length."""
    return min(max(_LEAST_COLUMNS, 1 << (length - 1).bit_length()), max_length)


def _cause(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
