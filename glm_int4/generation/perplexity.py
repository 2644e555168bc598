"""Perplexity of a text over a sliding window, with its standard error."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glm_int4.errors import GLMError, InputError

if TYPE_CHECKING:
    from glm_int4.generation.engine import Engine

MAX_WINDOW = 2048
_MAX_LOSS = 700.0  # nats per token; its exponential still fits a float
_HEAD_ROWS = 256  # rows of logits at a time: 256 x 130528 floats are 134 MB


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


def measure(
    engine: "Engine",
    text: str | Sequence[int],
    *,
    window: int | None = None,
    stride: int = 512,
    reference: "Engine | None" = None,
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
    if not ids:
        raise InputError("expected a text of at least one token, got an empty one")
    if window < 1:
        raise InputError(f"expected a window of 1 token or more, got {window}")
    if window > engine.max_length:
        raise InputError(f"expected a window of at most {engine.max_length} tokens for this model, got {window}")
    stride = min(stride, window)
    if stride < 1:
        raise InputError(f"expected a stride of 1 token or more, got {stride}")
    if reference is not None and reference.config.vocab_size != engine.config.vocab_size:
        raise InputError(
            f"expected a reference with a vocabulary of {engine.config.vocab_size}, got {reference.config.vocab_size}"
        )
    losses: list[Tensor] = []
    divergences: list[Tensor] = []
    agreements: list[Tensor] = []
    done = 0
    for start, first, stop in _windows(len(ids), window, stride):
        targets = torch.tensor(ids[first:stop], device=engine.device)
        others = _log_probabilities(reference, ids[start:stop], stop - first) if reference else None
        for log_p, rows in _log_probabilities(engine, ids[start:stop], stop - first):
            losses.append(-log_p.gather(-1, targets[rows, None])[:, 0].double().cpu())
            if others is not None:
                log_r, _ = next(others)
                log_r = log_r.to(log_p.device)
                divergences.append((log_r.exp() * (log_r - log_p)).sum(-1).double().cpu())
                agreements.append((log_r.argmax(-1) == log_p.argmax(-1)).double().cpu())
        done += stop - first
        if progress:
            progress(done, len(ids))
    loss = torch.cat(losses)
    if not bool(torch.isfinite(loss).all()) or loss.mean().item() > _MAX_LOSS:
        raise GLMError("expected finite losses, got nan or inf; the weights are damaged or overflow this dtype")
    perplexity = math.exp(loss.mean().item())
    deviation = loss.std().item() / math.sqrt(len(loss)) if len(loss) > 1 else 0.0
    return PerplexityResult(
        perplexity=perplexity,
        standard_error=perplexity * deviation,
        tokens=len(loss),
        window=window,
        stride=stride,
        kl=torch.cat(divergences).mean().item() if divergences else None,
        top1=torch.cat(agreements).mean().item() if agreements else None,
    )


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
def _log_probabilities(engine: "Engine", ids: Sequence[int], count: int) -> Iterator[tuple[Tensor, slice]]:
    """Log-probabilities (rows, V) that predict the last ``count`` of ``ids``, some rows at a time."""
    hidden = engine.hidden_states([*engine.text_prefix, *ids[:-1]])
    hidden = hidden[-count:]
    for start in range(0, count, _HEAD_ROWS):
        rows = slice(start, min(start + _HEAD_ROWS, count))
        yield engine.model.lm_head(hidden[rows]).log_softmax(-1), rows
