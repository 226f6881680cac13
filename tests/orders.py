"""Orders of hidden units to test with."""

import torch

from paramarket import align
from paramarket.base import stream


def shuffle(spec, params, *purpose):
    """Any order that the spec allows: within groups, and of whole groups."""
    return align.random_permutations(spec, params, stream(0, "shuffle", *purpose))


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
