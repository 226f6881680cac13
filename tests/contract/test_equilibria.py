from fractions import Fraction
from itertools import product

import games
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from paramarket import contract
from paramarket.errors import ParameterError

each_contract = pytest.mark.parametrize("name", contract.CONTRACTS)


def exact(*texts):
    return [Fraction(text) for text in texts]


def outcomes(world, name):
    """The different payoff pairs, each with its probability that somebody acts."""
    found = contract.equilibria(world, name)
    return {(*pair, trade) for pair, trade in zip(found.payoff.tolist(), found.trade.tolist(), strict=True)}


KNOWN = [  # alpha, beta, both, R, C: payoffs and trade probability with nothing shared, and with everything
    ("4/5 7/10 14/25 1 1", {("7/40", "3/40", "69/100")}, {("3/20", "3/20", "1/2")}),
    ("9/10 11/20 99/200 1 1", {("2/5", "0", "1/2")}, {("1/5", "1/5", "1/2")}),
    # 3 beta = alpha + 1: firm 2 is indifferent, both profiles are equilibria
    ("4/5 3/5 12/25 1 1", {("1/5", "0", "18/25"), ("3/10", "0", "1/2")}, {("3/20", "3/20", "1/2")}),
    ("9/10 17/20 153/200 1 5/2", {("229/1600", "89/1600", "61/100")}, {("291/1600", "291/1600", "39/100")}),
    ("7/10 3/5 21/50 1 3", {("0", "0", "0")}, {("3/200", "3/200", "27/100")}),
]


@pytest.mark.parametrize(("numbers", "alone", "together"), KNOWN)
def test_the_correlation_model_has_its_known_payoffs(numbers, alone, together):
    alpha, beta, both, reward, cost = exact(*numbers.split())
    world = contract.correlation_world(alpha, beta, [both], reward=reward, cost=cost)
    for name in ("none", "train"):
        assert outcomes(world, name) == {tuple(exact(*row)) for row in alone}
    shared = outcomes(world, "full")
    assert outcomes(world, "infer") == shared
    assert shared == {tuple(exact(*row)) for row in together}


def test_the_point_at_which_only_training_is_shared():
    alpha, beta, cost = exact("7205/10000", "5135/10000", "7555/10000")
    prior = Fraction(500005, 1000000)
    world = contract.correlation_world(alpha, beta, [alpha * beta, beta], prior=[prior, 1 - prior], cost=cost)
    rounded = {
        name: [[round(float(part), 6) for part in row[:2]] for row in outcomes(world, name)]
        for name in contract.CONTRACTS
    }
    assert rounded == {
        "none": [[0.183471, 0.001777]],
        "train": [[0.221263, 0.003082]],
        "infer": [[0.127334, 0.127334]],
        "full": [[0.127334, 0.127334]],
    }


def test_a_firm_may_act_on_a_negative_signal():
    both, cost = exact("26/100", "1/2"), Fraction(715, 1000)
    alpha, beta = exact("3/4", "505/1000")
    alone = [contract.correlation_world(alpha, beta, [each], cost=cost) for each in both]
    known = [outcomes(world, "none") for world in alone]
    assert {row[:2] for row in known[0]} == {tuple(exact("35443/160000", "1829/160000"))}
    assert {row[:2] for row in known[1]} == {tuple(exact("35843/160000", "857/160000"))}
    against = contract.equilibria(alone[1], "none")
    assert against.second[0, 0, 0, 0].tolist() == [1, 0]  # by the own signal: acts when it is 0
    mixed = contract.correlation_world(alpha, beta, both, prior=exact("1/3", "2/3"), cost=cost)
    assert outcomes(mixed, "none") == {tuple(exact("33619/160000", "1/32000", "283/400"))}
    assert {row[2] for row in outcomes(mixed, "train")} == {Fraction(209, 240)}
    assert {row[:2] for row in outcomes(mixed, "full")} == {tuple(exact("457/3200", "457/3200"))}


def test_two_hypotheses_have_their_closed_forms():
    p, k, lam, mu = exact("1/10", "1/10", "1/20", "3/10")
    world = contract.two_hypotheses_world(p, k, lam, mu)
    alone = (k * p + (1 - k) * (1 - p * lam) / 2, (1 - k) * (1 + p * lam) / 2)
    assert alone == tuple(exact("1831/4000", "1809/4000"))
    infer = (
        Fraction(1, 2) + (1 - k) * p * mu / 2 + k * p / 2,
        k * (1 - p) / 2 + (1 - k) * (1 - p * mu) / 2,
    )
    assert infer == tuple(exact("1037/2000", "963/2000"))
    expected = {"none": alone, "train": alone, "infer": infer, "full": tuple(exact("1/2", "1/2"))}
    for name, pair in expected.items():
        assert {row[:2] for row in outcomes(world, name)} == {pair}
    first = contract.equilibria(world, "none").utility_first[0]
    assert first[0] == k + (1 - k) * (1 - lam) / 2  # it has learnt that hypothesis I holds
    assert contract.equilibria(world, "infer").utility_first[0][0] == k + (1 - k) * (1 + mu) / 2


