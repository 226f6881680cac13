"""Matching: find the order of hidden units that lays one model onto another, and put many models in one order."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from lap import lapjvr_batch
from torch import Tensor, nn

from paramarket import stack
from paramarket.align.specs import reads
from paramarket.align.symmetry import (
    Label,
    Permutations,
    PermutationSpec,
    Places,
    compose,
    identity,
    inverse,
    labels_of,
    permute,
    reorder_axes,
)
from paramarket.base import stream
from paramarket.errors import ShapeError, WeightsError
from paramarket.stack import Params, Stack

_STATISTICS = ("running_mean", "running_var")  # they move with their units but say nothing about what these compute


@runtime_checkable
class Matcher(Protocol):
    """Finds the order of the source's units in which it lies nearest to the target.

    It gives one order for every permutation of the spec, an integer tensor on the CPU that keeps the spec's groups
    together: `permute(spec, found, source)` computes what the source does, and can be mixed with the target. Both
    models stay as they are. Of orders that are equally good it is any one, always the same on one machine. Raises
    ShapeError for two models of different nets, WeightsError for weights that are not finite, or too large to be
    multiplied. settings: the matcher's own, by keyword.
    """

    def __call__(self, spec: PermutationSpec, target: Params, source: Params, **settings: Any) -> Permutations: ...


def weight_matching(
    spec: PermutationSpec, target: Params, source: Params, *, seed: int = 0, sweeps: int = 100
) -> Permutations:
    """The order of the source's units that brings its weights nearest to the target's (Git Re-Basin, section 3.2).

    Maximises sum_l <W_l^A, P_l W_l^B P_{l-1}ᵀ>, biases included, by coordinate descent: with all others held, one
    permutation is a linear assignment problem; so are the heads of an attention, each pair of them at the cost of its
    units' best order. The start chains forward: each layer is matched on what it reads from layers matched before it.
    Then layers are visited in a random order (seed) until none can improve.

    >>> import torch
    >>> from paramarket import align, stack
    >>> net = stack.mlp(4, [3], 2)
    >>> spec, model = align.permutation_spec(net, torch.zeros(1, 4)), stack.take(stack.init(net, 1, seed=0), 0)
    >>> shuffled = align.permute(spec, {"1": torch.tensor([2, 0, 1])}, model)
    >>> align.weight_matching(spec, target=shuffled, source=model)
    {'1': tensor([2, 0, 1])}
    """
    _comparable(target, source)
    target, source = stack.single(target), stack.single(source)
    p = identity(spec, source)
    memory: dict = {}
    families = _families(spec, p)
    known: set[str] = set()
    for family in families:
        known.update(family)
        products = {
            label: weight_products(spec, label, target, source, p, known=known, memory=memory) for label in family
        }
        p |= _best_orders(spec, family, products)
    neighbours = _neighbours(spec, families)
    waiting = {k for k, near in enumerate(neighbours) if any(other >= k for other in near)}  # what moved after it
    for sweep in range(sweeps):
        for k in torch.randperm(len(families), generator=stream(seed, "weight matching", sweep)).tolist():
            if k not in waiting:
                continue
            waiting.discard(k)  # it has nothing to gain again until a neighbour moves
            if _improve(spec, families[k], target, source, p, memory):
                waiting |= neighbours[k]
        if not waiting:
            break
    return p


def weight_products(
    spec: PermutationSpec,
    label: str,
    target: Params,
    source: Params,
    p: Permutations,
    *,
    known: set[str] | None = None,
    memory: dict | None = None,
) -> Float[Tensor, "units units"]:
    """How alike unit i of the target and unit j of the source are: the inner product of all their weights.

    M_l = W_l^A P_{l-1} W_l^Bᵀ + W_{l+1}^Aᵀ P_{l+1} W_{l+1}^B + b_l^A b_l^Bᵀ, the neighbours ordered as in `p`.
    known: only parameters whose every other axis has one of these permutations. memory: products to use again as long
    as the neighbours keep their order; give the same dict at every call. The result stays where the models are.
    """
    target, source = stack.single(target), stack.single(source)
    memory = {} if memory is None else memory
    total = stack.place(torch.zeros(len(p[label]), len(p[label])), target)
    for name, axes in spec.axes.items():
        if name.endswith(_STATISTICS):
            continue
        for axis in (k for k, own in enumerate(axes) if label in labels_of(own)):
            others = _others(axes, axis, label)
            if known is not None and not known.issuperset(others):
                continue
            orders = [p[other] for other in others]
            before, product = memory.get((name, axis, label), ([], None))
            if product is None or any(one is not other for one, other in zip(before, orders, strict=True)):
                product = _product(target[name], source[name], axes, axis, label, p)
                memory[name, axis, label] = orders, product
            total += product
    return total


def _others(axes: tuple[Label, ...], axis: int, label: str) -> list[str]:
    """The permutations on which a parameter's product for one label on one axis depends."""
    found = [other for k, own in enumerate(axes) if k != axis for other in labels_of(own)]
    return found + [other for other in labels_of(axes[axis]) if _is_table(axes[axis])]


