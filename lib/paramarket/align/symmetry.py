"""Permutation symmetry as data: which axes of which parameters can be reordered together, and the reordering itself.

Hidden units have no order: W_l' = P_l W_l P_{l-1}ᵀ, b_l' = P_l b_l computes the same function (Git Re-Basin, Ainsworth
et al. 2023, section 2). The heads of an attention have none either, nor the units within a head.
"""

from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from paramarket.errors import ShapeError, unknown
from paramarket.stack import Params

Permutations = dict[str, Tensor]  # permutation name -> int64 tensor: place i takes what stood at p[i]


@dataclass(frozen=True)
class Places:
    """An axis on which several permutations act: what stands at each of its places.

    labels: the permutations, `sizes` the lengths of their orders · units: one row [places] or more; an entry is a unit,
    all units being numbered label by label, or -1 for none. The units of a place tell where it goes. Of places with
    the same units the first goes to the first, the second to the second.
    """

    labels: tuple[str, ...]
    sizes: tuple[int, ...]
    units: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.units[0])

    def __str__(self) -> str:
        runs: list[str] = []
        first = before = None
        for units in zip(*self.units, strict=True):
            names = self.names(units)
            if before is None or names != self.names(before) or units == first:
                runs.append(" × ".join(names) or "·")
                first = units
            before = units
        return " + ".join(runs) if len(runs) <= 4 * len(self.labels) else " & ".join(self.labels) + ", interleaved"

    def places_of(self, label: str) -> Tensor:
        """Where the units of one permutation stand: all places of the first unit, then all of the second, …"""
        number = self.labels.index(label)
        start = sum(self.sizes[:number])
        units = torch.tensor(self.units)
        own = (units >= start) & (units < start + self.sizes[number])
        unit = torch.where(own, units, -1).amax(dim=0)
        places = unit.argsort(stable=True)
        return places[unit[places] >= 0]

    def names(self, units: tuple[int, ...]) -> list[str]:
        """The permutations that a place's units belong to."""
        ends = torch.tensor(self.sizes).cumsum(0).tolist()
        return [self.labels[bisect_right(ends, unit)] for unit in units if unit >= 0]

    def order(self, p: Permutations) -> Tensor:
        """Place i of the axis takes what stood at order[i], when the units move by p."""
        starts = torch.tensor([0, *self.sizes]).cumsum(0)[:-1].tolist()
        moves = torch.cat([p[label] + start for label, start in zip(self.labels, starts, strict=True)])
        units = torch.tensor(self.units)
        moved = torch.where(units < 0, units, moves[units.clamp(min=0)])
        before, after = _numbered(units, moved)
        order = torch.empty(len(self), dtype=torch.int64)
        stood, goes = before.argsort(stable=True), after.argsort(stable=True)
        if not torch.equal(before[stood], after[goes]):
            raise ShapeError(f"the orders of {' and '.join(self.labels)} do not fit together: blocks move as one.")
        order[goes] = stood
        return order


def _numbered(*tables: Tensor) -> list[Tensor]:
    """Columns of tables [rows, n], equal ones by the same number."""
    if all(len(table) == 1 for table in tables):
        return [table[0] for table in tables]
    _, number = torch.cat(tables, dim=1).unique(dim=1, return_inverse=True)
    return list(number.split([table.shape[1] for table in tables]))


def side_by_side(*pieces: tuple[str | None, int]) -> Places:
    """An axis of pieces behind one another, (permutation, length) each: None stays. Made for specs written by hand.

    >>> from paramarket import align
    >>> print(align.side_by_side(("queries", 4), ("queries", 4), ("values", 4)))
    queries + queries + values
    """
    labels = tuple(dict.fromkeys(label for label, _ in pieces if label is not None))
    sizes = dict(pieces)
    starts, total = {}, 0
    for label in labels:
        starts[label], total = total, total + sizes[label]
    row = [unit for label, n in pieces for unit in (range(starts[label], starts[label] + n) if label else [-1] * n)]
    return Places(labels, tuple(sizes[label] for label in labels), (tuple(row),))


Label = str | Places | None  # what reorders an axis
Labels = tuple[Label, ...]


