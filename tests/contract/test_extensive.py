"""Gambit as a witness: it reads our games, and finds the same pure equilibria."""

import io
import re
from fractions import Fraction

import games
import numpy as np
import pygambit
import pytest
from hypothesis import assume, given, settings

from paramarket import contract
from paramarket.errors import ParameterError


def gambits(text, name):
    """Its pure equilibria: a dict from what is seen to an action for each firm, and both payoffs."""
    found = []
    for profile in pygambit.nash.enumpure_solve(pygambit.read_efg(io.BytesIO(text.encode()))).equilibria:
        behaviour = profile.as_behavior()
        pair = []
        for firm in (0, 1):
            actions = {}
            for history, mixed in behaviour[f"Firm {firm + 1}"]:  # one history that leads to an information set
                (drawn, *_) = history
                seen = [int(each) for each in re.findall(r"[zs]\d=(\d+)", drawn.action)]
                actions[tuple(seen[place] for place in games.SEES[name][firm])] = int(mixed["1"])
            pair.append(actions)
        payoffs = [Fraction(str(profile.payoffs[player])) for player in ("Firm 1", "Firm 2")]
        found.append((*pair, payoffs))
    return found


def ours(world, name):
    found = contract.equilibria(world, name)
    pairs = games.as_strategies(found, world, name)
    return [(*pair, payoff.tolist()) for pair, payoff in zip(pairs, found.payoff, strict=True)]


@pytest.mark.parametrize("name", contract.CONTRACTS)
@given(games.small_worlds(observations=((1, 1), (1, 2), (2, 1), (1, 1))))
@settings(max_examples=20)  # 80 worlds in all
def test_gambit_finds_the_same_equilibria(name, world):
    plans = [2 ** len(games.sights(world, name, firm)) for firm in (0, 1)]
    assume(max(plans) <= 2**4)
    theirs = gambits(contract.extensive_form(world, name), name)
    mine = ours(world, name)
    assert len(theirs) == len(mine)
    assert all(each in theirs for each in mine)


def test_gambit_finds_them_at_the_point_where_only_predictions_are_shared():
    world = contract.two_hypotheses_world(*(Fraction(k, 20) for k in (2, 2, 1, 6)))
    for name in ("none", "train", "infer"):
        theirs = gambits(contract.extensive_form(world, name), name)
        assert {tuple(each[2]) for each in theirs} == set(map(tuple, contract.equilibria(world, name).payoff))


def test_gambit_finds_what_shared_predictions_are_worth_at_theorem_5_2s_point():
    """Once signals are public, each pair of them is a game of its own, and small enough for Gambit."""
    numbers = [Fraction(text) for text in ("1/16", "201/2048", "1/64", "29/64")]
    world = contract.two_hypotheses_world(*numbers, one_sample=True)
    sums = {(Fraction(0), Fraction(0))}
    for first, second in np.ndindex(2, 2):
        seen = world.prior * world.inference[:, :, first, second].sum(axis=1)
        inference = np.zeros_like(world.inference)
        for w in np.flatnonzero(seen > 0):
            chances = world.inference[w, :, first, second]
            inference[w, :, first, second] = chances / chances.sum()
        only = contract.World(seen / seen.sum(), world.training, inference, world.reward, world.cost)
        theirs = {tuple(payoffs) for *_, payoffs in gambits(contract.extensive_form(only, "none"), "none")}
        sums = {(a + seen.sum() * x, b + seen.sum() * y) for a, b in sums for x, y in theirs}
    assert sums == set(map(tuple, contract.equilibria(world, "infer").payoff))


def test_floats_are_written_as_the_fractions_that_they_are():
    text = contract.extensive_form(contract.correlation_world(0.8, 0.7, [0.56]), "none")
    chances = re.findall(r'" (\d+/\d+)', text.splitlines()[1])
    assert sum(map(Fraction, chances)) == 1
    (only,) = gambits(text, "none")
    assert [float(each) for each in only[2]] == pytest.approx([0.175, 0.075])


def test_one_world_under_one_of_the_four_contracts_is_written():
    world = contract.correlation_world(np.array([0.8, 0.9]), 0.7, [0.6])
    with pytest.raises(ParameterError, match="2 worlds at once: expected one"):
        contract.extensive_form(world, "none")
    with pytest.raises(ParameterError, match="unknown contract 'all'"):
        contract.extensive_form(world, "all")
