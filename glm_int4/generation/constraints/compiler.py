"""From constraints to matchers, for the vocabulary of one model."""

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from glm_int4.errors import GLMError, InputError
from glm_int4.generation.constraints.constraint import Constraint
from glm_int4.generation.constraints.matcher import Matcher
from glm_int4.generation.constraints.time_limit import check_time
from glm_int4.generation.constraints.vocabulary import Vocabulary, make_vocabulary
from glm_int4.text import Tokenizer

if TYPE_CHECKING:
    import llguidance

_MOST_KEPT = 32


class ConstraintCompiler:
    """Compiles constraints, from any thread, and keeps the last ones.

    Args:
        vocab_size: ids of the model.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._vocabulary: Vocabulary | None = None
        self._kept: OrderedDict[Constraint, llguidance.LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def prepare(self) -> Vocabulary:
        """Take in the vocabulary, where that has not been done.

        Raises:
            InputError: llguidance is not installed.
        """
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = make_vocabulary(self._tokenizer, self._vocab_size)
            return self._vocabulary

    def matcher(self, constraint: Constraint, stops: frozenset[int], *, at_start: bool = True) -> Matcher:
        """A matcher for a new answer; arguments as of ``Matcher``.

        Raises:
            InputError: llguidance is not installed; a constraint that it cannot follow, or that no answer meets.
        """
        vocabulary = self.prepare()
        with self._lock:
            start = self._kept.get(constraint)
            if start is not None:
                self._kept.move_to_end(constraint)
        if start is None:
            start = self._compile(vocabulary, constraint)
            with self._lock:
                self._kept[constraint] = start
                while len(self._kept) > _MOST_KEPT:
                    self._kept.popitem(last=False)
        return Matcher(vocabulary, start, stops, at_start=at_start)

    @staticmethod
    def _compile(vocabulary: Vocabulary, constraint: Constraint) -> "llguidance.LLMatcher":
        """Where a matcher starts; its first masks are tried, since some faults come to light there."""
        import llguidance

        check_time(constraint.grammars)
        start = llguidance.LLMatcher(vocabulary.table, constraint.grammars, log_level=0)
        if start.is_error():
            raise InputError(f"expected a constraint that can be kept, got {_reason(start.get_error())}")
        try:
            Matcher(vocabulary, start, frozenset()).mask()
        except GLMError as error:
            raise InputError(f"{error}") from error
        return start


def _reason(error: str) -> str:
    """An error of llguidance in one line."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return "; ".join(lines)[:300] or "one that has a fault"
