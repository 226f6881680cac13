"""What a purchase should cost: posted, bargained, auctioned; and the deal that comes of it, or does not.

Values, costs and prices are in one unit of money: floats, or numpy arrays that broadcast. Floats give floats.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from paramarket import stack
from paramarket.errors import ParameterError
from paramarket.price.money import whole_units
from paramarket.price.optimum import Distribution, continuous, highest, quantiles, shortfall

Numbers = float | int | np.ndarray


class Deal(NamedTuple):
    """What came of an offer. Where nothing was sold, all is 0; where it was given back, the seller is out of its cost.

    traded, refunded: whether it was sold for good, or sold and given back · paid: by the buyer · received: by the
    seller · buyer, seller, broker: what each gains. Where traded, the three add up to value - cost (as rounded, if
    there is a smallest money).
    """

    traded: bool | np.ndarray
    refunded: bool | np.ndarray
    paid: float | np.ndarray
    received: float | np.ndarray
    buyer: float | np.ndarray
    seller: float | np.ndarray
    broker: float | np.ndarray

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """One row a meeting: the columns of a grid, `traded`, `refunded`, and money in the unit of value and cost.

        Money: `paid`, `received`, `buyer_surplus`, `seller_surplus`, `broker_surplus`. For deals that are arrays.
        """
        deals = Deal(*map(np.asarray, self))  # of a single deal these are no columns, and `table` says so
        return stack.table(
            rows,
            traded=deals.traded,
            refunded=deals.refunded,
            paid=deals.paid,
            received=deals.received,
            buyer_surplus=deals.buyer,
            seller_surplus=deals.seller,
            broker_surplus=deals.broker,
        )


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
    not given; NaN means that none was found · unit: the smallest money (.01 for cents): prices are rounded to it, the
    value down to it and the cost up, before anything is compared; then every part of the deal is whole units
    promised, found: gains, in any one unit; where less was found than promised, the money goes back and the seller has
    borne its cost for nothing (a guarantee, Akerlof 1970, section IV).

    >>> from paramarket import price
    >>> price.settle(value=10, cost=4, paid=7, received=6)
    Deal(traded=True, refunded=False, paid=7.0, received=6.0, buyer=3.0, seller=2.0, broker=1.0)
    >>> price.settle(value=0.29, cost=0.29, paid=0.2901, unit=0.01).paid
    0.29
    """
    received = paid if received is None else received
    promised, found = (0.0, 0.0) if promised is found is None else (promised, found)
    value, cost, paid, received = _numbers(value=value, cost=cost, paid=paid, received=received)
    smallest, agreed, promised, found = _numbers(unit=unit, agreed=agreed, promised=promised, found=found)
    rounded = bool((smallest > 0).all())
    if rounded:  # count units; at the end they are divided by `per`: 57 * .01 is more than .57, 57 / 100 is not
        value, cost = whole_units(value, unit, "down"), whole_units(cost, unit, "up")
        paid, received = whole_units(paid, unit), whole_units(received, unit)
    done = (agreed > 0) & (cost <= received) & (received <= paid) & (paid <= value)
    traded = done & (found >= promised)
    refunded = done & (found < promised)
    paid, received = np.where(traded, paid, 0), np.where(traded, received, 0)
    buyer = np.where(traded, value, 0) - paid
    seller = received - np.where(done, cost, 0)
    per = 1 / unit if rounded else 1
    return Deal(
        traded=_plain(traded),
        refunded=_plain(refunded),
        paid=_plain(paid / per),
        received=_plain(received / per),
        buyer=_plain(buyer / per),
        seller=_plain(seller / per),
        broker=_plain((paid - received) / per),
    )


class Posted(NamedTuple):
    """A take-it-or-leave-it price, the profit expected at it, and the probability that the buyer takes it."""

    price: float | np.ndarray
    profit: float | np.ndarray
    sale_probability: float | np.ndarray


