"""Which modules of a model an adapter changes: peft's rules for ``target_modules`` and its companions."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from glm_int4.downloads import shown
from glm_int4.errors import ConfigError

ALL_LINEAR = "all-linear"

# A path has some 60 characters, which so many repeats share among themselves in a few million ways.
_MOST_CHARACTERS, _MOST_REPEATS = 1000, 4
_TOKEN = re.compile(r"\(|\)(?:[*+]|\{\d*,?\d*\})?|[|*+]|\{\d*,?\d*\}")


def matches(wanted: str | Sequence[str], path: str) -> bool:
    """Whether a text, which is a regular expression, or one of several path ends means a module."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, path) is not None
    return any(path == end or path.endswith(f".{end}") for end in wanted)


def layer_of(path: str, patterns: Sequence[str]) -> int | None:
    """The number of the layer that a module is in; patterns name the list of layers, none means any list."""
    for pattern in patterns or [r"[^.]*"]:
        if found := re.match(rf".*\.(?:{pattern})\.(\d+)\.", path):
            return int(found[1])
    return None


def keyed(patterns: dict[str, float], path: str, default: float) -> float:
    """The value of the first pattern that means the end of a module's path, or all of it."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default


def check_pattern(pattern: str, key: str, path: Path) -> None:
    """Raise ConfigError for what is no regular expression, or one that might search for hours.

    Python tries all ways to share a path among repeats, which are too many where a repeat is repeated.
    """
    fault = None
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        fault = f"which is none ({error})"
    if fault is None and (len(pattern) > _MOST_CHARACTERS or _repeats(pattern) > _MOST_REPEATS):
        fault = "which may search for hours"
    if fault is not None:
        raise ConfigError(
            f"expected a simple regular expression as {key} in {path}, got {shown(pattern)}, {fault}; "
            "list the names of the modules instead"
        )


def _repeats(pattern: str) -> float:
    """Open-ended repeats of a pattern; infinite where a group with a repeat or a choice in it is repeated."""
    plain = re.sub(r"\\.|\[\^?\]?[^\]]*\]", "x", pattern)  # neither escapes nor classes hold repeats
    total = 0
    open_groups = [False]  # whether a repeat or a choice is in it
    for token in _TOKEN.findall(plain):
        if token == "(":
            open_groups.append(False)
        elif token.startswith(")"):
            inner = open_groups.pop() if len(open_groups) > 1 else False
            if inner and token != ")":
                return math.inf
            open_groups[-1] |= inner
            total += token != ")"
        else:
            open_groups[-1] = True
            total += token != "|"
    return total
