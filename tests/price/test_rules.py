import decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq

from paramarket import price, stack
from paramarket.errors import ParameterError, ShapeError

UNIT = stats.uniform()
SMOOTH = [stats.uniform(2, 8), UNIT, stats.expon(), stats.expon(scale=0.5), stats.norm()]
SMOOTH += [stats.lognorm(s) for s in (0.25, 0.5, 1, 2)]
money = st.floats(0, 1e6, allow_subnormal=False)
share = st.floats(0, 1)
close = pytest.approx


def kept(deal, value, cost, unit=0.0):
    """Every deal's law: money is conserved, the broker never pays, and nobody who traded regrets it.

    With a smallest money the value counts rounded down to it, the cost rounded up, and every part is whole.
    """
    if unit:
        value, cost = below(value, unit), above(cost, unit)
    for part in (deal.buyer, deal.broker, np.where(deal.refunded, 0, deal.seller)):
        assert np.all(np.asarray(part) >= 0)
    total = np.where(deal.traded, np.subtract(value, cost), np.where(deal.refunded, np.negative(cost), 0))
    scale = np.abs(value) + np.abs(cost) + 1
    np.testing.assert_allclose((deal.buyer + deal.seller + deal.broker) / scale, total / scale, atol=1e-12)
    np.testing.assert_allclose((deal.paid - deal.received) / scale, deal.broker / scale, atol=0 if not unit else 1e-15)
    for part in deal[2:] if unit else ():
        assert part == close(np.rint(part / unit) * unit, rel=1e-12)


def below(amount, unit):
    """The decimal number that a float means, rounded down to units: read off its digits, not computed."""
    return rounded_by_digits(amount, unit, decimal.ROUND_FLOOR)


def above(amount, unit):
    return rounded_by_digits(amount, unit, decimal.ROUND_CEILING)


def rounded_by_digits(amount, unit, rounding):
    step = decimal.Decimal(str(unit))
    units = decimal.Decimal(repr(float(amount))) / step
    snapped = units.quantize(decimal.Decimal("1e-6"))  # a millionth of a unit is none
    return float((snapped if abs(snapped - snapped.to_integral()) == 0 else units).to_integral(rounding) * step)


# Deals


@given(st.tuples(money, money, money, money), st.booleans(), st.booleans(), st.sampled_from([0.0, 0.01, 1.0, 5.0]))
def test_a_deal_conserves_money_and_hurts_nobody(numbers, ordered, agreed, unit):
    cost, received, paid, value = sorted(numbers) if ordered else numbers
    deal = price.settle(value, cost, paid, received, agreed=agreed, unit=unit)
    kept(deal, value, cost, unit)
    if unit == 0:
        assert deal.traded is (agreed and cost <= received <= paid <= value)
    if not deal.traded:
        assert deal == price.Deal(False, False, 0, 0, 0, 0, 0)


@given(money, money, share, st.sampled_from([0.01, 0.05, 1.0]), share)
def test_what_is_bargained_comes_about_and_rounds_to_money(value, cost, power, unit, fee):
    cost, value = sorted([value, cost])
    asked = price.nash_price(value, cost, power=power).price
    assert price.settle(value, cost, asked).traded
    rounded = price.settle(value, cost, asked, asked * (1 - fee), unit=unit)
    kept(rounded, value, cost, unit)
    assert rounded.paid == close(np.round(rounded.paid / unit) * unit)
    if rounded.traded:
        assert abs(rounded.paid - asked) <= unit / 2 * (1 + 1e-6)


