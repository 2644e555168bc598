"""Continuous batching: sequences join and leave the running batch between tokens.

``Batcher`` is driven by one thread that calls ``step`` again and again; queues, clients and text are the
server's. Every prompt is read alone, in the same pieces as by ``Decoder``, and every row picks its tokens by
a sampler of its own, so that what runs beside a sequence does not change what it says, whatever adapters the two have.
Rows whose samplers do the same are picked together all the same, bit for bit as alone.
"""

import functools
import itertools
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glm_int4.adapters.named_adapters import NamedAdapter
from glm_int4.errors import InputError, NotFiniteError, PromptTooLongError
from glm_int4.generation.batched_sequence import Event, Sequence
from glm_int4.generation.cuda_graphs import TokenReading, make_stepper
from glm_int4.generation.decoding import TRIM_TOKENS
from glm_int4.generation.engine import Engine
from glm_int4.generation.padded_batch import Batch
from glm_int4.generation.sampling import Sampler, SamplingParams, choose_together
from glm_int4.models.kv_cache import RunningRows, SlotCache, copy_columns, kv_bytes_per_token
from glm_int4.system import trim_heap

# Up to so many rows the quantized linears of a CPU run the same kernel for every row (``quantization/cpu``), so a row's
# bits do not depend on how many others there are.
MAX_SLOTS = 16


# Rows of a causal prompt that run together, at most: the other sequences wait for a piece, and whole pieces are shared.
_MOST_ROWS = 512


@dataclass(slots=True)
class _Kept:
    """What a slot has read in whole pieces: ids, and the adapter that made keys and values of them."""

    ids: list[int] = field(default_factory=list)
    adapter: NamedAdapter | None = None


