import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramarket import base, decide
from paramarket.errors import ParameterError, ShapeError

RUNS = 2000
BETS = 0.9 / 2.0 ** np.arange(8)
differences = st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=60)
errors = st.lists(st.booleans(), min_size=1, max_size=40)
# Shares that only the candidate gets right, and only the old model: many and few, even and one-sided
cases = pytest.mark.parametrize(
    ("better", "worse"),
    [
        (0.1, 0.05),
        (0.02, 0.02),
        *(pytest.param(*each, marks=pytest.mark.full) for each in [(0.1, 0.1), (0.5, 0.5), (0.9, 0.05), (0.1, 0.0)]),
    ],
)


def draw(better, worse, n, runs=RUNS, seed=0):
    chance = torch.rand(runs, n, generator=base.stream(seed, "differences"), dtype=torch.float64)
    return (chance < better).int() - (chance >= 1 - worse).int()


def draw_errors(rate, n, runs=RUNS, seed=0):
    return torch.rand(runs, n, generator=base.stream(seed, "errors")) < rate


def divergence(after, before):
    of_errors = after * math.log(after / before)
    return of_errors + (1 - after) * math.log((1 - after) / (1 - before))


# How many examples


@given(st.floats(0, 0.5), st.floats(0.001, 0.5), st.floats(0.005, 0.2))
def test_so_many_examples_are_precise_enough_and_one_less_is_not(better, worse, precision):
    variance = better + worse - (better - worse) ** 2
    n = decide.pilot_examples(better, worse, precision)
    half_width = 1.959964 * math.sqrt(variance / n)
    assert half_width <= precision * (1 + 1e-5)
    assert n == 1 or 1.959964 * math.sqrt(variance / (n - 1)) > precision * (1 - 1e-5)


def test_the_interval_of_so_many_examples_holds_as_often_as_stated():
    n = decide.pilot_examples(0.10, 0.05, precision=0.02)
    mean = draw(0.10, 0.05, n).double().mean(dim=1)
    assert ((mean - 0.05).abs() <= 0.02).double().mean().item() == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(
    ("better", "worse", "precision"), [(0, 0, 0.02), (0.6, 0.5, 0.02), (-0.1, 0.2, 0.02), (0.1, 0.1, 0)]
)
def test_impossible_plans_are_refused(better, worse, precision):
    with pytest.raises(ParameterError):
        decide.pilot_examples(better, worse, precision)


# The confidence sequence


@cases
def test_the_sequence_holds_at_all_looks_together(better, worse):
    low, high = decide.confidence_sequence(draw(better, worse, 60))
    missed = (low > better - worse) | (high < better - worse)
    assert missed.any(dim=1).double().mean() <= 0.05


def test_a_common_interval_looked_at_again_and_again_does_not_hold():
    drawn = draw(0.1, 0.05, 1000).double()
    n = torch.arange(1, 1001)
    mean = drawn.cumsum(dim=1) / n
    variance = drawn.square().cumsum(dim=1) / n - mean.square()
    missed = (mean - 0.05).abs() > 1.96 * (variance / n).sqrt()
    assert missed[:, -1].double().mean() < 0.07  # looked at once, it does
    assert missed[:, 49:].any(dim=1).double().mean() > 0.25


def capital(seen, sign, line):
    """Of a bettor who spreads the first stake over all bets on "the gain times the sign is above the line"."""
    stakes = np.full(len(BETS), 1 / len(BETS))
    for difference in seen:
        stakes = stakes * (1 - BETS + BETS * (1 + sign * difference) / (1 + line))
    return stakes.sum()


@given(differences, st.sampled_from([0.01, 0.05, 0.2]))
def test_at_an_end_of_the_interval_the_bettor_is_just_rich_enough(seen, alpha):
    ends = decide.confidence_sequence(torch.tensor(seen), alpha)
    low, high = ends.low[-1].item(), ends.high[-1].item()
    assert -1 <= low <= np.mean(seen) <= high <= 1
    for sign, end in ((1, low), (-1, -high)):
        if end > -1:
            assert capital(seen, sign, end) >= 2 / alpha * (1 - 1e-9)
            assert capital(seen, sign, end + 4e-6) < 2 / alpha


