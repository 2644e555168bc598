"""Running ids through a model: the prompt first, then a token at a time, over a cache that is kept.

A causal model (versions 2 and 3) keeps what it has read: of the next sequence only what differs from the
last one is read, in chunks. Version 1's context sees all of itself, so it is read anew, in one piece.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glm_int4.adapters.named_adapters import NamedAdapter
from glm_int4.checkpoint.build import ComputeSetup
from glm_int4.errors import NotFiniteError, is_out_of_memory
from glm_int4.generation.cuda_graphs import TokenReading, make_stepper
from glm_int4.generation.padded_batch import Batch
from glm_int4.generation.prompt_lookup import PromptLookup
from glm_int4.generation.recovery import find_first_not_finite, release_memory
from glm_int4.generation.sampling import Sampler
from glm_int4.models import Model
from glm_int4.models.kv_cache import KVCache
from glm_int4.models.past import AttentionMask, Prefix
from glm_int4.system import trim_heap

logger = logging.getLogger(__name__)

# After a prompt of so many tokens the activations that it left on the heap go back to the system.
TRIM_TOKENS = 128


@dataclass(slots=True)
class _Sequence:
    """A cache, and the ids whose keys and values it holds where that matters later, as an adapter makes them.

    number: of the adapter in the model's layers.
    """

    cache: KVCache
    ids: list[int] = field(default_factory=list)
    adapter: NamedAdapter | None = None
    number: int = 0

    def cut(self, num_tokens: int) -> None:
        """Forget the last tokens."""
        if num_tokens:
            del self.ids[-num_tokens:]
            self.cache.truncate(self.cache.length - num_tokens)


class Decoder:
    """Decodes batches of rows, up to ``max_length`` tokens each, behind a prefix if there is one."""

    def __init__(self, model: Model, setup: ComputeSetup, max_length: int, prefix: Prefix | None = None) -> None:
        self._model, self._setup, self._max_length, self._prefix = model, setup, max_length, prefix
        self._kept: _Sequence | None = None
        self._stepper = make_stepper(model, setup)
        self._choice = model.choice  # told anew before the model runs: streams may take turns
        self.num_reused = 0  # tokens of the last prompt that the cache held already

    def stream(
        self,
        batch: Batch,
        limit: int,
        sampler: Sampler,
        stops: frozenset[int],
        lookup: PromptLookup | None = None,
        adapter: NamedAdapter | None = None,
    ) -> Iterator[list[int | None]]:
        """Yield the new id of every row, None for rows that have ended, until all have or ``limit`` is reached.

        A single row takes the cache that is kept, if no other stream has it. ``lookup`` guesses for it, and counts
        its guesses. ``adapter``: of all rows.
        """
        single, whole = batch.size == 1, True
        sequence, self._kept = (self._kept, None) if single else (None, self._kept)
        if sequence is None:
            length = self._max_length if single else batch.num_tokens + limit
            sequence = _Sequence(self.new_cache(batch.size, length))
        if sequence.adapter is not adapter:  # what another one made of the ids is of no use
            sequence.ids, sequence.adapter, sequence.number = [], adapter, adapter.number if adapter else 0
        try:
            logits = self.prefill(batch, sequence)
            if lookup is not None and lookup.most and single:
                yield from self.decode_guessed(batch, sequence, logits, limit, sampler, stops, lookup)
            else:
                yield from self.decode_n(batch, sequence, logits, limit, sampler, stops)
            self._choice.numbers = 0  # and not at a stream's end that comes while another one runs
        except Exception as error:
            if is_out_of_memory(error):
                whole = False  # the cache goes too: the next answer begins with all memory
                release_memory(error, self._setup.device)
            raise
        finally:
            if single and whole:
                self._kept = sequence

    @torch.inference_mode()
    def prefill(self, batch: Batch, sequence: _Sequence) -> Tensor:
        """Read the prompts; returns the logits (B, V) of their last position."""
        cache, mask = sequence.cache, batch.prefill_mask(self._setup.stream_dtype)
        self._choice.numbers = sequence.number
        start, rows = 0, batch.num_tokens
        if self._model.config.is_causal and batch.size == 1:
            rows, held = self._setup.prompt_rows, sequence.ids[: max(cache.length - batch.prefix_length, 0)]
            start = min(_common_length(held, batch.rows[0]), batch.num_tokens - 1) if held else 0
        self.num_reused = start
        del sequence.ids[start:]  # before the cache: whatever interrupts this, ids never claim more than it holds
        cache.length, cache.padding = min(cache.length, batch.prefix_length + start), batch.padding
        x = torch.empty(0)
        for first in range(start, batch.num_tokens, rows):
            part = slice(first, first + rows)
            x = self._stepper.last_hidden_state(batch.token_ids[:, part], batch.positions[:, :, part], mask, cache)
            x = x[:, -1].clone()  # the rest of the piece is not kept
            sequence.ids += batch.rows[0][part]
        if self._setup.device.type == "cpu" and batch.num_tokens - start >= TRIM_TOKENS:
            trim_heap()
        return self._model.head(x)

    @torch.inference_mode()
    def decode_one(self, batch: Batch, sequence: _Sequence, tokens: Tensor, step: int) -> Tensor:
        """Feed the tokens (B,) of one step to the cache; returns the logits (B, V) that follow them."""
        self._choice.numbers = sequence.number
        return self._stepper.step(tokens, batch.decode_positions(step), sequence.cache)

    def decode_n(
        self,
        batch: Batch,
        sequence: _Sequence,
        logits: Tensor,
        limit: int,
        sampler: Sampler,
        stops: frozenset[int],
    ) -> Iterator[list[int | None]]:
        """Up to ``limit`` tokens behind the logits (B, V) of the prompts, one at a time; yields as ``stream``."""
        running = [True] * batch.size
        seen = [list(row) for row in batch.rows]
        for step in range(limit):
            reading = TokenReading(sampler.choose(logits, seen))
            last = step + 1 == limit
            ahead = self._stepper.runs_ahead and not sampler.looks_back and not last
            if ahead:  # the GPU has the next step before it is known whether the answer ends here
                logits = self.decode_one(batch, sequence, reading.tokens.clamp(min=0), step)
            tokens = self._accept(sampler, reading.read(), seen, sequence)
            running = [alive and token not in stops for alive, token in zip(running, tokens, strict=True)]
            if not any(running):
                if ahead:
                    sequence.cache.truncate(sequence.cache.length - 1)
                return
            for row, token in zip(seen, tokens, strict=True):
                row.append(token)
            if ahead:
                sequence.ids.append(tokens[0])
            yield [token if alive else None for alive, token in zip(running, tokens, strict=True)]
            if complete := sampler.complete:
                running = [alive and not ended for alive, ended in zip(running, complete, strict=True)]
                if not any(running):
                    return
            if not ahead and not last:
                logits = self.decode_one(batch, sequence, torch.tensor(tokens, device=self._setup.device), step)
                sequence.ids.append(tokens[0])

    def decode_guessed(
        self,
        batch: Batch,
        sequence: _Sequence,
        logits: Tensor,
        limit: int,
        sampler: Sampler,
        stops: frozenset[int],
        lookup: PromptLookup,
    ) -> Iterator[list[int | None]]:
        """As ``decode_n`` for one row: several guessed tokens run in one pass, and those count that are picked."""
        cache, seen, step = sequence.cache, list(batch.rows[0]), 0
        draft: list[int] = []
        while True:
            for i, guess in enumerate([*draft, None]):
                token = self._accept(sampler, sampler.choose(logits[i : i + 1], [seen]).tolist(), [seen], sequence)[0]
                if token != guess:  # what was guessed from here on was never said
                    sequence.cut(len(draft) - i)
                if token in stops:
                    return
                seen.append(token)
                lookup.accepted += token == guess
                step += 1
                yield [token]
                if step == limit or any(sampler.complete):
                    return
                if token != guess:
                    break
            room = min(limit - step - 1, cache.max_length - cache.length - 1)
            draft = lookup.draft(seen, room)
            tokens = [seen[-1], *draft]
            if draft:
                logits = self._verify(batch, sequence, tokens, step - 1)
            else:
                logits = self.decode_one(batch, sequence, torch.tensor(tokens, device=self._setup.device), step - 1)
            sequence.ids += tokens

    def _accept(self, sampler: Sampler, tokens: list[int], seen: list[list[int]], sequence: _Sequence) -> list[int]:
        """Every row's token, as chosen; with the log on, numbers that are none are traced to their layer."""
        try:
            sampler.accept(tokens)
        except NotFiniteError as error:
            if not logger.isEnabledFor(logging.INFO):
                raise NotFiniteError(f"{error}; --debug names the layer") from error
            ids = seen[tokens.index(-1)]
            self._choice.numbers = sequence.number
            place = find_first_not_finite(self._model, ids, self._setup.stream_dtype, self._prefix)
            raise NotFiniteError(f"{error}; the first come out of {place}") from error
        return tokens

    @torch.inference_mode()
    def _verify(self, batch: Batch, sequence: _Sequence, tokens: list[int], step: int) -> Tensor:
        """Feed the token of a step and guesses behind it; returns the logits (T, V) behind each."""
        ids = torch.tensor([tokens], device=self._setup.device)
        positions = torch.stack([batch.decode_positions(step + i) for i in range(len(tokens))], dim=-1)
        self._choice.numbers = sequence.number
        return self._model(ids, positions, AttentionMask(), sequence.cache)[0]

    def new_cache(self, batch_size: int, length: int) -> KVCache:
        """A cache for ``length`` tokens a row behind the prefix, which it holds already."""
        config, setup = self._model.config, self._setup
        shape = (config.num_layers, batch_size, config.num_kv_heads, config.head_dim)
        length += self._prefix.length if self._prefix else 0
        cache = KVCache(*shape, length, dtype=setup.kv_dtype, device=setup.device)
        if self._prefix:
            cache.write_prefix(self._prefix.k, self._prefix.v)
        return cache


def _common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading ids that two sequences share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