def test_a_deal_is_counted_by_hand():
    assert price.settle(10, 4, 7) == price.Deal(True, False, 7, 7, 3, 3, 0)
    assert price.settle(10, 4, 7, 6) == price.Deal(True, False, 7, 6, 3, 2, 1)
    assert price.settle(10, 4, 7, agreed=False) == price.Deal(False, False, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("value", "cost", "paid", "received"),
    [(3, 4, 3.5, None), (10, 4, 11, None), (10, 4, 3, None), (10, 4, 6, 7), (-1, 0, 0, None), (10, 4, np.nan, None)],
)
def test_where_nothing_can_trade_nothing_moves(value, cost, paid, received):
    assert price.settle(value, cost, paid, received) == price.Deal(False, False, 0, 0, 0, 0, 0)
    assert price.settle(value, cost, paid, received, promised=2, found=1).refunded is False


def test_cents_are_exact_and_a_price_rounded_out_of_the_bargain_is_none():
    cents = np.arange(1, 2000) / 100
    assert price.settle(cents, 0, cents, unit=0.01).traded.all()
    assert price.settle(cents, cents, cents, unit=0.01).traded.all()
    assert price.settle(1, 0, 0.456, unit=0.01).paid == 0.46
    assert price.settle(1, 0, 0.456).paid == 0.456
    assert not price.settle(0.456, 0, 0.456, unit=0.01).traded  # .46 is more than the value
    assert not price.settle(1, 0.454, 0.454, unit=0.01).traded  # .45 is less than the cost
    assert price.settle(100, 0, 37, unit=5).paid == 35


@pytest.mark.parametrize("amount", [0.29, 0.57, 0.58, 1.1, 1.13, 1.15, 2.01, 4.35, 8.2, 16.4, 1001.1])
def test_an_amount_in_cents_is_itself_whatever_a_computer_makes_of_it(amount):
    """100 * .29 is 28.999999999999996, 100 * 1.1 is 110.00000000000001: neither moves a floor, a ceiling or a price."""
    deal = price.settle(amount, amount, amount, unit=0.01)
    assert deal == price.Deal(True, False, amount, amount, 0, 0, 0)
    deal = price.settle(amount * 3 / 3, amount / 7 * 7, amount + 1e-10, amount - 1e-10, unit=0.01)
    assert deal == price.Deal(True, False, amount, amount, 0, 0, 0)


def test_value_and_cost_are_rounded_so_that_nobody_pays_or_gets_a_fraction_too_much():
    deal = price.settle(1.239, 1.201, 1.2251, unit=0.01)
    assert deal == price.Deal(True, False, 1.23, 1.23, 0, 0.02, 0)  # worth 1.23 to the one, 1.21 to the other
    assert not price.settle(1.209, 1.201, 1.205, unit=0.01).traded  # no whole cent between them


def test_a_guarantee_gives_the_money_back_and_leaves_the_seller_its_cost():
    deal = price.settle(10, 4, 7, 6, promised=0.2, found=np.array([0.1, 0.2, 0.3]))
    assert deal.refunded.tolist() == [True, False, False]
    assert deal.traded.tolist() == [False, True, True]
    assert deal.paid.tolist() == [0, 7, 7]
    assert deal.received.tolist() == [0, 6, 6]
    assert deal.buyer.tolist() == [0, 3, 3]
    assert deal.seller.tolist() == [-4, 2, 2]
    assert deal.broker.tolist() == [0, 1, 1]
    kept(deal, 10, 4)
    assert price.settle(10, 4, 7, promised=0, found=-0.1).refunded
    assert price.settle(10, 4, 7, promised=-0.2, found=-0.1).traded


def test_arrays_broadcast_and_floats_stay_floats():
    deal = price.settle(np.array([[10.0], [5.0]]), np.array([4.0, 6.0, 1.0]), np.float64(5))
    assert all(part.shape == (2, 3) for part in deal)
    assert deal.traded.tolist() == [[True, False, True], [True, False, True]]
    results = [price.settle(10, 4, 7), price.nash_price(10, 4), price.double_auction(1, 0), price.posted_price(UNIT)]
    for result in [*results, price.posted_price(np.ones(3)), price.fixed_price(UNIT, UNIT)]:
        assert all(type(part) in (float, bool) for part in result)
    assert type(price.linear_equilibrium().bid(0.5)) is float
    assert price.posted_price(UNIT, np.zeros((2, 0))).price.shape == (2, 0)


