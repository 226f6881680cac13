import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramarket import base, runs
from paramarket.runs.formats import format_results


@given(st.floats(1e-6, 1e9))
def test_shown_numbers_are_the_numbers(value):
    assert float(runs.format_number(value).replace(",", "")) == pytest.approx(value, rel=1e-3)


def ends(text):
    """The three numbers of a shown interval."""
    mean, low, high = text.replace(",", " ").replace("[", "").replace("]", "").split()
    return float(mean), float(low), float(high)


@given(st.floats(-900, 900), st.floats(1e-6, 90))
def test_a_shown_interval_is_the_interval_to_a_twentieth_of_its_length_or_four_digits(low, length):
    interval = base.Interval(low + length / 2, low, low + length)
    shown = ends(runs.format_interval(interval))
    assert shown == pytest.approx(interval, abs=max(length / 19, max(map(abs, interval)) / 1900))


@pytest.mark.parametrize(
    ("interval", "unit", "text"),
    [
        ((0.594, 0.5821, 0.6059), "%", "59.4 [58.2, 60.6] %"),  # a share
        ((0.059, 0.047, 0.072), "% points", "5.9 [4.7, 7.2] points"),  # a difference between two shares
        ((5.9, 4.7, 7.2), "points", "5.9 [4.7, 7.2] points"),  # the same, recorded in hundredths
        ((1736.4, 1507.2, 1965.1), "euros a day", "1,736 [1,507, 1,965] euros a day"),
        ((-0.02500001, -0.02500038, -0.02499963), "% points", "-2.500 [-2.500, -2.500] points"),
        ((0.0, 0.0, 0.0), "", "0 [0, 0]"),
        ((3, 3, 3), "sales", "3 [3, 3] sales"),
        ((7.276e-12, 7.276e-12, 7.276e-12), "euros", "7.276e-12 [7.276e-12, 7.276e-12] euros"),
    ],
)
def test_a_reader_sees_a_number_with_its_unit(interval, unit, text):
    assert runs.format_interval(base.Interval(*interval), unit) == text


def test_a_name_that_ends_like_an_interval_and_is_none_stays():
    assert format_results({"n": 3, "n_low": 2}) == {"n": "3", "n_low": "2"}
