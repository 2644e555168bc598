"""Regular expressions of Python's numbers between bounds.

A bounded number is written without an exponent. An integer without a bound has at most 19 digits.
"""

from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

MOST_DIGITS, MOST_FRACTION_DIGITS = 19, 17
LARGEST_INTEGER = 2**1023  # replies.MAX_INTEGER_BITS
_EXACT_DIGITS = 15  # decimals of so many digits are different as float64, too
_LARGEST_BOUND = Decimal("1e300")
_LARGEST_EXACT = 2**53  # beyond it a float64 is compared with integers as it is, not as it is written
_ANY_WHOLE = f"(0|[1-9][0-9]{{0,{MOST_DIGITS - 1}}})"
_FRACTION = rf"(\.[0-9]{{1,{MOST_FRACTION_DIGITS}}})?"
_EXPONENT = "([+]?([0-9]{1,2}|[12][0-9]{2}|30[0-7])|-[0-3]?[0-9]{1,2})"  # finite as float64
ANY_NUMBER = f"-?({_ANY_WHOLE}{_FRACTION}|[1-9]{_FRACTION}e{_EXPONENT})"


def integer_pattern(low: int | None, high: int | None) -> str:
    """Integers from ``low`` to ``high``, both included; raises ValueError where there are none."""
    if low is None and high is None:
        return f"-?{_ANY_WHOLE}"
    digits = max(MOST_DIGITS, *(len(str(abs(bound))) + 1 for bound in (low, high) if bound is not None))
    most = min(10**digits - 1, LARGEST_INTEGER)
    low, high = max(-most, -most if low is None else low), min(most, most if high is None else high)
    if low > high:
        raise ValueError("bounds that no integer keeps")
    parts = []
    if low < 0:
        parts.append(f"-{_whole(max(1, -high), -low)}")
    if high >= 0:
        parts.append(_whole(max(low, 0), high))
    return _any_of(parts)


def at_least_pattern(limit: int | float, strict: bool) -> str:
    """Numbers from ``limit`` on; without it where ``strict``."""
    bound, strict, digits = _rounded(limit, strict, ROUND_CEILING)
    if bound >= 0 and (bound > 0 or strict):
        return _not_below(bound, strict, digits)
    if bound == 0:
        return f"{_ANY_WHOLE}{_FRACTION}"
    return _any_of([f"{_ANY_WHOLE}{_FRACTION}", f"-{_not_above(-bound, strict, digits)}"])


def at_most_pattern(limit: int | float, strict: bool) -> str:
    """Numbers up to ``limit``; without it where ``strict``."""
    bound, strict, digits = _rounded(limit, strict, ROUND_FLOOR)
    if bound < 0 or (bound == 0 and strict):
        return f"-{_not_below(-bound, strict, digits)}"
    return _any_of([_not_above(bound, strict, digits), f"-{_ANY_WHOLE}{_FRACTION}"])


def _rounded(limit: int | float, strict: bool, rounding: str) -> tuple[Decimal, bool, int]:
    """The bound, whether it is left out, and the digits of a fraction that float64 tells from it."""
    bound = Decimal(limit) if abs(limit) > _LARGEST_EXACT else Decimal(str(limit))
    if abs(bound) > _LARGEST_BOUND:
        raise ValueError("bounds of more than 300 digits")
    if not strict:
        return bound, False, MOST_FRACTION_DIGITS
    near = Context(prec=_EXACT_DIGITS - 1, rounding=rounding).plus(bound)
    return near, near == bound, max(0, _EXACT_DIGITS - len(str(abs(int(near)))))


def _not_below(bound: Decimal, strict: bool, digits: int) -> str:
    whole, fraction = _split(bound)
    last = max(10**MOST_DIGITS, whole * 10) - 1
    parts = [f"{_whole(whole + 1, max(last, whole + 1))}{_FRACTION}"]
    if fraction:
        parts.append(rf"{whole}\.{_digits_from(fraction, strict, digits)}")
    elif not strict:
        parts.append(f"{whole}{_FRACTION}")
    elif digits:
        parts.append(rf"{whole}\.[0-9]{{0,{digits - 1}}}[1-9]")
    return _any_of(parts)


def _not_above(bound: Decimal, strict: bool, digits: int) -> str:
    whole, fraction = _split(bound)
    some = rf"(\.[0-9]{{1,{digits}}})?" if digits else ""
    parts = [f"{_whole(0, whole - 1)}{some}"] if whole else []
    if fraction:
        parts.append(rf"{whole}(\.{_digits_to(fraction, strict, digits)})?")
    elif not strict:
        parts.append(rf"{whole}(\.0)?")
    return _any_of(parts)


def _split(bound: Decimal) -> tuple[int, str]:
    """The whole part of a number that is not negative, and the digits of its fraction."""
    whole, _, fraction = f"{bound:f}".partition(".")
    return int(whole), fraction.rstrip("0")


def _digits_from(bound: str, strict: bool, digits: int) -> str:
    """Digits of fractions from the one that ``bound`` writes on."""
    more = max(digits - 1, len(bound))
    if not bound:
        return f"[0-9]{{0,{more}}}[1-9]" if strict else f"[0-9]{{0,{more}}}"
    parts = [f"{bound[0]}{_digits_from(bound[1:], strict, digits - 1)}"]
    if bound[0] != "9":
        parts.append(f"{_digit(int(bound[0]) + 1, 9)}[0-9]{{0,{more}}}")
    return _any_of(parts)


def _digits_to(bound: str, strict: bool, digits: int) -> str:
    """Digits of fractions up to the one that ``bound`` writes, one at least."""
    parts = [f"{_digit(0, int(bound[0]) - 1)}[0-9]{{0,{max(digits - 1, 0)}}}"] if bound[0] != "0" else []
    if len(bound) > 1:
        parts.append(f"{bound[0]}({_digits_to(bound[1:], strict, digits - 1)})?")
    elif not strict:
        parts.append(bound)
    return _any_of(parts)


def _whole(low: int, high: int) -> str:
    """Integers from ``low`` to ``high``, neither negative."""
    shortest, longest = len(str(low)), len(str(high))
    if shortest == longest:
        return _between(str(low), str(high))
    parts = [_between(str(low), "9" * shortest), _between("1" + "0" * (longest - 1), str(high))]
    if longest - shortest > 1:
        parts.append(f"[1-9][0-9]{{{shortest},{longest - 2}}}")
    return _any_of(parts)


def _between(low: str, high: str) -> str:
    """Texts of as many digits as both have, in between."""
    if not low:
        return ""
    rest = len(low) - 1
    if not low.strip("0") and not high.strip("9"):
        return f"[0-9]{{{len(low)}}}"
    if low[0] == high[0]:
        return low[0] + _between(low[1:], high[1:])
    first, last, parts = int(low[0]), int(high[0]), []
    if low[1:].strip("0"):
        parts.append(low[0] + _between(low[1:], "9" * rest))
        first += 1
    if high[1:].strip("9"):
        parts.append(high[0] + _between("0" * rest, high[1:]))
        last -= 1
    if first <= last:
        parts.append(_digit(first, last) + (f"[0-9]{{{rest}}}" if rest else ""))
    return _any_of(parts)


def _digit(first: int, last: int) -> str:
    return f"[{first}-{last}]"


def _any_of(parts: list[str]) -> str:
    if not parts:
        raise ValueError("bounds that no number keeps")
    return parts[0] if len(parts) == 1 else f"({'|'.join(parts)})"