@given(differences)
def test_the_sequence_of_the_opposite_is_the_mirror_image(seen):
    here = decide.confidence_sequence(torch.tensor(seen))
    there = decide.confidence_sequence(-torch.tensor(seen))
    assert torch.equal(here.low, -there.high)
    assert torch.equal(here.high, -there.low)


@given(differences)
def test_the_order_of_examples_does_not_count(seen):
    here = decide.confidence_sequence(torch.tensor(seen))
    there = decide.confidence_sequence(torch.tensor(sorted(seen)))
    assert (here.low[-1], here.high[-1]) == (there.low[-1], there.high[-1])


def test_later_examples_do_not_change_earlier_intervals_and_runs_do_not_touch():
    drawn = draw(0.3, 0.2, 40, runs=3)
    together = decide.confidence_sequence(drawn)
    alone = decide.confidence_sequence(drawn[1, :25])
    assert torch.equal(together.low[1, :25], alone.low)
    assert torch.equal(together.high[1, :25], alone.high)


def test_other_differences_and_none_are_refused():
    with pytest.raises(ParameterError, match="-1, 0 and 1"):
        decide.confidence_sequence(torch.tensor([0, 2]))
    with pytest.raises(ShapeError):
        decide.pilot(torch.zeros(0, dtype=torch.int), go=0.0, no_go=0.02)
    with pytest.raises(ParameterError, match="alpha"):
        decide.confidence_sequence(torch.tensor([0, 1]), alpha=0)


# The pilot


@given(differences, st.floats(-0.6, 0.6), st.floats(-0.6, 0.6))
def test_the_pilot_stops_where_the_sequence_first_leaves_a_line(seen, go, no_go):
    seen = torch.tensor(seen)
    found = decide.pilot(seen, go, no_go, alpha=0.2)
    low, high = decide.confidence_sequence(seen, alpha=0.2)
    rounding = 1e-5
    before = slice(found.examples - 1)
    assert (low[before] <= go + rounding).all()
    assert (high[before] >= no_go - rounding).all()
    assert found.low == pytest.approx(low[found.examples - 1].item(), abs=rounding)
    assert found.high == pytest.approx(high[found.examples - 1].item(), abs=rounding)
    if found.decision == "go":
        assert found.low >= go - rounding
    elif found.decision == "stop":
        assert found.high <= no_go + rounding
    else:
        assert found.examples == len(seen)


@cases
def test_a_pilot_on_the_line_is_seldom_led_astray_however_long_it_goes_on(better, worse):
    gain = better - worse
    found = decide.pilot(draw(better, worse, 1500), go=gain, no_go=gain)
    assert (found.decision != "go on").mean() <= 0.05


def test_many_pilots_at_once_are_those_pilots_one_by_one():
    drawn = draw(0.3, 0.1, 80, runs=6)
    together = decide.pilot(drawn, go=0.0, no_go=0.1)
    for run in range(6):
        alone = decide.pilot(drawn[run], go=0.0, no_go=0.1)
        assert alone == tuple(column[run] for column in together)


def test_a_large_gain_goes_and_a_large_loss_stops():
    assert decide.pilot(torch.ones(50, dtype=torch.int), go=0.0, no_go=0.02).decision == "go"
    assert decide.pilot(-torch.ones(50, dtype=torch.int), go=0.0, no_go=0.02).decision == "stop"
    assert decide.pilot(torch.ones(1, dtype=torch.int), go=0.0, no_go=0.02).decision == "go on"


def test_lines_beyond_any_gain_are_refused():
    with pytest.raises(ParameterError, match="no_go"):
        decide.pilot(torch.tensor([0, 1]), go=0.0, no_go=2)


# The power of a pilot


@pytest.mark.parametrize(("better", "worse"), [(0.1, 0.04), (0.06, 0.06), (0.02, 0.06)])
def test_longer_pilots_decide_more_often_and_rightly(better, worse):
    power = decide.pilot_power(better, worse, go=0.0, no_go=0.03, sizes=[100, 400, 3000], seed=0, runs=500)
    assert power.examples.tolist() == [100, 400, 3000]
    assert power.right.is_monotonic_increasing
    assert power.mean_examples.is_monotonic_increasing
    assert (power.mean_examples <= power.examples).all()
    assert np.allclose(power.right + power.wrong + power.undecided, 1)
    assert (power.wrong <= 0.05).all()
    assert power.right.iloc[-1] > 0.9


