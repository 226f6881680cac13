"""What a purchase returns, the prices that suit both, and the contract that would be signed."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from paramarket import contract, decide
from paramarket.base import Interval
from paramarket.decide import Business
from paramarket.errors import ParameterError, ShapeError

CENT = 0.01
amounts = st.floats(0, 1e6)
gains = st.floats(-5, 20)
shares = st.floats(0, 1)


@st.composite
def businesses(draw):
    return Business(
        value_per_point=draw(st.floats(0.1, 200)),
        units_per_year=draw(st.floats(1e4, 1e7)),
        horizon_years=draw(st.floats(0.25, 5)),
        hour_rate=draw(st.floats(0, 200)),
        label_cost=draw(st.floats(0, 20)),
        integration_hours=draw(st.floats(0, 400)),
        own_hours=draw(st.floats(0, 400)),
        delay_weeks=draw(st.floats(0, 60)),
        fee=draw(st.floats(0, 0.5)),
        running_cost=draw(st.floats(0, 1_000)),
    )


@st.composite
def purchases(draw):
    """What `roi` takes, as keywords."""
    gain = draw(gains)
    half = draw(st.floats(0, 3))
    return {
        "gain_points": Interval(gain, gain - half, gain + half),
        "business": draw(businesses()),
        "price": draw(amounts),
        "labels": draw(st.integers(0, 5_000)),
        "alone_points": draw(gains),
        "alone_labels": draw(st.integers(0, 20_000)),
        "extra_networks": draw(st.integers(0, 2)),
        "minutes": draw(st.floats(0, 600)),
    }


def left_by_itself(purchase):
    """What the purchase leaves, compared with nothing, by the definition."""
    b = purchase["business"]
    brought = purchase["gain_points"].mean * b.value_per_point * b.units_per_year / 1_000 * b.horizon_years
    hours = b.integration_hours + purchase["minutes"] / 60
    running = purchase["extra_networks"] * b.running_cost * b.units_per_year * b.horizon_years / 1e6
    return brought - purchase["price"] * (1 + b.fee) - hours * b.hour_rate - purchase["labels"] * b.label_cost - running


def left_by_labels(purchase):
    """What labels of one's own leave, compared with nothing: they pay from the delay on."""
    b = purchase["business"]
    years = b.horizon_years - b.delay_weeks / 52
    brought = purchase["alone_points"] * b.value_per_point * b.units_per_year / 1_000 * years
    return brought - purchase["alone_labels"] * b.label_cost - b.own_hours * b.hour_rate


@given(purchases())
def test_net_is_what_the_purchase_leaves_beyond_the_best_that_could_be_done_alone(purchase):
    found = decide.roi(**purchase)
    best_alone = max(0.0, left_by_labels(purchase))
    assert found.net.mean == pytest.approx(left_by_itself(purchase) - best_alone, rel=1e-9, abs=CENT)
    if abs(left_by_labels(purchase)) > CENT:
        assert found.alternative == ("labels" if best_alone > 0 else "nothing")


@given(purchases())
def test_the_table_sums_to_net_and_costs_are_below_zero(purchase):
    found = decide.roi(**purchase)
    table = found.table()
    assert table.amount.sum() == pytest.approx(found.net.mean, abs=CENT)
    costs = table[table.kind == "cost"]
    assert (costs.amount <= 0).all()
    assert len(costs) == 6
    assert list(table.kind.unique()) == ["benefit", "cost"]


@given(purchases())
def test_where_labels_reach_the_same_gain_only_their_cost_and_the_time_are_saved(purchase):
    purchase["alone_points"] = purchase["gain_points"].mean
    items = decide.roi(**purchase).items
    if decide.roi(**purchase).alternative == "labels":
        b = purchase["business"]
        assert items["performance not reachable alone"] == 0
        saved = purchase["alone_labels"] * b.label_cost + b.own_hours * b.hour_rate
        assert items["labels and hours saved"] == pytest.approx(saved)
        a_year = purchase["alone_points"] * b.value_per_point * b.units_per_year / 1_000
        assert items["earlier start"] == pytest.approx(a_year * b.delay_weeks / 52)
    else:
        assert items["labels and hours saved"] == items["earlier start"] == 0