# Posted prices


@pytest.mark.parametrize(
    ("values", "cost", "expected"),
    [
        (UNIT, 0, (0.5, 0.25, 0.5)),
        (UNIT, 0.4, (0.7, 0.09, 0.3)),
        (stats.uniform(1, 1), 0, (1, 1, 1)),
        (stats.uniform(2, 8), 3, (6.5, 1.53125, 0.4375)),
        (stats.expon(), 0, (1, np.exp(-1), np.exp(-1))),
        (stats.expon(scale=0.5), 0.5, (1, 0.067668, 0.135335)),
        (stats.expon(), 40, (41, np.exp(-41), np.exp(-41))),
        (stats.lognorm(0.25), 0, (0.758430, 0.656528, 0.865641)),
        (stats.lognorm(0.5), 0, (0.771857, 0.538556, 0.697740)),
        (stats.lognorm(1), 0, (1.353415, 0.515767, 0.381086)),
        (stats.lognorm(2), 0, (23.189866, 1.344822, 0.057992)),
        (stats.norm(), 0, (0.751792, 0.169971, 0.226088)),
        (stats.pareto(2), 1, (2, 0.25, 0.25)),
        (stats.pareto(2), 0, (1, 1, 1)),
        (stats.pareto(1, scale=0.7), 0, (0.7, 0.7, 1)),  # every price from .7 on earns .7
        (stats.lognorm(5, scale=1e-10), 0, (2.742949, 2.101506e-6, 7.661484e-7)),  # one in a million buys
        (np.array([1.0, 2, 3, 4]), 0, (2, 1.5, 0.75)),  # as does 3
        (np.array([4.0, 3, 2, 1]), 1, (3, 1, 0.5)),
        (np.array([1.0, 2, 3, 4]), 4, (4, 0, 0.25)),
        (np.array([0.3, 0.6, 0.9, 1.2]), 0, (0.6, 0.45, 0.75)),  # as does .9, but for rounding
        (np.array([1.0, 2, 3, 4]), 5, (5, 0, 0)),
        (np.array([-1.0, -2]), 0, (0, 0, 0)),
        (UNIT, 2, (2, 0, 0)),
    ],
)
def test_posted_prices_from_the_tables(values, cost, expected):
    assert price.posted_price(values, cost) == close(expected, abs=1e-6)


@pytest.mark.parametrize("values", SMOOTH)
@pytest.mark.parametrize("cost", [0, 0.3, 3])
def test_the_virtual_value_of_the_price_is_the_cost(values, cost):
    found = price.posted_price(values, cost)
    if found.sale_probability in (0, 1):
        assert found.price == max(cost, values.support()[0])
    else:
        assert found.price - values.sf(found.price) / values.pdf(found.price) == close(cost, abs=1e-6)
        assert found.sale_probability == values.sf(found.price)
        assert found.profit == close((found.price - cost) * values.sf(found.price), rel=1e-12)


@given(st.sampled_from(SMOOTH), money.map(lambda x: x / 1e6), share)
def test_no_other_price_earns_more(values, cost, quantile):
    other = values.ppf(quantile)
    best = price.posted_price(values, cost).profit
    assert not np.isfinite(other) or best >= (other - cost) * values.sf(other) - 1e-12


@given(st.lists(st.integers(0, 20), min_size=1), st.integers(0, 20))
def test_no_other_price_earns_more_on_a_sample_and_none_as_much_serves_more(numbers, cost):
    sample = np.array(numbers, dtype=float)
    found = price.posted_price(sample, float(cost))
    prices = np.arange(21)
    profits = (prices - cost) * (sample >= prices[:, None]).mean(axis=1)
    assert found.profit == close(profits.max(), abs=1e-12)
    assert found.sale_probability == close((sample >= found.price).mean())
    if sample.max() > cost:
        assert found.price == prices[profits >= profits.max() - 1e-9].min()


