"""One of the prompts that ``continuous.py`` runs together, and what a step does to it."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from glm_int4.adapters.named_adapters import NamedAdapter
from glm_int4.generation.padded_batch import Batch
from glm_int4.generation.sampling import Sampler
from glm_int4.generation.scoring import PromptScores
from glm_int4.models.kv_cache import KVCache


@dataclass(slots=True, eq=False)
class Sequence:
    """One prompt and what has become of it.

    prompt: its ids; sequences with one list of them in common read it once, where they run at the same time.
    limit: most new tokens, 0 for a prompt that is only read. ids: the new tokens so far. first_logits: (1, 1, V) behind
    the prompt, kept for those. scores: of the prompt's tokens, where somebody wants them; shared as the prompt is.
    adapter: that it is read and continued with, beside the model's own.
    """

    prompt: list[int]
    limit: int
    sampler: Sampler
    stops: frozenset[int]
    ids: list[int] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    slot: int = -1
    cache: KVCache | None = None
    batch: Batch | None = None
    pieces: Iterator[Tensor | None] | None = None
    first_logits: Tensor | None = None
    scores: PromptScores | None = None
    adapter: NamedAdapter | None = None

    @property
    def number(self) -> int:
        """Of its adapter in the model's layers."""
        return self.adapter.number if self.adapter else 0


@dataclass(frozen=True, slots=True)
class Event:
    """What a step did to a sequence: a new token, or its end by a stop id, a limit or an error."""

    sequence: Sequence
    token: int | None = None
    end: str | None = None  # "stop" or "length"
    error: Exception | None = None