@dataclass(frozen=True)
class PermutationSpec:
    """The symmetry of a net: parameter name -> what reorders each axis: a permutation, several (`Places`), or None.

    An axis may be a multiple of its permutation's length: then blocks of equal length move (flattened convolutions).
    groups: permutations that must keep that many equal, neighbouring groups together (GroupNorm, heads).
    outer: permutations whose groups go in the order of another one: all that belongs to a head moves with it.
    """

    axes: dict[str, Labels]
    groups: Mapping[str, int] = field(default_factory=dict)
    outer: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        axes = [f"{name}  [{', '.join(str(label or '·') for label in labels)}]" for name, labels in self.axes.items()]
        blocks = [f"{label} in {self.groups[label]} blocks, ordered as {outer}" for label, outer in self.outer.items()]
        return "\n".join(axes + blocks)


def labels_of(axis: Label) -> tuple[str, ...]:
    """The permutations that act on an axis."""
    if axis is None:
        return ()
    return axis.labels if isinstance(axis, Places) else (axis,)


def part(spec: PermutationSpec, labels: Collection[str]) -> PermutationSpec:
    """The part of a symmetry in which only these permutations move, and all others leave their units where they are.

    Raises ShapeError for a permutation that the spec does not have, and for one of a family whose others are missing:
    the units of heads go where their heads go.

    >>> import torch
    >>> from paramarket import align, stack
    >>> spec = align.permutation_spec(stack.mlp(4, [3, 3], 2), torch.zeros(1, 4))
    >>> align.part(spec, ["3"]).axes["3.weight"]
    ('3', None)
    """
    known = {label for axes in spec.axes.values() for axis in axes for label in labels_of(axis)}
    known |= set(spec.outer.values())
    for label in labels:
        if label not in known:
            raise ShapeError(unknown("permutation", label, sorted(known)))
    kept = set(labels)
    for label, outer in spec.outer.items():
        if (label in kept) != (outer in kept):
            raise ShapeError(f"{label!r} moves with {outer!r}: name both of them or none.")
    axes = {name: tuple(_part_of(axis, kept) for axis in own) for name, own in spec.axes.items()}
    groups = {label: count for label, count in spec.groups.items() if label in kept}
    outer = {label: other for label, other in spec.outer.items() if label in kept}
    return PermutationSpec(axes, groups, outer)


def _part_of(axis: Label, kept: set[str]) -> Label:
    """What is left of an axis when only some permutations move."""
    if not isinstance(axis, Places):
        return axis if axis in kept else None
    labels = tuple(label for label in axis.labels if label in kept)
    if not labels:
        return None
    numbers, starts, total = {-1: -1}, 0, 0
    for label, size in zip(axis.labels, axis.sizes, strict=True):
        for unit in range(size):
            numbers[starts + unit] = total + unit if label in kept else -1
        starts += size
        total += size if label in kept else 0
    sizes_of = tuple(size for label, size in zip(axis.labels, axis.sizes, strict=True) if label in kept)
    units = tuple(tuple(numbers[unit] for unit in row) for row in axis.units)
    return Places(labels, sizes_of, units)


def sizes(spec: PermutationSpec, params: Params) -> dict[str, int]:
    """The length of every permutation, in the spec's order. Raises ShapeError naming what does not fit the spec."""
    found: dict[str, int] = {}
    for name, axes in spec.axes.items():
        if name not in params or params[name].ndim != len(axes):
            given = tuple(params[name].shape) if name in params else "nothing"
            raise ShapeError(f"the spec has {name!r} with {len(axes)} axes, the model has {given} there.")
        for axis, size in zip(axes, params[name].shape, strict=True):
            if isinstance(axis, Places):
                found |= {label: min(found.get(label, n), n) for label, n in zip(axis.labels, axis.sizes, strict=True)}
            elif axis is not None:
                found[axis] = min(found.get(axis, size), size)
    for label, outer in spec.outer.items():
        found[outer] = spec.groups[label]
    for name, axes in spec.axes.items():
        for axis, size in zip(axes, params[name].shape, strict=True):
            if isinstance(axis, Places):
                own = tuple(found[label] for label in axis.labels)
                if size != len(axis) or own != axis.sizes:
                    raise ShapeError(f"{name!r} has {size} places, the spec {len(axis)} for units of {axis.labels}.")
            elif axis is not None and size % found[axis]:
                raise ShapeError(f"{name!r} has {size} places for the {found[axis]} units of {axis!r}.")
    return found


