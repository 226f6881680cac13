import inspect
from fractions import Fraction
from itertools import permutations
from math import factorial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramarket import price
from paramarket.base import stream
from paramarket.errors import ParameterError, ShapeError

sellers_and_seed = given(st.integers(1, 6), st.integers(0, 1000))


def random_worth(sellers, seed, batch=()):
    return torch.randn(*batch, 2**sellers, dtype=torch.float64, generator=stream(seed, "worth"))


def average_over_orders(worth):
    """What each seller adds when it comes, on average over all orders, in the arithmetic of `worth` itself."""
    sellers = len(worth).bit_length() - 1
    total = [0 * worth[0]] * sellers
    for order in permutations(range(sellers)):
        present = 0
        for seller in order:
            joined = present | 1 << seller
            total[seller] += worth[joined] - worth[present]
            present = joined
    return [each / factorial(sellers) for each in total]


def test_three_sellers_in_exact_fractions():
    """One brings the left glove, two the right one, and only a pair is worth 1: 2/3, 1/6 and 1/6."""
    pairs = [Fraction(int(c & 1 > 0 and c & 6 > 0)) for c in range(8)]
    assert average_over_orders(pairs) == [Fraction(2, 3), Fraction(1, 6), Fraction(1, 6)]
    found = price.shapley_shares(torch.tensor([float(x) for x in pairs], dtype=torch.float64))
    assert found.tolist() == pytest.approx([2 / 3, 1 / 6, 1 / 6], abs=1e-15)


@given(st.integers(1, 5), st.integers(0, 1000))
def test_the_shares_are_averages_over_all_orders(sellers, seed):
    worth = random_worth(sellers, seed)
    assert price.shapley_shares(worth).tolist() == pytest.approx(average_over_orders(worth.tolist()), abs=1e-12)


@sellers_and_seed
def test_nothing_is_left_over(sellers, seed):
    worth = random_worth(sellers, seed, batch=(2, 3))
    shares = price.shapley_shares(worth)
    assert shares.shape == (2, 3, sellers)
    assert torch.allclose(shares.sum(dim=-1), worth[..., -1] - worth[..., 0])


@sellers_and_seed
def test_who_adds_nothing_gets_nothing_and_who_adds_always_the_same_gets_that(sellers, seed):
    worth = random_worth(sellers, seed)
    without_first = torch.arange(2**sellers) & ~1
    alone = price.shapley_shares(worth[without_first])
    assert alone[0].item() == pytest.approx(0, abs=1e-12)
    adds_three = worth[without_first] + 3.0 * (torch.arange(2**sellers) & 1)
    assert price.shapley_shares(adds_three)[0].item() == pytest.approx(3, abs=1e-12)


@given(st.integers(2, 6), st.integers(0, 1000))
def test_sellers_who_can_stand_in_for_each_other_get_alike(sellers, seed):
    """What is worth the same however the first two are exchanged, and the whole game with their names exchanged."""
    worth = random_worth(sellers, seed)
    coalition = torch.arange(2**sellers)
    exchanged = (coalition & ~3) | ((coalition & 1) << 1) | ((coalition & 2) >> 1)
    shares = price.shapley_shares((worth + worth[exchanged]) / 2)
    assert shares[0].item() == pytest.approx(shares[1].item(), abs=1e-12)
    renamed = price.shapley_shares(worth[exchanged])
    assert torch.allclose(renamed[[1, 0, *range(2, sellers)]], price.shapley_shares(worth))


@sellers_and_seed
def test_the_shares_of_two_markets_add_up(sellers, seed):
    one, other = random_worth(sellers, seed, batch=(2,))
    both = price.shapley_shares(one + 2 * other)
    assert torch.allclose(both, price.shapley_shares(one) + 2 * price.shapley_shares(other))


def test_small_numbers_beside_large_ones_are_summed_in_double():
    worth = torch.full((64,), 1000.0)
    worth[63] = 1000.5
    assert price.shapley_shares(worth).tolist() == pytest.approx([0.5 / 6] * 6, rel=1e-6)


def test_what_is_no_worth_of_every_coalition_is_refused():
    shares = inspect.unwrap(price.shapley_shares)
    for shape in ((0,), (1,), (3,), (2, 6), ()):
        with pytest.raises(ShapeError, match="one number for each coalition along the last axis"):
            shares(torch.zeros(shape))
    with pytest.raises(ParameterError, match=r"128 coalitions of 7 sellers: expected 6 sellers or fewer, since"):
        shares(torch.zeros(128))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ParameterError, match="not finite"):
            shares(torch.tensor([0.0, bad]))