def _is_table(axis: Label) -> bool:
    return isinstance(axis, Places) and len(axis.units) > 1


def _product(
    target: Tensor, source: Tensor, axes: tuple[Label, ...], axis: int, label: str, p: Permutations
) -> Float[Tensor, "units units"]:
    """What one axis of one parameter says of how alike units are."""
    own, units = axes[axis], len(p[label])
    if not isinstance(own, Places):
        others = tuple(None if k == axis else other for k, other in enumerate(axes))
        return _rows(target, axis, units) @ _rows(reorder_axes(source, others, p), axis, units).mT
    held = axes if _is_table(own) else tuple(None if k == axis else other for k, other in enumerate(axes))
    places = own.places_of(label).to(target.device)
    of_target, of_source = (
        _rows(tensor.index_select(axis, places), axis, units) for tensor in (target, reorder_axes(source, held, p))
    )
    product = of_target @ of_source.mT
    return product[:, p[label].argsort().to(target.device)] if _is_table(own) else product


def _rows(tensor: Tensor, axis: int, units: int) -> Tensor:
    """[units, all that belongs to one]; views wherever there can be one."""
    return tensor.unflatten(axis, (units, -1)).movedim(axis, 0).reshape(units, -1)


def _families(spec: PermutationSpec, p: Permutations) -> list[list[str]]:
    """Permutations that move as one, as those of an attention: the outermost first; families in the spec's order."""
    by_root: dict[str, list[str]] = {}
    for label in p:
        root = label
        while root in spec.outer:
            root = spec.outer[root]
        by_root.setdefault(root, []).append(label)
    return [[root, *(label for label in labels if label != root)] for root, labels in by_root.items()]


def _best_orders(
    spec: PermutationSpec, family: list[str], products: dict[str, Float[Tensor, "units units"]]
) -> Permutations:
    """The orders of a family with the largest sum of products[label][i, order[i]]: exact, from the inside outwards."""
    root = family[0]
    gains = {label: product.detach().cpu() for label, product in products.items()}
    within: dict[str, Tensor] = {}
    for label in reversed(_outermost_first(spec, family)):  # each adds what its best orders are worth to its outer one
        if label in spec.outer:
            blocks = _blocks(gains[label], spec.groups[label])
            within[label] = _inner_orders(blocks)
            worth = blocks.gather(3, within[label].unsqueeze(-1)).sum(dim=(2, 3))
            gains[spec.outer[label]] = gains[spec.outer[label]] + worth
    found = {root: _best_order(gains[root], spec.groups.get(root, 1))}
    for label in _outermost_first(spec, family)[1:]:
        outer = found[spec.outer[label]]
        inner = within[label][torch.arange(len(outer)), outer]
        found[label] = (outer.unsqueeze(1) * inner.shape[1] + inner).flatten()
    return found


def _outermost_first(spec: PermutationSpec, family: list[str]) -> list[str]:
    ordered = family[:1]
    while len(ordered) < len(family):
        ordered += [label for label in family if label not in ordered and spec.outer[label] in ordered]
    return ordered


def _blocks(products: Float[Tensor, "units units"], groups: int) -> Float[Tensor, "groups groups size size"]:
    """The products of every pair of blocks."""
    return products.unflatten(0, (groups, -1)).unflatten(2, (groups, -1)).transpose(1, 2)


def _inner_orders(blocks: Float[Tensor, "groups groups size size"]) -> Tensor:
    """The best order of the units in every pair of blocks [groups, groups, size]."""
    pairs = blocks.flatten(0, 1)
    cost = pairs.amax(dim=2, keepdim=True) - pairs
    return _cheapest_orders(cost - cost.amin(dim=1, keepdim=True)).unflatten(0, blocks.shape[:2])


