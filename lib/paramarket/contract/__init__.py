"""Sharing models, predictions, both or nothing: the games that contracts make, which one two firms sign, what leaks."""

from paramarket.contract.equilibria import CONTRACTS, Equilibria, Payoffs, equilibria, payoffs
from paramarket.contract.extensive import extensive_form
from paramarket.contract.leaks import (
    Attack,
    against_others,
    attack,
    epsilon,
    fit_privately,
    gradient_norms,
    learn_attack,
    margins,
)
from paramarket.contract.terms import Transfer, Verdict, judge, transfer
from paramarket.contract.worlds import (
    World,
    both_right,
    correlation_world,
    measured_world,
    two_hypotheses_world,
    world,
)

__all__ = [
    "CONTRACTS",
    "Attack",
    "Equilibria",
    "Payoffs",
    "Transfer",
    "Verdict",
    "World",
    "against_others",
    "attack",
    "both_right",
    "correlation_world",
    "epsilon",
    "equilibria",
    "extensive_form",
    "fit_privately",
    "gradient_norms",
    "judge",
    "learn_attack",
    "margins",
    "measured_world",
    "payoffs",
    "transfer",
    "two_hypotheses_world",
    "world",
]
