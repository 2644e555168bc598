"""Running ids through a model: the prompt first, then a token at a time, over a cache that is kept.

A causal model (versions 2 and 3) keeps what it has read: of the next sequence only what differs from the
last one is read, in chunks. Version 1's context sees all of itself, so it is read anew, in one piece.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from glm_int4.checkpoint.loading import ComputePlan
from glm_int4.checkpoint.memory import trim_heap
from glm_int4.generation.batch import Batch
from glm_int4.generation.cuda_graphs import make_stepper
from glm_int4.generation.sampling import Sampler
from glm_int4.models import Model
from glm_int4.models.kv_cache import KVCache
from glm_int4.models.prefix_encoder import Prefix

# Rows of a causal prompt that run together: bounds the activations of a long prompt.
PREFILL_ROWS = 512

# After a prompt of so many tokens the activations that it left on the heap go back to the system.
TRIM_TOKENS = 128


@dataclass(slots=True)
class _Sequence:
    """A cache, and the ids whose keys and values it holds where that matters later."""

    cache: KVCache
    ids: list[int] = field(default_factory=list)


class Decoder:
    """Decodes batches of rows, up to ``max_length`` tokens each, behind a prefix if there is one."""

    def __init__(self, model: Model, plan: ComputePlan, max_length: int, prefix: Prefix | None = None) -> None:
        self._model, self._plan, self._max_length, self._prefix = model, plan, max_length, prefix
        self._kept: _Sequence | None = None
        self._stepper = make_stepper(model, plan)
        self.num_reused = 0  # tokens of the last prompt that the cache held already

    def steps(self, batch: Batch, limit: int, sampler: Sampler, stops: frozenset[int]) -> Iterator[list[int | None]]:
        """Yield the new id of every row, None for rows that have ended, until all have or ``limit`` is reached."""
        sequence = self._take(batch.size, batch.num_tokens + limit)
        try:
            yield from self._steps(batch, sequence, limit, sampler, stops)
        finally:
            if batch.size == 1:
                self._kept = sequence

    def _steps(
        self, batch: Batch, sequence: _Sequence, limit: int, sampler: Sampler, stops: frozenset[int]
    ) -> Iterator[list[int | None]]:
        running = [True] * batch.size
        seen = [list(row) for row in batch.rows]
        logits = self._prefill(batch, sequence)
        for step in range(limit):
            tokens = sampler.pick(logits[:, -1], seen)
            running = [alive and token not in stops for alive, token in zip(running, tokens, strict=True)]
            if not any(running):
                return
            for row, token in zip(seen, tokens, strict=True):
                row.append(token)
            yield [token if alive else None for alive, token in zip(running, tokens, strict=True)]
            if step + 1 < limit:
                logits = self._decode(batch, sequence, tokens, step)

    @torch.inference_mode()
    def _prefill(self, batch: Batch, sequence: _Sequence) -> Tensor:
        """Read the prompts; returns the logits (B, 1, V) of their last position."""
        cache, mask = sequence.cache, batch.prefill_mask(self._plan.stream_dtype)
        start, rows = 0, batch.num_tokens
        if self._model.is_causal and batch.size == 1:
            common = _common_length(sequence.ids[: max(cache.length - batch.prefix_length, 0)], batch.rows[0])
            start, rows = min(common, batch.num_tokens - 1), PREFILL_ROWS
        self.num_reused = start
        del sequence.ids[start:]  # before the cache: whatever interrupts this, ids never claim more than it holds
        cache.truncate(batch.prefix_length + start)
        x = torch.empty(0)
        for first in range(start, batch.num_tokens, rows):
            part = slice(first, first + rows)
            x = self._model.transformer(batch.token_ids[:, part], batch.positions[:, :, part], mask, cache)
            sequence.ids += batch.rows[0][part]
        if self._plan.device.type == "cpu" and batch.num_tokens - start >= TRIM_TOKENS:
            trim_heap()
        return self._model.lm_head(x[:, -1:])

    @torch.inference_mode()
    def _decode(self, batch: Batch, sequence: _Sequence, tokens: Sequence[int], step: int) -> Tensor:
        """Feed the tokens of one step; returns the logits (B, 1, V) that follow them."""
        ids = torch.tensor(tokens, device=self._plan.device)[:, None]
        mask = batch.decode_mask()
        decode = partial(self._model, last_only=True) if self._stepper is None else self._stepper.step
        logits = decode(ids, batch.decode_positions(step), mask, sequence.cache)
        sequence.ids.append(tokens[0])
        return logits

    def _take(self, batch_size: int, length: int) -> _Sequence:
        """The sequence kept for single rows, of ``max_length``, if no other stream has it; or a new one."""
        if batch_size == 1 and self._kept is not None:
            sequence, self._kept = self._kept, None
            return sequence
        return _Sequence(self.new_cache(batch_size, self._max_length if batch_size == 1 else length))

    def new_cache(self, batch_size: int, length: int) -> KVCache:
        """A cache for ``length`` tokens a row behind the prefix, which it holds already."""
        config = self._model.config
        cache = KVCache(
            config.num_layers,
            batch_size,
            config.num_kv_heads,
            config.head_dim,
            length + (self._prefix.length if self._prefix else 0),
            dtype=self._plan.kv_dtype,
            device=self._plan.device,
        )
        if self._prefix:
            cache.write_prefix(self._prefix.k, self._prefix.v)
        return cache


def _common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading ids that two sequences share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
