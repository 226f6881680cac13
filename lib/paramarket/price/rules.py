"""What a purchase should cost: posted, bargained, auctioned; and the deal that comes of it, or does not.

Values, costs and prices are in one unit of money: floats, or numpy arrays that broadcast. Floats give floats.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import expit

from paramarket.errors import ParameterError

Numbers = float | int | np.ndarray


class Deal(NamedTuple):
    """What came of an offer. Where nothing was sold, all is 0; where it was given back, the seller is out of its cost.

    traded, refunded: whether it was sold for good, or sold and given back · paid: by the buyer · received: by the
    seller · buyer, seller, broker: what each gains. Where traded, the three add up to value - cost.
    """

    traded: bool | np.ndarray
    refunded: bool | np.ndarray
    paid: float | np.ndarray
    received: float | np.ndarray
    buyer: float | np.ndarray
    seller: float | np.ndarray
    broker: float | np.ndarray


def settle(
    value: Numbers,
    cost: Numbers,
    paid: Numbers,
    received: Numbers | None = None,
    *,
    agreed: bool | np.bool_ | np.ndarray = True,
    unit: float = 0.0,
    promised: Numbers | None = None,
    found: Numbers | None = None,
) -> Deal:
    """The deal at a price, the only maker of deals: it comes about where agreed and cost ≤ received ≤ paid ≤ value.

    value, cost: what the buyer and the seller believe, or report · paid, received: prices, one price if `received` is
    not given; NaN means that none was found · unit: the smallest money (.01 for cents), to which prices are rounded
    first · promised, found: gains, in any one unit; where less was found than promised, the money goes back and the
    seller has borne its cost for nothing (a guarantee, Akerlof 1970, section IV).
    """
    received = paid if received is None else received
    promised, found = (0.0, 0.0) if promised is found is None else (promised, found)
    value, cost, paid, received = _numbers(value=value, cost=cost, paid=paid, received=received)
    unit, agreed, promised, found = _numbers(unit=unit, agreed=agreed, promised=promised, found=found)
    per = 1 / np.where(unit > 0, unit, 1)  # divided by below: 57 * .01 is more than .57, 57 / 100 is not
    paid, received = (np.where(unit > 0, np.round(each * per) / per, each) for each in (paid, received))
    done = (agreed > 0) & (cost <= received) & (received <= paid) & (paid <= value)
    traded, refunded = done & (found >= promised), done & (found < promised)
    paid, received = np.where(traded, paid, 0), np.where(traded, received, 0)
    buyer, seller = np.where(traded, value, 0) - paid, received - np.where(done, cost, 0)
    return Deal(*map(_plain, (traded, refunded, paid, received, buyer, seller, paid - received)))


class Posted(NamedTuple):
    """A take-it-or-leave-it price, the profit expected at it, and the probability that the buyer takes it."""

    price: float | np.ndarray
    profit: float | np.ndarray
    sale_probability: float | np.ndarray


def posted_price(values: Any, cost: Numbers = 0.0) -> Posted:
    """The price p of one seller that maximises (p - cost) P(v ≥ p) (Myerson 1981: where p - (1 - F(p)) / f(p) = cost).

    values: a frozen continuous distribution of scipy.stats, or a sample [n]; a buyer with v = p buys. Of several prices
    with equal profit it is the lowest, which serves most buyers; if no value is above the cost, it is the cost, and the
    profit 0. Raises ParameterError if profit grows with the price without end.
    """
    (costs,) = _numbers(cost=cost)
    if _known(values):
        found = [_monopoly(values, each) for each in costs.flat]
    elif np.ndim(values) == 1 and np.size(values) and np.isfinite(values).all():
        found = [_empirical(np.sort(values), each) for each in costs.flat]
    else:
        raise ParameterError(f"values = {values!r}, expected a continuous distribution, or finite numbers [n], n ≥ 1.")
    return Posted(*map(_plain, np.array(found, dtype=np.float64).T.reshape(3, *costs.shape)))


def _empirical(sample: np.ndarray, cost: float) -> tuple[float, float, float]:
    chance = 1 - np.searchsorted(sample, sample) / len(sample)  # searchsorted counts the values below
    profit = (sample - cost) * chance
    best = np.argmax(profit >= profit.max() * (1 - 1e-12))  # a smaller difference is rounding
    return (sample[best], profit[best], chance[best]) if sample[-1] >= cost else (cost, 0.0, 0.0)


def _monopoly(values: Any, cost: float) -> tuple[float, float, float]:
    if (above := values.sf(cost)) == 0:
        return cost, 0.0, 0.0
    grid = values.isf(above * expit(np.linspace(-140, 40, 6001)))  # heavy tails need the quantile 1e-60
    best = _peak(lambda p: (p - cost) * values.sf(p), lambda p: values.sf(p) - (p - cost) * values.pdf(p), grid)
    return best, (best - cost) * values.sf(best), values.sf(best)


class Fixed(NamedTuple):
    """One price for everybody, the gain from trade expected at it, and the probability of a trade."""

    price: float
    gain: float
    trade_probability: float


def fixed_price(buyers: Any, sellers: Any) -> Fixed:
    """The one price p that maximises the gain E[(v - c) 1{c ≤ p ≤ v}]. Nobody can gain by lying about such a price.

    buyers, sellers: independent frozen continuous distributions of scipy.stats, with finite means. If they are equal, p
    is the mean and reaches half of the first best (Kang and Vondrák 2019). Of equally good prices it is the lowest; if
    nobody can trade, the lowest cost.
    """
    if not (_known(buyers) and _known(sellers) and np.isfinite([buyers.mean(), sellers.mean()]).all()):
        raise ParameterError(f"{buyers!r}, {sellers!r}: expected continuous distributions with finite means.")
    if sellers.support()[0] >= buyers.support()[1]:
        return Fixed(float(sellers.support()[0]), 0.0, 0.0)

    def gain(p: float, sold: float, bought: float) -> float:  # E[(v - p)+] · sold + E[(p - c)+] · bought
        return (buyers.mean() - p + _shortfall(buyers, p)) * sold + _shortfall(sellers, p) * bought

    shares = expit([-np.inf, *np.linspace(-9, 9, 31), np.inf])
    best = _peak(
        np.vectorize(lambda p: gain(p, sellers.cdf(p), buyers.sf(p))),
        lambda p: gain(p, sellers.pdf(p), -buyers.pdf(p)),
        np.append(buyers.ppf(shares), sellers.ppf(shares)),
    )
    chances = sellers.cdf(best), buyers.sf(best)
    return Fixed(best, float(gain(best, *chances)), float(np.prod(chances)))


def _shortfall(side: Any, p: float) -> float:
    """E[(p - x)+]: the integral of the distribution function up to p."""
    low, high = side.support()
    return quad(side.cdf, low, p, epsabs=1e-11)[0] if low < p < high else max(p - side.mean(), 0.0)


class Bargain(NamedTuple):
    """A price, NaN where there is none that suits both, and whether there is one."""

    price: float | np.ndarray
    feasible: bool | np.ndarray


def nash_price(
    value: Numbers,
    cost: Numbers,
    power: Numbers = 0.5,
    *,
    outside_buyer: Numbers = 0.0,
    outside_seller: Numbers = 0.0,
    utility: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Bargain:
    """The bargain that maximises (u(v - p) - d_b)^(1 - power) (p - c - d_s)^power (Nash 1950; `power` is the seller's).

    outside_buyer, outside_seller: d_b, d_s ≥ 0, what each has without the other · utility: u, in which d_b is measured,
    concave, increasing, u(0) = 0, on arrays; if not given it is the money itself, and the price c + d_s + power (v - c
    - d_b - d_s). Feasible where both can have d. Harm that the sale does to the seller belongs to its cost.
    """
    outside = {"outside_buyer": outside_buyer, "outside_seller": outside_seller}
    value, cost, power, owed, least = _numbers(value=value, cost=cost, power=power, **outside)
    pie = np.maximum(value - cost - least, 0)
    if utility is None:
        feasible, kept = value - cost >= owed + least, owed + (1 - power) * (pie - owed)
    elif not np.allclose(utility(np.zeros(1)), 0) or not np.isfinite(utility(pie)).all():
        raise ParameterError(f"utility(0) = {utility(np.zeros(1))}, expected 0, and finite numbers up to value - cost.")
    else:
        feasible, kept = (value - cost >= least) & (utility(pie) >= owed), _kept(utility, pie, owed, power)
    inside = np.minimum(np.maximum(value - kept, cost), value)  # rounding must not leave it
    return Bargain(_plain(np.where(feasible, inside, np.nan)), _plain(feasible))


def _kept(utility: Callable, pie: Numbers, owed: Numbers, power: Numbers) -> Numbers:
    """The buyer's share of the pie, by golden section: the product has one peak, and a share too small counts as -1."""
    low, high = np.zeros_like(pie), pie
    for _ in range(80):  # .618^80 = 2e-17
        step = (5**0.5 - 1) / 2 * (high - low)
        shares = np.stack([high - step, low + step])
        excess, rest = utility(shares) - owed, np.maximum(pie - shares, 0)
        product = np.where(excess < 0, -1, np.maximum(excess, 0) ** (1 - power) * rest**power)
        low, high = np.where(product[0] <= product[1], [shares[0], high], [low, shares[1]])
    return (low + high) / 2


def double_auction(bid: Numbers, ask: Numbers, k: Numbers = 0.5) -> Bargain:
    """The price k bid + (1 - k) ask where bid ≥ ask (Chatterjee and Samuelson 1983): Nash's price of what is said."""
    return nash_price(*_numbers(bid=bid, ask=ask, k=k))


class Strategies(NamedTuple):
    """What a buyer bids for its value, and what a seller asks for its cost."""

    bid: Callable[[Numbers], float | np.ndarray]
    ask: Callable[[Numbers], float | np.ndarray]


def linear_equilibrium(k: float = 0.5) -> Strategies:
    """The linear equilibrium of `double_auction` for values and costs uniform on [0, 1] (Chatterjee, Samuelson 1983).

    bid = (v + k (1 - k) / 2) / (1 + k), ask = c / (2 - k) + (1 - k) / 2; the truth where that would bid above the value
    or ask below the cost: no trade can follow. Other equilibria exist. For k = 1/2 this one loses least of all
    mechanisms without subsidy: 9/64 are gained instead of 1/6 (Myerson and Satterthwaite 1983).
    """
    (k,) = _numbers(k=k)
    return Strategies(
        lambda value: _plain(np.minimum((_numbers(v=value)[0] + k * (1 - k) / 2) / (1 + k), value)),
        lambda cost: _plain(np.maximum(_numbers(c=cost)[0] / (2 - k) + (1 - k) / 2, cost)),
    )


def _peak(curve: Callable, slope: Callable, grid: np.ndarray) -> float:
    """Where a curve is highest: at the best of a grid, or near it where the slope turns. Of a flat top the lowest."""
    grid = np.unique(grid[np.isfinite(grid)])
    heights = curve(grid)
    tops = heights >= heights.max() * (1 - 1e-12)  # a smaller difference is rounding
    best = tops.argmax()
    if best and tops[-1]:
        raise ParameterError("the tail of values is so heavy that the profit grows with the price without end.")
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    turn = brentq(slope, low, high, xtol=1e-13) if slope(low) > 0 > slope(high) else grid[best]
    return float(max(grid[best], turn, key=curve))


def _known(side: Any) -> bool:
    return hasattr(side, "pdf") and np.ndim(side.mean()) == 0 and not np.isnan(side.support()).any()


def _numbers(**given: Any) -> list[np.ndarray]:
    """Every argument as float64, all of one shape, finite and in its range; a price may be NaN: there is none."""
    arrays = [np.asarray(number, dtype=np.float64) for number in given.values()]
    for name, array in zip(given, arrays, strict=True):
        low = -np.inf if name in ("value", "promised", "found") else 0
        high = 1 if name in ("power", "k", "v", "c") else np.inf
        fine = np.isfinite(array) & (array >= low) & (array <= high)
        fine |= np.isnan(array) & (name in ("paid", "received"))
        if not fine.all():
            raise ParameterError(f"{name} = {array[~fine][0]:g}, expected a finite number from {low} to {high}.")
    return list(np.broadcast_arrays(*arrays))


def _plain(array: np.ndarray | np.generic) -> Any:
    return array.item() if np.ndim(array) == 0 else array
