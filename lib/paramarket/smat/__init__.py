"""Sparse interpolated experts (SMAT, Chen et al. 2024): few weights of a pretrained net, mixed anew for every task.

Tasks are drawn on the CPU; models, and experts with them, stay on their device; what is shown comes back on the CPU.
"""

from paramarket.smat.baselines import pretrain_foundation, tuned_accuracy
from paramarket.smat.experts import (
    SparseExperts,
    Sparsity,
    experts_of,
    fixed_masks,
    interpolate,
    open_gates,
    overlap,
    route,
    shuffle_within,
    sparsity,
    storage,
)
from paramarket.smat.gates import HardConcrete, dual_ascent_step
from paramarket.smat.meta_tuning import (
    Aims,
    Tuned,
    accuracies,
    mean_alpha_by_domain,
    meta_tune,
    task_models,
)
from paramarket.smat.tasks import (
    Accuracies,
    TaskPool,
    Tasks,
    draw_tasks,
    fresh_tasks,
    one_per_task,
    prototype_logits,
    side_by_side,
    task_logits,
    task_losses,
    task_pool,
    way_labels,
)

__all__ = [
    "Accuracies",
    "Aims",
    "HardConcrete",
    "SparseExperts",
    "Sparsity",
    "TaskPool",
    "Tasks",
    "Tuned",
    "accuracies",
    "draw_tasks",
    "dual_ascent_step",
    "experts_of",
    "fixed_masks",
    "fresh_tasks",
    "interpolate",
    "mean_alpha_by_domain",
    "meta_tune",
    "one_per_task",
    "open_gates",
    "overlap",
    "pretrain_foundation",
    "prototype_logits",
    "route",
    "shuffle_within",
    "side_by_side",
    "sparsity",
    "storage",
    "task_logits",
    "task_losses",
    "task_models",
    "task_pool",
    "tuned_accuracy",
    "way_labels",
]