def test_a_pilot_takes_no_longer_on_average_than_its_best_bet_alone():
    better, worse, alpha = 0.20, 0.10, 0.05
    power = decide.pilot_power(better, worse, go=0.0, no_go=-0.5, sizes=[2000], seed=0, alpha=alpha)
    same = 1 - better - worse
    growth = better * np.log(1 + BETS) + same * np.log(1) + worse * np.log(1 - BETS)
    needed = math.log(2 * len(BETS) / alpha) + np.log(1 + BETS)  # Wald's equation; the last step may lead beyond
    bound = (needed / growth)[growth > 0].min()
    assert power.undecided.item() == 0
    assert power.mean_examples.item() < bound


def test_power_is_drawn_from_its_seed_alone():
    first, same, other = (
        decide.pilot_power(0.1, 0.05, go=0.0, no_go=0.02, sizes=[300], seed=seed, runs=200) for seed in (0, 0, 1)
    )
    assert first.equals(same)
    assert not first.equals(other)


# The drift monitor


@given(errors, st.floats(0.05, 0.8), st.sampled_from([0.3, 0.5, 0.8]))
def test_the_alarm_is_that_of_a_bettor_who_starts_again_at_every_example(wrong, before, alpha):
    kept = 1 / np.sqrt(np.arange(len(wrong) + 1) + 1)
    stakes = np.zeros(len(BETS))
    alarm = -1
    for time, is_wrong in enumerate(wrong):
        factor = 1 - BETS + (BETS / before if is_wrong else 0)
        stakes = (stakes + kept[time] - kept[time + 1]) * factor
        if alarm < 0 and stakes.mean() + kept[time + 1] >= 1 / alpha:
            alarm = time
    assert decide.drift_alarm(torch.tensor(wrong), before, alpha).item() == alarm


@pytest.mark.parametrize("before", [0.02, 0.2, *(pytest.param(each, marks=pytest.mark.full) for each in (0.05, 0.5))])
@pytest.mark.parametrize("share", [1, pytest.param(0.8, marks=pytest.mark.full)])
def test_false_alarms_are_as_rare_as_stated(before, share):
    alarm = decide.drift_alarm(draw_errors(share * before, 1500), before)
    assert (alarm >= 0).double().mean() <= 0.05


@pytest.mark.parametrize(("before", "after"), [(0.05, 0.15), (0.05, 0.3), (0.1, 0.2), (0.2, 0.3)])
@pytest.mark.parametrize("onset", [300, pytest.param(0, marks=pytest.mark.full)])
def test_the_delay_lies_between_the_floor_and_what_the_best_stake_needs(before, after, onset):
    wrong = torch.cat([draw_errors(before, onset), draw_errors(after, 1200, seed=1)], dim=1)
    alarm = decide.drift_alarm(wrong, before)
    assert (alarm >= 0).all()
    delay = (alarm - onset + 1)[alarm >= onset].double().mean().item()
    assert delay > math.log(1 / 0.05) / divergence(after, before)

    at_error = np.log(1 - BETS + BETS / before)
    growth = after * at_error + (1 - after) * np.log(1 - BETS)
    stake = 1 / math.sqrt(onset + 1) - 1 / math.sqrt(onset + 2)
    needed = math.log(len(BETS) / 0.05 / stake) + at_error  # Wald's equation; the last step may lead beyond
    assert delay < (needed / growth)[growth > 0].min()


def test_a_monitor_that_has_long_seen_good_answers_is_not_deaf():
    late = torch.cat([draw_errors(0.05, 3000, runs=200), draw_errors(0.3, 200, runs=200, seed=1)], dim=1)
    assert (decide.drift_alarm(late, 0.05) >= 0).double().mean() > 0.99


def test_models_are_watched_apart():
    wrong = draw_errors(0.3, 100, runs=5)
    together = decide.drift_alarm(wrong, before=0.1)
    assert together.tolist() == [decide.drift_alarm(row, before=0.1).item() for row in wrong]


@pytest.mark.parametrize("before", [0, 1])
def test_a_rate_that_allows_no_bet_is_refused(before):
    with pytest.raises(ParameterError, match="before"):
        decide.drift_alarm(torch.tensor([True]), before)


def test_a_monitor_needs_examples():
    with pytest.raises(ShapeError):
        decide.drift_alarm(torch.zeros(0, dtype=torch.bool), 0.1)
