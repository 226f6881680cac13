"""Random worlds in fractions, and their equilibria by trying every strategy, straight from the definitions."""

from fractions import Fraction
from itertools import product

import numpy as np
from hypothesis import strategies as st

from paramarket import contract

SEES = {  # of (z1, z2, s1, s2): what firm 1 sees, what firm 2 sees
    "none": ((0, 2), (1, 3)),
    "train": ((0, 1, 2), (0, 1, 3)),
    "infer": ((0, 2, 3), (1, 2, 3)),
    "full": ((0, 1, 2, 3), (0, 1, 2, 3)),
}


@st.composite
def distributions(draw, *shape):
    size = int(np.prod(shape))
    weights = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size).filter(any))
    return np.array([Fraction(weight, sum(weights)) for weight in weights], dtype=object).reshape(shape)


@st.composite
def small_worlds(draw, observations=((1, 1), (1, 2), (2, 1))):
    """At most two worlds and so few observations that every strategy can be tried."""
    worlds = draw(st.integers(1, 2))
    seen = draw(st.sampled_from(observations))
    amounts = st.tuples(st.integers(0, 3), st.integers(1, 3))
    return contract.World(
        draw(distributions(worlds)),
        np.stack([draw(distributions(*seen)) for _ in range(worlds)]),
        np.stack([draw(distributions(2, 2, 2)) for _ in range(worlds)]),
        reward=np.array([Fraction(each) for each in draw(amounts)]),
        cost=np.array([Fraction(each) for each in draw(amounts)]),
    )


def states(world):
    """(probability, label, (z1, z2, s1, s2)) of whatever can happen."""
    joint = np.einsum("w,wab,wtij->tabij", world.prior, world.training, world.inference)
    return [(joint[state], state[0], state[1:]) for state in np.ndindex(joint.shape) if joint[state] > 0]


def sights(world, name, firm):
    """What a firm can see under a contract, in the order in which it may come."""
    places = SEES[name][firm]
    return list(dict.fromkeys(tuple(seen[place] for place in places) for _, _, seen in states(world)))


def earned(world, name, strategies):
    """Both firms' expected payoffs under a pair of strategies: dicts from what is seen to an action."""
    sums = [Fraction(0), Fraction(0)]
    for chance, label, seen in states(world):
        actions = act(name, strategies, seen)
        for firm, action in enumerate(actions):
            alone = world.reward[action] if action == label else -world.cost[action]
            sums[firm] += chance * alone / (1 + (actions[0] == actions[1]))
    return sums


def potential(world, name, strategies):
    """Rosenthal's: every pair of a state and an action is a resource, which pays its nth user the nth part."""
    total = Fraction(0)
    for chance, label, seen in states(world):
        actions = act(name, strategies, seen)
        for action in set(actions):
            alone = world.reward[action] if action == label else -world.cost[action]
            total += chance * sum(alone / n for n in range(1, 1 + actions.count(action)))
    return total


def act(name, strategies, seen):
    return [strategies[firm][tuple(seen[place] for place in SEES[name][firm])] for firm in (0, 1)]


def strategies_of(world, name, firm):
    seen = sights(world, name, firm)
    return [dict(zip(seen, actions, strict=True)) for actions in product((0, 1), repeat=len(seen))]


def as_strategies(found, world, name):
    """The equilibria that the library found, as pairs of dicts from what is seen to an action."""
    pairs = []
    for first, second in zip(found.first, found.second, strict=True):
        pair = ({}, {})
        for firm, actions in enumerate((first, second)):
            for _, _, seen in states(world):
                pair[firm][tuple(seen[place] for place in SEES[name][firm])] = int(actions[seen])
        pairs.append(pair)
    return pairs
