"""Which contract two firms would sign: dominance, individual rationality, Pareto optimality; and a payment on top."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Shaped

from paramarket import price, stack
from paramarket.contract.equilibria import CONTRACTS, TIE, check_contract, chunks, observations, solve, tolerance
from paramarket.contract.worlds import Numbers, World, flatten, front_axes
from paramarket.errors import ParameterError


class Verdict(NamedTuple):
    """What can be said of the four contracts, in the order of `CONTRACTS`, in each world.

    dominates [..., c, d]: c dominates d · rational: individually rational, "none" or what dominates it · optimal:
    Pareto optimal, nothing strictly dominates it · label: those that are both, in words: "infer"; "none = train" where
    they dominate each other; "train or full" where they do not
    """

    dominates: Bool[np.ndarray, "... 4 4"]
    rational: Bool[np.ndarray, "... 4"]
    optimal: Bool[np.ndarray, "... 4"]
    label: Shaped[np.ndarray, "..."]

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """One row a world: the columns of a grid, and `contract`, the label."""
        return stack.table(rows, contract=self.label)


class Transfer(NamedTuple):
    """A payment from firm 2 to firm 1 that comes with a contract, where there is something to share.

    surplus: what both gain together · paid: by firm 2 to firm 1, below 0 if firm 1 pays; NaN where the surplus is not
    above 0
    """

    surplus: float | np.ndarray
    paid: float | np.ndarray


def judge(world: World, running_costs: Mapping[str, Numbers] | None = None) -> Verdict:
    """Which contracts dominate which, and which two firms would sign (Gafni, Gradwohl, Tennenholtz 2024, section 2).

    Contract c *dominates* d if, whatever both firms have observed in training (with a positive probability), there is
    an equilibrium of c in which each has at least the interim utility of *every* equilibrium of d. It dominates it
    strictly if d does not dominate c. Utilities are interim: a firm that has trained knows what it has seen. Ex ante,
    before training, other contracts would look good.
    running_costs: what it costs each firm to run a contract, by its name, in the unit of rewards (our extension); what
    is not named costs nothing
    Raises ParameterError for the cost of an unknown contract, and for one below 0 or not finite.

    >>> from paramarket import contract
    >>> for one_sample in (False, True):  # whatever training can tell, or one labelled case
    ...     found = contract.two_hypotheses_world(0.03, 0.17, 0.05, 0.5, noise=0.1, one_sample=one_sample)
    ...     print(contract.judge(found).label)
    infer
    full
    """
    front = front_axes(world)
    running = _running(running_costs or {})
    blocks = [_dominance(batch, running) for batch in chunks(flatten(world))]
    dominates = np.concatenate(blocks).reshape(*front, 4, 4)
    strictly = dominates & ~dominates.swapaxes(-1, -2)
    rational = dominates[..., :, 0].copy()
    rational[..., 0] = True  # nobody is forced to sign
    optimal = ~strictly.any(axis=-2)
    label = np.empty(front, dtype=object)
    for place in np.ndindex(front):
        label[place] = _label(rational[place] & optimal[place], dominates[place])
    return Verdict(dominates, rational, optimal, label)


def transfer(gain_first: float | np.ndarray, gain_second: float | np.ndarray) -> Transfer:
    """The payment that splits what a contract adds evenly: the Nash price of firm 1's consent (our extension).

    gain_first, gain_second: what each firm gains by the contract, or loses (below 0), in one unit
    Where the sum is above 0 both end with half of it; elsewhere no payment makes both gain.

    >>> from paramarket import contract
    >>> surplus, paid = contract.transfer(-0.025, 0.075)
    >>> print(f"surplus {surplus:.3f}, firm 2 pays {paid:.3f}")
    surplus 0.050, firm 2 pays 0.050
    """
    gain_first, gain_second = np.asarray(gain_first, dtype=np.float64), np.asarray(gain_second, dtype=np.float64)
    surplus = gain_first + gain_second
    share_of_first = price.nash_price(value=np.maximum(surplus, 0), cost=0.0).price
    paid = np.where(surplus > TIE, share_of_first - gain_first, np.nan)
    return Transfer(surplus[()], paid[()])


def _running(costs: Mapping[str, Numbers]) -> list[Numbers]:
    for name, cost in costs.items():
        check_contract(name)
        if not 0 <= cost < np.inf:
            raise ParameterError(f"the running cost of {name!r} is {cost}: expected 0 or more.")
    return [costs.get(name, 0) for name in CONTRACTS]


def _dominance(batch: World, running: list[Numbers]) -> Bool[np.ndarray, "B 4 4"]:
    solved = [solve(batch, contract) for contract in CONTRACTS]
    most_first, most_second = [], []  # the highest interim utility of any equilibrium, by contract
    for each, paid in zip(solved, running, strict=True):
        most_first.append(each.utility_first.max(axis=2).sum(axis=1) - paid)
        most_second.append(each.utility_second.max(axis=2).sum(axis=1) - paid)
    most_first, most_second = np.stack(most_first, axis=1), np.stack(most_second, axis=1)  # [B, 4, Z]
    tie = tolerance(batch)[:, None, None]
    possible = observations(batch) > 0
    dominates = np.ones((len(batch.prior), 4, 4), dtype=bool)
    for z1, z2 in np.ndindex(possible.shape[1:]):
        for c, each in enumerate(solved):
            first, second = _combined(each.utility_first[..., z1], each.utility_second[..., z2])
            first, second = first - running[c], second - running[c]
            enough_first = first[:, None] >= most_first[:, :, z1, None] - tie  # [B, d, combinations]
            enough_second = second[:, None] >= most_second[:, :, z2, None] - tie
            better = (enough_first & enough_second).any(axis=-1)
            dominates[:, c] &= better | ~possible[:, z1, z2, None]
    return dominates


def _combined(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of utilities [B, combinations] of one equilibrium a part, from [B, P, E] each.

    Of combinations that another one equals or betters for both, most are left out.
    """
    worlds, parts, _ = first.shape
    if parts == 1:
        return first[:, 0], second[:, 0]
    pruned = _undominated(first.reshape(worlds * parts, -1), second.reshape(worlds * parts, -1))
    first, second = (each.reshape(worlds, parts, -1) for each in pruned)
    sums_first, sums_second = first[:, 0], second[:, 0]
    for part in range(1, parts):
        sums_first = (sums_first[:, :, None] + first[:, part, None]).reshape(worlds, -1)
        sums_second = (sums_second[:, :, None] + second[:, part, None]).reshape(worlds, -1)
        sums_first, sums_second = _undominated(sums_first, sums_second)
    return sums_first, sums_second


def _undominated(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Without the pairs [B, k] that another pair of the same world equals or betters in both; k becomes smaller.

    Where one world keeps fewer than another, some of what it could drop stays: that does no harm.
    """
    count = first.shape[1]
    if count == 1:
        return first, second
    as_good = (first[:, :, None] >= first[:, None]) & (second[:, :, None] >= second[:, None])  # [B, one, other]
    equal = as_good & as_good.swapaxes(1, 2)
    earlier = np.tri(count, k=-1, dtype=bool).T  # of equal ones the first stays
    dropped = (as_good & (~equal | earlier)).any(axis=1)
    keep = (~dropped).sum(axis=1).max()
    order = np.argsort(dropped, axis=1, kind="stable")[:, :keep]
    return np.take_along_axis(first, order, axis=1), np.take_along_axis(second, order, axis=1)


def _label(signed: np.ndarray, dominates: np.ndarray) -> str:
    names = [name for name, sign in zip(CONTRACTS, signed, strict=True) if sign]
    among = dominates[np.ix_(signed, signed)]
    others = ~np.eye(len(names), dtype=bool)
    return (" = " if among[others].all() else " or ").join(names)