def test_one_old_case_where_the_papers_payoffs_are_and_are_not_those_of_an_equilibrium():
    """Theorem 5.2's point. Its vectors for none and full are the game's. That for train lacks a factor 1 - lam in one
    term, and that for infer is no equilibrium's: Gambit finds the same as we do (see test_extensive.py)."""
    p, k, lam, mu = exact("1/16", "201/2048", "1/64", "29/64")
    world = contract.two_hypotheses_world(p, k, lam, mu, one_sample=True)
    found = {name: [tuple(map(float, row[:2])) for row in outcomes(world, name)] for name in contract.CONTRACTS}
    assert found["none"] == [pytest.approx((0.451487, 0.450971), abs=5e-7)]
    assert found["full"] == [pytest.approx((0.492189, 0.492189), abs=5e-7)]
    learns = k + (1 - k) * mu
    missing = p * learns * (1 - k) * lam / 2
    assert found["train"] == [pytest.approx((0.454036 - float(missing), 0.451151), abs=5e-7)]
    assert found["infer"] == [pytest.approx((0.487904, 0.506204), abs=5e-7)]


probabilities = st.integers(26, 50).map(lambda k: Fraction(k, 50))


@given(probabilities, probabilities, st.fractions(0, 1, max_denominator=6))
def test_equal_stakes_have_their_closed_forms(one, other, place):
    """Lemma 3.2: R = C = 1, the better firm first."""
    alpha, beta = max(one, other), min(one, other)
    assume(3 * beta != alpha + 1)
    both = alpha + beta - 1 + place * (1 - alpha)
    world = contract.correlation_world(alpha, beta, [both])
    assert {row[:2] for row in outcomes(world, "full")} == {((2 * alpha - 1) / 4,) * 2}
    if 3 * beta > alpha + 1:
        pair, trade = ((3 * alpha - beta - 1) / 4, (3 * beta - alpha - 1) / 4), (1 + alpha + beta - 2 * both) / 2
    else:
        pair, trade = ((2 * alpha - 1) / 2, Fraction(0)), Fraction(1, 2)
    assert outcomes(world, "none") == {(*pair, trade)}


@each_contract
@given(games.small_worlds())
def test_they_are_those_that_trying_everything_finds(name, world):
    plans = [games.strategies_of(world, name, firm) for firm in (0, 1)]
    assume(len(plans[0]) * len(plans[1]) <= 2**10)
    earned = {}
    for x, y in product(range(len(plans[0])), range(len(plans[1]))):
        earned[x, y] = games.earned(world, name, (plans[0][x], plans[1][y]))
    stable = []
    for (x, y), (first, second) in earned.items():
        best_first = max(earned[other, y][0] for other in range(len(plans[0])))
        best_second = max(earned[x, other][1] for other in range(len(plans[1])))
        if first == best_first and second == best_second:
            stable.append((plans[0][x], plans[1][y]))
    found = contract.equilibria(world, name)
    pairs = games.as_strategies(found, world, name)
    assert len(pairs) == len(stable)
    assert all(pair in stable for pair in pairs)
    for pair, payoff, trade in zip(pairs, found.payoff, found.trade, strict=True):
        assert payoff.tolist() == games.earned(world, name, pair)
        acts = sum(chance for chance, _, seen in games.states(world) if any(games.act(name, pair, seen)))
        assert trade == acts


@each_contract
@given(games.small_worlds(), st.data())
def test_whoever_deviates_changes_the_potential_by_what_it_gains(name, world, data):
    """Theorem 2.1: a congestion game, so an exact potential game."""
    plans = [games.strategies_of(world, name, firm) for firm in (0, 1)]
    before = [data.draw(st.sampled_from(each)) for each in plans]
    for firm in (0, 1):
        after = list(before)
        after[firm] = data.draw(st.sampled_from(plans[firm]))
        gain = games.earned(world, name, after)[firm] - games.earned(world, name, before)[firm]
        assert games.potential(world, name, after) - games.potential(world, name, before) == gain


