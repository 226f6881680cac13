import inspect
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramarket import base, errors, runs
from paramarket.runs.claims import count_verdicts, granted_by_chance, shown_number

claim = inspect.unwrap(runs.claim)  # as a notebook calls it: without the type checker of the tests


@pytest.mark.parametrize(
    ("low", "high", "bars", "verdict"),
    [
        (1.0, 2.0, {"above": 0.5}, "holds"),
        (1.0, 2.0, {"above": 1.5}, "undecided"),
        (1.0, 2.0, {"above": 2.5}, "fails"),
        (1.0, 2.0, {"below": 2.5}, "holds"),
        (1.0, 2.0, {"below": 1.5}, "undecided"),
        (1.0, 2.0, {"below": 0.5}, "fails"),
        (-1.0, 2.0, {"within": 2.5}, "same within 2.5"),
        (-1.0, 2.0, {"within": 2}, "undecided"),  # its end lies on the bar
        (-1.0, 2.0, {"within": 1.5}, "undecided"),
        (-1.0, 2.0, {"within": 0.5}, "undecided"),
        (1.0, 2.0, {"within": 0.5}, "fails"),
        (-2.0, -1.0, {"within": 0.5}, "fails"),
        (-0.01, 0.01, {"within": 0.02, "unit": "nats"}, "same within 0.02 nats"),
        (-0.01, 0.01, {"within": 0.02, "unit": "% points"}, "same within 2 points"),
    ],
)
def test_a_claim_is_judged_by_its_whole_interval(low, high, bars, verdict):
    results = {"gain": base.Interval((low + high) / 2, low, high)}
    assert runs.claim("text", "1 bars", "gain", results, **bars)["verdict"] == verdict


RESULTS = {"gain": base.Interval(0.5, 0.4, 0.6), "loss": 0.5, "texts": base.Interval("a", "b", "c")}
RESULTS |= {"lost": base.Interval(0.5, float("nan"), 0.6), "rows": base.Interval(*np.zeros((3, 2)))}


@pytest.mark.parametrize(
    ("key", "bars", "message"),
    [
        ("gain", {}, r"claim 'It gains': above = None, below = None, within = None; expected one of the three"),
        ("gain", {"above": 0, "below": 1}, r"above = 0, below = 1, within = None; expected one of the three"),
        ("gain", {"above": 0, "within": 1}, r"above = 0, below = None, within = 1; expected one of the three"),
        ("gain", {"above": float("nan")}, r"above is nan"),
        ("gain", {"below": float("inf")}, r"below is inf"),
        ("gain", {"within": float("inf")}, r"within is inf"),
        ("gain", {"within": 0}, r"within is 0, expected a number above 0"),
        ("gain", {"within": -0.1}, r"within is -0\.1, expected a number above 0"),
        ("gain", {"above": "0"}, r"above is of type str"),
        ("gian", {"above": 0}, r"claim 'It gains': unknown result 'gian'\. Did you mean 'gain'"),
        ("loss", {"above": 0}, r"claim 'It gains': loss is of type float, expected an Interval"),
        ("texts", {"above": 0}, r"texts_low is of type str"),
        ("lost", {"above": 0}, r"lost_low is nan"),
        ("rows", {"above": 0}, r"rows_low is of type ndarray"),
    ],
)
def test_a_claim_without_one_bar_or_a_whole_interval_is_refused_by_name(key, bars, message):
    with pytest.raises(errors.ParameterError, match=message):
        claim("It gains", "2 bars", key, RESULTS, **bars)


intervals = st.tuples(st.floats(-1e3, 1e3), st.floats(0, 10))


@given(intervals, st.floats(-1e3, 1e3))
def test_a_claim_above_is_its_mirror_image_below(interval, bar):
    low, length = interval
    results = {"x": base.Interval(low, low, low + length), "mirrored": base.Interval(-low, -low - length, -low)}
    above = claim("x", "1", "x", results, above=bar)["verdict"]
    assert above == claim("x", "1", "mirrored", results, below=-bar)["verdict"]


@given(intervals, st.floats(1e-3, 1e3))
def test_what_is_the_same_within_a_margin_is_above_its_lower_end_and_below_its_upper_one(interval, margin):
    low, length = interval
    results = {"x": base.Interval(low, low, low + length)}
    above = claim("x", "1", "x", results, above=-margin)["verdict"]
    below = claim("x", "1", "x", results, below=margin)["verdict"]
    same = claim("x", "1", "x", results, within=margin)["verdict"]
    assert same.startswith("same within ") == (above == below == "holds")
    assert (same == "fails") == ("fails" in (above, below))


def test_a_claims_number_is_shown_with_its_interval_and_unit():
    each = claim("It gains", "2 bars", "gain", RESULTS, above=0, unit="%")
    assert shown_number(each, {"gain": 0.5, "gain_low": 0.4, "gain_high": 0.6}) == "50 [40, 60] %"


VERDICTS = ["holds", "fails", "undecided", "same within 0.02", "same within 2 points"]


@given(st.lists(st.sampled_from(VERDICTS)))
def test_every_verdict_is_counted_once(verdicts):
    told = count_verdicts([{"verdict": verdict} for verdict in verdicts])
    assert sum(map(int, re.findall(r"\d+", told))) == len(verdicts)


def test_verdicts_are_counted_in_words():
    one = [{"verdict": verdict} for verdict in VERDICTS[:4]]
    assert count_verdicts(one) == "1 holds · 1 fails · 1 undecided · 1 same within its margin"
    assert count_verdicts(one + one) == "2 hold · 2 fail · 2 undecided · 2 same within their margins"
    assert count_verdicts(one[:1]) == "1 holds"
    assert count_verdicts([]) == ""


def test_chance_grants_one_claim_in_forty():
    """Of a true value on the bar, one 95 % interval in forty lies wholly above it."""
    drawn = np.random.default_rng(0).normal(size=(4000, 5))
    verdicts = []
    for values in drawn:
        verdicts.append(claim("x", "1", "x", {"x": base.interval(values)}, above=0)["verdict"])
    assert verdicts.count("holds") == pytest.approx(0.025 * 4000, abs=40)  # four standard errors
    assert "each of these 120 claims lay exactly on its bar, chance alone would grant about 3.0" in granted_by_chance(
        120
    )
