"""What a purchase is worth in money: its return against what the buyer could do alone, the price, the contract.

Amounts are in one currency, that of `Business`. Gains are in accuracy points, as `ways` gives them.
"""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from paramarket import contract, price
from paramarket.base import Interval, interval, stream, whole_number
from paramarket.errors import ParameterError, ShapeError

PER = 1_000  # units of which `value_per_point` speaks
WEEKS = 52  # of a year
MONTHS = 12
CENT = 0.01
FARTHEST = 1_000.0  # a number that would have to change by a larger factor turns nothing

Alternative = Literal["nothing", "labels"]
ALTERNATIVES: tuple[Alternative, ...] = ("nothing", "labels")
BENEFITS = ("labels and hours saved", "performance not reachable alone", "earlier start")
YEARLY = ("performance not reachable alone", "running more networks")  # these two come evenly over the horizon


class Business(NamedTuple):
    """The numbers of a business that turn accuracy into money. All are 0 or more.

    value_per_point: money that one accuracy point is worth per 1,000 units. At 20 a miss costs 2: a point is 10 misses
    units_per_year: decisions of the network a year · horizon_years: for how long the purchase is counted
    hour_rate: money an hour of work · label_cost: money a labelled example
    integration_hours: the buyer's work to put what it buys into service · seller_hours: the seller's, to hand it over
    own_hours: the work to order labels, train on them and put that into service: the buyer's way alone
    delay_weeks: by how much later the way alone begins to pay
    fee: what the buyer owes the broker, a share of the price
    running_cost: money per million units of one more network in service · currency: its sign or code
    """

    value_per_point: float = 20.0
    units_per_year: float = 2_500_000
    horizon_years: float = 1.0
    hour_rate: float = 80.0
    label_cost: float = 0.5
    integration_hours: float = 40.0
    seller_hours: float = 16.0
    own_hours: float = 40.0
    delay_weeks: float = 6.0
    fee: float = 0.05
    running_cost: float = 20.0
    currency: str = "€"


class Flip(NamedTuple):
    """The number whose change turns the answer around: its name, its value now, and the value at which net is 0."""

    name: str
    now: float
    at: float


class Roi(NamedTuple):
    """What a purchase returns over the horizon, compared with the best that the buyer could do alone.

    alternative: what that is, "nothing" or "labels" (bought and trained on) · items: {item: amount}, costs below 0
    net: their sum; its ends are those of the measured gain, everything else held fixed
    payback_months: after so many the purchase has brought in what it cost, compared with the alternative; inf if never,
    or if that does not last to the end of the horizon
    break_even_points: the gain at which net is 0; inf if a gain is worth nothing
    flip: of all inputs the one that must change by the smallest factor for net to be 0; None if a factor of a thousand
    does it for none
    """

    alternative: Alternative
    items: dict[str, float]
    net: Interval
    payback_months: float
    break_even_points: float
    flip: Flip | None

    def table(self) -> pd.DataFrame:
        """One row an item, in order: `item`, `kind` ("benefit" or "cost"), `amount` (costs below 0). Sums to net."""
        kinds = ["benefit" if item in BENEFITS else "cost" for item in self.items]
        return pd.DataFrame({"item": self.items.keys(), "kind": kinds, "amount": self.items.values()})


class Band(NamedTuple):
    """Prices that suit both, in whole cents: from the seller's cost to the buyer's value, and the price between them.

    deal: whether there is one; where low > high there is none, and the price is NaN
    """

    low: float
    high: float
    price: float
    deal: bool


class Exchange(NamedTuple):
    """Who learns from whom, and the payment that leaves both equally better off.

    payer: "A", "B", or "" where nothing is paid · payment: whole cents · gain: what each has of it after the payment
    """

    a_learns: bool
    b_learns: bool
    payer: Literal["A", "B", ""]
    payment: float
    gain: float


class Safeguards(NamedTuple):
    """Lines that protect the buyer, from the examples of the audit.

    warranty_points: the seller refunds the price if fresh examples show a smaller gain
    false_refund_rate: how often a sale as good as the audit found it is refunded all the same
    rollback_error_rate: `drift_alarm`'s `before`: above this error rate the old network was better
    """

    warranty_points: float
    false_refund_rate: float
    rollback_error_rate: float


class Signed(NamedTuple):
    """The contract that two firms would sign (see `contract.judge`), and the share of resamples that say the same."""

    label: str
    stability: float


