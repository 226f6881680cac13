from fractions import Fraction

import games
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from paramarket import contract, stack
from paramarket.errors import ParameterError

probabilities = st.integers(26, 50).map(lambda k: Fraction(k, 50))
shares = st.fractions(0, 1, max_denominator=8)


def label(world):
    return contract.judge(world).label.item()


def correlated(alpha, beta, places, prior=(1,), **stakes):
    """Correlated firms; places: of each world between the Fréchet bounds, from 0 to 1."""
    low, high = max(0, alpha + beta - 1), min(alpha, beta)
    both = [low + place * (high - low) for place in places]
    return contract.correlation_world(alpha, beta, both, prior=prior, **stakes)


@given(games.small_worlds(observations=((1, 1), (1, 2), (2, 1), (2, 2))))
def test_dominance_is_what_its_definition_says(world):
    try:
        listed = [contract.equilibria(world, name) for name in contract.CONTRACTS]
    except ParameterError:
        assume(False)
    possible = np.einsum("w,wab->ab", world.prior, world.training) > 0
    found = contract.judge(world)
    for c, one in enumerate(listed):
        for d, other in enumerate(listed):
            everywhere = True
            for z1, z2 in np.argwhere(possible):
                most = other.utility_first[:, z1].max(), other.utility_second[:, z2].max()
                enough = (one.utility_first[:, z1] >= most[0]) & (one.utility_second[:, z2] >= most[1])
                everywhere = everywhere and enough.any()
            assert found.dominates[c, d] == everywhere
    dominates = found.dominates
    for c in range(4):
        assert found.rational[c] == (c == 0 or dominates[c, 0])
        assert found.optimal[c] == (not any(dominates[d, c] and not dominates[c, d] for d in range(4)))


@given(probabilities, probabilities, shares, shares, shares)
def test_with_equal_stakes_two_firms_share_nothing_or_their_training(one, other, first, second, prior):
    """Theorem 3.6 (1): R = C; alpha > beta, so that full sharing costs the better firm something."""
    assume(one != other)
    alpha, beta = max(one, other), min(one, other)
    world = correlated(alpha, beta, [first, second], [prior, 1 - prior])
    assert set(label(world).replace(" or ", " = ").split(" = ")) <= {"none", "train"}


@given(probabilities, shares, shares, shares, st.fractions(0, 4, max_denominator=4))
def test_equally_good_firms_share_everything(alpha, first, second, prior, cost):
    """Theorem 3.6 (2): alpha = beta. Of several equilibria of none, full need not beat each."""
    world = correlated(alpha, alpha, [first, second], [prior, 1 - prior], cost=cost)
    found = contract.judge(world)
    alone = contract.payoffs(world)
    assume(alone.first_low[0] == alone.first_high[0] and alone.second_low[0] == alone.second_high[0])
    assert found.rational[3]
    assert found.optimal[3]


@pytest.mark.parametrize("corner", range(8))
def test_in_a_whole_box_only_training_is_shared(corner):
    """Theorem 3.6 (3), at the corners of its box, drawn in by a hundredth."""
    ends = [("0.72", "0.721"), ("0.513", "0.514"), ("0.755", "0.756")]
    inside = []
    for k, (low, high) in enumerate(ends):
        low, high = Fraction(low), Fraction(high)
        step = (high - low) / 100
        inside.append(high - step if corner >> k & 1 else low + step)
    alpha, beta, cost = inside
    prior = Fraction(500005, 1000000)
    world = contract.correlation_world(alpha, beta, [alpha * beta, beta], prior=[prior, 1 - prior], cost=cost)
    assert label(world) == "train"


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ("4/5 7/10 14/25 1 1", "none = train"),
        ("9/10 11/20 99/200 1 1", "none = train"),
        ("9/10 17/20 153/200 1 5/2", "infer = full"),
        ("7/10 3/5 21/50 1 3", "infer = full"),
    ],
)
def test_known_correlations_have_their_contracts(numbers, expected):
    alpha, beta, both, reward, cost = map(Fraction, numbers.split())
    assert label(contract.correlation_world(alpha, beta, [both], reward=reward, cost=cost)) == expected


def two_hypotheses(*texts, **more):
    return contract.two_hypotheses_world(*map(Fraction, texts), **more)


def test_with_much_data_predictions_are_shared_although_ex_ante_all_would_share_everything():
    """Theorem 5.1's point, and why utilities are interim: full beats none before training, for both, yet is refused."""
    world = two_hypotheses("1/10", "1/10", "1/20", "3/10")
    found = contract.judge(world)
    assert found.label == "infer"
    ex_ante = contract.payoffs(world)
    assert ex_ante.first_low[3] > ex_ante.first_high[0]
    assert ex_ante.second_low[3] > ex_ante.second_high[0]
    assert not found.rational[3]
    knows = contract.equilibria(world, "none").utility_first[0, 0]
    assert knows == Fraction(211, 400)  # .5275, and full sharing gives it .5
    assert contract.equilibria(world, "full").utility_first.tolist() == [[Fraction(1, 2)] * 2]


FLIP = {"p": "3/100", "kappa": "17/100", "lam": "1/20", "mu": "1/2"}