def posted_price(values: Any, cost: Numbers = 0.0) -> Posted:
    """The price p of one seller that maximises (p - cost) P(v ≥ p) (Myerson 1981: where p - (1 - F(p)) / f(p) = cost).

    values: a frozen continuous distribution of scipy.stats, one of its new ones (`stats.Normal(mu=1)`), or a sample
    [n]; a buyer with v = p buys. Of several prices with equal profit it is the lowest, which serves most buyers; if no
    value is above the cost, it is the cost, and the profit 0. However many peaks profit has, it is the highest. Raises
    ParameterError if profit grows with the price without end, and for what is neither.

    >>> import numpy as np
    >>> from paramarket import price
    >>> price.posted_price(np.array([1.0, 2.0, 3.0, 4.0]))
    Posted(price=2.0, profit=1.5, sale_probability=0.75)
    """
    (costs,) = _numbers(cost=cost)
    distribution = continuous(values)
    if distribution:
        found = [_monopoly(distribution, each) for each in costs.flat]
    elif _is_sample(values):
        found = [_empirical(np.sort(np.asarray(values, dtype=np.float64)), each) for each in costs.flat]
    else:
        raise ParameterError(f"values = {values!r}, expected a continuous distribution, or finite numbers [n], n ≥ 1.")
    columns = np.array(found, dtype=np.float64).reshape(-1, 3).T
    price, profit, sale_probability = columns.reshape(3, *costs.shape)
    return Posted(_plain(price), _plain(profit), _plain(sale_probability))


def _empirical(sample: np.ndarray, cost: float) -> tuple[float, float, float]:
    """Price, profit and chance of a sale, from values in ascending order."""
    if sample[-1] < cost:
        return cost, 0.0, 0.0
    chance = 1 - np.searchsorted(sample, sample) / len(sample)  # searchsorted counts the values below
    profit = (sample - cost) * chance
    best = np.argmax(profit >= profit.max() * (1 - 1e-12))  # a smaller difference is rounding
    return sample[best], profit[best], chance[best]