# The least and the most that a number may be; one that is not named: 0 and infinity.
RANGES = {
    "gain_points": (-100.0, 100.0),
    "alone_points": (-100.0, 100.0),
    "fee": (0.0, 1.0),
    "horizon_years": (1 / 365, math.inf),
    "value": (-math.inf, math.inf),
    "value_a": (-math.inf, math.inf),
    "value_b": (-math.inf, math.inf),
}
COUNTS = ("labels", "alone_labels", "extra_networks")  # whole numbers: `flip` leaves them as they are


def valuation(gain_points: Interval, business: Business) -> Interval:
    """Money a year that a gain in accuracy points is worth, with its interval: floats, or arrays of one shape.

    >>> from paramarket import decide
    >>> from paramarket.base import Interval
    >>> print(decide.valuation(Interval(3.0, 2.0, 4.0), decide.Business()))
    Interval(mean=150000.0, low=100000.0, high=200000.0)
    """
    _check(_numbers(business))
    worth = _worth_of_a_point(business._asdict())
    return Interval(*(points * worth for points in gain_points))


def roi(
    gain_points: Interval,
    business: Business,
    *,
    price: float,
    labels: int,
    alone_points: float = 0.0,
    alone_labels: int = 0,
    extra_networks: int = 0,
    minutes: float = 0.0,
) -> Roi:
    """What a purchase returns. Nothing is counted twice, since all is compared with the best that could be done alone.

    gain_points: of the way that is taken · price: for the network, without the fee · labels: examples that the way is
    tuned on and audited by · alone_points, alone_labels: what training on so many bought labels would gain
    extra_networks: in service beside the one there was · minutes: of computing and looking on, at the rate of an hour
    With g the gain, g' that of the alternative, V the worth of a point a year, H the horizon and d the delay, in years:
    what the purchase leaves is g V H - costs, what the alternative leaves is g' V (H - d) - its costs, and the
    difference is the costs of the alternative (saved) + (g - g') V H (not reachable alone) + g' V d (earlier) - costs.
    The alternative is the better one of doing nothing (all of it 0) and of buying labels.
    Raises ParameterError, by name, for numbers that are not finite or out of range.

    >>> from paramarket import decide
    >>> from paramarket.base import Interval
    >>> found = decide.roi(Interval(3.0, 2.0, 4.0), decide.Business(), price=20_000, labels=1_000)
    >>> print(f"net {found.net.mean:,.0f}, paid back in {found.payback_months:.1f} months")
    net 125,300, paid back in 2.0 months
    >>> print(f"from {found.break_even_points:.2f} points on; {found.flip.name} may fall to {found.flip.at:.2f}")
    from 0.49 points on; gain_points may fall to 0.49
    """
    inputs = {
        "gain_points": gain_points.mean,
        "price": price,
        **_numbers(business),
        "alone_points": alone_points,
        "alone_labels": alone_labels,
        "labels": labels,
        "extra_networks": extra_networks,
        "minutes": minutes,
    }
    _check(inputs)
    alternative = min(ALTERNATIVES, key=lambda each: _net(inputs, each))  # what is best alone leaves least to gain
    items = _items(inputs, alternative)
    net = sum(items.values())
    worth = _worth_of_a_point(inputs) * inputs["horizon_years"]
    low, high = (net + (end - gain_points.mean) * worth for end in (gain_points.low, gain_points.high))
    return Roi(
        alternative=alternative,
        items=items,
        net=Interval(net, low, high),
        payback_months=_payback_months(items, inputs),
        break_even_points=gain_points.mean - net / worth if worth > 0 else math.inf,
        flip=_flip(inputs),
    )


def price_band(value: float, cost: float, fee: float = 0.0) -> Band:
    """Which prices suit both sides, and Nash's price: half way between them.

    value: the most that the purchase may cost the buyer, price and fee together: `roi` at the price 0 says it
    cost: the least that the seller must get · fee: a share of the price that the buyer pays on top; so a price suits
    the buyer up to value / (1 + fee)

    >>> from paramarket import decide
    >>> decide.price_band(value=1_050.0, cost=400.0, fee=0.05)
    Band(low=400.0, high=1000.0, price=700.0, deal=True)
    """
    _check({"value": value, "cost": cost, "fee": fee})
    low = price.to_cents(cost, "up").item() / 100
    high = price.to_cents(value / (1 + fee), "down").item() / 100
    bargain = price.nash_price(high, low)
    agreed = price.to_cents(bargain.price).item() / 100 if bargain.feasible else math.nan
    return Band(low, high, agreed, bargain.feasible)


