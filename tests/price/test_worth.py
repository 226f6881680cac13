import inspect

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramarket import price, stack
from paramarket.base import stream
from paramarket.errors import ParameterError, ShapeError


def losses(purchases, mixtures, n, seed=0):
    return torch.randn(purchases, mixtures, n, generator=stream(seed, "losses")).abs()


def test_equal_and_independent_mixtures_suffer_the_full_curse():
    """Ten mixtures of independent noise, equally good and compared with a first one that is never chosen."""
    noise = torch.randn(1, 11, 4000, generator=stream(0, "noise"))
    noise -= noise.mean(dim=-1, keepdim=True)
    noise[:, 0] = 1.0  # no purchase: worse by 1 on every example, without noise
    found = price.winners_curse(noise, [100], stream(0, "draws"))
    assert found.independent.item() == pytest.approx(1.5388 / 10, rel=0.02)
    assert found.measured.item() == pytest.approx(found.independent.item(), rel=0.06)
    assert found.gaussian.item() == pytest.approx(found.independent.item(), rel=0.06)


def test_mixtures_that_differ_in_nothing_suffer_no_curse():
    same = losses(2, 1, 300).expand(-1, 6, -1)
    found = price.winners_curse(same, [50], stream(0, "draws"))
    assert found.measured.abs().max() < 1e-6
    assert found.gaussian.abs().max() < 0.01  # the ridge alone
    assert (found.independent > 0.05).all()


def test_more_examples_flatter_less():
    found = price.winners_curse(losses(3, 8, 400), [10, 40, 160], stream(0, "draws"))
    for each in found:
        assert (each.diff(dim=1) < 0).all()


@given(st.integers(1, 4), st.integers(2, 6))
def test_labels_read_a_curve_backwards(buyers, points):
    extra = [100.0 * k for k in range(points)]
    curve = torch.linspace(0.5, 0.9, points).expand(buyers, -1)
    for k in range(points):
        assert price.labels_worth(curve, extra, curve[:, k]).tolist() == pytest.approx([extra[k]] * buyers, abs=1e-3)
    assert price.labels_worth(curve, extra, torch.full((buyers,), 0.1)).tolist() == [0.0] * buyers
    assert price.labels_worth(curve, extra, torch.full((buyers,), 1.0)).tolist() == [extra[-1]] * buyers


def test_a_dip_in_a_learning_curve_counts_as_level():
    assert price.labels_worth(
        torch.tensor([[0.5, 0.7, 0.6, 0.9]]), [0, 10, 20, 30], torch.tensor([0.65])
    ).item() == pytest.approx(7.5)
    with pytest.raises(ShapeError, match="a curve of 2 points over 3 numbers of labels"):
        price.labels_worth(torch.rand(1, 2), [0, 1, 2], torch.rand(1))
    with pytest.raises(ParameterError, match=r"extra = \[5, 1\]: expected ascending"):
        price.labels_worth(torch.rand(1, 2), [5, 1], torch.rand(1))


LEVEL = torch.tensor([0.5, 0.6, 0.6, 0.6, 0.7])


@pytest.mark.parametrize(
    ("reached", "labels"),
    [(0.6, 10), (0.65, 35), (0.55, 5), (0.4, 0), (0.5, 0), (0.7, 40), (0.9, 40), (0.6 + 1e-8, 10), (0.6 - 1e-8, 10)],
)
def test_where_a_learning_curve_is_level_the_fewest_labels_count(reached, labels):
    found = price.labels_worth(LEVEL.double().unsqueeze(0), [0, 10, 20, 30, 40], torch.tensor([reached]).double())
    assert found.item() == pytest.approx(labels, abs=1e-3)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=8), st.integers(0, 5))
def test_no_fewer_labels_would_have_reached_as_much(steps, goal):
    """Whatever the curve, dips and levels included: it is read off on the way to the first point as high, not later."""
    curve, extra = torch.tensor([steps]) / 5, [10.0 * k for k in range(len(steps))]
    found = price.labels_worth(curve, extra, torch.tensor([goal]) / 5).item()
    enough = [labels for labels, height in zip(extra, steps, strict=True) if height >= goal]
    best = enough[0] if enough else extra[-1]
    assert best - 10 < found <= best + 1e-4 or found == best == 0
    if goal in steps and goal == steps[int(best / 10)]:
        assert found == best


@given(st.floats(1, 1000), st.floats(-1000, 0), st.floats(0, 500), st.floats(0, 1))
def test_lemons_end_a_market_without_a_warranty_once_the_average_does_not_pay_the_honest(good, bad, cost, kept):
    shares = [0.0, 0.25, 0.5, 1.0]
    tensors = (torch.tensor([x], dtype=torch.float64) for x in (good, bad))
    kept_sales = torch.tensor([kept], dtype=torch.float64)
    blind, insured = price.lemon_market(*tensors, cost=cost, shares=shares, kept=kept_sales)
    assert blind[0, 0].item() == pytest.approx(max(good - cost, 0))
    assert (blind.diff(dim=1) <= 1e-9).all()
    for k, share in enumerate(shares):
        assert (blind[0, k] > 0) == ((1 - share) * good + share * bad > cost)
        assert insured[0, k].item() == pytest.approx((1 - share) * max(kept * good - cost, 0))


