import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramarket import price, stack
from paramarket.base import stream
from paramarket.errors import ParameterError, ShapeError

CAUTIONS = [0.0, 0.5, 1.0, 1.96, 4.0]


def changes(better, worse, n=200):
    """So many examples that only the purchase gets right, so many that only the buyer's own model does."""
    return 100.0 * torch.tensor([[1.0] * better + [-1.0] * worse + [0.0] * (n - better - worse)])


def trades(given_changes, cost=40.0, cautions=CAUTIONS, sizes=(10, 100), worth=20.0, seed=0):
    return price.cautious_trades(
        given_changes, worth=worth, cost=cost, cautions=cautions, sizes=sizes, generator=stream(seed, "draws")
    )


mixed = given(st.integers(0, 60), st.integers(0, 60), st.floats(0, 200), st.integers(0, 100))


@mixed
def test_more_caution_never_trades_more_and_nobody_is_both_served_and_left_out(better, worse, cost, seed):
    found = trades(changes(better, worse), cost=cost, seed=seed)
    truth = 20.0 * (better - worse) / 2
    assert (found.traded.diff(dim=1) <= 0).all()
    assert (found.regretted <= found.traded).all()
    if truth > cost:
        assert torch.allclose(found.missed + found.traded, torch.ones(()).double())
    else:
        assert (found.missed == 0).all()


@mixed
def test_what_both_gain_is_the_truth_less_the_cost_where_they_trade(better, worse, cost, seed):
    found = trades(changes(better, worse), cost=cost, seed=seed)
    truth = 20.0 * (better - worse) / 2
    assert torch.allclose(found.together, found.buyer + found.seller)
    assert torch.allclose(found.together, found.traded * (truth - cost))
    assert (found.seller >= 0).all()
    if truth < cost:  # whoever trades then pays the cost or more
        assert torch.equal(found.regretted, found.traded)


@pytest.mark.parametrize(("better", "trade"), [(60, 1.0), (10, 0.0)])
def test_many_examples_leave_nothing_to_regret_or_to_miss_where_a_gain_is_clear_of_the_cost(better, trade):
    """Truths of 600 and 100 euros, a cost of 300."""
    found = trades(changes(better, 0), cost=300.0, cautions=[0.0], sizes=[2000])
    assert found.traded.item() == trade
    assert found.regretted.item() == found.missed.item() == 0


def test_with_enough_examples_they_trade_at_the_mean_of_truth_and_cost():
    found = trades(changes(60, 0), cost=300.0, cautions=[0.0], sizes=[5000])
    assert found.buyer.item() == pytest.approx(150, abs=1)
    assert found.seller.item() == pytest.approx(150, abs=1)


def test_caution_saves_bad_purchases_and_loses_good_ones():
    bad = trades(changes(10, 10), sizes=[50])
    good = trades(changes(14, 6), sizes=[50])
    assert (bad.regretted.diff(dim=1) < 0).all()
    assert (good.missed.diff(dim=1) > 0).all()


def test_the_lower_end_is_mean_less_standard_errors_of_the_examples_drawn():
    """By hand, draw by draw, with torch's own standard deviation."""
    world = changes(30, 10, n=60)
    weights = inspect.unwrap(price.theory.resampled)(60, 20, stream(0, "draws"))
    counts = (weights * 20).round().long()
    drawn = torch.stack([world[0].double().repeat_interleave(count) for count in counts])
    estimate = drawn.mean(dim=1) - 1.96 * drawn.std(dim=1) / 20**0.5
    bought = 20 * estimate.clamp(min=0) >= 40
    found = trades(world, cautions=[1.96], sizes=[20])
    assert found.traded.item() == pytest.approx(bought.double().mean().item(), abs=1e-12)
    assert 0.1 < found.traded.item() < 0.95


@pytest.mark.parametrize("cost", [0.0, 40.0])
@pytest.mark.parametrize("change", [0.0, -100.0])
def test_what_changes_nothing_or_harms_is_never_sold(change, cost):
    found = trades(torch.full((2, 30), change), cost=cost)
    for outcome in found[2:]:
        assert (outcome == 0).all()


def test_a_sure_gain_is_bought_with_any_caution():
    found = trades(torch.full((1, 30), 100.0), cost=2000.0)
    assert (found.traded == 1).all()
    assert (found.regretted == 0).all()


def test_the_table_has_a_row_a_purchase_caution_and_number_of_examples():
    found = trades(torch.cat([changes(30, 10), changes(10, 10), changes(5, 20)]), cautions=[0.0, 1.96])
    table = found.table(stack.grid(buyer=["A", "B", "C"]))
    outcomes = ["traded", "regretted", "missed", "buyer_surplus", "seller_surplus", "together"]
    assert list(table) == ["buyer", "caution", "examples", *outcomes]
    for row in table.itertuples():
        place = "ABC".index(row.buyer), [0.0, 1.96].index(row.caution), [10, 100].index(row.examples)
        for name in outcomes:
            assert getattr(row, name) == getattr(found, name.removesuffix("_surplus"))[place].item()
    with pytest.raises(ShapeError, match="expected"):
        found.table(stack.grid(buyer=["A", "B"]))


def test_settings_that_are_none_are_refused():
    for given_settings, says in [
        ({"cautions": 1.0}, r"cautions = 1\.0, expected a list"),
        ({"sizes": 5}, "sizes = 5, expected a list"),
        ({"sizes": [1]}, "size = 1, expected a whole number ≥ 2"),
        ({"cautions": [-1.0]}, r"cautions = \[-1\.0\]"),
        ({"cautions": [float("nan")]}, "numbers of standard errors"),
        ({"worth": -1.0}, r"worth = -1\.0"),
        ({"cost": -1.0}, "cost = -1"),
    ]:
        settings = {"worth": 1.0, "cost": 1.0, "cautions": [0.0], "sizes": [5], **given_settings}
        with pytest.raises(ParameterError, match=says):
            inspect.unwrap(price.cautious_trades)(changes(5, 5), **settings, generator=stream(0, "draws"))