def test_a_posted_price_rises_with_the_cost():
    costs = np.linspace(0, 0.9, 10)
    np.testing.assert_allclose(np.diff(price.posted_price(UNIT, costs).price), 0.05, atol=1e-7)
    np.testing.assert_allclose(np.diff(price.posted_price(stats.expon(), costs).price), 0.1, atol=1e-7)
    for values in SMOOTH:
        assert (np.diff(price.posted_price(values, costs).price) >= 0).all()


@given(st.floats(0.01, 1000), st.sampled_from([0.5, 1, 2]))
def test_a_posted_price_scales_with_the_values(k, s):
    once, scaled = price.posted_price(stats.lognorm(s), 0.5), price.posted_price(stats.lognorm(s, scale=k), 0.5 * k)
    assert scaled.price == close(k * once.price, rel=1e-7)
    assert scaled.profit == close(k * once.profit, rel=1e-7)
    assert scaled.sale_probability == close(once.sale_probability, rel=1e-7)


def test_the_price_of_a_sample_nears_the_best_price_and_flatters_itself():
    draws = np.random.default_rng(0)
    errors, flattered = [], []
    for n in (10, 1000, 100_000):
        found = [price.posted_price(draws.random(n)) for _ in range(40)]
        errors.append(np.mean([abs(each.price - 0.5) for each in found]))
        flattered.append(np.mean([each.profit for each in found]) - 0.25)
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.02
    assert flattered[0] > 0.01 > flattered[2] > 0


# Fixed prices


@pytest.mark.parametrize(
    ("buyers", "sellers", "expected"),
    [
        (UNIT, UNIT, (0.5, 1 / 8, 1 / 4)),
        (stats.expon(), stats.expon(), (1, np.exp(-1), np.exp(-1) * (1 - np.exp(-1)))),
        (stats.norm(5, 1), stats.norm(5, 1), (5, 1 / np.sqrt(2 * np.pi), 1 / 4)),
        (stats.uniform(2, 1), UNIT, (1, 2, 1)),  # as does every price up to 2
        (UNIT, stats.uniform(2, 1), (2, 0, 0)),
        (stats.pareto(1.2), stats.pareto(1.2), (6, 5 * 6**-0.2, 6**-1.2 * (1 - 6**-1.2))),
        (stats.expon(), UNIT, (1, 1.5 * np.exp(-1), np.exp(-1))),  # a corner: every seller sells
    ],
)
def test_fixed_prices_from_the_tables(buyers, sellers, expected):
    assert price.fixed_price(buyers, sellers) == close(expected, abs=1e-6)


@pytest.mark.parametrize("side", [stats.lognorm(0.7), stats.gamma(3), stats.pareto(2.5), stats.uniform(100, 1)])
def test_between_equals_the_fixed_price_is_the_mean_and_reaches_half_of_all_gain(side):
    found = price.fixed_price(side, side)
    assert found.price == close(side.mean(), rel=1e-6)
    v, c = side.rvs(size=(2, 200_000), random_state=0)
    assert found.gain >= np.maximum(v - c, 0).mean() / 2
    deals = price.settle(v, c, found.price)
    assert deals.traded.mean() == close(found.trade_probability, abs=0.004)
    assert (deals.buyer + deals.seller).mean() == close(found.gain, rel=0.03)


def test_the_mean_reaches_73_5_percent_between_exponentials():
    assert price.fixed_price(stats.expon(), stats.expon()).gain / 0.5 == close(0.7357589, abs=1e-6)


def test_no_other_fixed_price_gains_more():
    buyers, sellers = stats.uniform(0.5, 2), stats.expon()
    found = price.fixed_price(buyers, sellers)
    draws = np.random.default_rng(0)
    v, c = buyers.ppf(draws.random(200_000)), sellers.ppf(draws.random(200_000))
    gains = [(v - c)[(c <= p) & (p <= v)].sum() / len(v) for p in (found.price, *np.linspace(0, 3, 31))]
    assert found.gain == close(gains[0], abs=0.005)
    assert gains[0] >= max(gains) - 0.002


