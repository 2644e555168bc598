"""Perplexity of a text over a sliding window, with its standard error; log-probabilities of single tokens."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from glm_int4.errors import GLMError, InputError, NotFiniteError
from glm_int4.models import Model
from glm_int4.models.config import Config
from glm_int4.text import Tokenizer

MAX_WINDOW = 2048
_MAX_LOSS = 700.0  # nats per token; its exponential still fits a float
_NOT_FINITE = "expected finite losses, got nan or inf; the weights are damaged or overflow this dtype"
_HEAD_ROWS = 256  # rows of logits at a time: 256 x 130528 floats are 134 MB


class Scored(Protocol):
    """A model whose predictions are measured: an ``Engine``."""

    @property
    def model(self) -> Model:
        """The network; ``lm_head`` projects hidden states."""

    @property
    def config(self) -> Config:
        """Its config."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def max_length(self) -> int:
        """Most tokens of a sequence."""

    @property
    def text_prefix(self) -> list[int]:
        """The ids in front of a text."""

    def hidden_states(self, token_ids: Sequence[int]) -> Tensor:
        """Final hidden states (T, hidden_size) of ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PerplexityResult:
    """``standard_error`` is that of the perplexity, over tokens; ``kl`` (nats per token, reference to
    model) and ``top1`` (share of equal most likely tokens) compare with a reference model."""

    perplexity: float
    standard_error: float
    tokens: int
    window: int
    stride: int
    kl: float | None
    top1: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """What some tokens in a row cost a model, each (T,) float64: ``losses`` in nats; against a reference,
    ``divergences`` in nats and ``agreements`` (1 where the most likely tokens are equal), otherwise None."""

    losses: Tensor
    divergences: Tensor | None
    agreements: Tensor | None


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token, its log-probability, and the most likely ones in its place, with theirs.

    All are the model's own: before a bias, penalties, temperature and what else makes a choice. A token of a prompt
    has no log-probability where the model saw it before, and the first one where there is nothing in front of it.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


class PromptScores:
    """Log-probabilities of a prompt's tokens, noted while the prompt is read.

    Args:
        prompt: its ids.
        num_seen: leading ids that the model reads in both directions; they have no log-probability.
        num_top: most likely tokens to note with each.
    Attributes:
        scored: all tokens, once the prompt has been read.
    """

    def __init__(self, prompt: Sequence[int], num_seen: int, num_top: int) -> None:
        self._prompt, self._num_seen, self._num_top = prompt, num_seen, num_top
        self.scored: list[ScoredToken] = []

    @property
    def complete(self) -> bool:
        """Whether the whole prompt has been read."""
        return len(self.scored) == len(self._prompt)

    def begin(self) -> None:
        """The prompt is read from its beginning."""
        self.scored = [ScoredToken(self._prompt[0], None)]

    @torch.inference_mode()
    def read(self, head: Callable[[Tensor], Tensor], hidden: Tensor) -> Iterator[None]:
        """Note what the final hidden states (T, hidden_size) of the next T ids say of the ids behind them.

        Yields now and then, for others to have a turn.

        Args:
            head: projects hidden states (M, hidden_size) onto the vocabulary.
        Raises:
            NotFiniteError: the model computed nan or inf.
        """
        for start in range(0, len(hidden), _HEAD_ROWS):
            first = len(self.scored)
            targets = self._prompt[first : first + min(_HEAD_ROWS, len(hidden) - start)]
            if not targets:  # behind the last id comes the answer
                return
            log_p = head(hidden[start : start + len(targets)]).log_softmax(-1)
            if not bool(torch.isfinite(log_p).all()):
                raise NotFiniteError(_NOT_FINITE)
            self._note(targets, log_p)
            yield

    def _note(self, targets: Sequence[int], log_p: Tensor) -> None:
        picked = log_p.gather(-1, torch.tensor(targets, device=log_p.device)[:, None])[:, 0].tolist()
        top = log_p.topk(min(self._num_top, log_p.shape[-1]))
        for token, value, ids, values in zip(targets, picked, top.indices.tolist(), top.values.tolist(), strict=True):
            seen = len(self.scored) < self._num_seen
            likely = () if seen else tuple(zip(ids, values, strict=True))
            self.scored.append(ScoredToken(token, None if seen else value, likely))


def measure(
    engine: Scored,
    text: str | Sequence[int],
    *,
    window: int | None = None,
    stride: int = 512,
    reference: Scored | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PerplexityResult:
    """Predict every token of a text once.

    Args:
        engine: the model.
        text: a text, or its token ids.
        window: text tokens that the model sees at once; None takes 2048 or the model's limit.
        stride: tokens that the window moves; each token has at least ``window - stride`` before it.
        reference: a model to compare with, of the same vocabulary.
        progress: called with tokens done and tokens in all.
    Raises:
        InputError: an empty text, or a stride or window that makes no sense.
    """
    ids = list(text) if not isinstance(text, str) else engine.tokenizer.encode(text)
    window = min(MAX_WINDOW, engine.max_length) if window is None else window
    stride = min(stride, window)
    count, mean, squares, divergence, agreement = 0, 0.0, 0.0, 0.0, 0.0
    for scores in score_tokens(engine, ids, window=window, stride=stride, reference=reference):
        # Chan's update of a mean and a sum of squared deviations: a long text is never held.
        added, new_mean = len(scores.losses), scores.losses.mean().item()
        difference = new_mean - mean
        squares += (scores.losses - new_mean).square().sum().item()
        squares += difference * difference * count * added / (count + added)
        mean += difference * added / (count + added)
        count += added
        if scores.divergences is not None and scores.agreements is not None:
            divergence += scores.divergences.sum().item()
            agreement += scores.agreements.sum().item()
        if progress:
            progress(count, len(ids))
    if mean > _MAX_LOSS:
        raise GLMError(_NOT_FINITE)
    perplexity = math.exp(mean)
    deviation = math.sqrt(squares / (count - 1) / count) if count > 1 else 0.0
    return PerplexityResult(
        perplexity=perplexity,
        standard_error=perplexity * deviation,
        tokens=count,
        window=window,
        stride=stride,
        kl=divergence / count if reference else None,
        top1=agreement / count if reference else None,
    )


def score_tokens(
    engine: Scored, ids: Sequence[int], *, window: int, stride: int, reference: Scored | None = None
) -> Iterator[TokenScores]:
    """Yield the scores of a text's tokens in order, some hundred at a time; arguments and errors as ``measure``."""
    if not ids:
        raise InputError("expected a text of at least one token, got an empty one")
    if window < 1:
        raise InputError(f"expected a window of 1 token or more, got {window}")
    if window > engine.max_length:
        raise InputError(f"expected a window of at most {engine.max_length} tokens for this model, got {window}")
    if stride < 1:
        raise InputError(f"expected a stride of 1 token or more, got {stride}")
    if reference is not None and reference.config.vocab_size != engine.config.vocab_size:
        raise InputError(
            f"expected a reference with a vocabulary of {engine.config.vocab_size}, got {reference.config.vocab_size}"
        )
    for start, first, stop in _windows(len(ids), window, stride):
        targets = torch.tensor(ids[first:stop], device=engine.device)
        others = _log_probabilities(reference, ids[start:stop], stop - first) if reference else None
        for log_p, rows in _log_probabilities(engine, ids[start:stop], stop - first):
            losses = -log_p.gather(-1, targets[rows, None])[:, 0].double().cpu()
            if not bool(torch.isfinite(losses).all()):
                raise GLMError(_NOT_FINITE)
            divergences = agreements = None
            if others is not None:
                log_r, _ = next(others)
                log_r = log_r.to(log_p.device)
                divergences = (log_r.exp() * (log_r - log_p)).sum(-1).double().cpu()
                agreements = (log_r.argmax(-1) == log_p.argmax(-1)).double().cpu()
            yield TokenScores(losses=losses, divergences=divergences, agreements=agreements)


def _windows(num_tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start of the window, first token to predict, stop) so that each token is predicted once."""
    first = 0
    for start in range(0, num_tokens, stride):
        stop = min(start + window, num_tokens)
        yield start, first, stop
        first = stop
        if stop == num_tokens:
            return


@torch.inference_mode()
def _log_probabilities(engine: Scored, ids: Sequence[int], count: int) -> Iterator[tuple[Tensor, slice]]:
    """Log-probabilities (rows, V) that predict the last ``count`` of ``ids``, some rows at a time."""
    hidden = engine.hidden_states([*engine.text_prefix, *ids[:-1]])
    hidden = hidden[-count:]
    for start in range(0, count, _HEAD_ROWS):
        rows = slice(start, min(start + _HEAD_ROWS, count))
        yield engine.model.head(hidden[rows]).log_softmax(-1), rows