def test_both_alternatives_occur():
    gain = Interval(3.0, 2.0, 4.0)
    same = {"business": Business(), "price": 0.0, "labels": 0, "alone_points": 3.0}
    assert decide.roi(gain, **same, alone_labels=1_000).alternative == "labels"
    assert decide.roi(gain, **same, alone_labels=1_000_000).alternative == "nothing"


@given(purchases())
def test_at_the_break_even_gain_net_is_zero(purchase):
    points = decide.roi(**purchase).break_even_points
    assume(abs(points) <= 100)
    at = {**purchase, "gain_points": Interval(points, points, points)}
    assert decide.roi(**at).net.mean == pytest.approx(0, abs=CENT)


@given(purchases())
def test_the_ends_of_net_are_those_of_the_gain(purchase):
    found = decide.roi(**purchase)
    for end, points in (("low", purchase["gain_points"].low), ("high", purchase["gain_points"].high)):
        at = {**purchase, "gain_points": Interval(points, points, points)}
        assert getattr(found.net, end) == pytest.approx(decide.roi(**at).net.mean, abs=CENT)


def changed(purchase, name, value):
    """The same purchase with another value of one input."""
    if name == "gain_points":
        return {**purchase, name: Interval(value, value, value)}
    if name in Business._fields:
        return {**purchase, "business": purchase["business"]._replace(**{name: value})}
    return {**purchase, name: value}


@given(purchases())
def test_with_the_flipped_input_net_is_zero(purchase):
    flip = decide.roi(**purchase).flip
    assume(flip is not None)
    assert decide.roi(**changed(purchase, flip.name, flip.at)).net.mean == pytest.approx(0, abs=CENT)
    now = {**purchase, **purchase["business"]._asdict(), "gain_points": purchase["gain_points"].mean}
    assert now[flip.name] == flip.now


@given(purchases())
def test_no_smaller_change_of_any_input_turns_the_answer(purchase):
    found = decide.roi(**purchase)
    widest = abs(math.log(found.flip.at / found.flip.now)) if found.flip else math.log(1_000)
    numbers = {**purchase["business"]._asdict(), "price": purchase["price"], "minutes": purchase["minutes"]}
    del numbers["currency"]
    numbers |= {"gain_points": purchase["gain_points"].mean, "alone_points": purchase["alone_points"]}
    assume(abs(found.net.mean) > 1)
    for name, now in numbers.items():
        for share in (-0.99, 0.99):
            value = now * math.exp(share * widest)
            if abs(value) <= (1 if name == "fee" else 100 if name.endswith("_points") else math.inf):
                net = decide.roi(**changed(purchase, name, max(value, 1 / 365) if "horizon" in name else value)).net
                assert net.mean * found.net.mean > -CENT, name


def test_what_does_not_turn_the_answer_has_no_flip():
    gain = Interval(-1.0, -2.0, 0.0)
    idle = Business(hour_rate=0.0, label_cost=0.0)
    assert decide.roi(gain, idle, price=0.0, labels=0).flip is None


@given(purchases())
def test_a_purchase_that_pays_is_paid_back_within_the_horizon(purchase):
    found = decide.roi(**purchase)
    months = 12 * purchase["business"].horizon_years
    assert found.payback_months >= 0
    if found.net.mean > CENT:
        assert found.payback_months <= months * (1 + 1e-9)
    if found.net.mean < -CENT:
        assert found.payback_months > months * (1 - 1e-9)


@given(purchases(), st.floats(0.5, 20))
def test_at_a_horizon_as_long_as_the_payback_net_is_zero(purchase, points):
    purchase |= {"alone_points": 0.0, "gain_points": Interval(points, points, points)}
    months = decide.roi(**purchase).payback_months
    if 0.1 < months < math.inf:
        shorter = purchase["business"]._replace(horizon_years=months / 12)
        net = decide.roi(**{**purchase, "business": shorter}).net.mean
        assert net == pytest.approx(0, abs=CENT)


