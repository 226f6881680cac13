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
