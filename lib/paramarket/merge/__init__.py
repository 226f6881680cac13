"""Between models: lines, planes, the barrier on the way, and ways to make one model of several.

Every `MergeMethod` has one signature, method(net, spec, models, split, generator) -> Params. Add yours to METHODS, and
every figure shows it.
"""

from paramarket.merge.landscape import (
    Plane,
    average_pairs,
    barrier,
    best_blend,
    blend_pairs,
    layer_path,
    layer_rise,
    path,
    plane,
    walk,
    walk_pairs,
)
from paramarket.merge.methods import (
    METHODS,
    MergeMethod,
    average,
    distil,
    ensemble,
    merge_pairs,
    regmean,
    repair,
    repaired_path,
    task_arithmetic,
    ties,
)

__all__ = [
    "METHODS",
    "MergeMethod",
    "Plane",
    "average",
    "average_pairs",
    "barrier",
    "best_blend",
    "blend_pairs",
    "distil",
    "ensemble",
    "layer_path",
    "layer_rise",
    "merge_pairs",
    "path",
    "plane",
    "regmean",
    "repair",
    "repaired_path",
    "task_arithmetic",
    "ties",
    "walk",
    "walk_pairs",
]