def exchange(value_a: float, value_b: float, cost_a: float, cost_b: float) -> Exchange:
    """A learns from B, B learns from A, or both: what pays is done, and one payment balances it.

    value_a, value_b: what learning from the other is worth to each, net of all that it costs but the price
    cost_a, cost_b: what it costs each to let the other learn
    A learns where that is worth more to A than it costs B. Then each has a gain, or a loss, and `contract.transfer`
    splits the sum evenly: whoever gains more pays the other one half of the difference. Where only A learns, that is
    Nash's price of B's network. A broker's fee on the payment is not in it; where each bears half of it, both stay
    equally better off.

    >>> from paramarket import decide
    >>> decide.exchange(value_a=9_000.0, value_b=5_000.0, cost_a=1_000.0, cost_b=1_000.0)
    Exchange(a_learns=True, b_learns=True, payer='A', payment=2000.0, gain=6000.0)
    """
    _check({"value_a": value_a, "value_b": value_b, "cost_a": cost_a, "cost_b": cost_b})
    a_learns, b_learns = value_a > cost_b, value_b > cost_a
    gain_a = value_a * a_learns - cost_a * b_learns
    gain_b = value_b * b_learns - cost_b * a_learns
    surplus, paid_by_b = contract.transfer(gain_a, gain_b)
    if math.isnan(paid_by_b):
        return Exchange(False, False, "", 0.0, 0.0)
    cents = price.to_cents(paid_by_b).item()
    payer = "B" if cents > 0 else "A" if cents < 0 else ""
    return Exchange(a_learns, b_learns, payer, abs(cents) / 100, surplus.item() / 2)


def safeguards(
    right_before: Bool[Tensor, " n"], right_after: Bool[Tensor, " _"], *, size: int, seed: int
) -> Safeguards:
    """The warranty and the rollback line, from whether the old and the new answers are right on the audit's examples.

    size: how many fresh labelled examples the warranty is checked by
    The line of the warranty is the low end of the gain's interval, or 0 where that is lower: nobody warrants a loss.
    False refunds are counted as in `price.refund_rate`, where the audit's examples play the world. The line of the
    rollback is the high end of the old network's error rate.
    Raises ShapeError for answers that are not of the same examples.

    >>> import torch
    >>> from paramarket import decide
    >>> before = torch.arange(400) % 10 > 0  # 90 % are right
    >>> after = torch.arange(400) % 20 > 0
    >>> lines = decide.safeguards(before, after, size=400, seed=0)
    >>> print(f"{lines.warranty_points:.1f} points, refunded by chance {lines.false_refund_rate:.1%}")
    3.3 points, refunded by chance 6.5%
    """
    if right_before.shape != right_after.shape:
        shapes = f"{tuple(right_before.shape)} and {tuple(right_after.shape)}"
        raise ShapeError(f"right_before and right_after have shapes {shapes}: expected the same examples.")
    size = whole_number("size", size, least=1)
    differences = right_after.int() - right_before.int()
    changes = 100 * differences.double()
    line = max(100 * interval(differences, "differences").low, 0.0)
    generator = stream(seed, "warranty")
    promised = torch.tensor([line], dtype=torch.float64)
    refunds = price.refund_rate(changes.unsqueeze(0), promised, generator, promises=[1.0], size=size)
    wrong_before = 1 - right_before.double()
    error_rate = interval(wrong_before, "shares").high
    return Safeguards(line, refunds.item(), error_rate)


def signed_contract(
    labels: Bool[np.ndarray, " n"],
    first: Bool[np.ndarray, " _"],
    second: Bool[np.ndarray, " _"],
    groups: Int[np.ndarray, " _"],
    *,
    reward: float,
    cost: float,
    seed: int,
    running_costs: Mapping[str, float] | None = None,
    resamples: int = 100,
) -> Signed:
    """Which contract of prediction sharing two firms would sign, as n labelled examples say, and how sure that is.

    labels, first, second: whether action 1 is right for an example, and what both models say of that
    groups: 0, 1, …: which kind of times an example belongs to · reward, cost: of action 1, where it is right and where
    it is wrong · running_costs: {contract: money that it costs each firm to run it, an example}
    Each firm has tried its model on one labelled case of the times to come (`contract.measured_world`, samples=1).
    In this game two firms that both act share what they earn: they compete. Where they do not, whoever shares loses
    nothing by it, and what the label says of a lost lead does not hold.
    Resamples weigh the examples evenly at random (the Bayesian bootstrap, Rubin 1981), so that no group gets lost.
    """
    resamples = whole_number("resamples", resamples, least=1)
    drawn = torch.empty(resamples, len(labels), dtype=torch.float64).exponential_(generator=stream(seed, "contract"))
    even = torch.ones(1, len(labels), dtype=torch.float64)
    weights = torch.cat([even, drawn]).numpy()
    amounts = {"reward": reward, "cost": cost}
    world = contract.measured_world(labels, first[None], second[None], groups, weights=weights, **amounts)
    usual, *again = contract.judge(world, running_costs).label
    return Signed(usual, float(np.mean([label == usual for label in again])))


