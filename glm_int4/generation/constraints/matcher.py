"""Which tokens an answer may go on with."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glm_int4.errors import GLMError
from glm_int4.generation.constraints.vocabulary import Vocabulary

if TYPE_CHECKING:
    import llguidance

_TAIL = 16
_DEAD_END = (
    "expected a constraint that some token can go on with, got one that none can; "
    "allow other answers, or ask without it"
)


class Matcher:
    """Follows one answer through its constraint.

    Args:
        start: behind nothing. The constraint begins with a space: SentencePiece's pieces begin a text with one, and
            decoding takes it away.
        stops: ids that may end the answer where it is complete.
        at_start: whether the answer begins a text, and is not decoded behind other ids.
    Attributes:
        is_complete: whether the answer has ended: nothing may follow, or a stop id came.
    """

    def __init__(
        self, vocabulary: Vocabulary, start: "llguidance.LLMatcher", stops: frozenset[int], *, at_start: bool = True
    ) -> None:
        self._vocabulary, self._stops = vocabulary, [token for token in stops if token < vocabulary.size]
        self._spaced: llguidance.LLMatcher | None = start.deep_copy()
        self._state = start.deep_copy()
        self._state.consume_token(vocabulary.space)
        if not at_start or vocabulary.loses_none:
            self._spaced = None
        self._blank_came = False
        self._words = np.zeros((vocabulary.size + 31) // 32, dtype=np.int32)
        self._tail = b""
        self.is_complete = False

    def mask(self) -> Tensor:
        """Ids that may come next, (V,) bool; all where the answer is complete.

        Raises:
            GLMError: there are none, or finding out takes too much.
        """
        vocabulary = self._vocabulary
        if self.is_complete:
            return torch.ones(vocabulary.size, dtype=torch.bool)
        allowed = self._allowed(self._state)
        if self._spaced is not None:
            a_space = allowed[vocabulary.space]
            allowed = np.where(vocabulary.spaced, self._allowed(self._spaced), allowed)
            if vocabulary.space_byte is not None:
                allowed[vocabulary.space_byte] = a_space
            if vocabulary.blank is not None:
                allowed[vocabulary.blank] = not self._blank_came
            if vocabulary.loses_all:
                allowed[vocabulary.doubled] = False
        allowed[vocabulary.rewriting(self._tail)] = False
        if self._state.is_accepting():
            allowed[self._stops] = True
        if not allowed.any():
            raise GLMError(_DEAD_END)
        return torch.from_numpy(allowed)

    def accept(self, token: int) -> None:
        """Take the next id, one that ``mask`` allows."""
        if self.is_complete:
            return
        if token in self._stops:
            self.is_complete = True
            return
        vocabulary = self._vocabulary
        if self._spaced is not None:
            if vocabulary.loses_all and token == vocabulary.blank:
                self._blank_came = True
                return
            self._state = self._spaced if vocabulary.spaced[token] else self._state
            self._spaced = None
            token = vocabulary.space if token == vocabulary.space_byte else token
        self._state.consume_token(token)
        self._check(self._state)
        self._tail = (self._tail + vocabulary.pieces[token])[-_TAIL:]
        self.is_complete = self._state.is_stopped()

    def _allowed(self, state: "llguidance.LLMatcher") -> NDArray[np.bool_]:
        state.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        self._check(state)
        bits = np.unpackbits(self._words.view(np.uint8), count=self._vocabulary.size, bitorder="little")
        allowed = bits.view(np.bool_)
        allowed[self._vocabulary.eos] = False  # llguidance's own way to say that the answer may end
        return allowed

    @staticmethod
    def _check(state: "llguidance.LLMatcher") -> None:
        if state.is_error():
            reason = state.get_error().strip().partition("\n")[0]
            if reason.startswith("NoExtension"):
                raise GLMError(_DEAD_END)
            raise GLMError(f"expected a constraint that can be followed, got a fault ({reason:.200}); make it simpler")
