"""Orders of hidden units to test with."""

import torch

from paramarket import align
from paramarket.base import stream


def shuffle(spec, params, *purpose):
    """Any order that the spec allows: within groups, and of whole groups."""
    found, generator = {}, stream(0, "shuffle", *purpose)
    for label, size in align.sizes(spec, params).items():
        rows = torch.arange(size).view(spec.groups.get(label, 1), -1)
        rows = torch.stack([row[torch.randperm(len(row), generator=generator)] for row in rows])
        found[label] = rows[torch.randperm(len(rows), generator=generator)].flatten()
    return found


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
