"""Which log-probabilities a request wants, which tokens it favours, and how many answers are made for those it gets."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from glm_int4.errors import InputError
from glm_int4.server.schemas import ChatRequest, CompletionRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedScores:
    """What a request asks of its tokens' probabilities.

    Attributes:
        num_top: most likely tokens to tell with each; None tells nothing.
        prompt: whether the prompt's tokens are told too.
        bias: what is added to the logits of ids.
        number, kept: answers to a prompt that are made, and that are given.
    """

    num_top: int | None = None
    prompt: bool = False
    bias: Mapping[int, float] = field(default_factory=dict)
    number: int = 1
    kept: int = 1

    @property
    def noted(self) -> int | None:
        """As ``num_top``, for who chooses among answers too."""
        return 0 if self.num_top is None and self.kept < self.number else self.num_top


def wanted_scores(request: ChatRequest | CompletionRequest, vocab_size: int) -> WantedScores:
    """Read a request's fields; raises InputError for those that do not go together."""
    kept, bias = request.n or 1, _read_bias(request.logit_bias or {}, vocab_size)
    if isinstance(request, ChatRequest):
        if request.top_logprobs and not request.logprobs:
            raise InputError("expected logprobs: true beside top_logprobs, got none")
        return WantedScores(
            num_top=(request.top_logprobs or 0) if request.logprobs else None, bias=bias, number=kept, kept=kept
        )
    number = request.best_of or kept
    if number < kept:
        raise InputError(f"expected best_of of at least n, got {number} for {kept}")
    if number > kept and request.stream:
        raise InputError("expected best_of without stream, got both: the best answer is known at the end")
    prompt = bool(request.echo) and request.logprobs is not None
    return WantedScores(num_top=request.logprobs, prompt=prompt, bias=bias, number=number, kept=kept)


def _read_bias(given: Mapping[str, float], vocab_size: int) -> dict[int, float]:
    if not all(key.isascii() and key.isdigit() and int(key[:20]) < vocab_size for key in given):
        raise InputError(f"expected token ids below {vocab_size} as keys of logit_bias, got another")
    return {int(key): value for key, value in given.items()}
