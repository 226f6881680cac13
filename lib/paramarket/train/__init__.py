"""Fitting and scoring a whole stack: K models, each with its own data and its own random order, in one batched step."""

from paramarket.train.fit import Fit, check_finite, fit, probabilities
from paramarket.train.gradients import make_backward
from paramarket.train.optimisers import AdamW, AdamWithoutMomentum, learning_rates, pull_back
from paramarket.train.score import Score, evaluate, fit_temperatures, logits, score_logits

__all__ = [
    "AdamW",
    "AdamWithoutMomentum",
    "Fit",
    "Score",
    "check_finite",
    "evaluate",
    "fit",
    "fit_temperatures",
    "learning_rates",
    "logits",
    "make_backward",
    "probabilities",
    "pull_back",
    "score_logits",
]
