"""The spec of a net: traced, put into words, and verified by numbers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from paramarket.align.orbits import NOWHERE, Names, Orbits, Units
from paramarket.align.symmetry import (
    Label,
    Permutations,
    PermutationSpec,
    Places,
    draw_permutations,
    identity,
    labels_of,
    permute,
    random_cycle,
    reorder_axes,
    sizes,
)
from paramarket.align.tracing import REMEDY, Float64, NoDropout, Reads, Trace, of_examples, of_parameter
from paramarket.base import stream
from paramarket.errors import ShapeError
from paramarket.stack import Params, is_dense, layer_of

TOLERANCE = 1e-10  # of the largest answer, in float64
_POOL = 1_048_573  # random numbers, used again and again: a prime, so that no two rows of a matrix are alike


def permutation_spec(net: nn.Module, example: Tensor) -> PermutationSpec:
    """Find a net's permutation symmetries by tracing it; inputs and outputs stay as they are.

    example: one batch [n, ...] as the net takes it; only its shape counts, or, of whole numbers, their range too. A
    permutation bears the name of the first layer whose outputs it reorders. What was found is verified: a model of
    this net with random weights, its dropout off, answers as before when all units are reordered at random
    (see `verify`). Raises ShapeError naming the operation that cannot be traced, and why.

    >>> import torch
    >>> from paramarket import align, stack
    >>> print(align.permutation_spec(stack.mlp(4, [3], 2), torch.zeros(1, 4)))
    1.weight  [1, ·]
    1.bias  [1]
    3.weight  [·, 1]
    3.bias  [·]
    """
    params, x = _random_model(net), _random_input(example)
    units = Units()
    numbers = number_units(units, params)
    followed = {name: of_parameter(tensor, name, numbers[name]) for name, tensor in params.items()}
    with Trace(units) as trace:
        answers = _answers(net, followed, of_examples(x), example.shape)
    for answer in answers:
        for one in trace.of(answer):
            units.fix(one)
    for name in params:
        if name not in trace.used:
            for one in numbers[name]:
                units.fix(one)
    try:
        wording = _Wording(Orbits(units), trace.used, numbers)
    except ShapeError as error:
        raise ShapeError(f"cannot trace {type(net).__name__}: {error}; {REMEDY}.") from error
    spec = wording.spec([*trace.used, *params])
    _verify(net, spec, params, x, answers)
    return spec


def number_units(units: Units, params: Params) -> dict[str, list[Tensor]]:
    """{parameter: the new units of each of its axes}."""
    numbers = {}
    for name, tensor in params.items():
        numbers[name] = [units.new(n) + torch.arange(n) for n in tensor.shape]
    return numbers


def verify(net: nn.Module, spec: PermutationSpec, example: Tensor) -> None:
    """Raise ShapeError, naming the parameter that moves wrongly, unless the spec is a symmetry of the net.

    example: one batch [n, ...] as the net takes it. Every parameter and floating buffer is drawn at random in float64,
    so that no zero and no tie hides a mistake; then all units are reordered at random, and the answers to a random
    input compared: they may differ by 1e-10 of the largest. `permutation_spec` verifies whatever it finds.
    """
    params, x = _random_model(net), _random_input(example)
    _verify(net, spec, params, x, _answers(net, params, x, example.shape))


def _verify(net: nn.Module, spec: PermutationSpec, params: Params, x: Tensor, answers: list[Tensor]) -> None:
    generator = stream(0, "verify")
    if not all(answer.isfinite().all() for answer in answers if answer.is_floating_point()):
        raise ShapeError(f"{type(net).__name__} with random weights gives no finite answers: nothing can be verified.")
    said = torch.cat([torch.zeros(0), *(answer.flatten().double() for answer in answers)])
    if len(said) > 1 and said.max() - said.min() <= 1e-6 * said.abs().max():
        raise ShapeError(f"{type(net).__name__} with random weights always says the same: nothing can be verified.")
    p = draw_permutations(spec, params, lambda count: random_cycle(count, generator))
    if not p or _difference(net, permute(spec, p, params), x, answers) <= TOLERANCE:
        return
    still = identity(spec, params)
    orders = {label: _alone(spec, p, still, label) for label in p}
    apart = {label: _difference(net, permute(spec, orders[label], params), x, answers) for label in p}
    wrong = max(apart, key=apart.get)
    raise ShapeError(
        f"the spec is no symmetry of {type(net).__name__}: reordering {wrong!r} changes its answers; "
        f"{_culprit(net, spec, wrong, orders[wrong], params, x, answers)!r} moves wrongly; {REMEDY}."
    )


def _culprit(
    net: nn.Module, spec: PermutationSpec, label: str, p: Permutations, params: Params, x: Tensor, answers: list[Tensor]
) -> str:
    """The parameter that most changes the answers for the better when one of its axes moves otherwise by a label."""
    moved = permute(spec, p, params)
    best = {}
    for name, axes in spec.axes.items():
        for axis, own in enumerate(axes):
            fits = own is None and params[name].shape[axis] % len(p[label]) == 0
            if label in labels_of(own) or fits:
                other = (*axes[:axis], label if fits else None, *axes[axis + 1 :])
                tried = {**moved, name: reorder_axes(params[name], other, p)}
                best[name] = min(best.get(name, torch.inf), _difference(net, tried, x, answers))
    return min(best, key=best.get)


def _alone(spec: PermutationSpec, p: Permutations, still: Permutations, label: str) -> Permutations:
    """Only the units of one permutation move, and what moves with them."""
    root = spec.outer.get(label, label)
    return {each: p[each] if each == root or spec.outer.get(each) == root else still[each] for each in p}


def _difference(net: nn.Module, params: Params, x: Tensor, answers: list[Tensor]) -> float:
    """How far the answers are from those given, as a share of the largest."""
    found = _answers(net, params, x, x.shape)
    largest = max((answer.abs().max().item() for answer in answers if answer.numel()), default=0.0)
    apart = [(one.double() - other.double()).abs().max().item() for one, other in zip(found, answers, strict=True)]
    return max(apart, default=0.0) / max(largest, 1e-300)


def _answers(net: nn.Module, params: Params, x: Tensor, shape: torch.Size) -> list[Tensor]:
    """All tensors that the net gives for x, in eval mode and float64."""
    counters = {name: buffer.cpu() for name, buffer in net.named_buffers() if not buffer.is_floating_point()}
    try:
        with torch.no_grad(), _evaluating(net), _float64_by_default(), Float64():
            said = functional_call(net, {**params, **counters}, (x.clone(),))  # a net may write into its input
            leaves = [leaf for leaf in tree_leaves(said) if isinstance(leaf, Tensor)]
            return [torch.view_as_real(leaf.resolve_conj()) if leaf.is_complex() else leaf for leaf in leaves]
    except ShapeError:
        raise
    except Exception as error:  # each layer has an error of its own for what it cannot read
        raise ShapeError(f"an example of shape {tuple(shape)} does not run through the net: {error}") from error


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """Eval mode, no dropout whatever the mode, and attention in small steps."""
    modes = {module: module.training for module in net.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        net.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        with NoDropout():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _float64_by_default() -> Iterator[None]:
    dtype = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        yield
    finally:
        torch.set_default_dtype(dtype)


@torch.no_grad()
def reads(net: nn.Module, spec: PermutationSpec, params: Params, x: Tensor) -> list[tuple[str, Tensor]]:
    """What a model multiplies on examples x [n, ...], in the order of its work: (permutation, [units, all else]).

    That is what its layers read, and an attention's queries, keys and values; tokens count as examples.
    """
    if _is_chain(net, spec):
        return _chain_reads(net, spec, params, x)
    units = Names()
    numbers = number_units(units, params)
    counters = {name: buffer for name, buffer in net.named_buffers() if not buffer.is_floating_point()}
    followed = {name: of_parameter(tensor, name, numbers[name]) for name, tensor in params.items()}
    with Reads(units) as trace, _evaluating(net):
        functional_call(net, {**followed, **counters}, (of_examples(x.clone()),))
    lengths = sizes(spec, params)
    labels = list(lengths)
    owner = torch.full([len(units.parent)], NOWHERE)
    rank = torch.zeros_like(owner)
    for name, axes in spec.axes.items():
        for axis, one in zip(axes, numbers[name], strict=True):
            for label in labels_of(axis) if not (isinstance(axis, Places) and len(axis.units) > 1) else ():
                places = axis.places_of(label) if isinstance(axis, Places) else torch.arange(len(one))
                owner[one[places]] = labels.index(label)
                rank[one[places]] = torch.arange(len(places)) // (len(places) // lengths[label])
    found = []
    for tensor, coordinates in trace.reads:
        for one in coordinates:
            found += [(labels[k], z) for k, z in _by_label(tensor, one, owner, rank)]
    return found


def _is_chain(net: nn.Module, spec: PermutationSpec) -> bool:
    """Whether each layer reads what the one before it said, and nothing else: there is no need to follow units."""
    if not is_dense(net) or any(list(layer.children()) for layer in net):
        return False
    inputs = [spec.axes[f"{name}.weight"][1] for name, layer in net.named_children() if type(layer) is nn.Linear]
    return all(label is None or isinstance(label, str) for label in inputs)


def _chain_reads(net: nn.Module, spec: PermutationSpec, params: Params, x: Tensor) -> list[tuple[str, Tensor]]:
    found = []
    with _evaluating(net):
        for name, layer in net.named_children():
            label = spec.axes[f"{name}.weight"][1] if type(layer) is nn.Linear else None
            if label is not None:
                found.append((label, x.flatten(0, -2).T.contiguous()))
            own = {inner: params[f"{name}.{inner}"] for inner, _ in layer.named_parameters()}
            x = functional_call(layer, own, (x,))
    return found


def _by_label(tensor: Tensor, one: Tensor, owner: Tensor, rank: Tensor) -> list[tuple[int, Tensor]]:
    """What a tensor says of the units of one coordinate: (number of the permutation, [units, all else])."""
    own = [axis for axis, length in enumerate(one.shape) if length > 1]
    if not own:
        return []
    rest = [axis for axis in range(tensor.ndim) if axis not in own]
    units = one.permute(*own, *rest).flatten()
    flat = tensor.permute(*own, *rest).reshape(len(units), -1)
    owners = torch.where(units < 0, NOWHERE, owner[units.clamp(min=0)])
    found = []
    for k in owners[owners >= 0].unique().tolist():
        places = (owners == k).nonzero().squeeze(1)
        places = places[rank[units[places]].argsort(stable=True)]
        count = int(rank[units[places]].max()) + 1
        if len(places) % count == 0:
            found.append((k, flat[places.to(flat.device)].view(count, -1)))
    return found


def _random_model(net: nn.Module) -> Params:
    """A model of this net, all of its numbers at random: outputs about as large as inputs, vectors positive."""
    tensors = [*net.named_parameters(), *((n, b) for n, b in net.named_buffers() if b.is_floating_point())]
    total = sum(tensor.numel() for _, tensor in tensors)
    drawn = torch.rand(min(total, _POOL), dtype=torch.float64, generator=stream(0, "random model"))
    numbers = drawn.repeat(-(-total // max(len(drawn), 1)))[:total].split([tensor.numel() for _, tensor in tensors])
    params = {}
    for (name, tensor), values in zip(tensors, numbers, strict=True):
        reach = (6 / max(tensor[0].numel(), 1)) ** 0.5 if tensor.ndim > 1 else 0.5
        lowest = -reach if tensor.ndim > 1 else 0.5
        params[name] = values.mul_(2 * reach).add_(lowest).view(tensor.shape)
    return params


def _random_input(example: Tensor) -> Tensor:
    example = example.detach().cpu()
    if not example.is_floating_point():
        return example.clone()
    return torch.randn(example.shape, dtype=torch.float64, generator=stream(0, "random input"))


class _Wording:
    """Names for the kinds of units, an order for each, and what stands on every axis of every parameter."""

    def __init__(self, orbits: Orbits, used: Mapping[str, None], numbers: dict[str, list[Tensor]]) -> None:
        self.orbits, self.numbers = orbits, numbers
        self.kinds = orbits.kinds()
        self.place: dict[int, np.ndarray] = {}  # colour -> its units in order
        self.names: dict[int, str] = {}
        axes = {(name, k): self.columns(one) for name in used for k, one in enumerate(numbers[name])}
        for (name, k), columns in axes.items():
            for row in columns:
                for colour in dict.fromkeys(self.colour(row)[row >= 0].tolist()):
                    self.names.setdefault(colour, self.name(name, k, row, colour))
        self.axes = axes
        self.whole = self.on_axes_of_their_own()
        self.groups: dict[str, int] = {}
        self.outer: dict[str, str] = {}
        for colour in [*self.names]:
            self.add_blocks(colour)
        for colour in self.names:
            self.place[colour] = self.in_order(colour)
        self.rank = np.zeros(len(orbits.colour), dtype=np.int64)
        for members in self.place.values():
            self.rank[members] = np.arange(len(members))

    def colour(self, roots: np.ndarray) -> np.ndarray:
        return np.where(roots < 0, NOWHERE, self.orbits.colour[np.maximum(roots, 0)])

    def columns(self, numbers: Tensor) -> list[np.ndarray]:
        """For every place of an axis the units that it belongs to: one row, or more for the places of a table."""
        return self.resolved(self.orbits.units.root(numbers.numpy()))

    def resolved(self, roots: np.ndarray) -> list[np.ndarray]:
        plain, rows = np.full(len(roots), NOWHERE), []
        colours = self.colour(roots)
        for colour in np.unique(colours[colours >= 0]).tolist():
            kind, own = self.kinds.get(colour), colours == colour
            if kind is None:
                continue
            if not kind.table:
                plain[own] = roots[own]
                continue
            index = np.searchsorted(kind.members, roots[own])
            for _, units in kind.table:
                part = np.full(len(roots), NOWHERE)
                part[own] = units[index]
                rows += self.resolved(part)
        found = [row for row in [plain, *rows] if (row >= 0).any()]
        merged: list[np.ndarray] = []
        for row in found:
            for k, other in enumerate(merged):
                if not ((row >= 0) & (other >= 0)).any():
                    merged[k] = np.maximum(row, other)
                    break
            else:
                merged.append(row)
        return merged

    def on_axes_of_their_own(self) -> set[int]:
        """The kinds that are all of an axis, one place for each unit: only of these the length can be seen."""
        found = set()
        for columns in self.axes.values():
            colours = set(self.colour(columns[0]).tolist()) if len(columns) == 1 else set()
            if len(colours) == 1 and NOWHERE not in colours:
                (colour,) = colours
                if len(self.kinds[colour].members) == len(columns[0]):
                    found.add(colour)
        return found

    def name(self, parameter: str, axis: int, row: np.ndarray, colour: int) -> str:
        """The layer in which a kind of units is met first; with its places, if they are not the whole axis."""
        base = layer_of(parameter) or parameter
        own = np.flatnonzero(self.colour(row) == colour)
        if len(own) < len(row):
            last = own[min(len(own), len(self.kinds[colour].members)) - 1]
            base = f"{base}[{own[0]}:{last + 1}]"
        return self.unique(base)

    def unique(self, base: str) -> str:
        taken, name, number = set(self.names.values()), base, 2
        while name in taken:
            name, number = f"{base} ({number})", number + 1
        return name

    def add_blocks(self, colour: int) -> None:
        kind = self.kinds[colour]
        if kind.outer is None:
            return
        above = kind.outer[0]
        inside = [c for c, k in self.kinds.items() if k.outer and k.outer[0] == above and c in self.names]
        self.groups[self.names[colour]] = len(self.kinds[above].members)
        if above not in self.names and (len(inside) > 1 or self.kinds[above].outer):
            self.names[above] = self.unique(f"{self.names[colour].split('[')[0]} heads")
            self.add_blocks(above)
        if above in self.names:
            self.outer[self.names[colour]] = self.names[above]

    def in_order(self, colour: int) -> np.ndarray:
        """The units of a kind, block by block."""
        kind = self.kinds[colour]
        if kind.outer is None:
            return kind.members
        above, blocks = kind.outer
        place = np.full(len(self.orbits.colour), NOWHERE)
        place[self.in_order(above)] = np.arange(len(self.kinds[above].members))
        return kind.members[np.lexsort((kind.members, place[blocks]))]

    def spec(self, names: list[str]) -> PermutationSpec:
        axes: dict[str, tuple[Label, ...]] = {}
        for name in dict.fromkeys(names):
            axes[name] = tuple(self.label(name, k) for k in range(len(self.numbers[name])))
        return PermutationSpec(axes, self.groups, self.outer)

    def label(self, name: str, axis: int) -> Label:
        columns = self.axes.get((name, axis), [])
        if not columns:
            return None
        colours = {colour: None for row in columns for colour in self.colour(row)[row >= 0].tolist()}
        if len(columns) == 1 and len(colours) == 1 and (columns[0] >= 0).all():
            (colour,) = colours
            ranks = self.rank[columns[0]]
            size = len(self.kinds[colour].members)
            if colour in self.whole and np.array_equal(ranks, np.repeat(np.arange(size), len(ranks) // size)):
                return self.names[colour]
        sizes = [len(self.kinds[colour].members) for colour in colours]
        start = dict(zip(colours, np.cumsum([0, *sizes]).tolist(), strict=False))
        rows = []
        for row in columns:
            first = np.array([start.get(colour, 0) for colour in self.colour(row).tolist()])
            rows.append(tuple(np.where(row < 0, NOWHERE, first + self.rank[np.maximum(row, 0)]).tolist()))
        return Places(tuple(self.names[colour] for colour in colours), tuple(sizes), tuple(rows))
