"""Distributions of any make, and peaks that a coarse search would miss."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from paramarket import price

close = pytest.approx
seeds = st.integers(0, 2**31)

NEW = {  # scipy's new distributions, and the old ones of the same law
    "normal": (stats.Normal(mu=1.0, sigma=0.2), stats.norm(1, 0.2)),
    "uniform": (stats.Uniform(a=0.0, b=1.0), stats.uniform()),
    "exponential": (stats.make_distribution(stats.expon)(), stats.expon()),
    "lognormal": (stats.exp(stats.Normal(mu=0.0, sigma=0.5)), stats.lognorm(0.5)),
    "shifted": (0.4 * stats.Normal() + 2, stats.norm(2, 0.4)),
    "truncated": (stats.truncate(stats.Normal(), lb=0.0, ub=np.inf), stats.halfnorm()),
    "a mixture of one": (stats.Mixture([stats.Normal(mu=1.0, sigma=0.2)]), stats.norm(1, 0.2)),
}


KINDS = [kind for kind in NEW if kind != "truncated"]
KINDS.append(pytest.param("truncated", marks=pytest.mark.full))  # scipy integrates each of its probabilities


@pytest.mark.parametrize("kind", KINDS)
def test_scipys_new_distributions_have_the_prices_of_the_old_ones(kind):
    new, old = NEW[kind]
    costs = np.array([0.0, 0.3])
    for found, expected in zip(price.posted_price(new, costs), price.posted_price(old, costs), strict=True):
        assert found == close(expected, abs=1e-6)
    for buyers, sellers in ((new, stats.uniform(0, 2)), (stats.uniform(0, 2), new)):
        others = [old if side is new else side for side in (buyers, sellers)]
        assert price.fixed_price(buyers, sellers) == close(price.fixed_price(*others), abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.uint8, np.int64, np.float32, np.longdouble])
def test_a_sample_of_any_type_has_one_price(dtype):
    sample = np.array([200, 100, 100, 3, 7, 255], dtype=dtype)
    assert price.posted_price(sample, 2.0) == price.posted_price(sample.astype(np.float64), 2.0)


def histogram(seed, bins, low=0.0, high=1.0):
    """Values in bins of random height: as many peaks as one likes."""
    heights = np.random.default_rng(seed).random(bins) ** 4
    return stats.rv_histogram((heights, np.linspace(low, high, bins + 1)), density=False)


@given(seeds, st.integers(2, 60), st.floats(0, 0.8))
def test_no_price_on_a_fine_grid_earns_more_however_many_peaks_there_are(seed, bins, cost):
    values = histogram(seed, bins)
    found = price.posted_price(values, cost)
    grid = np.union1d(np.linspace(0, 1, 20_001), np.linspace(0, 1, bins + 1))
    best = ((grid - cost) * values.sf(grid)).max()
    assert found.profit >= best * (1 - 1e-7) - 1e-15
    assert found.profit == close((found.price - cost) * values.sf(found.price))


@pytest.mark.parametrize("width", [1e-2, 1e-4, 1e-6])
def test_the_highest_of_narrow_peaks_far_apart_is_found(width):
    """Half of the buyers pay about 1, a quarter about 2, the others about 3.9: 3.9 / 4 beats 2 / 2, and loses to 1."""
    places, weights = [1.0, 2.0, 3.9, 4.1], [0.5, 0.25, 0.15, 0.1]
    values = stats.Mixture([stats.Normal(mu=mu, sigma=width) for mu in places], weights=weights)
    grid = (np.array(places)[:, None] + width * np.linspace(-8, 8, 4001)).ravel()
    for cost in (0.0, 0.9, 1.5, 3.0):
        found = price.posted_price(values, cost)
        best = ((grid - cost) * values.ccdf(grid)).max()
        assert found.profit >= best * (1 - 1e-9)
        assert found.profit == close(best, rel=1e-4)


def gains(buyers, sellers, grid):
    """The gain at every price of a fine grid, by the trapezoidal rule."""
    above, below = buyers.sf(grid), sellers.cdf(grid)
    steps = np.diff(grid)
    excess = np.append(np.cumsum((steps * (above[1:] + above[:-1]) / 2)[::-1])[::-1], 0)
    shortfall = np.append(0, np.cumsum(steps * (below[1:] + below[:-1]) / 2))
    return excess * below + shortfall * above


@given(seeds, st.integers(2, 40), st.integers(2, 40))
def test_no_fixed_price_on_a_fine_grid_gains_more_however_many_peaks_there_are(seed, bins, others):
    buyers, sellers = histogram(seed, bins, 0.1, 1.0), histogram(seed + 1, others, 0.0, 0.9)
    found = price.fixed_price(buyers, sellers)
    edges = np.union1d(np.linspace(0.1, 1, bins + 1), np.linspace(0, 0.9, others + 1))
    grid = np.union1d(np.linspace(0, 1, 20_001), edges)
    every = gains(buyers, sellers, grid)
    assert found.gain >= every.max() - 2e-7
    assert found.gain == close(np.interp(found.price, grid, every), abs=1e-6)
    assert found.trade_probability == close(buyers.sf(found.price) * sellers.cdf(found.price), abs=1e-12)


@pytest.mark.parametrize("buyers", [stats.lognorm(1), stats.gamma(2), stats.beta(0.3, 0.3), stats.t(3, loc=2)])
@pytest.mark.parametrize("sellers", [stats.norm(1, 0.5), stats.weibull_min(0.7), stats.beta(0.3, 0.3)])
def test_no_price_gains_more_between_smooth_distributions(buyers, sellers):
    found = price.fixed_price(buyers, sellers)
    sides = [(side.ppf(1e-12), side.isf(1e-12)) for side in (buyers, sellers)]
    low, high = min(each[0] for each in sides), max(each[1] for each in sides)
    middle = np.linspace(max(low, -5), min(high, 10), 60_001)
    grid = np.unique(np.concatenate([np.linspace(low, high, 60_001), middle]))
    assert found.gain >= gains(buyers, sellers, grid).max() - 1e-3  # the rule itself is no better near a singular end
