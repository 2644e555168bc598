"""From logits to the next token."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real

import torch
from torch import Tensor

from glm_int4.downloads import shown
from glm_int4.errors import InputError, NotFiniteError
from glm_int4.generation.constraints.constraint import Constraint, read_constraint
from glm_int4.generation.constraints.json_schemas import JSONSchema
from glm_int4.generation.constraints.matcher import Matcher

# temperature, top_p and top_k of the official chat(); top_k is the implicit default beneath it.
OFFICIAL_DEFAULTS = {"1": (0.95, 0.7, 50)} | dict.fromkeys(("2", "3", "4"), (0.8, 0.8, 50))

# Tokens as likely as the last of the top k are kept too. So many more are listed to find them; if there are more still,
# top-p does not see those, and keeps them.
_TIES = 64

_WHOLE = 1 << 40  # the integer that stands for a probability of 1
_LEAST_TEMPERATURE = 1e-3  # a lower one leaves the likeliest token alone, and overflows
_NOT_FINITE = "expected finite logits, got nan or inf; the weights are damaged or overflow this dtype"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to pick tokens. None is the model version's official default; temperature 0 is greedy,
    and so are a temperature below 0.001 and top_p 0, which come to the same.

    temperature: divides the logits. top_k: tokens kept, 0 keeps all. top_p: probability mass kept.
    min_p: least probability kept, as a share of the largest. repetition_penalty: above 1, lowers
    tokens that have occurred. presence_penalty, frequency_penalty: taken off the logits of tokens of the
    answer, once or as often as they occur in it. seed: makes sampling repeatable. stop: texts that end an
    answer, in the methods that return text. prompt_lookup: tokens that may be guessed from what was said
    before and confirmed in one pass, for a single sequence; 0 for none. It changes the speed, not the answer.
    json_schema, regex, choices, grammar: what the answer must look like, one of them at most: a JSON schema or its
    text, a regular expression for all of it, texts of which it is one, or Lark as llguidance reads it
    (docs/structured-output.md). It ends where nothing may follow, or where the model ends it and it is complete.
    constraint: these, ready to be compiled; what is given for it is not looked at.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    prompt_lookup: int = 0
    json_schema: JSONSchema | None = None
    regex: str | None = None
    choices: Sequence[str] | None = None
    grammar: str | None = None
    constraint: Constraint | None = field(repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        for name, kind, optional, low, high, range_text in _BOUNDS:
            value = getattr(self, name)
            if optional and value is None:
                continue
            if not isinstance(value, kind) or isinstance(value, bool):
                what = "a whole number" if kind is Integral else "a number"
                raise InputError(f"expected {name} to be {what}{' or None' if optional else ''}, got {shown(value)}")
            if not low <= value <= high:  # type: ignore[operator]
                raise InputError(f"expected a {name} {range_text}, got {shown(value)}")
        if not isinstance(self.stop, str | list | tuple | None):
            raise InputError(f"expected stop to be a text or a list of texts, got {shown(self.stop)}")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        object.__setattr__(self, "stop", stop)  # a single text is taken as one
        for text in stop:
            if not isinstance(text, str) or not text:
                raise InputError(f"expected a stop text that is not empty, got {shown(stop)}")
        forms = (self.json_schema, self.regex, self.choices, self.grammar)
        constraint = None if forms == (None, None, None, None) else read_constraint(*forms)
        object.__setattr__(self, "constraint", constraint)


# Field, its type, whether it may be None, its least and greatest value, and those in words.
_BOUNDS: tuple[tuple[str, type, bool, float, float, str], ...] = (
    ("temperature", Real, True, 0, 1e3, "from 0 to 1000"),
    ("top_p", Real, True, 0, 1, "from 0 to 1"),
    ("top_k", Integral, True, 0, math.inf, "of 0 or more"),
    ("min_p", Real, False, 0, 1, "from 0 to 1"),
    ("repetition_penalty", Real, False, 1e-2, 1e2, "from 0.01 to 100"),
    ("presence_penalty", Real, False, -2, 2, "from -2 to 2"),
    ("frequency_penalty", Real, False, -2, 2, "from -2 to 2"),
    ("seed", Integral, True, 0, 2**63 - 1, "from 0 to 2**63 - 1"),
    ("prompt_lookup", Integral, False, 0, 64, "from 0 to 64"),
)


class Sampler:
    """Picks tokens by ``params`` for a model version; holds the state of the random generator.

    Args:
        matchers: one a row, of ``params``' constraint; none where it has none.
    """

    def __init__(self, params: SamplingParams, version: str, matchers: Sequence[Matcher] = ()) -> None:
        self.matchers = matchers
        temperature, top_p, top_k = OFFICIAL_DEFAULTS[version]
        self._temperature = temperature if params.temperature is None else params.temperature
        self._top_p = top_p if params.top_p is None else params.top_p
        if self._temperature < _LEAST_TEMPERATURE or self._top_p == 0:
            self._temperature = 0.0
        self._top_k = top_k if params.top_k is None else params.top_k
        self._min_p, self._penalty = params.min_p, params.repetition_penalty
        self._presence, self._frequency = params.presence_penalty, params.frequency_penalty
        self._picked: list[Counter[int]] = []  # per row, kept where a penalty needs it
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    @property
    def looks_back(self) -> bool:
        """Whether a choice depends on the tokens before it beyond their logits."""
        return self._penalty != 1.0 or bool(self._presence or self._frequency)

    @property
    def recipe(self) -> Hashable:
        """What samplers have in common that ``choose_together`` takes; None for one that works alone."""
        if self.matchers:
            return None
        return (
            self._temperature, self._top_p, self._top_k, self._min_p, self._penalty, self._presence, self._frequency
        )  # fmt: skip

    @property
    def complete(self) -> list[bool]:
        """Per row, whether its constraint lets nothing follow; empty where there are no constraints."""
        return [matcher.is_complete for matcher in self.matchers]

    def choose(self, logits: Tensor, seen: list[list[int]]) -> Tensor:
        """Choose a token for every row, without waiting for a GPU.

        Args:
            logits: (B, V) float32.
            seen: per row, the ids so far, prompt included; they count where the sampler ``looks_back``.
        Returns:
            (B,) int64 on the logits' device, -1 for a row whose logits are nan or inf.
        """
        return self._choose(logits, seen, self._counts(len(seen)), [self])

    def _counts(self, num_rows: int) -> list[Counter[int]]:
        """What every row has picked so far; empty where no penalty needs it."""
        if self._presence or self._frequency:
            self._picked = self._picked or [Counter() for _ in range(num_rows)]
        return self._picked

    def _choose(
        self, logits: Tensor, seen: list[list[int]], picked: list[Counter[int]], samplers: "Sequence[Sampler]"
    ) -> Tensor:
        """As ``choose``; every one of the samplers draws for as many rows as any other, in their order."""
        finite = torch.isfinite(logits).all(-1)
        if self._penalty != 1.0:
            logits = self._penalize(logits, seen)
        if picked:
            logits = self._subtract_penalties(logits, picked)
        if self.matchers:
            allowed = torch.stack([matcher.mask() for matcher in self.matchers])
            logits = logits.masked_fill(~allowed.to(logits.device), -torch.inf)
        greedy = self._temperature == 0
        tokens = logits.argmax(-1) if greedy else _draw(self.probabilities(logits), samplers)
        return torch.where(finite, tokens, -1)

    def accept(self, tokens: list[int]) -> None:
        """Take note of tokens that were chosen.

        Raises:
            NotFiniteError: one is -1: the model computed nan or inf.
        """
        if min(tokens) < 0:
            raise NotFiniteError(_NOT_FINITE)
        for counts, token in zip(self._picked, tokens, strict=False):  # empty unless a penalty needs them
            counts[token] += 1
        for matcher, token in zip(self.matchers, tokens, strict=False):
            matcher.accept(token)

    def generator_on(self, device: torch.device) -> torch.Generator:
        """The generator, on the device of the logits."""
        if self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(self._generator.initial_seed())
        return self._generator

    def probabilities(self, logits: Tensor) -> Tensor:
        """Temperature, then top-k, top-p and min-p: (B, V) to probabilities (B, V)."""
        logits = logits / self._temperature
        size = logits.shape[-1]
        listed = min(self._top_k + _TIES, size) if self._top_k else size
        if 0 < self._top_k < size or self._top_p < 1:
            values, order = _largest(logits, listed)
        if 0 < self._top_k < size:
            logits = logits.masked_fill(logits < values[:, self._top_k - 1, None], -torch.inf)
        if self._top_p < 1:
            # In integers: a GPU sums rows of floats in an order that depends on how many rows there are.
            ordered = (logits.softmax(-1).gather(-1, order) * _WHOLE).long()
            limit = round(self._top_p * _WHOLE)
            before = ordered.cumsum(-1) - ordered  # mass in front of a token
            before[..., 0] = -1  # the first stays, however small top_p is
            dropped = (ordered.sum(-1, keepdim=True) >= limit).repeat(1, size)  # what is not listed comes after
            logits = logits.masked_fill(dropped.scatter(-1, order, before >= limit), -torch.inf)
        probabilities = logits.softmax(-1)
        if self._min_p > 0:
            probabilities = probabilities * (probabilities >= self._min_p * probabilities.amax(-1, keepdim=True))
        return probabilities

    def _penalize(self, logits: Tensor, seen: list[list[int]]) -> Tensor:
        rows, ids = _places([sorted(set(row)) for row in seen], logits.device)
        values = logits[rows, ids]
        values = torch.where(values < 0, values * self._penalty, values / self._penalty)
        return logits.index_put((rows, ids), values)

    def _subtract_penalties(self, logits: Tensor, picked: list[Counter[int]]) -> Tensor:
        rows, ids = _places([list(counts) for counts in picked], logits.device)
        times = torch.tensor(
            [count for counts in picked for count in counts.values()], dtype=logits.dtype, device=logits.device
        )
        return logits.index_put((rows, ids), logits[rows, ids] - (self._presence + self._frequency * times))


def choose_together(samplers: Sequence[Sampler], logits: Tensor, seen: list[list[int]]) -> Tensor:
    """Choose a token for every row by its own sampler; the samplers' ``recipe`` is the same.

    A row's token is the one that its sampler would choose for the row alone.

    Args, returns: as of ``Sampler.choose``.
    """
    picked = [counts for sampler in samplers for counts in sampler._counts(1)]
    return samplers[0]._choose(logits, seen, picked, samplers)


def _draw(probabilities: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """A token of every row: the first of exponential clocks with these rates.

    torch.multinomial does the same, but waits for a GPU to check its input, and has one generator for all rows.
    """
    clocks = torch.empty_like(probabilities)
    for rows, sampler in zip(clocks.chunk(len(samplers)), samplers, strict=True):
        rows.exponential_(generator=sampler.generator_on(clocks.device))
    return torch.div(probabilities, clocks, out=clocks).argmax(-1)


def _largest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest logits (B, count) of every row and their ids; of equal ones the lower id comes first."""
    if count < logits.shape[-1]:
        ids = logits.topk(count).indices.sort(-1).values
        values, places = logits.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
        return values, ids.gather(-1, places)
    return logits.sort(dim=-1, descending=True, stable=True)


def _places(ids: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices of some ids of every row: their rows and the ids."""
    rows = [i for i, row in enumerate(ids) for _ in row]
    places = torch.tensor([rows, [token for row in ids for token in row]], dtype=torch.long, device=device)
    return places[0], places[1]