@pytest.mark.parametrize("name", ["bad", "kept"])
def test_one_number_does_not_serve_several_purchases(name):
    given = {name: torch.ones(3) for name in ("good", "bad", "kept")} | {name: torch.ones(1)}
    with pytest.raises(ShapeError, match=rf"{name} has shape \(1,\), good \(3,\): expected one shape"):
        inspect.unwrap(price.lemon_market)(**given, cost=1.0, shares=[0.5])


def test_every_curve_is_read_for_its_own_buyer():
    with pytest.raises(ShapeError, match=r"3 curves, reached of shape \(1,\)"):
        inspect.unwrap(price.labels_worth)(torch.ones(3, 2), [0, 1], torch.ones(1))


def test_a_number_is_no_list_of_settings():
    one, three = torch.ones(1), torch.rand(1, 3, 5)
    with pytest.raises(ParameterError, match=r"shares = 0\.5, expected a list"):
        inspect.unwrap(price.lemon_market)(one, one, cost=1.0, shares=0.5, kept=one)
    with pytest.raises(ParameterError, match="extra = 10, expected a list"):
        inspect.unwrap(price.labels_worth)(torch.ones(1, 2), 10, one)
    with pytest.raises(ParameterError, match="sizes = 10, expected a list"):
        inspect.unwrap(price.winners_curse)(three, 10, stream(0, "draws"))


def test_the_parties_share_all_that_there_is():
    value, cost = np.random.default_rng(0).random((2, 5, 2000))
    for paid, received in ((price.nash_price(value, cost).price, None), (cost + 0.5, np.maximum(value - 0.5, 0))):
        parts = price.surplus_parts(value, cost, paid, received)
        assert parts._fields == ("buyer", "seller", "broker", "lost")
        assert all((part >= -1e-12).all() for part in parts)
        assert torch.allclose(sum(parts), torch.as_tensor(np.maximum(value - cost, 0).mean(axis=1)))
    assert price.surplus_parts(value, cost, price.nash_price(value, cost).price).lost.abs().max() < 1e-12


def test_the_table_of_a_curse_has_a_row_a_purchase_size_and_estimate():
    curse = price.Curse(*torch.rand(3, 2, 2, generator=stream(0, "curse")))
    table = curse.table(stack.grid(buyer=["A", "B"]), sizes=[25, 100])
    assert list(table) == ["buyer", "examples", "estimate", "excess_nats"]
    assert len(table) == 2 * 2 * 3
    for row in table.itertuples():
        wanted = getattr(curse, row.estimate)["AB".index(row.buyer), [25, 100].index(row.examples)]
        assert row.excess_nats == wanted.item()
    with pytest.raises(ShapeError, match=r"'excess_nats' has shape \(2, 2, 3\), expected \(2, 1, 3\)"):
        curse.table(stack.grid(buyer=["A", "B"]), sizes=[25])


def test_the_table_of_lemons_has_a_row_a_meeting_share_and_kind_of_market():
    market = price.LemonMarket(*torch.rand(2, 2, 3, generator=stream(0, "lemons")))
    shares = [0.0, 0.1, 0.5]
    table = market.table(stack.grid(buyer=["A", "B"]), shares)
    assert list(table) == ["buyer", "lemons", "warranty", "surplus"]
    assert len(table) == 2 * 3 * 2
    for row in table.itertuples():
        surplus = market.warranty if row.warranty else market.no_warranty
        assert row.surplus == surplus["AB".index(row.buyer), shares.index(row.lemons)].item()
    with pytest.raises(ShapeError, match=r"'surplus' has shape \(2, 3, 2\), expected \(3, 3, 2\)"):
        market.table(stack.grid(buyer=["A", "B", "C"]), shares)


def test_the_table_of_the_surplus_has_a_row_a_group_and_part_and_nothing_is_left_out():
    value, cost = torch.rand(2, 4, 50, dtype=torch.float64, generator=stream(0, "surplus")).numpy()
    parts = price.surplus_parts(value, cost, price.nash_price(value, cost).price)
    table = parts.table(stack.grid(rule="Nash", seed=range(4)))
    assert table.part.tolist() == ["buyer", "seller", "broker", "lost"] * 4
    assert table[table.part == "seller"].surplus.tolist() == parts.seller.tolist()
    there = np.maximum(value - cost, 0).mean(axis=1)
    assert table.groupby("seed").surplus.sum().to_numpy() == pytest.approx(there)
    with pytest.raises(ShapeError, match=r"'surplus' has shape \(4, 4\), expected \(3, 4\)"):
        parts.table(stack.grid(seed=range(3)))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_of_lemons_that_is_none_is_refused(share):
    one = torch.ones(2)
    with pytest.raises(ParameterError, match="expected numbers between 0 and 1"):
        price.lemon_market(one, one, cost=0.5, shares=[0.5, share], kept=one)
