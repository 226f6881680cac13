"""Orders of hidden units to test with, and the specs of nets, each traced once."""

import torch

from paramarket import align
from paramarket.base import stream

SPECS = {}


def spec_of(net, x):
    """The spec of a net of PyTorch's own layers: nets that print alike have the same, and tracing takes a while."""
    key = (str(net), x.shape)
    if key not in SPECS:
        SPECS[key] = align.permutation_spec(net, x)
    return SPECS[key]


def shuffle(spec, params, *purpose):
    """Any order that the spec allows: within groups, and of whole groups."""
    return align.random_permutations(spec, params, stream(0, "shuffle", *purpose))


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