# Bargains


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 7),
        ({"power": 0.25}, 5.5),
        ({"power": 0}, 4),
        ({"power": 1}, 10),
        ({"outside_buyer": 2}, 6),
        ({"outside_seller": 2}, 8),
        ({"outside_seller": 6}, 10),
    ],
)
def test_nash_prices_from_the_tables(changes, expected):
    found = price.nash_price(10, 4, **changes)
    assert found.feasible
    assert found.price == close(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("cost", "changes"),
    [
        (11, {}),
        (4, {"outside_buyer": 4, "outside_seller": 3}),
        (4 + 7, {}),  # the buyer's gain harms the seller by 7
    ],
)
def test_a_bargain_that_cannot_be_is_a_result(cost, changes):
    found = price.nash_price(10, cost, **changes)
    assert found.feasible is False
    assert np.isnan(found.price)
    assert not price.settle(10, cost, found.price).traded


@given(money, money, share, share, share)
def test_both_get_their_outside_option_and_power_splits_the_rest(value, cost, power, more, outside):
    cost, value = sorted([value, cost])
    d = outside * (value - cost) / 2 * (1 - 1e-9)
    found = price.nash_price(value, cost, power=power, outside_buyer=d, outside_seller=d)
    tiny = 1e-9 * (1 + value)
    assert cost + d - tiny <= found.price <= value - d + tiny
    stronger = price.nash_price(value, cost, power=max(power, more), outside_buyer=d, outside_seller=d)
    assert stronger.price >= found.price - tiny
    if value - cost - 2 * d > 1e-12 * (100 + value):  # else rounding of the sums decides whether there is a bargain
        moved = price.nash_price(value + 100, cost + 100, power=power, outside_buyer=d, outside_seller=d)
        assert moved.price == close(found.price + 100, abs=1e-9 * (200 + value))


@given(st.floats(0.1, 1000), share, share, share, st.floats(0.05, 0.95))
def test_no_other_price_has_a_larger_product_of_gains(pie, buyer_has, seller_has, cost, power):
    value, d_b, d_s = cost + pie, buyer_has * pie / 2.1, seller_has * pie / 2.1
    found = price.nash_price(value, cost, power=power, outside_buyer=d_b, outside_seller=d_s)

    def product(p):
        buyer, seller = np.maximum([value - p - d_b, p - cost - d_s], 0)
        return buyer ** (1 - power) * seller**power

    others = np.linspace(cost + d_s, value - d_b, 201)
    assert found.feasible
    assert product(found.price) >= product(others).max() - 1e-6 * pie


def test_a_bargain_serves_arrays():
    values, powers = np.array([[10.0], [1.0], [22.0]]), np.array([0.0, 0.5, 1.0])
    found = price.nash_price(values, 4, power=powers)
    assert found.feasible.tolist() == [[True] * 3, [False] * 3, [True] * 3]
    np.testing.assert_allclose(found.price, [[4, 7, 10], [np.nan] * 3, [4, 13, 22]], atol=1e-12)


@pytest.mark.parametrize("rule", [price.nash_price, price.double_auction])
@given(value=money, cost=money)
def test_every_rule_keeps_its_contract(rule: price.PriceRule, value, cost):
    assert isinstance(rule, price.PriceRule)
    found = rule(value, cost)
    assert isinstance(found, price.Bargain)
    assert found.feasible is (value >= cost)
    assert cost <= found.price <= value if found.feasible else np.isnan(found.price)


# Auctions


@given(money, money, share)
def test_an_auction_is_a_bargain_over_what_is_said(bid, ask, k):
    found = price.double_auction(bid, ask, k=k)
    assert found.feasible is (bid >= ask)
    if found.feasible:
        assert ask <= found.price <= bid
        assert found.price == close(k * bid + (1 - k) * ask, rel=1e-12, abs=1e-9)
    else:
        assert np.isnan(found.price)