def _best_order(products: Float[Tensor, "units units"], groups: int) -> Tensor:
    """The order with the largest sum of products[i, order[i]]; with groups, the best that keeps groups together."""
    products = products.detach().cpu()
    if groups == 1:
        cost = products.amax(dim=1, keepdim=True) - products  # the same problem, as a smallest sum with zeros in it:
        cost = cost - cost.amin(dim=0, keepdim=True)  # half of the work is done, then
        return _cheapest_orders(cost.unsqueeze(0)).squeeze(0)
    blocks = _blocks(products, groups)
    inner = _inner_orders(blocks)
    outer = _best_order(blocks.gather(3, inner.unsqueeze(-1)).sum(dim=(2, 3)), 1)
    return (outer.unsqueeze(1) * blocks.shape[-1] + inner[torch.arange(groups), outer]).flatten()


def _cheapest_orders(costs: Float[Tensor, "tables units units"]) -> Int64[Tensor, "tables units"]:
    """For each table the order with the smallest sum of cost[i, order[i]], costs of 0 or more, all tables at once.

    Exact (Jonker and Volgenant 1987). Raises WeightsError for costs that are not finite: the solver does not look.
    """
    if not costs.amax().isfinite():
        raise WeightsError("the products that matching rests on are not finite: weights or activations are too large.")
    _, orders = lapjvr_batch(costs.contiguous().numpy(), return_cost=False, n_threads=torch.get_num_threads())
    return torch.from_numpy(np.stack(orders))


def _neighbours(spec: PermutationSpec, families: list[list[str]]) -> list[set[int]]:
    """For every family those that share a parameter with it, itself if it sits there twice."""
    number = {label: k for k, family in enumerate(families) for label in family}
    found: list[set[int]] = [set() for _ in families]
    for axes in spec.axes.values():
        for axis, own in enumerate(axes):
            for label in labels_of(own):
                found[number[label]] |= {number[other] for other in _others(axes, axis, label) if other != label}
                if _acts_twice(axes, {label}):
                    found[number[label]].add(number[label])
    return found


def _acts_twice(axes: tuple[Label, ...], family: set[str]) -> bool:
    """Whether one axis of a parameter is ordered by the family while another is, too: not linear in its orders."""
    hits = [sum(label in family for label in labels_of(own)) for own in axes]
    across = any(hit > 1 and _is_table(own) for hit, own in zip(hits, axes, strict=True))
    return across or sum(hit > 0 for hit in hits) > 1


def _improve(
    spec: PermutationSpec, family: list[str], target: Params, source: Params, p: Permutations, memory: dict
) -> bool:
    """Solve the assignments of one family; keep them, in `p`, only if the objective really rises."""
    products = {label: weight_products(spec, label, target, source, p, memory=memory) for label in family}
    new = _best_orders(spec, family, products)
    twice = [name for name, axes in spec.axes.items() if _acts_twice(axes, set(family))]
    after = sum(_sum_along(products[label], new[label]) for label in family)
    before = sum(_sum_along(products[label], p[label]) for label in family)
    if twice:
        own = [name for name, axes in spec.axes.items() if set(family) & {a for axis in axes for a in labels_of(axis)}]
        after, before = (_agreement(spec, target, source, order, own) for order in ({**p, **new}, p))
    largest = max(product.abs().max().item() for product in products.values())
    count = max(len(product) for product in products.values())
    better = after > before + torch.finfo(products[family[0]].dtype).eps * count * largest
    if better:
        p |= {label: order for label, order in new.items() if not torch.equal(order, p[label])}
    return better


def _agreement(spec: PermutationSpec, target: Params, source: Params, p: Permutations, names: list[str]) -> float:
    """The inner product of some parameters, the source's in the order p."""
    moved = {name: reorder_axes(source[name], spec.axes[name], p) for name in names}
    return inner_product({name: target[name] for name in names}, moved)


def _sum_along(products: Float[Tensor, "units units"], order: Tensor) -> float:
    """sum_i products[i, order[i]], in float64."""
    return products.cpu()[torch.arange(len(order)), order].double().sum().item()


def inner_product(target: Params, source: Params) -> float:
    """sum_l <W_l^A, W_l^B> over all parameters, in float64: what weight matching maximises."""
    names = [name for name in target if not name.endswith(_STATISTICS)]
    return sum(torch.dot(target[n].flatten().double(), source[n].flatten().double()).item() for n in names)


