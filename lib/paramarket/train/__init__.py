"""Fitting and scoring a whole stack: K models, each with its own data and its own random order, in one batched step."""

from paramarket.train.fit import Fit, Score, evaluate, finite, fit, one_step
from paramarket.train.optimisers import go_back, optimizer_of, state_of

__all__ = [
    "Fit",
    "Score",
    "evaluate",
    "finite",
    "fit",
    "go_back",
    "one_step",
    "optimizer_of",
    "state_of",
]
