"""All pure Bayes-Nash equilibria of the game that a contract makes of a world.

What is public under a contract cuts the game into parts that know nothing of each other: the training observations
under `train`, the signals under `infer`, everything under `full`. An equilibrium of the whole is one equilibrium of
each part, in any combination. All that a part needs is one table of scores, the same for both firms:

    score[a, h1, h2] = reward[a] P(t = a, h1, h2) - cost[a] P(t ≠ a, h1, h2)

where h1 and h2 are what only firm 1 and only firm 2 see. Who alone does a gets score[a], and two who both do a get half
of it each. Such a game is a congestion game (Gafni, Gradwohl, Tennenholtz 2024, Theorem 2.1): each pair of a state and
an action is a resource; hence it has a pure equilibrium.
"""

from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int, Shaped

from paramarket import stack
from paramarket.contract.worlds import World, flatten, front_axes, single
from paramarket.errors import ParameterError, unknown

CONTRACTS = ("none", "train", "infer", "full")  # from least shared to most
# What is public, what only firm 1 sees, what only firm 2 sees: a and b are the training observations z1 and z2, i and j
# the signals s1 and s2.
VIEWS = {"none": ("", "ai", "bj"), "train": ("ab", "i", "j"), "infer": ("ij", "a", "b"), "full": ("abij", "", "")}
AXES = "abij"
MOST_PROFILES = 2**18  # of one part: above, listing them takes minutes
MOST_LISTED = 2**12
AT_ONCE = 2**21  # profiles of many worlds that are held in memory together
TIE = 1e-12  # of the highest stake: float64 differences below it are none


class Solved(NamedTuple):
    """The equilibria of each part P of a contract, for B worlds at once, and what they add to interim utilities.

    Of a part with fewer equilibria than E the first one is repeated, which changes no maximum and adds no payoff.
    first, second: the action at each thing a firm sees alone · utility_first, utility_second: what the part adds to a
    firm's expected payoff given its training observation · trade: to the probability that one firm acts, or both
    """

    first: Int[np.ndarray, "B P E H1"]
    second: Int[np.ndarray, "B P E H2"]
    utility_first: Shaped[np.ndarray, "B P E Z1"]
    utility_second: Shaped[np.ndarray, "B P E Z2"]
    trade: Shaped[np.ndarray, "B P E"]
    count: Int[np.ndarray, "B P"]


class Equilibria(NamedTuple):
    """Every pure equilibrium of one world under one contract.

    first, second: each firm's action by (z1, z2, s1, s2); it differs only where the firm sees a difference ·
    utility_first [E, Z1], utility_second [E, Z2]: interim utilities, the expected payoff given the own training
    observation · payoff [E, 2]: before anything is observed · trade [E]: P(at least one firm takes action 1)
    """

    first: Int[np.ndarray, "E Z1 Z2 2 2"]
    second: Int[np.ndarray, "E Z1 Z2 2 2"]
    utility_first: Shaped[np.ndarray, "E Z1"]
    utility_second: Shaped[np.ndarray, "E Z2"]
    payoff: Shaped[np.ndarray, "E 2"]
    trade: Shaped[np.ndarray, " E"]


class Payoffs(NamedTuple):
    """What both firms expect before they train, under every contract [..., 4], in the order of `CONTRACTS`.

    Between the lowest and the highest over all equilibria; they are equal where there is one equilibrium payoff.
    trade: P(at least one firm takes action 1)
    """

    first_low: Shaped[np.ndarray, "... 4"]
    first_high: Shaped[np.ndarray, "... 4"]
    second_low: Shaped[np.ndarray, "... 4"]
    second_high: Shaped[np.ndarray, "... 4"]
    trade_low: Shaped[np.ndarray, "... 4"]
    trade_high: Shaped[np.ndarray, "... 4"]

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """One row a world and contract: the columns of a grid, `contract`, and the six payoffs, as floats."""
        numbers = {name: value.astype(np.float64) for name, value in self._asdict().items()}
        return stack.table(rows, {"contract": CONTRACTS}, **numbers)


def equilibria(world: World, contract: str) -> Equilibria:
    """Every pure equilibrium of a single world, exact where the world is.

    An action at something that is never seen changes nothing and is 0.
    Raises ParameterError for a contract that is none of "none", "train", "infer" and "full", for several worlds at
    once, and for a world with more than 4,096 equilibria.

    >>> from paramarket import contract
    >>> found = contract.equilibria(contract.two_hypotheses_world(0.1, 0.1, 0.05, 0.3), "infer")
    >>> found.payoff.round(4).tolist()
    [[0.5185, 0.4815]]
    """
    batch = single(world)
    solved = solve(batch, contract)
    count = solved.count[0]
    total = int(np.prod(count, dtype=object))
    if total > MOST_LISTED:
        raise ParameterError(f"{total} equilibria under {contract!r}: too many to list.")
    chosen = np.array(list(product(*map(range, count))))  # [E, P]
    parts = np.arange(len(count))
    sizes = (*world.training.shape[-2:], 2, 2)
    utility_first = solved.utility_first[0][parts, chosen].sum(axis=1)
    utility_second = solved.utility_second[0][parts, chosen].sum(axis=1)
    seen_first, seen_second = _observed(batch)
    payoff = np.stack([utility_first @ seen_first[0], utility_second @ seen_second[0]], axis=-1)
    return Equilibria(
        first=_spread(solved.first[0][parts, chosen], contract, sizes, firm=1),
        second=_spread(solved.second[0][parts, chosen], contract, sizes, firm=2),
        utility_first=utility_first,
        utility_second=utility_second,
        payoff=payoff,
        trade=solved.trade[0][parts, chosen].sum(axis=1),
    )