def test_payback_by_hand():
    free = Business(hour_rate=0.0, label_cost=0.0, fee=0.0)
    gain = Interval(1.2, 1.0, 1.4)  # 5,000 a month
    found = decide.roi(gain, free, price=20_000.0, labels=0)
    assert found.payback_months == pytest.approx(4.0)
    assert decide.roi(Interval(0.0, -1.0, 1.0), free, price=1.0, labels=0).payback_months == math.inf
    assert decide.roi(gain, free, price=0.0, labels=0).payback_months == 0
    slow = free._replace(label_cost=0.5, delay_weeks=26.0)  # labels gain 5,000 a month, too, from the 7th on
    beside = {"labels": 0, "alone_points": 1.2, "alone_labels": 1_000}
    more = Interval(3.0, 2.0, 4.0)  # 12,500 a month
    assert decide.roi(more, slow, price=50_500.0, **beside).payback_months == pytest.approx(4.0)
    assert decide.roi(more, slow, price=83_000.0, **beside).payback_months == pytest.approx(7.0)
    assert decide.roi(gain, slow, price=20_500.0, **beside).payback_months == pytest.approx(4.0)
    assert decide.roi(gain, slow, price=31_000.0, **beside).payback_months == math.inf


@given(st.floats(-1e6, 1e6), amounts, st.floats(0, 0.5))
@example(value=100.004, cost=100.001, fee=0.0)  # no whole cent lies between
@example(value=100.0, cost=100.0, fee=0.0)
def test_a_price_lies_in_the_band_exactly_if_there_is_one(value, cost, fee):
    band = decide.price_band(value, cost, fee)
    assert band.low >= cost - 1e-6
    assert band.high * (1 + fee) <= value + 1e-6
    assert band.deal == (band.low <= band.high)
    assert math.isnan(band.price) != band.deal
    for paid in (band.low, band.high, band.price):
        assert not band.deal or paid == round(paid, 2)
    if band.deal:
        assert band.low <= band.price <= band.high
        assert band.price - band.low == pytest.approx(band.high - band.price, abs=CENT * 1.01)


@given(purchases())
def test_at_the_upper_end_of_the_band_nothing_is_left_to_the_buyer(purchase):
    net = decide.roi(**{**purchase, "price": 0.0}).net.mean
    band = decide.price_band(net, 0.0, purchase["business"].fee)
    assume(band.deal)
    assert decide.roi(**{**purchase, "price": band.high}).net.mean == pytest.approx(0, abs=2 * CENT)


values = st.floats(-1e6, 1e6)


@given(values, values, amounts, amounts)
def test_an_exchange_leaves_both_equally_better_off(value_a, value_b, cost_a, cost_b):
    found = decide.exchange(value_a, value_b, cost_a, cost_b)
    from_b_to_a = {"A": -found.payment, "B": found.payment, "": 0.0}[found.payer]
    gain_a = value_a * found.a_learns - cost_a * found.b_learns + from_b_to_a
    gain_b = value_b * found.b_learns - cost_b * found.a_learns - from_b_to_a
    assert gain_a == pytest.approx(found.gain, abs=CENT)
    assert gain_b == pytest.approx(found.gain, abs=CENT)
    assert found.payment >= 0
    assert found.payment == round(found.payment, 2)
    assert found.gain >= 0
    best = max(value_a - cost_b, 0) + max(value_b - cost_a, 0)
    assert 2 * found.gain == pytest.approx(best, abs=CENT)


@given(values, values, amounts, amounts)
def test_names_do_not_matter_in_an_exchange(value_a, value_b, cost_a, cost_b):
    found = decide.exchange(value_a, value_b, cost_a, cost_b)
    mirrored = decide.exchange(value_b, value_a, cost_b, cost_a)
    assert (found.a_learns, found.b_learns) == (mirrored.b_learns, mirrored.a_learns)
    assert found.payer == {"A": "B", "B": "A", "": ""}[mirrored.payer]
    assert found.payment == mirrored.payment


@given(st.floats(0, 1e6), amounts)
def test_where_one_alone_learns_it_pays_the_price_of_the_band(value, cost):
    assume(abs(value - cost) > 1)
    found = decide.exchange(value_a=value, value_b=0.0, cost_a=1.0, cost_b=cost)
    band = decide.price_band(value, cost)
    assert found.a_learns == band.deal
    if band.deal:
        assert found.payer == "A"
        assert found.payment == pytest.approx(band.price, abs=2 * CENT)


def answers(share, n, seed):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)) < share


