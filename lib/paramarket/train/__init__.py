"""Fitting and scoring a whole stack: K models, each with its own data and its own random order, in one batched step."""

from paramarket.train.fit import Fit, check_finite, fit, one_step
from paramarket.train.optimisers import make_optimizer, optimizer_state, pull_back
from paramarket.train.score import Score, evaluate

__all__ = [
    "Fit",
    "Score",
    "check_finite",
    "evaluate",
    "fit",
    "make_optimizer",
    "one_step",
    "optimizer_state",
    "pull_back",
]