def payoffs(world: World) -> Payoffs:
    """What both firms expect under each contract, for many worlds at once; see `Payoffs`."""
    front = front_axes(world)
    blocks = []
    for batch in chunks(flatten(world)):
        seen_first, seen_second = _observed(batch)
        columns = []
        for contract in CONTRACTS:
            solved = solve(batch, contract)
            first = (solved.utility_first * seen_first[:, None, None]).sum(axis=-1)
            second = (solved.utility_second * seen_second[:, None, None]).sum(axis=-1)
            ends = [end for part in (first, second, solved.trade) for end in (part.min(axis=2), part.max(axis=2))]
            columns.append(np.stack([end.sum(axis=1) for end in ends], axis=-1))
        blocks.append(np.stack(columns, axis=-2))
    ends = np.concatenate(blocks)
    return Payoffs(*(ends[..., k].reshape(*front, len(CONTRACTS)) for k in range(6)))


def solve(batch: World, contract: str) -> Solved:
    """The equilibria of each part, for worlds with one axis in front."""
    check_contract(contract)
    joint = np.einsum("nw,nwab,nwtij->ntabij", batch.prior, batch.training, batch.inference)
    score = _arrange(_scores(joint, batch), contract)  # [B, P, 2, H1, H2]
    reach = _arrange(joint.sum(axis=1)[:, None], contract)[:, :, 0]  # [B, P, H1, H2]
    tie = tolerance(batch)[:, None, None, None]

    plans_first, plans_second = _plans(score.shape[-2]), _plans(score.shape[-1])
    if len(plans_first) * len(plans_second) > MOST_PROFILES:
        raise ParameterError(
            f"{len(plans_first)} strategies of firm 1 and {len(plans_second)} of firm 2 under {contract!r}: too many "
            "to try. Let training tell fewer things apart."
        )
    # What each action is worth at each thing seen, against each plan of the rival: [B, P, 2, rival's plans, H].
    worth_first = _worth(score, plans_second)
    worth_second = _worth(score.swapaxes(-1, -2), plans_first)
    best_first = _no_regret(worth_first, plans_first, reach.sum(axis=-1) > 0, tie)  # [B, P, plans 2, plans 1]
    best_second = _no_regret(worth_second, plans_second, reach.sum(axis=-2) > 0, tie)
    stable = best_first.swapaxes(-1, -2) & best_second
    found, count = _pack(stable.reshape(*stable.shape[:2], -1))
    x, y = np.divmod(found, len(plans_second))  # [B, P, E]

    first, second = plans_first[x], plans_second[y]
    at_first, at_second = _earned(worth_first, first, y), _earned(worth_second, second, x)  # [B, P, E, H]
    sizes = batch.training.shape[-2:]
    seen_first, seen_second = _observed(batch)
    member_first, member_second = _members(contract, sizes, "a"), _members(contract, sizes, "b")
    acts = np.maximum(first[..., :, None], second[..., None, :])
    return Solved(
        first=first,
        second=second,
        utility_first=_share(at_first @ member_first, seen_first),
        utility_second=_share(at_second @ member_second, seen_second),
        trade=(acts * reach[:, :, None]).sum(axis=(-1, -2)),
        count=count,
    )


def check_contract(name: str) -> None:
    """ParameterError for the name of no contract."""
    if name not in CONTRACTS:
        raise ParameterError(unknown("contract", name, CONTRACTS))


def tolerance(batch: World) -> Shaped[np.ndarray, " B"]:
    """What two amounts may differ by and count as equal: nothing between fractions, rounding between floats."""
    highest = np.maximum(batch.reward.max(axis=1), batch.cost.max(axis=1))
    return 0 * highest if highest.dtype == object else TIE * highest


def _scores(joint: np.ndarray, batch: World) -> np.ndarray:
    """[B, 2, Z1, Z2, 2, 2]: what each action earns in total, from the joint [B, t, Z1, Z2, 2, 2]."""
    reward, cost = (part[..., None, None, None, None] for part in (batch.reward, batch.cost))
    return reward * joint - cost * joint[:, ::-1]