KS = [0.0, 0.25, 0.5, 0.8, 1.0]


@pytest.mark.parametrize("k", KS)
def test_the_linear_equilibrium_is_a_best_response_to_itself(k):
    bid, ask = price.linear_equilibrium(k)
    others, said, true = (np.arange(10_000) + 0.5) / 10_000, np.linspace(0, 1, 101)[:, None], np.linspace(0, 1, 11)

    def worth_of_bids(bids, value):
        deal = price.double_auction(bids, ask(others), k=k)
        return np.where(deal.feasible, value - deal.price, 0).mean(axis=1)

    def worth_of_asks(asks, cost):
        deal = price.double_auction(bid(others), asks, k=k)
        return np.where(deal.feasible, deal.price - cost, 0).mean(axis=1)

    for x in true:
        assert worth_of_bids(said, x).max() <= worth_of_bids(np.array([[bid(x)]]), x).item() + 1e-4
        assert worth_of_asks(said, x).max() <= worth_of_asks(np.array([[ask(x)]]), x).item() + 1e-4
    lie = 0.05  # a test that sees nothing would pass with any strategy
    assert (
        k == 0 or worth_of_bids(np.array([[bid(0.8) + lie]]), 0.8) < worth_of_bids(np.array([[bid(0.8)]]), 0.8) - 1e-4
    )


@pytest.mark.parametrize("k", KS)
def test_strategies_shade_and_never_lose(k):
    bid, ask = price.linear_equilibrium(k)
    x = np.linspace(0, 1, 101)
    assert (bid(x) <= x).all()
    assert (ask(x) >= x).all()
    assert (np.diff(bid(x)) >= 0).all()
    assert (np.diff(ask(x)) >= 0).all()
    assert k == 0 or (bid(x)[bid(x) == x] <= ask(0) + 1e-12).all()  # the truth only where nobody asks as little


def test_the_linear_strategies_by_hand():
    bid, ask = price.linear_equilibrium()
    assert [bid(0.1), bid(0.25), bid(1)] == close([0.1, 0.25, 0.75])
    assert [ask(0), ask(0.75), ask(0.9)] == close([0.25, 0.75, 0.9])


def truthful(v, c):
    return price.nash_price(v, c).price, None, True


def auction(k):
    bid, ask = price.linear_equilibrium(k)
    return lambda v, c: (price.double_auction(bid(v), ask(c), k=k).price, None, True)


def broker(v, c):
    """Virtual values 2 v - 1 and 2 c: trade where the first is the larger, each at the report that just trades."""
    return c + 0.5, np.maximum(v - 0.5, 0), 2 * v - 1 >= 2 * c


RULES = [  # the gain from trade, its parts for buyer, seller and broker, and the probability of a trade
    (truthful, 1 / 6, 1 / 12, 1 / 12, 0, 1 / 2),
    (auction(0.5), 9 / 64, 9 / 128, 9 / 128, 0, 9 / 32),
    (auction(0.0), 1 / 8, 1 / 24, 1 / 12, 0, 1 / 4),
    (auction(1.0), 1 / 8, 1 / 12, 1 / 24, 0, 1 / 4),
    (broker, 1 / 12, 1 / 48, 1 / 48, 1 / 24, 1 / 8),
]


def deals(rule, v, c):
    paid, received, agreed = rule(v, c)
    return price.settle(v, c, paid, received, agreed=agreed)