@each_contract
@given(games.small_worlds())
def test_where_the_potential_is_highest_is_an_equilibrium(name, world):
    plans = [games.strategies_of(world, name, firm) for firm in (0, 1)]
    assume(len(plans[0]) * len(plans[1]) <= 2**8)
    best = max(product(*plans), key=lambda pair: games.potential(world, name, pair))
    assert best in games.as_strategies(contract.equilibria(world, name), world, name)


@given(probabilities, probabilities, st.lists(st.fractions(0, 1, max_denominator=8), min_size=2, max_size=2), st.data())
def test_full_sharing_is_never_worse_than_sharing_predictions(one, other, places, data):
    """Lemma 3.5, in the correlation model with an unknown correlation."""
    alpha, beta = max(one, other), min(one, other)
    both = [alpha + beta - 1 + place * (1 - alpha) for place in places]
    share = data.draw(st.fractions(0, 1, max_denominator=8))
    cost = data.draw(st.fractions(0, 4, max_denominator=4))
    world = contract.correlation_world(alpha, beta, both, prior=[share, 1 - share], cost=cost)
    found = contract.payoffs(world)
    assert found.first_low[3] >= found.first_high[2]
    assert found.second_low[3] >= found.second_high[2]


@each_contract
@given(games.small_worlds(observations=((1, 2), (2, 2))))
@settings(max_examples=10)
def test_the_lowest_and_highest_payoffs_are_those_of_the_list(name, world):
    try:
        found = contract.equilibria(world, name)
    except ParameterError:
        assume(False)
    ends = contract.payoffs(world)
    k = contract.CONTRACTS.index(name)
    for firm, low, high in ((0, ends.first_low, ends.first_high), (1, ends.second_low, ends.second_high)):
        assert (low[k], high[k]) == (found.payoff[:, firm].min(), found.payoff[:, firm].max())
    assert (ends.trade_low[k], ends.trade_high[k]) == (found.trade.min(), found.trade.max())


@each_contract
@given(games.small_worlds())
def test_floats_find_what_fractions_find(name, world):
    exactly = contract.equilibria(world, name)
    roughly = contract.equilibria(contract.World(*(part.astype(float) for part in world)), name)
    assert (roughly.first == exactly.first).all()
    assert (roughly.second == exactly.second).all()
    np.testing.assert_allclose(roughly.payoff, exactly.payoff.astype(float), atol=1e-12)


def test_many_worlds_at_once_are_each_by_itself():
    alpha, cost = np.linspace(0.5, 0.95, 7)[:, None], np.linspace(0.2, 3, 5)
    both = np.stack([alpha * 0.6, np.minimum(alpha, 0.6)], axis=-1)
    together = contract.payoffs(contract.correlation_world(alpha, 0.6, both, prior=(0.5, 0.5), cost=cost))
    for i, k in np.ndindex(7, 5):
        one = contract.correlation_world(alpha[i, 0], 0.6, both[i, 0], prior=(0.5, 0.5), cost=cost[k])
        for many, single in zip(together, contract.payoffs(one), strict=True):
            assert many[i, k].tolist() == pytest.approx(single.tolist())


def test_what_cannot_be_tried_is_refused():
    world = contract.correlation_world(0.8, 0.7, [0.56])
    with pytest.raises(ParameterError, match=r"unknown contract 'trian'\. Did you mean 'train'"):
        contract.equilibria(world, "trian")
    with pytest.raises(ParameterError, match="3 worlds at once: expected one"):
        contract.equilibria(contract.correlation_world([0.7, 0.8, 0.9], 0.7, [0.6]), "none")
    many = np.full((1, 12, 12), 1 / 144)
    with pytest.raises(ParameterError, match="too many"):
        contract.payoffs(contract.world([1], many, world.inference, reward=(0, 1), cost=(0, 1)))
    flat = contract.world([1], np.full((1, 2, 2), 0.25), np.full((1, 2, 2, 2), 1 / 8), reward=(0, 1), cost=(0, 1))
    with pytest.raises(ParameterError, match="4294967296 equilibria under 'full': too many to list"):
        contract.equilibria(flat, "full")


def test_payoffs_make_a_table():
    from paramarket import stack

    rows = stack.grid(beta=[0.6, 0.7])
    table = contract.payoffs(contract.correlation_world(0.8, rows.beta.to_numpy(), [0.56])).table(rows)
    assert table.columns[:2].tolist() == ["beta", "contract"]
    assert len(table) == 8
    assert table.query("beta == .7 and contract == 'none'").first_low.item() == pytest.approx(0.175)
