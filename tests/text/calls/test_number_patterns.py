"""Patterns of numbers hold their bounds, as float64 compares them."""

import math
import re
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from glm_int4.text.calls.number_patterns import ANY_NUMBER, at_least_pattern, at_most_pattern, integer_pattern

INTEGERS = st.integers(-1200, 1200) | st.integers(-(10**20), 10**20)
FLOATS = st.decimals(-50, 50, places=2).map(float) | st.floats(-1e22, 1e22) | st.integers(-(10**17), 10**17)


@given(st.none() | INTEGERS, st.none() | INTEGERS, INTEGERS)
@example(None, -1, 0)
@example(0, None, 10**19 - 1)
@example(-1, 0, -1)
def test_an_integer_matches_where_it_keeps_its_bounds(low, high, number):
    low, high = (low, high) if None in (low, high) or low <= high else (high, low)
    if abs(number) < 10**19 or (low is not None and high is not None):
        inside = (low is None or low <= number) and (high is None or number <= high)
        assert bool(re.fullmatch(integer_pattern(low, high), str(number))) == inside


def test_integers_up_to_three_digits_match_one_by_one():
    for low, high in ((0, 0), (7, 7), (-3, 12), (99, 101), (10, 100), (1, 999), (-120, -99), (100, 199), (-1, 1000)):
        pattern = re.compile(integer_pattern(low, high))
        assert [n for n in range(-1200, 1201) if pattern.fullmatch(str(n))] == [*range(low, high + 1)]


@given(FLOATS, st.booleans(), FLOATS | st.decimals(-2, 2, places=20))
@example(1.0, True, Decimal("0.99999999999999999"))
@example(0.1, True, Decimal("0.10000000000000000"))
@example(5, True, 5.0)
@example(0, True, 0)
@example(0.30000000000000004, True, 0.3)
@example(6.173343141240833e16, False, 61733431412408330)
@example(6.173343141240831e16, False, 61733431412408310)
def test_a_number_that_matches_keeps_its_bound(bound, strict, near):
    exact = Decimal(str(bound))
    for text in (f"{Decimal(str(near)):f}", f"{exact:f}", f"{exact + Decimal(str(near)):f}"):
        number = float(text) if "." in text else int(text)
        above = number > bound if strict else number >= bound
        below = number < bound if strict else number <= bound
        assert above or not re.fullmatch(at_least_pattern(bound, strict), text)
        assert below or not re.fullmatch(at_most_pattern(bound, strict), text)


@given(st.decimals(-999, 999, places=3), st.booleans(), st.decimals(-999, 999, places=3))
def test_a_number_of_few_digits_matches_where_it_keeps_its_bound(bound, strict, number):
    text = f"{number.normalize() + 0:f}"
    above = number > bound if strict else number >= bound
    below = number < bound if strict else number <= bound
    assert bool(re.fullmatch(at_least_pattern(float(bound), strict), text)) == above
    assert bool(re.fullmatch(at_most_pattern(float(bound), strict), text)) == below


@given(st.floats(-1e307, 1e307) | st.integers(-(10**18), 10**18))
def test_every_number_matches_as_python_writes_it(number):
    assert re.fullmatch(ANY_NUMBER, repr(number))


@pytest.mark.parametrize("text", ["1e308", "1e999", "01", "+1", "1.", ".5", "1e", "--1", "1_0", "nan", "10e307"])
def test_what_is_no_json_number_or_no_finite_one_does_not_match(text):
    assert not re.fullmatch(ANY_NUMBER, text)
    assert math.isfinite(float("9.99e307"))


def test_bounds_that_nothing_keeps_are_refused():
    with pytest.raises(ValueError, match="no integer keeps"):
        integer_pattern(3, 2)
    with pytest.raises(ValueError, match="more than 300 digits"):
        at_least_pattern(1e301, False)