class Batcher:
    """Runs up to ``num_slots`` sequences of an engine together; not for more than one thread.

    Args:
        num_slots: from 1 to ``MAX_SLOTS``; memory for all of them is reserved now.
    """

    def __init__(self, engine: Engine, num_slots: int) -> None:
        check_slots(num_slots)
        config, setup = engine.config, engine.setup
        self._engine, self._model, self._setup = engine, engine.model, setup
        self.prefix_length = engine.prefix.length if engine.prefix else 0
        shape = (config.num_layers, num_slots, config.num_kv_heads, config.head_dim)
        length = engine.max_length + self.prefix_length
        self._cache = SlotCache(*shape, length, dtype=setup.kv_dtype, device=setup.device)
        if engine.prefix:
            self._cache.write_prefix(engine.prefix.k, engine.prefix.v)
        self._stepper = make_stepper(engine.model, setup)
        self._piece = min(setup.prompt_rows, _MOST_ROWS)
        self.num_slots = num_slots
        self._free = deque(range(num_slots))  # the one that was left first comes first
        self._kept = [_Kept() for _ in range(num_slots)]
        self._leaving: list[NamedAdapter] = []  # as soon as no sequence has them any more
        self._waiting: deque[Sequence] = deque()
        self._reading: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for a slot."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences that have a slot."""
        return len(self._reading) + len(self._running)

    def sequence(
        self,
        prompt: list[int],
        max_new_tokens: int | None,
        sampling: SamplingParams,
        stops: frozenset[int],
        behind: bool = False,
        adapter: NamedAdapter | None = None,
    ) -> Sequence:
        """A sequence to ``add``.

        Args:
            behind: whether the answer's text follows other text of its own; a constraint must know.
            adapter: one of the engine's.

        Raises:
            InputError: no room for a single new token, unless none is wanted; or a constraint that cannot be kept.
        """
        room = self._engine.max_length - len(prompt)
        if room < (0 if max_new_tokens == 0 else 1):
            raise PromptTooLongError(self._engine.max_length, str(len(prompt)))
        limit = room if max_new_tokens is None else min(max_new_tokens, room)
        sampler = Sampler(
            sampling, self._engine.config.version, self._engine.matchers(sampling, stops, at_start=not behind)
        )
        return Sequence(prompt, limit, sampler, stops, seen=list(prompt), adapter=adapter)

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for a slot; first come, first served.

        Raises:
            InputError: its adapter has been removed meanwhile.
        """
        if sequence.adapter is not None and not sequence.adapter.is_loaded:
            raise InputError(f"expected an adapter that is loaded, got {sequence.adapter.name}, which is no more")
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """End a sequence, wherever it is; one that has ended stays so."""
        for place in (self._waiting, self._reading, self._running):
            if sequence in place:
                place.remove(sequence)
        if sequence.slot >= 0:
            self._free.append(sequence.slot)
            sequence.slot, sequence.cache, sequence.batch, sequence.pieces = -1, None, None, None
        self._remove_leaving()

    def retire(self, adapter: NamedAdapter) -> None:
        """Remove one of the engine's adapters once the sequences that have it are done."""
        self._leaving.append(adapter)
        self._remove_leaving()

    def _remove_leaving(self) -> None:
        sequences = (*self._waiting, *self._reading, *self._running) if self._leaving else ()
        for adapter in [*self._leaving]:
            if not any(sequence.adapter is adapter for sequence in sequences):
                self._leaving.remove(adapter)
                self._engine.adapters.remove(adapter)

    def step(self) -> list[Event]:
        """Read one piece of a prompt, then add a token to every sequence that runs.

        Sequences whose end an event tells are removed already. An exception of one does not touch the others.
        """
        while self._free and self._waiting:
            self._begin(self._waiting.popleft())
        events = []
        if self._reading:
            events += self._read(self._reading[0])
        if self._running:
            events += self._decode([*self._running])
        return events

    def _begin(self, sequence: Sequence) -> None:
        """Give a sequence the slot that has read most of its prompt, or else the one unused for longest."""
        matches = {slot: self._num_kept(slot, sequence) for slot in self._free}
        sequence.slot = max(matches, key=lambda slot: matches[slot])
        self._free.remove(sequence.slot)
        sequence.cache = self._cache.slot(sequence.slot)
        # What has been read already gives no scores.
        sequence.pieces = self._prefill(sequence, 0 if sequence.scores else matches[sequence.slot])
        self._reading.append(sequence)

    def _num_kept(self, slot: int, sequence: Sequence) -> int:
        """Tokens of a causal prompt that a slot holds, in whole pieces: their bits are the ones a reading gives."""
        if self._kept[slot].adapter is not sequence.adapter:
            return 0
        prompt, kept, length, rows = sequence.prompt, self._kept[slot].ids, 0, self._piece
        while prompt[length : length + rows] == kept[length : length + rows] != []:
            length += rows
        return min(length, len(kept), (len(prompt) - 1) // rows * rows)

    def _read(self, sequence: Sequence) -> list[Event]:
        """One piece of the prompt; after the last one, the first token."""
        assert sequence.pieces is not None
        try:
            logits = next(sequence.pieces)
        except Exception as error:
            self.remove(sequence)
            return [Event(sequence, error=error)]
        if logits is None:
            return []
        if sequence.limit == 0:
            self.remove(sequence)
            return [Event(sequence, end="length")]
        self._reading.popleft()
        self._running.append(sequence)
        return self._pick([sequence], logits)

    @torch.inference_mode()
    def _prefill(self, sequence: Sequence, num_kept: int) -> Iterator[Tensor | None]:
        """Read a prompt behind its first ``num_kept`` tokens; yields None, and in the end the logits (1, V)."""
        cache, prompt, scores = sequence.cache, sequence.prompt, sequence.scores
        assert cache is not None
        batch = sequence.batch = Batch(self._model, [prompt], self._setup.device, self.prefix_length)
        mask = batch.prefill_mask(self._setup.stream_dtype)
        twins = (other for other in self._running if _twins(other, sequence) and other.first_logits is not None)
        if (twin := next(twins, None)) is not None:
            self._take_over(twin, sequence)
            yield twin.first_logits
            return
        if scores is not None and scores.complete:
            scores = None  # somebody with the same prompt has read it, and has ended
        if scores is not None:
            scores.begin()
        is_causal = self._model.config.is_causal
        rows = self._piece if is_causal else batch.num_tokens
        self._kept[sequence.slot] = _Kept(prompt[:num_kept], sequence.adapter)
        kept = self._kept[sequence.slot].ids
        cache.length = self.prefix_length + num_kept
        for first in range(num_kept, batch.num_tokens, rows):
            part = slice(first, first + rows)
            with self._model.choice.of(sequence.number):
                x = self._stepper.last_hidden_state(batch.token_ids[:, part], batch.positions[:, :, part], mask, cache)
            if is_causal and first + rows <= batch.num_tokens:
                kept += prompt[part]
            if scores is not None:
                yield from scores.read(functools.partial(self._head, sequence), x[0])
            x = x[:, -1].clone()  # the rest of the piece is not kept
            if first + rows < batch.num_tokens:
                yield None
        if self._setup.device.type == "cpu" and batch.num_tokens >= TRIM_TOKENS:
            trim_heap()
        logits = self._head(sequence, x)
        if any(_twins(other, sequence) for other in (*self._reading, *self._waiting) if other is not sequence):
            sequence.first_logits = logits
        yield logits

    def _head(self, sequence: Sequence, x: Tensor) -> Tensor:
        """Logits (M, V) of a sequence's hidden states (M, hidden_size)."""
        with self._model.choice.of(sequence.number):
            return self._model.head(x)

    def _take_over(self, twin: Sequence, sequence: Sequence) -> None:
        """Give a sequence what another one with the same prompt has read of it."""
        assert twin.cache is not None
        assert sequence.cache is not None
        copy_columns(twin.cache, sequence.cache, self.prefix_length + len(sequence.prompt))
        self._kept[sequence.slot] = _Kept([*self._kept[twin.slot].ids], sequence.adapter)
        sequence.first_logits = twin.first_logits

    def _decode(self, sequences: list[Sequence]) -> list[Event]:
        """Feed every sequence's last token; where that fails, each alone, so that one fault ends one answer."""
        try:
            logits = self._forward(sequences)
        except Exception as error:
            if len(sequences) > 1:
                return [event for sequence in sequences for event in self._decode([sequence])]
            self.remove(sequences[0])
            return [Event(sequences[0], error=error)]
        return self._pick(sequences, logits)

    @torch.inference_mode()
    def _forward(self, sequences: list[Sequence]) -> Tensor:
        """Logits (B, V) behind the last token of every sequence."""
        caches = [sequence.cache for sequence in sequences if sequence.cache is not None]
        batches = [sequence.batch for sequence in sequences if sequence.batch is not None]
        rows = RunningRows(self._cache, [s.slot for s in sequences], [cache.length for cache in caches])
        tokens = torch.tensor([sequence.ids[-1] for sequence in sequences], device=self._setup.device)
        steps = [len(sequence.ids) - 1 for sequence in sequences]
        numbers = [b.next_position_ids(step)[0] for b, step in zip(batches, steps, strict=True)]
        adapters = [sequence.number for sequence in sequences]
        with self._model.choice.of(adapters if any(adapters) else 0):
            logits = self._stepper.step(tokens, torch.tensor(numbers, device=self._setup.device), rows)
        for cache in caches:
            cache.advance(1)
        return logits

    def _pick(self, sequences: list[Sequence], logits: Tensor) -> list[Event]:
        """The next token of every sequence from its logits (B, V); a GPU is waited for once."""
        groups: dict[Hashable, list[int]] = {}
        for row, sequence in enumerate(sequences):
            recipe = sequence.sampler.recipe
            groups.setdefault(sequence if recipe is None else recipe, []).append(row)
        choices: list[tuple[list[Sequence], Tensor]] = []
        events = []
        for rows in groups.values():
            of_all = len(rows) == len(sequences)
            group = logits if of_all else logits[torch.tensor(rows, device=logits.device)]
            events += self._choose([sequences[row] for row in rows], group, choices)
        tokens = TokenReading(torch.cat([chosen for _, chosen in choices])).read() if choices else []
        members = itertools.chain.from_iterable(group for group, _ in choices)
        picked = dict(zip(members, tokens, strict=True))
        return events + [self._accept(sequence, picked[sequence]) for sequence in sequences if sequence in picked]

    def _choose(
        self, sequences: list[Sequence], logits: Tensor, choices: list[tuple[list[Sequence], Tensor]]
    ) -> list[Event]:
        """Add the choices of sequences with one recipe to ``choices``; a fault of one does not touch the others."""
        samplers, seen = [sequence.sampler for sequence in sequences], [sequence.seen for sequence in sequences]
        try:
            if len(sequences) == 1:
                chosen = samplers[0].choose(logits, seen)
            else:
                chosen = choose_together(samplers, logits, seen)
        except Exception as error:
            if len(sequences) > 1:
                rows = zip(sequences, logits, strict=True)
                return [event for one, row in rows for event in self._choose([one], row[None], choices)]
            self.remove(sequences[0])
            return [Event(sequences[0], error=error)]
        choices.append((sequences, chosen))
        return []

    def _accept(self, sequence: Sequence, token: int) -> Event:
        """Add a token that was chosen to its sequence, or end that."""
        try:
            sequence.sampler.accept([token])
        except NotFiniteError as error:
            self.remove(sequence)
            return Event(sequence, error=error)
        if token in sequence.stops:
            self.remove(sequence)
            return Event(sequence, end="stop")
        sequence.ids.append(token)
        sequence.seen.append(token)
        end = "length" if len(sequence.ids) >= sequence.limit else None
        end = "stop" if any(sequence.sampler.complete) else end
        if end:
            self.remove(sequence)
        return Event(sequence, token, end)


def _twins(a: Sequence, b: Sequence) -> bool:
    """Whether two sequences have one prompt in common, and the same adapter."""
    return a.prompt is b.prompt and a.adapter is b.adapter


def check_slots(num_slots: int) -> None:
    """Raise InputError for a number of slots that is not supported."""
    if not 1 <= num_slots <= MAX_SLOTS:
        raise InputError(f"expected from 1 to {MAX_SLOTS} answers at a time, got {num_slots}")


def slot_bytes(engine: Engine) -> int:
    """Memory that a slot takes when its sequence is as long as can be."""
    config = engine.config
    per_token = kv_bytes_per_token(config.num_layers, config.num_kv_heads, config.head_dim, engine.setup.kv_dtype)
    return per_token * (engine.max_length + (engine.prefix.length if engine.prefix else 0))
