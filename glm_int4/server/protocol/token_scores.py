"""Log-probabilities of picked tokens, and a bias on tokens, around the engine's own sampler."""

import re
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glm_int4.generation.constraints.matcher import Matcher
from glm_int4.generation.sampling import Sampler, SamplingParams
from glm_int4.text import StreamDecoder, Tokenizer

_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token that was picked, its log-probability, and the most likely ones in its place, with theirs.

    All are the model's own: before a bias, penalties, temperature and what else makes a choice.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class ScoringSampler(Sampler):
    """A sampler that adds a bias to logits, and notes log-probabilities.

    Args:
        num_top: most likely tokens to note; None notes nothing.
        bias: what is added to the logits of ids. matchers: as of ``Sampler``.
    """

    def __init__(
        self,
        params: SamplingParams,
        version: str,
        num_top: int | None,
        bias: Mapping[int, float],
        matchers: Sequence[Matcher] = (),
    ) -> None:
        super().__init__(params, version, matchers)
        self._num_top, self._bias = num_top, bias
        self._picked_scores: tuple[Tensor, Tensor, Tensor] | None = None
        self._scored: deque[ScoredToken] = deque()

    @property
    def recipe(self) -> Hashable:
        """None: what it adds and notes is its own."""
        return None

    def choose(self, logits: Tensor, seen: list[list[int]]) -> Tensor:
        """As of ``Sampler``, for one row."""
        biased = logits
        if self._bias:
            biased = logits.clone()
            ids = torch.tensor(list(self._bias), device=logits.device)
            biased[:, ids] += torch.tensor(list(self._bias.values()), dtype=logits.dtype, device=logits.device)
        chosen = super().choose(biased, seen)
        if self._num_top is not None:
            scores = logits[0].float().log_softmax(-1)
            top = scores.topk(min(self._num_top, len(scores)))
            self._picked_scores = scores[chosen.clamp(min=0)], top.indices, top.values
        return chosen

    def accept(self, tokens: list[int]) -> None:
        """As of ``Sampler``."""
        super().accept(tokens)
        if self._picked_scores is not None:
            picked, ids, values = (part.tolist() for part in self._picked_scores)
            self._scored.append(ScoredToken(tokens[0], picked[0], tuple(zip(ids, values, strict=True))))

    def next_scored(self) -> list[ScoredToken]:
        """The next of the tokens that were accepted, where scores are noted; a step may accept two."""
        return [self._scored.popleft()] if self._scored else []


class TokenTexts:
    """What single tokens stand for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._before = tokenizer.encode("a")  # the first piece of a text loses its leading space
        self._length = len(tokenizer.decode(self._before))

    def text(self, token: int) -> str:
        """The text of an id; a replacement character for a part of a character."""
        return self._tokenizer.decode([*self._before, token])[self._length :]

    def entry(self, token: int, logprob: float) -> dict[str, Any]:
        """A token as OpenAI's chats describe it."""
        byte = self._byte(token)
        text = self.text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if byte is None else [byte]}

    def chat(self, scored: Sequence[ScoredToken]) -> dict[str, Any]:
        """``logprobs`` of a chat's choice."""
        content = [
            self.entry(one.token, one.logprob) | {"top_logprobs": [self.entry(*other) for other in one.top]}
            for one in scored
        ]
        return {"content": content, "refusal": None}

    def completion(self, scored: Sequence[ScoredToken], offsets: "TextOffsets") -> dict[str, Any]:
        """``logprobs`` of a completion's choice."""
        return {
            "tokens": [self._name(one.token) for one in scored],
            "token_logprobs": [one.logprob for one in scored],
            # The likeliest comes last, and stays where two have one name.
            "top_logprobs": [{self._name(token): value for token, value in reversed(one.top)} for one in scored],
            "text_offset": [offsets.before(one.token) for one in scored],
        }

    def offsets(self, start: int) -> "TextOffsets":
        """For a text that begins at ``start``."""
        return TextOffsets(StreamDecoder(self._tokenizer), start)

    def _byte(self, token: int) -> int | None:
        """The byte of a piece that stands for one."""
        match = _BYTE_PIECE.fullmatch(self._tokenizer.id_to_piece(token))
        return int(match[1], 16) if match else None

    def _name(self, token: int) -> str:
        """The text, or as OpenAI names a part of a character."""
        byte = self._byte(token)
        return self.text(token) if byte is None else f"bytes:\\x{byte:02x}"


class TextOffsets:
    """Where the text of every token begins; parts of a character begin with it."""

    def __init__(self, decoder: StreamDecoder, start: int) -> None:
        self._decoder, self._length = decoder, start

    def before(self, token: int) -> int:
        """Characters in front of the next token."""
        offset = self._length
        self._length += len(self._decoder.push(token))
        return offset
