"""A world under a contract as a game tree for others to solve: Gambit's file format."""

from fractions import Fraction

import numpy as np

from paramarket.contract.equilibria import AXES, VIEWS, check_contract
from paramarket.contract.worlds import World, single


def extensive_form(world: World, contract: str) -> str:
    """The text of an `.efg` file (Gambit, format 2): nature draws, firm 1 acts, then firm 2, who does not see it.

    Everything is written as fractions, floats as the fractions that they are. What has probability 0 is left out. A
    draw of nature, and what a firm knows of it, bear names such as `t=1 z1=0 z2=0 s1=1 s2=0` and `z1=0 s1=1`.
    Raises ParameterError for an unknown contract, and for several worlds at once.

    >>> from paramarket import contract
    >>> text = contract.extensive_form(contract.two_hypotheses_world(0.1, 0.1, 0.05, 0.3), "none")
    >>> print(text.splitlines()[0])
    EFG 2 R "none" { "Firm 1" "Firm 2" }
    """
    check_contract(contract)
    parts = [np.vectorize(Fraction, otypes=[object])(part[0]) for part in single(world)]
    prior, training, inference, reward, cost = parts
    joint = np.einsum("w,wab,wtij->tabij", prior, training, inference)
    joint = joint / joint.sum()  # floats do not sum to 1 to the last bit, and Gambit minds
    states = [state for state in np.ndindex(joint.shape) if joint[state] > 0]
    chances = " ".join(f'"t={label} {_sight(seen, AXES)}" {joint[label, *seen]}' for label, *seen in states)
    lines = [f'EFG 2 R "{contract}" {{ "Firm 1" "Firm 2" }}', f'c "" 1 "" {{ {chances} }} 0']
    sets: tuple[dict[str, int], dict[str, int]] = ({}, {})
    public, first, second = VIEWS[contract]
    outcome = 0
    for label, *seen in states:
        sees_1, sees_2 = _sight(seen, public + first), _sight(seen, public + second)
        lines.append(_move(1, sets[0], sees_1))
        for action_1 in (0, 1):
            lines.append(_move(2, sets[1], sees_2))
            for action_2 in (0, 1):
                outcome += 1
                earned = [_earned(action, label, action_1 == action_2, reward, cost) for action in (action_1, action_2)]
                lines.append(f't "" {outcome} "" {{ {earned[0]}, {earned[1]} }}')
    return "\n".join(lines) + "\n"


def _sight(seen: list[int], view: str) -> str:
    names = dict(zip(AXES, ("z1", "z2", "s1", "s2"), strict=True))
    parts = [f"{names[axis]}={value}" for axis, value in zip(AXES, seen, strict=True) if axis in view]
    return " ".join(parts)


def _move(player: int, known: dict[str, int], sight: str) -> str:
    number = known.setdefault(sight, len(known) + 1)
    return f'p "" {player} {number} "{sight}" {{ "0" "1" }} 0'


def _earned(action: int, label: int, shared: bool, reward: np.ndarray, cost: np.ndarray) -> Fraction:
    alone = reward[action] if action == label else -cost[action]
    return alone / 2 if shared else alone
