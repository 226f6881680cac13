from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramarket import contract
from paramarket.base import stream
from paramarket.errors import ParameterError, ShapeError

HALF = Fraction(1, 2)
ONE = (0, 1)
YES = np.ones(3) > 0
chances = st.fractions(0, 1, max_denominator=20)


def told_apart():
    """P(t, s1, s2) of two firms that always know the label."""
    table = np.zeros((2, 2, 2), dtype=int) * HALF
    table[0, 0, 0] = table[1, 1, 1] = HALF
    return table


@given(chances, chances, chances)
def test_the_correlation_model_has_its_margins(alpha, beta, place):
    low, high = max(0, alpha + beta - 1), min(alpha, beta)
    both = low + place * (high - low)
    table = contract.correlation_world(alpha, beta, [both]).inference[0]
    assert table.sum() == 1
    assert table.sum(axis=(1, 2)).tolist() == [HALF, HALF]
    for label in (0, 1):
        assert 2 * table[label, label].sum() == alpha
        assert 2 * table[label, :, label].sum() == beta
        assert 2 * table[label, label, label] == both


@given(st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.floats(0, 1))
def test_the_correlation_is_that_of_the_two_signals(alpha, beta, place):
    spread = np.sqrt(alpha * (1 - alpha) * beta * (1 - beta))
    low, high = (max(0, alpha + beta - 1) - alpha * beta) / spread, (min(alpha, beta) - alpha * beta) / spread
    correlation = low + place * (high - low)
    both = contract.both_right(alpha, beta, correlation)
    given_1 = 2 * contract.correlation_world(alpha, beta, [both]).inference[0, 1]
    assert (given_1[1, 1] - alpha * beta) / spread == pytest.approx(correlation, abs=1e-9)


def test_of_several_worlds_one_observation_says_nothing_and_two_say_all():
    tenth = Fraction(1, 10)
    both = [56 * tenth / 10, 6 * tenth, 65 * tenth / 10]
    world = contract.correlation_world(8 * tenth, 7 * tenth, both, prior=[HALF, HALF / 2, HALF / 2])
    for axis in (1, 2):
        alone = world.training.sum(axis=axis)
        assert (alone == Fraction(1, 3)).all()
    assert ((world.training > 0).sum(axis=0) == 1).all()


def test_one_old_case_is_drawn_like_a_new_one():
    world = contract.two_hypotheses_world(*(Fraction(k, 20) for k in (1, 2, 1, 6)), one_sample=True)
    for w in (0, 1):
        for label, first, second in np.ndindex(2, 2, 2):
            cell = world.training[w, 2 * label + first, 2 * label + second]
            assert cell == world.inference[w, label, first, second]
        assert world.training[w].sum() == 1
    of_firm_2 = world.training.sum(axis=1)
    assert (of_firm_2[0] == of_firm_2[1]).all()  # by itself firm 2 learns nothing


@given(chances)
def test_noise_turns_round_the_signal_of_firm_1_alone(noise):
    sizes = [Fraction(k, 20) for k in (1, 2, 1, 6)]
    clear = contract.two_hypotheses_world(*sizes).inference
    noisy = contract.two_hypotheses_world(*sizes, noise=noise).inference
    assert (noisy == (1 - noise) * clear + noise * clear[:, :, ::-1]).all()


def test_a_measured_world_holds_what_was_counted():
    labels, first, second, groups = torch.randint(2, (4, 48), generator=stream(0, "measured")).numpy()
    world = contract.measured_world(labels == 1, first == 1, second == 1, groups, samples=2)
    for w, t, i, j in np.ndindex(2, 2, 2, 2):
        here = (groups == w) & (labels == t) & (first == i) & (second == j)
        assert world.inference[w, t, i, j] == pytest.approx(here.sum() / (groups == w).sum())
    assert world.prior.tolist() == pytest.approx([np.mean(groups == w) for w in (0, 1)])
    for w in (0, 1):
        right = np.mean((labels == first)[groups == w])
        expected = [(1 - right) ** 2, 2 * right * (1 - right), right**2]
        assert world.training[w].sum(axis=1).tolist() == pytest.approx(expected)


