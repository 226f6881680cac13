"""Sets of labelled examples: where they come from, how they are cut into four splits, and what else may happen to them.

A `Dataset` has four disjoint splits with one use each: `train` is private to those who learn, choices are made on
`quote`, the gain that sets a price is measured on `audit`, and `test` is only ever reported.
"""

from paramarket.data.domains import DOMAINS, Domain, in_domains, rotate, rotate_split
from paramarket.data.sources import BUNDLED, torchvision
from paramarket.data.splits import (
    NAMES,
    ROOT,
    Dataset,
    Split,
    concat,
    flip_labels,
    for_network,
    from_files,
    holding,
    load,
)

__all__ = [
    "BUNDLED",
    "DOMAINS",
    "NAMES",
    "ROOT",
    "Dataset",
    "Domain",
    "Split",
    "concat",
    "flip_labels",
    "for_network",
    "from_files",
    "holding",
    "in_domains",
    "load",
    "rotate",
    "rotate_split",
    "torchvision",
]