def test_the_warranty_is_a_line_that_an_honest_seller_seldom_misses():
    before, after = answers(0.85, 2_000, 0), answers(0.95, 2_000, 1)
    gain = 100 * (after.double() - before.double()).mean().item()
    lines = decide.safeguards(before, after, size=2_000, seed=0)
    assert 0 < lines.warranty_points < gain
    assert 0.005 < lines.false_refund_rate < 0.06  # the low end of a 95 % interval: 2.5 %
    few = decide.safeguards(before, after, size=100, seed=0)
    assert few.false_refund_rate > lines.false_refund_rate
    error_rate = (~before).double().mean().item()
    assert error_rate < lines.rollback_error_rate < error_rate + 0.03


def test_nobody_warrants_a_loss_and_no_errors_are_no_promise():
    right = torch.ones(300, dtype=torch.bool)
    worse = answers(0.9, 300, 0)
    lines = decide.safeguards(right, worse, size=300, seed=0)
    assert lines.warranty_points == 0
    assert lines.false_refund_rate > 0.99
    assert 3 / 300 < lines.rollback_error_rate < 0.02  # at least what the rule of three says


def test_safeguards_refuse_what_does_not_fit():
    right = torch.ones(5, dtype=torch.bool)
    with pytest.raises(ShapeError, match=re.escape("(5,) and (4,)")):
        decide.safeguards(right, right[:4], size=5, seed=0)
    with pytest.raises(ParameterError, match="size = 0"):
        decide.safeguards(right, right, size=0, seed=0)


def signals(accuracy, n=2_000):
    """Labels, and two signals that are right with this chance, independently; two kinds of times."""
    labels = answers(0.5, n, 0)
    first = torch.where(answers(accuracy, n, 1), labels, ~labels)
    second = torch.where(answers(accuracy, n, 2), labels, ~labels)
    groups = answers(0.5, n, 3).int()
    return [each.numpy() for each in (labels, first, second, groups)]


def test_the_contract_is_the_one_of_the_measured_world():
    given = signals(0.8)
    found = decide.signed_contract(*given, reward=1.0, cost=2.0, seed=0, resamples=40)
    world = contract.measured_world(*given, samples=1, reward=1.0, cost=2.0)
    assert found.label == contract.judge(world).label
    assert 0 <= found.stability <= 1
    again = decide.signed_contract(*given, reward=1.0, cost=2.0, seed=0, resamples=40)
    assert again == found


def test_a_contract_that_is_dear_to_run_is_not_signed():
    dear = {"train": 1.0, "infer": 1.0, "full": 1.0}
    found = decide.signed_contract(*signals(0.8), reward=1.0, cost=2.0, seed=0, running_costs=dear, resamples=20)
    assert found == ("none", 1.0)


def test_more_examples_make_a_contract_more_stable():
    few, many = (
        decide.signed_contract(*signals(0.8, n), reward=1.0, cost=2.0, seed=0, resamples=60).stability
        for n in (40, 20_000)
    )
    assert few < many


def test_a_group_of_one_example_does_not_get_lost_in_a_resample():
    labels, first, second, groups = signals(0.8, 100)
    groups = (np.arange(100) == 0).astype(groups.dtype)
    found = decide.signed_contract(labels, first, second, groups, reward=1.0, cost=2.0, seed=0, resamples=20)
    assert found.stability <= 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("value_per_point", -1.0), ("fee", 1.5), ("horizon_years", 0.0), ("hour_rate", math.nan), ("label_cost", "1")],
)
def test_a_number_of_the_business_that_cannot_be_is_called_by_its_name(name, value):
    business = Business()._replace(**{name: value})
    with pytest.raises(ParameterError, match=f"{name} = "):
        decide.valuation(Interval(1.0, 0.0, 2.0), business)
    with pytest.raises(ParameterError, match=f"{name} = "):
        decide.roi(Interval(1.0, 0.0, 2.0), business, price=0.0, labels=0)


def test_a_price_below_zero_is_refused():
    with pytest.raises(ParameterError, match="price = -1"):
        decide.roi(Interval(1.0, 0.0, 2.0), Business(), price=-1.0, labels=0)
    with pytest.raises(ParameterError, match="cost = -1"):
        decide.price_band(1.0, -1.0)


def test_a_valuation_is_linear_in_the_gain():
    gain = Interval(np.array([1.0, 2.0]), np.array([0.0, 1.0]), np.array([2.0, 4.0]))
    worth = decide.valuation(gain, Business())
    assert worth.mean.tolist() == [50_000, 100_000]
    assert worth.low.tolist() == [0, 50_000]
    assert worth.high.tolist() == [100_000, 200_000]
