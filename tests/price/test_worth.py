import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramarket import price
from paramarket.base import stream
from paramarket.errors import ParameterError, ShapeError


def losses(purchases, mixtures, n, seed=0):
    return torch.randn(purchases, mixtures, n, generator=stream(seed, "losses")).abs()


def test_the_best_of_ten_normals_lies_1_5388_above_their_mean():
    """Exact values of the expected largest of n standard normals."""
    exact = {1: 0.0, 2: np.pi**-0.5, 3: 1.5 * np.pi**-0.5, 10: 1.538753}
    for count, top in exact.items():
        assert price.expected_top(count) == pytest.approx(top, abs=1e-6)
    with pytest.raises(ParameterError, match="count = 0"):
        price.expected_top(0)


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
        assert price.labels(curve, extra, curve[:, k]).tolist() == pytest.approx([extra[k]] * buyers, abs=1e-3)
    assert price.labels(curve, extra, torch.full((buyers,), 0.1)).tolist() == [0.0] * buyers
    assert price.labels(curve, extra, torch.full((buyers,), 1.0)).tolist() == [extra[-1]] * buyers


def test_a_dip_in_a_learning_curve_counts_as_level():
    assert price.labels(
        torch.tensor([[0.5, 0.7, 0.6, 0.9]]), [0, 10, 20, 30], torch.tensor([0.65])
    ).item() == pytest.approx(7.5)
    with pytest.raises(ShapeError, match="a curve of 2 points"):
        price.labels(torch.rand(1, 2), [0, 1, 2], torch.rand(1))
    with pytest.raises(ShapeError, match="ascending"):
        price.labels(torch.rand(1, 2), [5, 1], torch.rand(1))


def test_refunds_fall_with_smaller_promises_and_with_more_checks():
    change = 100 * torch.randint(-1, 2, (3, 500), generator=stream(0, "change")).float() + 20
    few, many = (
        price.refund_rate(change, torch.full((3,), 20.0), [0.0, 0.5, 1.0], n, stream(0, "n")) for n in (10, 250)
    )
    assert few.shape == (3, 3)
    for rate in (few, many):
        assert (rate.diff(dim=1) > 0).all()
    assert (many[:, 0] < few[:, 0]).all()
    sure = price.refund_rate(torch.full((1, 50), -100.0), torch.tensor([5.0]), [0.0, 1.0], 5, stream(0, "n"))
    assert sure.tolist() == [[1.0, 1.0]]


@given(st.floats(1, 1000), st.floats(-1000, 0), st.floats(0, 500), st.floats(0, 1))
def test_lemons_end_a_market_without_a_warranty_once_the_average_does_not_pay_the_honest(good, bad, cost, kept):
    shares = [0.0, 0.25, 0.5, 1.0]
    tensors = (torch.tensor([x], dtype=torch.float64) for x in (good, bad))
    blind, insured = price.lemons(*tensors, cost, shares, torch.tensor([kept], dtype=torch.float64))
    assert blind[0, 0].item() == pytest.approx(max(good - cost, 0))
    assert (blind.diff(dim=1) <= 1e-9).all()
    for k, share in enumerate(shares):
        assert (blind[0, k] > 0) == ((1 - share) * good + share * bad > cost)
        assert insured[0, k].item() == pytest.approx((1 - share) * max(kept * good - cost, 0))


def test_the_parties_share_all_that_there_is():
    value, cost = np.random.default_rng(0).random((2, 5, 2000))
    for paid, received in ((price.nash_price(value, cost).price, None), (cost + 0.5, np.maximum(value - 0.5, 0))):
        parts = price.parties(value, cost, paid, received)
        assert list(parts) == ["buyer", "seller", "broker", "lost"]
        assert all((part >= -1e-12).all() for part in parts.values())
        assert torch.allclose(sum(parts.values()), torch.as_tensor(np.maximum(value - cost, 0).mean(axis=1)))
    assert price.parties(value, cost, price.nash_price(value, cost).price)["lost"].abs().max() < 1e-12


def test_regressions_have_the_errors_that_theory_says_and_mix_best_at_w():
    """Research, section 1.3: w* = V_b / (V_b + V_s), MSE* = V_b V_s / (V_b + V_s), for independent estimates."""
    found = price.regressions(40, 60, 8, 20_000, stream(0, "regressions"))
    v_b, v_s = found.mse_buyer, found.mse_seller
    assert found.buyer.square().sum(dim=1).mean().item() == pytest.approx(v_b, rel=0.03)
    assert found.seller.square().sum(dim=1).mean().item() == pytest.approx(v_s, rel=0.03)
    grid = torch.linspace(0, 1, 101)[:, None, None]
    error = ((1 - grid) * found.buyer + grid * found.seller).square().sum(dim=-1).mean(dim=1)
    assert grid.flatten()[error.argmin()].item() == pytest.approx(v_b / (v_b + v_s), abs=0.03)
    assert error.min().item() == pytest.approx(v_b * v_s / (v_b + v_s), rel=0.03)
    with pytest.raises(ParameterError, match="own = 5"):
        price.regressions(5, 60, 8, 10, stream(0, "regressions"))