@pytest.mark.parametrize(
    ("learnt", "expected"), [({"sure": Fraction(1, 2)}, "infer = full"), ({"one_sample": True}, "full"), ({}, "infer")]
)
def test_the_amount_of_data_turns_full_into_infer(learnt, expected):
    assert label(two_hypotheses(*FLIP.values(), noise=Fraction(1, 10), **learnt)) == expected


def test_that_holds_around_the_point():
    near = np.array([float(Fraction(text)) for text in (*FLIP.values(), "1/10")])
    p, kappa, lam, mu, noise = (near * np.random.default_rng(0).uniform(0.96, 1.04, (50, 5))).T
    for one_sample, expected in ((False, "infer"), (True, "full")):
        worlds = contract.two_hypotheses_world(p, kappa, lam, mu, noise=noise, one_sample=one_sample)
        assert set(contract.judge(worlds).label) == {expected}


def test_at_theorem_5_2s_point_a_firm_that_has_seen_the_rare_case_refuses_full_sharing():
    """There the paper calls full the only contract. But a firm 1 that drew (A, 1) expects more than 1/2 alone."""
    world = two_hypotheses("1/16", "201/2048", "1/64", "29/64", one_sample=True)
    found = contract.judge(world)
    assert found.label == "infer"
    alone = contract.equilibria(world, "none").utility_first[:, 3].min()
    shared = contract.equilibria(world, "full").utility_first[:, 3].max()
    assert alone > Fraction(1, 2) == shared


def test_many_worlds_at_once_are_judged_like_each_by_itself():
    alpha, cost = np.linspace(0.5, 0.95, 6)[:, None], np.linspace(0.2, 3, 5)
    both = np.stack([alpha * 0.6, np.minimum(alpha, 0.6)], axis=-1)
    together = contract.judge(contract.correlation_world(alpha, 0.6, both, prior=(0.5, 0.5), cost=cost))
    assert together.label.shape == (6, 5)
    for i, k in np.ndindex(6, 5):
        one = contract.judge(contract.correlation_world(alpha[i, 0], 0.6, both[i, 0], prior=(0.5, 0.5), cost=cost[k]))
        assert together.label[i, k] == one.label
        assert (together.dominates[i, k] == one.dominates).all()


def test_floats_at_a_boundary_find_the_tie():
    """3 beta = alpha + 1, where .8 and .6 as floats are not what they mean."""
    assert label(contract.correlation_world(0.8, 0.6, [0.48])) == label(
        contract.correlation_world(Fraction(4, 5), Fraction(3, 5), [Fraction(12, 25)])
    )


def test_the_verdict_is_a_table():
    rows = stack.grid(beta=[0.55, 0.85])
    beta = rows.beta.to_numpy()
    table = contract.judge(contract.correlation_world(0.9, beta, 0.9 * beta[:, None], cost=2.5)).table(rows)
    assert table.columns.tolist() == ["beta", "contract"]
    assert table.contract[1] == "infer = full"


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_a_transfer_leaves_both_with_half_of_the_surplus(first, second):
    surplus, paid = contract.transfer(first, second)
    assert surplus == first + second
    if surplus > 1e-9:
        assert first + paid == pytest.approx(surplus / 2)
        assert second - paid == pytest.approx(surplus / 2)
    elif surplus <= 0:
        assert np.isnan(paid)


@given(probabilities, probabilities)
def test_the_surplus_of_full_sharing_has_its_closed_form(one, other):
    """R = C = 1: (alpha - beta) / 2 where both are good, and exactly nothing where the worse one stays out."""
    alpha, beta = max(one, other), min(one, other)
    assume(alpha > beta and 3 * beta != alpha + 1)
    ends = contract.payoffs(correlated(alpha, beta, [Fraction(1, 2)]))
    gains = [float(ends.first_low[3] - ends.first_low[0]), float(ends.second_low[3] - ends.second_low[0])]
    surplus, paid = contract.transfer(*gains)
    if 3 * beta > alpha + 1:
        assert [surplus, paid] == pytest.approx([float(alpha - beta) / 2] * 2)
        assert gains[0] == pytest.approx(float(beta - alpha) / 4)
    else:
        assert surplus == pytest.approx(0)
        assert np.isnan(paid)


def test_a_contract_is_signed_up_to_the_running_cost_that_it_is_worth():
    """At alpha = .9, beta = .85, C = 2.5 sharing predictions is worth 62/1600 to firm 1 and 202/1600 to firm 2."""
    alpha, beta, both, cost = map(Fraction, ["9/10", "17/20", "153/200", "5/2"])
    world = contract.correlation_world(alpha, beta, [both], cost=cost)
    worth = Fraction(291 - 229, 1600)
    for paid, expected in ((worth, "infer"), (worth + Fraction(1, 10**9), "none = train")):
        assert contract.judge(world, {"infer": paid, "full": paid + 1}).label == expected
    assert contract.judge(world, {"none": 0, "full": Fraction(1, 10**9)}).label == "infer"


@pytest.mark.parametrize(
    ("costs", "message"), [({"ful": 1}, "Did you mean 'full'"), ({"full": -1}, "expected 0 or more")]
)
def test_a_wrong_running_cost_is_refused(costs, message):
    with pytest.raises(ParameterError, match=message):
        contract.judge(contract.correlation_world(0.8, 0.7, [0.56]), costs)