def activation_matching(
    spec: PermutationSpec, target: Params, source: Params, *, net: nn.Module, x: Float[Tensor, "n ..."]
) -> Permutations:
    """The order of the source's units that brings what they say on x nearest to what the target's say.

    Per layer one assignment on the products E[z_A z_Bᵀ] of what the next layers read (Git Re-Basin, section 3.1).
    """
    _comparable(target, source)
    target, source = stack.single(target), stack.single(source)
    p = identity(spec, source)
    products = activation_products(spec, target, source, net=net, x=x)
    for family in _families(spec, p):
        if any(label in products for label in family):
            nothing = {label: torch.zeros(len(p[label]), len(p[label])) for label in family}
            p |= _best_orders(spec, family, {label: products.get(label, nothing[label]) for label in family})
    return p


def activation_products(
    spec: PermutationSpec, target: Params, source: Params, *, net: nn.Module, x: Float[Tensor, "n ..."]
) -> dict[str, Float[Tensor, "units units"]]:
    """{permutation: E[z_A z_Bᵀ]}, z [n, units] being what the layers that read these units get to see on x.

    An attention reads its queries, keys and values; tokens are examples. The products stay where the models are.
    """
    x = stack.place(x, target) if x.is_floating_point() else x.to(stack.device(target))
    total: dict[str, Tensor] = {}
    for (label, a), (_, b) in zip(reads(net, spec, target, x), reads(net, spec, source, x), strict=True):
        total[label] = total.get(label, 0.0) + a @ b.mT / a.shape[1]
    return total


def unit_axis(net: nn.Module, layer: str, z: Tensor) -> int:
    """The axis of z [n, ...], read or said by a layer, that holds its units: the last if linear, else the second."""
    return z.ndim - 1 if isinstance(net.get_submodule(layer), nn.Linear) else 1


def match_many(
    spec: PermutationSpec, models: Stack, *, matcher: Matcher = weight_matching, **settings: Any
) -> list[Permutations]:
    """One order for each of K models, so that all fit together; the first keeps its own.

    Each in turn is matched to the mean of the others, and a new order is kept if it brings the weights nearer to that
    mean, until nothing improves (Git Re-Basin, MergeMany). settings: the matcher's own, as `net` and `x`.
    """
    own = [stack.take(models, k) for k in range(stack.count(models))]
    if len(own) < 2:
        raise ShapeError(f"matching needs two or more models, got {len(own)}.")
    p = [identity(spec, model) for model in own]
    visits = [1] if len(own) == 2 else range(len(own))  # of two, it is enough that one moves
    improved = True
    while improved:
        improved = False
        for k in visits:
            others = [permute(spec, p[j], own[j]) for j in range(len(own)) if j != k]
            mean = stack.map(lambda tensor: tensor.mean(dim=0), stack.single(stack.join(others)))
            new = matcher(spec, mean, own[k], **settings)
            after = inner_product(mean, permute(spec, new, own[k]))
            before = inner_product(mean, permute(spec, p[k], own[k]))
            if after > before + 1e-6 * abs(before):
                p[k], improved = new, True
    back = inverse(p[0])
    return [compose(back, each) for each in p]


def reorder(
    spec: PermutationSpec, target: Params, source: Params, *, matcher: Matcher = weight_matching, **settings: Any
) -> Params:
    """The source in the target's order, as the matcher finds it: what can be mixed with the target."""
    return permute(spec, matcher(spec, target, source, **settings), source)


def reorder_many(spec: PermutationSpec, models: Stack, *, matcher: Matcher = weight_matching, **settings: Any) -> Stack:
    """All models in one order, the first one's (see `match_many`)."""
    found = match_many(spec, models, matcher=matcher, **settings)
    return stack.join([permute(spec, p, stack.take(models, k)) for k, p in enumerate(found)])


def reorder_pairs(
    spec: PermutationSpec, a: Stack, b: Stack, *, matcher: Matcher = weight_matching, **settings: Any
) -> Stack:
    """Every model of b in the order of its partner in a (see `reorder`). ShapeError if one has no partner."""
    stack.compare(b, a, "the two stacks of partners")
    pairs = [(stack.take(a, k), stack.take(b, k)) for k in range(stack.count(a))]
    return stack.join([reorder(spec, one, other, matcher=matcher, **settings) for one, other in pairs])


def _comparable(target: Params, source: Params) -> None:
    """Two models of one architecture, of finite numbers; else an error that names the first difference."""
    stack.compare(source, target, "the two models to match")
    for who, params in {"target": target, "source": source}.items():
        for name, tensor in params.items():
            if not tensor.isfinite().all():
                raise WeightsError(f"the {who}'s {name!r} holds values that are NaN or infinite.")