def check_business(business: Business) -> None:
    """ParameterError, by name, for a number that is not finite or out of range."""
    _check(_numbers(business))


def _numbers(business: Business) -> dict[str, float]:
    numbers = business._asdict()
    del numbers["currency"]
    return numbers


def _check(inputs: Mapping[str, float]) -> None:
    for name, value in inputs.items():
        low, high = RANGES.get(name, (0.0, math.inf))
        if not (isinstance(value, Real) and math.isfinite(value) and low <= value <= high):
            raise ParameterError(f"{name} = {value!r}, expected a finite number from {low:g} to {high:g}.")


def _worth_of_a_point(inputs: Mapping[str, float]) -> float:
    """Money a year."""
    return inputs["value_per_point"] * inputs["units_per_year"] / PER


def _items(inputs: Mapping[str, float], alternative: Alternative) -> dict[str, float]:
    """Benefits and costs compared with an alternative. Each is a straight line in every single input."""
    worth = _worth_of_a_point(inputs)
    alone_points = 0.0
    saved = 0.0
    if alternative == "labels":
        alone_points = inputs["alone_points"]
        saved = inputs["alone_labels"] * inputs["label_cost"] + inputs["own_hours"] * inputs["hour_rate"]
    million_units = inputs["units_per_year"] * inputs["horizon_years"] / 1e6
    return {
        "labels and hours saved": saved,
        "performance not reachable alone": (inputs["gain_points"] - alone_points) * worth * inputs["horizon_years"],
        "earlier start": alone_points * worth * inputs["delay_weeks"] / WEEKS,
        "price": -inputs["price"],
        "broker's fee": -inputs["price"] * inputs["fee"],
        "computing": -inputs["minutes"] / 60 * inputs["hour_rate"],
        "labels to tune and audit": -inputs["labels"] * inputs["label_cost"],
        "integration": -inputs["integration_hours"] * inputs["hour_rate"],
        "running more networks": -inputs["extra_networks"] * inputs["running_cost"] * million_units,
    }


def _net(inputs: Mapping[str, float], alternative: Alternative) -> float:
    return sum(_items(inputs, alternative).values())


def _payback_months(items: Mapping[str, float], inputs: Mapping[str, float]) -> float:
    """When what has come in, less what the alternative would have brought by then, is first 0 or more.

    The earlier start pays until the alternative would begin to pay, the yearly items pay on; all else is due at once.
    """
    months = MONTHS * inputs["horizon_years"]
    delay = MONTHS * inputs["delay_weeks"] / WEEKS
    net = sum(items.values())
    yearly = sum(items[item] for item in YEARLY)
    owed = yearly + items["earlier start"] - net
    a_month = yearly / months
    by_delay = items["earlier start"] + a_month * delay
    if owed <= 0:
        reached = 0.0
    elif owed <= by_delay:
        reached = delay * owed / by_delay
    elif a_month > 0:
        reached = (owed - items["earlier start"]) / a_month
    else:
        reached = math.inf
    lasts = net >= 0 or reached > months
    return reached if lasts else math.inf


def _flip(inputs: Mapping[str, float]) -> Flip | None:
    """In each input net is the lower one of two straight lines: where one is 0 and the other is not below it."""
    found = []
    for name in inputs:
        for alternative in ALTERNATIVES:
            at = _root(inputs, name, alternative)
            if name not in COUNTS and at is not None:
                found.append(Flip(name, inputs[name], at))
    return min(found, key=lambda flip: abs(math.log(flip.at / flip.now)), default=None)


def _root(inputs: Mapping[str, float], name: str, alternative: Alternative) -> float | None:
    """The value of an input at which net is 0, if it is in range and not too far away."""
    net_now = _net(inputs, alternative)
    net_at_zero = _net({**inputs, name: 0.0}, alternative)
    if net_at_zero == net_now:
        return None
    factor = net_at_zero / (net_at_zero - net_now)
    at = factor * inputs[name]
    low, high = RANGES.get(name, (0.0, math.inf))
    if not (1 / FARTHEST <= factor <= FARTHEST and low <= at <= high):
        return None
    least = min(_net({**inputs, name: at}, each) for each in ALTERNATIVES)
    return at if least > -CENT / 2 else None