def _arrange(array: np.ndarray, contract: str) -> np.ndarray:
    """[B, K, Z1, Z2, 2, 2] as [B, P, K, H1, H2]: by what is public, and by what each firm sees alone."""
    public, first, second = VIEWS[contract]
    place = {axis: 2 + AXES.index(axis) for axis in AXES}
    order = [0, *(place[axis] for axis in public), 1, *(place[axis] for axis in first + second)]
    size = {axis: array.shape[place[axis]] for axis in AXES}
    count = [int(np.prod([size[axis] for axis in view], dtype=int)) for view in (public, first, second)]
    return array.transpose(order).reshape(len(array), count[0], array.shape[1], count[1], count[2])


def _spread(plans: np.ndarray, contract: str, sizes: tuple[int, ...], firm: int) -> np.ndarray:
    """[E, P, H] of one firm as [E, Z1, Z2, 2, 2]: back from `_arrange`, repeated where the firm sees no difference."""
    public, *alone = VIEWS[contract]
    seen = public + alone[firm - 1]
    size = dict(zip(AXES, sizes, strict=True))
    plans = plans.reshape(len(plans), *(size[axis] for axis in seen))
    order = [0, *(1 + seen.index(axis) for axis in AXES if axis in seen)]
    unseen = [1 + k for k, axis in enumerate(AXES) if axis not in seen]
    return np.broadcast_to(np.expand_dims(plans.transpose(order), unseen), (len(plans), *sizes))


def _members(contract: str, sizes: tuple[int, int], observation: str) -> np.ndarray:
    """[P, H, Z], 0 or 1: in which part, and at what a firm sees there, it made which training observation."""
    public, first, second = VIEWS[contract]
    size = dict(zip(AXES, (*sizes, 2, 2), strict=True))
    seen = public + (first if observation == "a" else second)
    places = np.indices([size[axis] for axis in seen])[seen.index(observation)]
    parts = int(np.prod([size[axis] for axis in public], dtype=int))
    return (places.reshape(parts, -1, 1) == np.arange(size[observation])).astype(int)


def _plans(sights: int) -> Int[np.ndarray, "plans sights"]:
    """Every strategy: an action, 0 or 1, at each thing that a firm can see."""
    if sights > 20:
        raise ParameterError(f"a firm sees {sights} different things: too many for every strategy to be tried.")
    return np.array(list(product((0, 1), repeat=sights)))


def _worth(score: np.ndarray, rival: np.ndarray) -> np.ndarray:
    """[B, P, 2, plans of the rival, H]: each action at each sight; half of it where the rival does the same."""
    same = np.stack([1 - rival, rival])  # [2, plans, rival's sights]: where a plan takes the action
    doubled = 2 * score.sum(axis=-1)[..., None, :] - same @ score.swapaxes(-1, -2)
    return doubled / 2


def _no_regret(
    worth: np.ndarray, plans: np.ndarray, reached: np.ndarray, tie: np.ndarray
) -> Bool[np.ndarray, "B P rival own"]:
    """Whether no action of a plan could be bettered, against each plan of the rival; 0 where nothing is ever seen."""
    gain = worth[:, :, 1] - worth[:, :, 0]  # of action 1 over action 0: [B, P, rival's plans, H]
    must_act, must_not = gain > tie, gain < -tie
    must_not = must_not | ~reached[:, :, None]
    own = plans.T.astype(np.float32)
    regrets = must_act.astype(np.float32) @ (1 - own) + must_not.astype(np.float32) @ own
    return regrets == 0


def _pack(stable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of what is true along the last axis, the first repeated up to the largest number, and how many."""
    count = stable.sum(axis=-1)
    most = int(count.max())
    first = np.argsort(~stable, axis=-1, kind="stable")[..., :most]
    return np.where(np.arange(most) < count[..., None], first, first[..., :1]), count


def _earned(worth: np.ndarray, own: np.ndarray, rival: np.ndarray) -> np.ndarray:
    """[B, P, E, H]: the worth of the actions that are taken. own: actions [B, P, E, H] · rival: its plans [B, P, E]."""
    against = np.take_along_axis(worth, rival[:, :, None, :, None], axis=3)  # [B, P, 2, E, H]
    return np.where(own == 1, against[:, :, 1], against[:, :, 0])


def observations(batch: World) -> np.ndarray:
    """P(z1, z2) [B, Z1, Z2]."""
    return np.einsum("nw,nwab->nab", batch.prior, batch.training)


def _observed(batch: World) -> tuple[np.ndarray, np.ndarray]:
    """P(z1) [B, Z1] and P(z2) [B, Z2]."""
    pairs = observations(batch)
    return pairs.sum(axis=-1), pairs.sum(axis=-2)


def _share(sums: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Given the observation: sums [B, P, E, Z] by the probability of each z; 0 where it is never made."""
    seen = seen[:, None, None]
    return np.where(seen > 0, sums, 0 * sums) / np.where(seen > 0, seen, 1)


def chunks(batch: World) -> list[World]:
    """Worlds with one axis in front, a few at a time, as many as memory holds the profiles of."""
    first, second = batch.training.shape[-2:]
    each = max(2 ** min(2 * first + 2 * second, 40), first * second * 16)
    size = max(1, AT_ONCE // each)
    return [World(*(part[k : k + size] for part in batch)) for k in range(0, len(batch.prior), size)]
