import inspect

import numpy as np
import pytest
import torch

from paramarket import price
from paramarket.base import stream
from paramarket.errors import ParameterError, ShapeError


def test_the_best_of_ten_normals_lies_1_5388_above_their_mean():
    """Exact values of the expected largest of n standard normals, and a table's (Harter 1961) for 100."""
    root = np.pi**-0.5
    exact = {
        1: 0.0,
        2: root,
        3: 1.5 * root,
        4: 3 * root * (0.5 + np.arcsin(1 / 3) / np.pi),
        10: 1.538753,
        100: 2.507594,
    }
    for count, top in exact.items():
        assert price.expected_maximum(count) == pytest.approx(top, abs=1e-6)
    with pytest.raises(ParameterError, match="count = 0"):
        price.expected_maximum(0)


def test_refunds_fall_with_smaller_promises_and_with_more_checks():
    change = 100 * torch.randint(-1, 2, (3, 500), generator=stream(0, "change")).float() + 20
    quoted, promises = torch.full((3,), 20.0), [0.0, 0.5, 1.0]
    few, many = (price.refund_rate(change, quoted, stream(0, "n"), promises=promises, size=n) for n in (10, 250))
    assert few.shape == (3, 3)
    for rate in (few, many):
        assert (rate.diff(dim=1) > 0).all()
    assert (many[:, 0] < few[:, 0]).all()
    harm, quoted = torch.full((1, 50), -100.0), torch.tensor([5.0])
    sure = price.refund_rate(harm, quoted, stream(0, "n"), promises=[0.0, 1.0], size=5)
    assert sure.tolist() == [[1.0, 1.0]]
    with pytest.raises(ParameterError, match="size = 0, expected one example or more"):
        price.refund_rate(harm, quoted, stream(0, "n"), promises=[0.0], size=0)


def test_a_quote_for_each_purchase_a_list_of_promises_and_whole_numbers():
    rate, changes = inspect.unwrap(price.refund_rate), torch.zeros(3, 20)
    with pytest.raises(ShapeError, match=r"3 purchases, quoted of shape \(1,\)"):
        rate(changes, torch.ones(1), stream(0, "n"), promises=[0.5], size=5)
    with pytest.raises(ParameterError, match=r"promises = 0\.5, expected a list"):
        rate(changes, torch.ones(3), stream(0, "n"), promises=0.5, size=5)
    with pytest.raises(ParameterError, match=r"size = 5\.0, expected a whole number"):
        inspect.unwrap(price.theory.resampled)(20, 5.0, stream(0, "n"))
    with pytest.raises(ParameterError, match=r"count = 2\.0, expected a whole number"):
        inspect.unwrap(price.expected_maximum)(2.0)


def test_regressions_have_the_errors_that_theory_says_and_mix_best_at_w():
    """Research, section 1.3: w* = V_b / (V_b + V_s), MSE* = V_b V_s / (V_b + V_s), for independent estimates."""
    found = price.regressions(
        stream(0, "regressions"), buyer_examples=40, seller_examples=60, features=8, repeats=20_000
    )
    v_b, v_s = found.mse_buyer, found.mse_seller
    assert found.buyer.square().sum(dim=1).mean().item() == pytest.approx(v_b, rel=0.03)
    assert found.seller.square().sum(dim=1).mean().item() == pytest.approx(v_s, rel=0.03)
    grid = torch.linspace(0, 1, 101)[:, None, None]
    error = ((1 - grid) * found.buyer + grid * found.seller).square().sum(dim=-1).mean(dim=1)
    assert grid.flatten()[error.argmin()].item() == pytest.approx(v_b / (v_b + v_s), abs=0.03)
    assert error.min().item() == pytest.approx(v_b * v_s / (v_b + v_s), rel=0.03)
    for few in ({"buyer_examples": 5, "seller_examples": 60}, {"buyer_examples": 60, "seller_examples": 5}):
        with pytest.raises(ParameterError, match=r"_examples = 5.*as many examples as features, 8"):
            price.regressions(stream(0, "regressions"), **few, features=8, repeats=10)


def regression_days(seed=0, **changed):
    settings = {"features": 5, "examples": 10, "rounds": 30, "lr": 0.3, "repeats": 2000}
    return price.regression_market(stream(seed, "days"), **settings | changed)


@pytest.mark.parametrize("changed", [{}, {"gap": 0.8}, {"features": 12, "examples": 4, "lr": 0.15}, {"gap": 2.0}])
def test_regressions_that_trade_err_on_average_as_theory_says(changed):
    """Within five standard errors of the mean over repeats, on every day."""
    found = regression_days(**changed)
    measured = found.errors[:2]
    standard_error = measured.std(dim=-1) / measured.shape[-1] ** 0.5
    assert ((measured.mean(dim=-1) - found.bound).abs() <= 5 * standard_error + 1e-12).all()