def _monopoly(values: Distribution, cost: float) -> tuple[float, float, float]:
    """Price, profit and chance of a sale, from a distribution of values."""
    from scipy.special import expit

    above = values.sf(cost)
    if above == 0:
        return cost, 0.0, 0.0

    def profit(p: Numbers) -> Numbers:
        return (p - cost) * values.sf(p)

    def slope(p: Numbers) -> Numbers:
        return values.sf(p) - (p - cost) * values.pdf(p)

    def most(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        return (high - cost) * values.sf(low)

    grid = quantiles(values.isf, above * expit(np.linspace(-140, 40, 1201)))  # heavy tails need the quantile 1e-60
    best = highest(profit, slope, most, np.append(grid, max(cost, values.support[0])))
    return best, profit(best), values.sf(best)


class Fixed(NamedTuple):
    """One price for everybody, the gain from trade expected at it, and the probability of a trade."""

    price: float
    gain: float
    trade_probability: float


def fixed_price(buyers: Any, sellers: Any) -> Fixed:
    """The one price p that maximises the gain E[(v - c) 1{c ≤ p ≤ v}]. Nobody can gain by lying about such a price.

    buyers, sellers: independent continuous distributions, as in `posted_price`, with finite means. If they are equal, p
    is the mean and reaches half of the first best (Kang and Vondrák 2019). Of equally good prices it is the lowest; if
    nobody can trade, the lowest cost. However many peaks the gain has, it is the highest.
    """
    from scipy.special import expit

    v, c = continuous(buyers), continuous(sellers)
    if v is None or c is None or not np.isfinite([v.mean, c.mean]).all():
        raise ParameterError(f"{buyers!r}, {sellers!r}: expected continuous distributions with finite means.")
    if c.support[0] >= v.support[1]:
        return Fixed(float(c.support[0]), 0.0, 0.0)

    shares = expit(np.array([-np.inf, *np.linspace(-30, 30, 121), np.inf]))
    grid = np.unique(np.concatenate([quantiles(v.ppf, shares), quantiles(c.ppf, shares)]))
    cells = np.append(np.linspace(grid[:-1], grid[1:], 4, endpoint=False).T.ravel(), grid[-1])
    buyers_below = shortfall(v.cdf, v.support[0], cells)
    sellers_below = shortfall(c.cdf, c.support[0], cells)

    def weighed(p: np.ndarray, sold: np.ndarray, bought: np.ndarray) -> np.ndarray:
        """E[(v - p)+] · sold + E[(p - c)+] · bought."""
        buyers_above = np.maximum(v.mean - p + buyers_below(p), 0)
        return buyers_above * sold + sellers_below(p) * bought

    def gain(p: np.ndarray) -> np.ndarray:
        return weighed(p, c.cdf(p), v.sf(p))

    def slope(p: float) -> float:  # the other terms cancel: what a higher price takes from buyers, it gives to sellers
        at = np.array([p])
        return float(weighed(at, c.pdf(at), -v.pdf(at))[0])

    def most(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        return weighed(low, c.cdf(high), v.sf(low))

    best = highest(gain, slope, most, grid)
    return Fixed(best, float(gain(np.array([best]))[0]), float(c.cdf(best) * v.sf(best)))


class Bargain(NamedTuple):
    """A price, NaN where there is none that suits both, and whether there is one."""

    price: float | np.ndarray
    feasible: bool | np.ndarray


@runtime_checkable
class PriceRule(Protocol):
    """A price from two numbers: what a sale is worth to the buyer, and what it costs the seller, believed or reported.

    Where value ≥ cost the price lies between them, both included; elsewhere it is NaN, and `feasible` is false. Arrays
    broadcast. `nash_price` and `double_auction` are such rules.
    """

    def __call__(self, value: Numbers, cost: Numbers, /) -> Bargain: ...


def nash_price(
    value: Numbers,
    cost: Numbers,
    *,
    power: Numbers = 0.5,
    outside_buyer: Numbers = 0.0,
    outside_seller: Numbers = 0.0,
) -> Bargain:
    """The bargain that maximises (v - p - d_b)^(1 - power) (p - c - d_s)^power (Nash 1950; `power` is the seller's).

    outside_buyer, outside_seller: d_b, d_s ≥ 0, what each has without the other. The price is c + d_s + power (v - c -
    d_b - d_s), feasible where both can have d. Harm that the sale does to the seller belongs to its cost.

    >>> from paramarket import price
    >>> price.nash_price(value=10, cost=4)
    Bargain(price=7.0, feasible=True)
    >>> price.nash_price(value=3, cost=4)
    Bargain(price=nan, feasible=False)
    """
    outside = {"outside_buyer": outside_buyer, "outside_seller": outside_seller}
    value, cost, power, buyer_has, seller_has = _numbers(value=value, cost=cost, power=power, **outside)
    feasible = value - cost >= buyer_has + seller_has
    pie = np.maximum(value - cost - seller_has, 0)
    buyer_gains = buyer_has + (1 - power) * (pie - buyer_has)
    price = np.clip(value - buyer_gains, cost, value)  # rounding must not leave the bargain
    return Bargain(_plain(np.where(feasible, price, np.nan)), _plain(feasible))


def double_auction(bid: Numbers, ask: Numbers, *, k: Numbers = 0.5) -> Bargain:
    """The price k bid + (1 - k) ask where bid ≥ ask (Chatterjee and Samuelson 1983): Nash's price of what is said."""
    bid, ask, k = _numbers(bid=bid, ask=ask, k=k)
    return nash_price(bid, ask, power=k)


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

    def bid(value: Numbers) -> float | np.ndarray:
        (v,) = _numbers(v=value)
        return _plain(np.minimum((v + k * (1 - k) / 2) / (1 + k), v))

    def ask(cost: Numbers) -> float | np.ndarray:
        (c,) = _numbers(c=cost)
        return _plain(np.maximum(c / (2 - k) + (1 - k) / 2, c))

    return Strategies(bid, ask)


def _is_sample(values: Any) -> bool:
    array = np.asarray(values)
    return array.dtype.kind in "fiu" and array.ndim == 1 and array.size > 0 and bool(np.isfinite(array).all())


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
