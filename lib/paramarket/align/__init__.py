"""Bring models into one order: hidden units can be reordered without changing what a network computes.

Every matcher takes (spec, target, source, …) and gives {permutation name: order}, so that
`permute(spec, matcher(spec, target, source, …), source)` is the source in the target's order.
"""

from paramarket.align.matching import (
    activation_matching,
    activation_products,
    inner_product,
    match_many,
    reorder,
    reorder_each,
    reorder_many,
    unit_axis,
    weight_matching,
    weight_products,
)
from paramarket.align.symmetry import (
    Permutations,
    PermutationSpec,
    compose,
    identity,
    inverse,
    permutation_spec,
    permute,
    sizes,
)

__all__ = [
    "PermutationSpec",
    "Permutations",
    "activation_matching",
    "activation_products",
    "compose",
    "identity",
    "inner_product",
    "inverse",
    "match_many",
    "permutation_spec",
    "permute",
    "reorder",
    "reorder_each",
    "reorder_many",
    "sizes",
    "unit_axis",
    "weight_matching",
    "weight_products",
]
