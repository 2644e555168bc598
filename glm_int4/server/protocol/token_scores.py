"""Log-probabilities of picked tokens, and a bias on tokens, around the engine's own sampler."""

import re
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from glm_int4.generation.constraints.matcher import Matcher
from glm_int4.generation.sampling import Sampler, SamplingParams
from glm_int4.generation.scoring import ScoredToken
from glm_int4.text import StreamDecoder, Tokenizer

_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


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

    def entry(self, token: int, logprob: float | None) -> dict[str, Any]:
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

    def completion(self, scored: Sequence[ScoredToken], offsets: Sequence[int]) -> dict[str, Any]:
        """``logprobs`` of a completion's choice; ``offsets`` are where the text of every token begins."""
        return {
            "tokens": [self._name(one.token) for one in scored],
            "token_logprobs": [one.logprob for one in scored],
            "top_logprobs": [self._likeliest(one) for one in scored],
            "text_offset": list(offsets),
        }

    def _likeliest(self, scored: ScoredToken) -> dict[str, float] | None:
        """Log-probabilities by name: of the most likely tokens, and of the one that stands there."""
        if scored.logprob is None:
            return None
        # The likeliest comes last, and stays where two have one name.
        return {self._name(token): value for token, value in ((scored.token, scored.logprob), *reversed(scored.top))}

    def offsets(self, ids: Iterable[int], end: int) -> list[int]:
        """Where the text of every id begins, in one of ``end`` characters; parts of a character begin with it."""
        decoder, length, starts = StreamDecoder(self._tokenizer), 0, []
        for token in ids:
            starts.append(min(length, end))
            length += len(decoder.push(token))
        return starts

    def _byte(self, token: int) -> int | None:
        """The byte of a piece that stands for one."""
        match = _BYTE_PIECE.fullmatch(self._tokenizer.id_to_piece(token))
        return int(match[1], 16) if match else None

    def _name(self, token: int) -> str:
        """The text, or as OpenAI names a part of a character; a special id's own name."""
        byte = self._byte(token)
        if byte is not None:
            return f"bytes:\\x{byte:02x}"
        return self.text(token) or self._tokenizer.id_to_piece(token)