def test_one_day_is_a_step_of_least_squares_and_a_mean_or_the_best_of_eleven_shares():
    """By hand, model by model, with autograd and the same draws."""
    found = regression_days(rounds=1, repeats=3, gap=0.5)
    generator = stream(0, "days")
    normal = {"generator": generator, "dtype": torch.float64}
    directions = torch.nn.functional.normalize(torch.randn(2, 3, 5, **normal), dim=-1)
    optima = [directions[0], directions[0] + 0.5 * directions[1]]
    x, noise = torch.randn(2, 3, 10, 5, **normal), torch.randn(2, 3, 10, **normal)
    shares = torch.tensor([0, *torch.arange(0.05, 1, 0.1).tolist()], dtype=torch.float64)
    for repeat in range(3):
        learnt = []
        for agent in (0, 1):
            weights = torch.zeros(5, dtype=torch.float64, requires_grad=True)
            y = x[agent, repeat] @ optima[agent][repeat] + noise[agent, repeat]
            loss = (x[agent, repeat] @ weights - y).square().mean() / 2
            loss.backward()
            learnt.append(-0.3 * weights.grad)
        mixtures = torch.stack([(1 - w) * learnt[0] + w * learnt[1] for w in shares])
        errors = (mixtures - optima[0][repeat]).square().sum(dim=1)
        half = ((learnt[0] + learnt[1]) / 2 - optima[0][repeat]).square().sum()
        expected = [errors[0].item(), half.item(), errors.min().item()]
        assert found.errors[:, 1, repeat].tolist() == pytest.approx(expected, rel=1e-9)


def test_trade_halves_how_far_regressions_stay_from_their_optimum():
    """The floors are lr s² / (2 mu) and half of it where steps are small; and so are those of the formula."""
    found = regression_days(lr=0.05, rounds=200, repeats=400)
    alone, half = found.errors[:2, 150:].mean(dim=(1, 2))
    assert (half / alone).item() == pytest.approx(0.5, abs=0.03)
    alone, half = found.bound[:, -1]
    assert (half / alone).item() == pytest.approx(0.5, abs=0.01)
    assert alone.item() == pytest.approx(0.05 * 5 / (2 * 10), rel=0.06)


@pytest.mark.parametrize("gap", [0.0, 0.5, 3.0])
def test_a_purchase_of_the_best_share_never_takes_the_buyer_further_off(gap):
    """All ways see the same examples: after one day "best" is "alone" and a purchase."""
    found = regression_days(gap=gap)
    alone, _, best = found.errors
    assert (found.errors[:, 0] - 1).abs().max() < 1e-12
    assert (best[1] <= alone[1]).all()
    if gap == 0:
        assert (best[1:].mean(dim=1) < alone[1:].mean(dim=1)).all()


def test_where_the_two_want_different_things_the_mean_stays_a_quarter_of_the_gap_squared_away():
    found = regression_days(gap=2.0, lr=0.05, rounds=150, repeats=100)
    alone, half, best = found.errors[:, -1].mean(dim=1)
    assert half.item() == pytest.approx(1.0, rel=0.1)
    assert best < 1.1 * alone < half
    assert torch.equal(found.errors[0], regression_days(lr=0.05, rounds=150, repeats=100).errors[0])


def test_the_tables_of_regressions_have_a_row_a_way_and_day():
    found = regression_days(rounds=3, repeats=4)
    table, bound = found.table(), found.bound_table()
    assert list(table) == ["way", "day", "repeat", "squared_error"]
    assert list(bound) == ["way", "day", "squared_error"]
    assert (len(table), len(bound)) == (3 * 4 * 4, 2 * 4)
    means = table.groupby(["way", "day"]).squared_error.mean()
    for k, way in enumerate(["alone", "half", "best"]):
        assert means[way].to_numpy() == pytest.approx(found.errors[k].mean(dim=1).numpy())
    assert bound.query("way == 'half'").squared_error.tolist() == found.bound[1].tolist()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"lr": 0.0}, r"lr = 0\.0, expected more than 0 and less than 1\.25"),
        ({"lr": 1.25}, r"lr = 1\.25.* diverge"),
        ({"gap": -1.0}, r"gap = -1\.0"),
        ({"gap": float("nan")}, "gap = nan"),
        ({"rounds": 0}, "rounds = 0, expected a whole number ≥ 1"),
        ({"examples": 0}, "examples = 0"),
    ],
)
def test_regressions_that_cannot_be_run_are_refused(changed, says):
    with pytest.raises(ParameterError, match=says):
        regression_days(**changed)
