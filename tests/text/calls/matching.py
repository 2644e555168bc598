"""llguidance's matcher, a byte at a time."""

import random

import llguidance

BYTES = llguidance.LLTokenizer("byte")
_LONGEST = 6_000
_ENDS = frozenset(b"'\"]})")  # picked more often, so that an answer comes to its end


def matcher(grammar):
    made = llguidance.LLMatcher(BYTES, grammar, log_level=0)
    assert not made.is_error(), made.get_error()
    return made


def accepts(grammar, text):
    """Whether a text is one of a grammar's."""
    made, data = matcher(grammar), list(text.encode())
    return made.try_consume_tokens(data) == len(data) and made.is_accepting()


def walk(grammar, seed):
    """A text of the grammar's, chosen byte by byte; None where none ends in time."""
    made, choice, data = matcher(grammar), random.Random(seed), bytearray()
    eagerness = choice.choice([3, 30, 300])
    while len(data) < _LONGEST:
        mask = made.compute_bitmask()
        allowed = [token for token in range(256) if mask[token // 8] >> token % 8 & 1]
        if made.is_accepting():
            assert not made.is_error()
            return data.decode()
        assert allowed, (bytes(data), made.get_error())
        weights = [eagerness if token in _ENDS else 3 if token < 128 else 1 for token in allowed]
        (token,) = choice.choices(allowed, weights)
        assert made.consume_token(token), made.get_error()
        data.append(token)
    return None