def expected_parts(rule):
    """Gauss-Legendre over the costs that can trade, then over the values that trade with each: bounds by bisection."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    nodes, weights = (nodes + 1) / 2, weights / 2

    def edge(trades, inside, outside):
        return outside if trades(outside) else brentq(lambda x: trades(x) - 0.5, inside, outside, xtol=1e-13)

    top = edge(lambda c: deals(rule, 1.0, c).traded, 0.0, 1.0)
    c = top * nodes
    low = np.array([edge(lambda v, c=each: deals(rule, v, c).traded, 1.0, 0.0) for each in c])[:, None]
    deal = deals(rule, low + (1 - low) * nodes, c[:, None])
    assert deal.traded.all()
    mean = [(weights[:, None] * weights * (1 - low) * top * part).sum() for part in (*deal[4:], deal.traded)]
    return [sum(mean[:3]), *mean]


@pytest.mark.parametrize(("rule", "gain", "buyer", "seller", "fee", "chance"), RULES)
def test_what_each_rule_leaves_of_the_gain(rule, gain, buyer, seller, fee, chance):
    assert expected_parts(rule) == close([gain, buyer, seller, fee, chance], abs=1e-6)
    v, c = np.random.default_rng(0).random((2, 200_000))
    deal = deals(rule, v, c)
    kept(deal, v, c)
    means = [part.mean() for part in (deal.buyer + deal.seller + deal.broker, *deal[4:], deal.traded)]
    assert means == close([gain, buyer, seller, fee, chance], abs=0.003)


@given(share)
def test_a_fixed_price_gains_what_the_formula_says(p):
    n = 400  # midpoints, v and c on grids that never meet the price
    v, c = p + (1 - p) * (np.arange(n) + 0.5)[:, None] / n, p * (np.arange(n) + 0.5) / n
    deal = price.settle(v, c, p)
    assert p * (1 - p) * (deal.buyer + deal.seller).mean() == close(p * (1 - p) / 2, abs=1e-9)
    assert deal.traded.all()


@pytest.mark.parametrize("rule", ["fixed", "mean"])
def test_lies_pay_where_the_price_is_the_mean_of_reports_and_nowhere_with_a_fixed_price(rule):
    said, costs = np.linspace(0, 1, 41)[:, None], (np.arange(1000) + 0.5) / 1000

    def buyer_wins(report, value):
        asked = 0.5 if rule == "fixed" else price.nash_price(report, costs).price
        deal = price.settle(report, costs, asked)
        return np.where(deal.traded, value - deal.paid, 0).mean(axis=1)

    def seller_wins(report, cost):
        asked = 0.5 if rule == "fixed" else price.nash_price(costs, report).price
        deal = price.settle(costs, report, asked)
        return np.where(deal.traded, deal.received - cost, 0).mean(axis=1)

    for wins, true in [(buyer_wins, 0.3), (buyer_wins, 0.8), (seller_wins, 0.2), (seller_wins, 0.7)]:
        honest = wins(np.array([[true]]), true).item()
        best = wins(said, true).max()
        assert best <= honest + 1e-12 if rule == "fixed" else best > honest + 0.005


# What is refused


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: price.settle(np.nan, 4, 7), "value = nan, expected a finite number"),
        (lambda: price.settle(np.inf, 4, 7), "value = inf"),
        (lambda: price.settle(10, -4, 7), "cost = -4, expected a finite number from 0"),
        (lambda: price.settle(10, 4, np.array([7.0, -1])), "paid = -1"),
        (lambda: price.settle(10, 4, np.inf), "paid = inf"),
        (lambda: price.settle(10, 4, 7, -1), "received = -1"),
        (lambda: price.settle(10, 4, 7, unit=-0.01), r"unit = -0\.01"),
        (lambda: price.settle(10, 4, 7, promised=1), "found = nan"),
        (lambda: price.settle(10, 4, 7, found=1), "promised = nan"),
        (lambda: price.settle(10, 4, 7, promised=1, found=np.nan), "found = nan"),
        (lambda: price.nash_price(10, 4, power=1.5), r"power = 1\.5, expected a finite number from 0 to 1"),
        (lambda: price.nash_price(10, 4, power=-0.1), r"power = -0\.1"),
        (lambda: price.nash_price(10, np.nan), "cost = nan"),
        (lambda: price.nash_price(10, 4, outside_buyer=-1), "outside_buyer = -1"),
        (lambda: price.nash_price(10, 4, outside_seller=np.inf), "outside_seller = inf"),
        (lambda: price.double_auction(1, 0, k=2), "k = 2"),
        (lambda: price.double_auction(-1, 0), "bid = -1"),
        (lambda: price.double_auction(1, np.nan), "ask = nan"),
        (lambda: price.linear_equilibrium(-0.5), r"k = -0\.5"),
        (lambda: price.linear_equilibrium().bid(1.5), r"v = 1\.5"),
        (lambda: price.linear_equilibrium().ask(1.5), r"c = 1\.5"),
        (lambda: price.linear_equilibrium().ask(np.nan), "c = nan"),
        (lambda: price.posted_price(UNIT, -1), "cost = -1"),
        (lambda: price.posted_price(np.array([])), "expected a continuous distribution, or finite numbers"),
        (lambda: price.posted_price(np.array([1, np.nan])), "values = array"),
        (lambda: price.posted_price(np.ones((2, 2))), "values = array"),
        (lambda: price.posted_price(3.0), r"values = 3\.0"),
        (lambda: price.posted_price(["cheap", "dear"]), r"values = \['cheap', 'dear'\]"),
        (lambda: price.posted_price(stats.Normal(mu=[1.0, 2.0], sigma=0.2)), "expected a continuous distribution"),
        (lambda: price.posted_price(stats.Binomial(n=5, p=0.3)), "expected a continuous distribution"),
        (lambda: price.posted_price(stats.multivariate_normal([0, 0])), "expected a continuous distribution"),
        (lambda: price.posted_price(["cheap", "dear"]), "expected a continuous distribution"),
        (lambda: price.fixed_price(stats.gaussian_kde([1.0, 2.0, 4.0]), UNIT), "expected continuous distributions"),
        (lambda: price.posted_price(stats.gaussian_kde([1.0, 2.0, 4.0])), "expected a continuous distribution"),
        (lambda: price.posted_price(stats.poisson(3)), "expected a continuous distribution"),
        (lambda: price.posted_price(stats.norm(scale=-1)), "expected a continuous distribution"),
        (lambda: price.posted_price(stats.norm([0, 1])), "expected a continuous distribution"),
        (lambda: price.posted_price(stats.pareto(0.5)), "grows with the price without end"),
        (lambda: price.posted_price(stats.pareto(1), 0.5), "grows with the price without end"),
        (lambda: price.fixed_price(UNIT, np.ones(3)), "expected continuous distributions with finite means"),
        (lambda: price.fixed_price(stats.pareto(1), UNIT), "expected continuous distributions with finite means"),
    ],
)
def test_what_makes_no_sense_is_refused(call, said):
    with pytest.raises(ParameterError, match=said):
        call()


@given(st.lists(st.tuples(money, money, money), min_size=1, max_size=5))
def test_the_table_of_deals_has_a_row_a_meeting_and_all_the_money(meetings):
    value, cost, paid = np.array(meetings).T
    deal = price.settle(value, cost, paid)
    table = deal.table(stack.grid(meeting=range(len(meetings))))
    assert table.traded.tolist() == deal.traded.tolist()
    assert table.refunded.tolist() == deal.refunded.tolist()
    assert table.paid.tolist() == deal.paid.tolist()
    assert table.received.tolist() == deal.received.tolist()
    parts = table[["buyer_surplus", "seller_surplus", "broker_surplus"]].to_numpy()
    assert (parts == np.stack([deal.buyer, deal.seller, deal.broker], axis=1)).all()


def test_deals_of_another_number_and_a_single_one_make_no_rows():
    rows = stack.grid(meeting=range(2))
    with pytest.raises(ShapeError, match=r"'traded' has shape \(3,\), expected \(2,\)"):
        price.settle(np.full(3, 9.0), 1.0, 5.0).table(rows)
    with pytest.raises(ShapeError, match=r"'traded' has shape \(\), expected \(2,\)"):
        price.settle(9.0, 1.0, 5.0).table(rows)
