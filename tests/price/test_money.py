import decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramarket.errors import ParameterError
from paramarket.price import to_cents, whole_units

MODES = {"nearest": decimal.ROUND_HALF_EVEN, "down": decimal.ROUND_FLOOR, "up": decimal.ROUND_CEILING}
every_rounding = pytest.mark.parametrize("rounding", MODES)


@every_rounding
@given(st.integers(-(10**14), 10**14))
def test_whole_cents_stay_what_they_are(rounding, cents):
    assert to_cents(cents / 100, rounding) == cents


@every_rounding
@given(st.integers(0, 10**7), st.integers(1, 12))
def test_a_whole_sum_stays_whole_after_a_detour(rounding, cents, parts):
    euros = cents / 100
    for detour in (euros / parts * parts, sum([euros / parts] * parts), (euros + 7.77) - 7.77):
        assert to_cents(detour, rounding) == cents


@every_rounding
@given(st.decimals(-(10**6), 10**6, places=4))
def test_a_decimal_number_is_rounded_as_it_is_written(rounding, euros):
    expected = int((100 * euros).to_integral(MODES[rounding]))
    assert to_cents(float(euros), rounding) == expected


def test_every_half_cent_goes_to_the_even_neighbour():
    cents = np.arange(-2000, 2001)
    halves = to_cents((cents + 0.5) / 100)
    assert (halves == np.where(cents % 2 == 0, cents, cents + 1)).all()


@given(st.lists(st.floats(-1e9, 1e9), max_size=5))
def test_cents_are_whole_numbers_and_a_value_is_never_exceeded(euros):
    nearest, down, up = (to_cents(np.array(euros), rounding) for rounding in MODES)
    assert {nearest.dtype, down.dtype, up.dtype} == {np.dtype(np.int64)}
    assert (down <= nearest).all()
    assert (nearest <= up).all()
    assert (up - down <= 1).all()
    exact = 100 * np.array(euros)
    close = 1e-5  # a cent of 10^9 euros is known no better
    assert (down <= exact + close).all()
    assert (up >= exact - close).all()
    assert (np.abs(nearest - exact) <= 0.5 + close).all()


def test_other_units_and_no_amount():
    assert whole_units(37, 5) == 7
    assert whole_units([0.3, np.nan], 0.1)[0] == 3
    assert np.isnan(whole_units([0.3, np.nan], 0.1)[1])
    assert str(whole_units(-0.001, 0.01, "up")) == "0.0"  # and not -0.0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: to_cents(float("nan")), "nan euros, expected a finite sum"),
        (lambda: to_cents([1.0, float("inf")]), "inf euros"),
        (lambda: to_cents(1e14), r"1e\+14 euros, expected a finite sum of no more than"),
        (lambda: to_cents(1.0, "upp"), "unknown rounding 'upp'. Did you mean 'up'"),
    ],
)
def test_what_is_no_sum_of_money_is_refused(call, said):
    with pytest.raises(ParameterError, match=said):
        call()
