"""Bring models into one order: hidden units can be reordered without changing what a network computes.

The symmetry of a net is data, a `PermutationSpec`. Every `Matcher` takes (spec, target, source, …) and gives
{permutation name: order}, so that `permute(spec, matcher(spec, target, source, …), source)` is the source in the
target's order.
"""

from paramarket.align.families import FAMILIES, Family, families, families_page
from paramarket.align.matching import (
    Matcher,
    activation_matching,
    activation_products,
    inner_product,
    match_many,
    reorder,
    reorder_many,
    reorder_pairs,
    unit_axis,
    weight_matching,
    weight_products,
)
from paramarket.align.specs import permutation_spec, verify
from paramarket.align.symmetry import (
    Permutations,
    PermutationSpec,
    Places,
    compose,
    identity,
    inverse,
    part,
    permute,
    random_permutations,
    side_by_side,
    sizes,
)

__all__ = [
    "FAMILIES",
    "Family",
    "Matcher",
    "PermutationSpec",
    "Permutations",
    "Places",
    "activation_matching",
    "activation_products",
    "compose",
    "families",
    "families_page",
    "identity",
    "inner_product",
    "inverse",
    "match_many",
    "part",
    "permutation_spec",
    "permute",
    "random_permutations",
    "reorder",
    "reorder_many",
    "reorder_pairs",
    "side_by_side",
    "sizes",
    "unit_axis",
    "verify",
    "weight_matching",
    "weight_products",
]