def permute(spec: PermutationSpec, p: Permutations, params: Params) -> Params:
    """The same function with its hidden units reordered: place i of an axis takes what stood at p[i].

    Raises ShapeError for orders that do not fit the model, or do not keep blocks together.

    >>> import torch
    >>> from paramarket import align, stack
    >>> net = stack.mlp(4, [3], 2)
    >>> spec, model = align.permutation_spec(net, torch.zeros(1, 4)), stack.take(stack.init(net, 1, seed=0), 0)
    >>> moved = align.permute(spec, {"1": torch.tensor([2, 0, 1])}, model)
    >>> bool((moved["1.bias"] == model["1.bias"][[2, 0, 1]]).all()), tuple(moved["3.weight"].shape)
    (True, (2, 3))
    """
    for label, size in sizes(spec, params).items():
        if label not in p or len(p[label]) != size:
            given = f"one of {len(p[label])}" if label in p else "none"
            raise ShapeError(f"expected an order of the {size} units of {label!r}, got {given}.")
    for label, groups in spec.groups.items():
        blocks = p[label].view(groups, -1) // (len(p[label]) // groups)
        if not (blocks == blocks[:, :1]).all():
            raise ShapeError(f"the order of {label!r} tears its {groups} groups apart.")
        if label in spec.outer and not torch.equal(blocks[:, 0], p[spec.outer[label]].to(blocks)):
            raise ShapeError(f"the groups of {label!r} are not in the order of {spec.outer[label]!r}.")
    return {name: reorder_axes(tensor, spec.axes.get(name, ()), p) for name, tensor in params.items()}


def reorder_axes(tensor: Tensor, axes: Labels, p: Permutations) -> Tensor:
    """One tensor [...] with every labelled axis reordered; an axis that is a multiple of its order moves in blocks."""
    for axis, label in enumerate(axes):
        if isinstance(label, Places):
            tensor = tensor.index_select(axis, label.order(p).to(tensor.device))
        elif label is not None:
            order = p[label].to(tensor.device)
            blocks = tensor.unflatten(axis, (len(order), -1))
            tensor = blocks.index_select(axis, order).flatten(axis, axis + 1)
    return tensor


def identity(spec: PermutationSpec, params: Params) -> Permutations:
    """The permutations that leave everything where it is."""
    return {label: torch.arange(size) for label, size in sizes(spec, params).items()}


def random_permutations(spec: PermutationSpec, params: Params, generator: torch.Generator) -> Permutations:
    """Any element of the symmetry, each as likely as another: within blocks, and of whole blocks."""
    return draw_permutations(spec, params, lambda count: torch.randperm(count, generator=generator))


def draw_permutations(spec: PermutationSpec, params: Params, draw: Callable[[int], Tensor]) -> Permutations:
    """An element of the symmetry, made of orders of so many units each: `draw(count)`."""
    lengths, found = sizes(spec, params), {}

    def order_of(label: str) -> Tensor:
        if label not in found:
            rows = torch.arange(lengths[label]).view(spec.groups.get(label, 1), -1)
            rows = torch.stack([row[draw(len(row))] for row in rows])
            outer = order_of(spec.outer[label]) if label in spec.outer else draw(len(rows))
            found[label] = rows[outer].flatten()
        return found[label]

    return {label: order_of(label) for label in lengths}


def random_cycle(count: int, generator: torch.Generator) -> Tensor:
    """An order in which no unit stays, and each comes round to every place in turn: never the identity by chance."""
    visits = torch.randperm(count, generator=generator)
    order = torch.empty_like(visits)
    order[visits] = visits.roll(1)
    return order


def compose(p: Permutations, q: Permutations) -> Permutations:
    """First q, then p: permute(spec, compose(p, q), x) == permute(spec, p, permute(spec, q, x))."""
    return {label: q[label][p[label]] for label in p}


def inverse(p: Permutations) -> Permutations:
    """What undoes p: compose(inverse(p), p) is the identity."""
    return {label: order.argsort() for label, order in p.items()}
