"""Bounds and sizes that a JSON schema sets; what they cannot be is refused as UnsupportedError."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from glm_int4.downloads import shown
from glm_int4.text.calls.merging import UnsupportedError
from glm_int4.text.calls.number_patterns import at_least_pattern, at_most_pattern, integer_pattern

MOST_COUNT = 10_000


def number_of(said: Mapping[str, Any], keyword: str) -> int | float:
    """The number that a keyword has."""
    value = said[keyword]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UnsupportedError(keyword, shown(value))
    return value


def count(said: Mapping[str, Any], keyword: str) -> int | None:
    """The size that a keyword has; None for none, or for more than any call has."""
    if keyword not in said:
        return None
    value = number_of(said, keyword)
    if value != int(value) or value < 0:
        raise UnsupportedError(keyword, shown(value))
    if value > MOST_COUNT and keyword.startswith("max"):
        return None if keyword == "maxLength" else MOST_COUNT
    if value > MOST_COUNT:
        raise UnsupportedError(keyword, f"{shown(value)}, more than {MOST_COUNT}")
    return int(value)


def check_order(low: int, high: int | None, keyword: str) -> None:
    """Raise where no size keeps both bounds; ``keyword`` is the upper one's."""
    if high is not None and low > high:
        raise UnsupportedError(keyword, f"{high}, less than the {low} of its other bound")


def check_number_of_properties(said: Mapping[str, Any], least: int, most: int | None) -> None:
    """Raise where an object's size would have to be counted."""
    low, high = count(said, "minProperties") or 0, said.get("maxProperties")
    if low > least:
        raise UnsupportedError("minProperties", f"{low}, more than are required")
    if high is not None and (most is None or number_of(said, "maxProperties") < most):
        raise UnsupportedError("maxProperties", f"{shown(high)}, less than there can be")


def bounds_of(said: Mapping[str, Any]) -> list[tuple[bool, bool, int | float]]:
    """Bounds of a number: whether it is the lower one, whether it is left out itself, and what it is."""
    bounds = []
    for keyword, is_low in (("minimum", True), ("maximum", False)):
        exclusive = f"exclusive{keyword.capitalize()}"
        strict = said.get(exclusive)
        if keyword in said:
            bounds.append((is_low, strict is True, number_of(said, keyword)))  # true: as in draft 4
        if strict is not None and not isinstance(strict, bool):
            bounds.append((is_low, True, number_of(said, exclusive)))
    return bounds


def whole_pattern(bounds: Sequence[tuple[bool, bool, int | float]]) -> str:
    """Expression of a terminal for integers; raises ValueError where none keeps the bounds."""
    lows = [math.floor(bound) + 1 if strict else math.ceil(bound) for is_low, strict, bound in bounds if is_low]
    highs = [math.ceil(bound) - 1 if strict else math.floor(bound) for is_low, strict, bound in bounds if not is_low]
    return f"/{integer_pattern(max(lows, default=None), min(highs, default=None))}/"


def number_pattern(bounds: Sequence[tuple[bool, bool, int | float]]) -> str:
    """Expression of a terminal for numbers; raises ValueError where none keeps the bounds."""
    lows = [(bound, strict) for is_low, strict, bound in bounds if is_low]
    highs = [(bound, strict) for is_low, strict, bound in bounds if not is_low]
    if lows and highs:
        low, high = max(lows), min((bound, not strict) for bound, strict in highs)
        if low[0] > high[0] or (low[0] == high[0] and (low[1] or not high[1])):
            raise ValueError("bounds that no number keeps")
    parts = [at_least_pattern(bound, strict) for bound, strict in lows]
    parts += [at_most_pattern(bound, strict) for bound, strict in highs]
    return " & ".join(f"/{part}/" for part in parts)
