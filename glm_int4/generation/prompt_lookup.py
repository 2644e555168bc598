"""Guessing the next tokens from what was said before, so that one pass can confirm several.

Answers often repeat their prompt: names, code, a quoted text. Where the last tokens have occurred before,
what followed them then is a guess at what follows now. The model decides: a guess counts only where it is
the token that the sampler picks anyway, so answers are the same with and without.
"""

from collections.abc import Sequence

_LONGEST, _SHORTEST = 3, 2  # tokens that must agree


class PromptLookup:
    """Guesses for one answer, and how they fared.

    Attributes:
        most: tokens guessed at once, at most; 0 guesses never.
        drafted, accepted: tokens guessed so far, and those that were right.
    """

    def __init__(self, most: int) -> None:
        self.most, self.drafted, self.accepted = most, 0, 0

    def draft(self, seen: Sequence[int], room: int) -> list[int]:
        """Guess up to ``room`` tokens behind ``seen``; none where nothing like its end came before."""
        count = min(self.most, room)
        if count < 1:
            return []
        for length in range(_LONGEST, _SHORTEST - 1, -1):
            end = list(seen[-length:])
            for start in range(len(seen) - length - 1, -1, -1):
                if seen[start] == end[0] and list(seen[start : start + length]) == end:
                    guess = list(seen[start + length : start + length + count])
                    self.drafted += len(guess)
                    return guess
        return []
