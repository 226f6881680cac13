"""Sparse interpolated experts (SMAT, Chen et al. 2024): few weights of a pretrained net, mixed anew for every task."""

from paramarket.smat.baselines import pretrain, tuned_accuracy
from paramarket.smat.experts import SparseExperts, experts_of, held, interpolate, overlap, route, sparsity, stored
from paramarket.smat.gates import HardConcrete, raised
from paramarket.smat.meta_tuning import Aims, Tuned, asked, fresh_tasks, judge, meta_tune, task_models
from paramarket.smat.tasks import Pool, Tasks, answers, draw, pool, prototype_logits, solve, spread, task_losses

__all__ = [
    "Aims",
    "HardConcrete",
    "Pool",
    "SparseExperts",
    "Tasks",
    "Tuned",
    "answers",
    "asked",
    "draw",
    "experts_of",
    "fresh_tasks",
    "held",
    "interpolate",
    "judge",
    "meta_tune",
    "overlap",
    "pool",
    "pretrain",
    "prototype_logits",
    "raised",
    "route",
    "solve",
    "sparsity",
    "spread",
    "stored",
    "task_losses",
    "task_models",
    "tuned_accuracy",
]