def test_weights_count_examples_more_than_once():
    labels, first, second = np.array([0, 1, 1, 0]) == 1, np.array([0, 1, 0, 0]) == 1, np.array([1, 1, 1, 0]) == 1
    groups, times = np.zeros(4, dtype=int), np.array([2, 0, 1, 3])
    many = contract.measured_world(labels, first, second, groups, weights=np.stack([times, np.ones(4)]))
    repeated = [np.repeat(part, times) for part in (labels, first, second, groups)]
    np.testing.assert_allclose(many.inference[0], contract.measured_world(*repeated).inference)
    np.testing.assert_allclose(many.inference[1], contract.measured_world(labels, first, second, groups).inference)


def test_many_pairs_of_models_are_measured_like_each_by_itself():
    first, second = torch.rand(2, 3, 1, 20, generator=stream(0, "pairs")).numpy() > 0.4
    labels, groups = np.arange(20) % 2 == 0, np.arange(20) // 10
    weights = torch.randint(1, 4, (3, 2, 20), generator=stream(0, "weights")).numpy()
    many = contract.measured_world(labels, first, second, groups, weights=weights)
    for pair, resample in np.ndindex(3, 2):
        one = contract.measured_world(labels, first[pair, 0], second[pair, 0], groups, weights=weights[pair, resample])
        for part in ("prior", "training", "inference"):
            np.testing.assert_allclose(getattr(many, part)[pair, resample], getattr(one, part))


def test_fractions_stay_fractions_and_one_float_makes_floats():
    exact = contract.correlation_world(HALF, HALF, [HALF / 2])
    assert all(part.dtype == object for part in exact)
    assert all(part.dtype == float for part in contract.correlation_world(0.5, HALF, [HALF / 2]))
    assert all(part.dtype == float for part in contract.correlation_world(HALF, HALF, [HALF / 2], cost=1.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: contract.correlation_world(1.2, 0.7, [0.5]), "alpha = 1.2: expected a probability, from 0 to 1"),
        (lambda: contract.correlation_world(0.8, -0.1, [0.5]), "beta = -0.1: expected a probability"),
        (lambda: contract.correlation_world(0.8, 0.7, [0.75]), r"both = 0.75: .* are both right with 0.5 to 0.7"),
        (lambda: contract.correlation_world(0.8, 0.7, [float("nan")]), "both = nan"),
        (lambda: contract.correlation_world(0.8, 0.7, [0.56], cost=-1), "cost = -1: expected 0 or more"),
        (lambda: contract.correlation_world(0.8, 0.7, [0.56], reward=-0.5), "reward = -0.5: expected 0 or more"),
        (lambda: contract.correlation_world(0.8, 0.7, [0.56, 0.6], prior=[0.5, 0.4]), "prior sum to 0.9, expected 1"),
        (lambda: contract.both_right(0.8, 0.7, 0.9), r"correlation = 0.9, .* only have one from -0.3273 to 0.7638"),
        (lambda: contract.two_hypotheses_world(0.1, 0.1, 0.6, 0.6), r"lam \+ mu = 1.2: expected a probability"),
        (lambda: contract.two_hypotheses_world(0.1, 0.1, 0.1, 0.1, noise=2), "noise = 2: expected a probability"),
        (
            lambda: contract.world([1], [[[1]]], [told_apart() * 2], reward=ONE, cost=ONE),
            "inference sum to 2, expected 1",
        ),
    ],
)
def test_what_is_no_world_is_refused_in_one_line(make, message):
    with pytest.raises(ParameterError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: contract.correlation_world(0.8, 0.7, 0.56), "expected lists of both and of prior"),
        (lambda: contract.correlation_world(0.8, 0.7, [0.5, 0.6]), "both holds 2 worlds, prior 1"),
        (lambda: contract.world([1], [[1]], [told_apart()], reward=(0, 1), cost=(0, 1)), "expected training"),
        (lambda: contract.world([HALF] * 2, [[[1]]], [told_apart()], reward=ONE, cost=ONE), "prior has 2 worlds"),
        (lambda: contract.world([1], [[[1]]], [told_apart()], reward=1, cost=(0, 1)), "reward has shape"),
        (lambda: contract.measured_world(YES, YES[1:], YES, np.zeros(3, dtype=int)), "examples, got .* 'first': 2"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(make, message):
    with pytest.raises(ShapeError, match=message):
        make()


def test_a_group_without_an_example_is_refused():
    with pytest.raises(ParameterError, match="a group without an example"):
        contract.measured_world(YES, YES, YES, np.array([0, 2, 2]))
