"""Bring models into one order: find the permutations of hidden units that lay one model onto another.

Every matcher takes (spec, target, source, …) and gives {permutation name: order}, so that
`permute(spec, matcher(spec, target, source, …), source)` is the source in the target's order.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from paramarket.align.symmetry import (
    Permutations,
    PermutationSpec,
    compose,
    identity,
    inverse,
    move,
    permutation_spec,
    permute,
    sizes,
)
from paramarket.base import stream
from paramarket.errors import ShapeError, WeightsError
from paramarket.stack import Params, Stack, compare, join, probe, take

__all__ = ["PermutationSpec", "Permutations", "activation_matching", "activation_products", "compose", "identity"]
__all__ += ["inner_product", "inverse", "match_many", "permutation_spec", "permute", "reorder", "reorder_each"]
__all__ += ["reorder_many"]
__all__ += ["sizes", "unit_axis", "weight_matching", "weight_products"]

_STATISTICS = ("running_mean", "running_var")  # they move with their units but say nothing about what these compute


def weight_matching(
    spec: PermutationSpec, target: Params, source: Params, *, seed: int = 0, sweeps: int = 100
) -> Permutations:
    """The order of the source's units that brings its weights nearest to the target's (Git Re-Basin, section 3.2).

    Maximises sum_l <W_l^A, P_l W_l^B P_{l-1}ᵀ>, biases included, by coordinate descent: with all others held, one
    permutation is a linear assignment problem. The start chains forward: each layer is matched on what it reads from
    layers matched before it. Then layers are visited in a random order (seed) until none can improve.
    """
    _comparable(target, source)
    p, known, memory = identity(spec, source), {None}, {}
    for label in p:
        cost = weight_products(spec, label, target, source, p, known | {label}, memory)
        p[label], known = _assign(cost, spec.groups.get(label, 1)), known | {label}
    near, waiting, labels = _neighbours(spec), set(p), list(p)
    for sweep in range(sweeps):
        for k in torch.randperm(len(labels), generator=stream(seed, "weight matching", sweep)).tolist():
            if labels[k] in waiting:  # a layer whose neighbours have not moved since has nothing to gain
                waiting.discard(labels[k])
                waiting |= near[labels[k]] if _improve(spec, labels[k], target, source, p, memory) else set()
        if not waiting:
            break
    return p


def weight_products(
    spec: PermutationSpec,
    label: str,
    target: Params,
    source: Params,
    p: Permutations,
    known: set[str | None] | None = None,
    memory: dict | None = None,
) -> Float[Tensor, "units units"]:
    """How alike unit i of the target and unit j of the source are: the inner product of all their weights.

    M_l = W_l^A P_{l-1} W_l^Bᵀ + W_{l+1}^Aᵀ P_{l+1} W_{l+1}^B + b_l^A b_l^Bᵀ, the neighbours ordered as in `p`.
    known: only parameters whose every axis has one of these permutations. memory: products to use again as long as
    the neighbours keep their order; give the same dict at every call.
    """
    memory = {} if memory is None else memory
    units, like = len(p[label]), next(iter(target.values()))
    total = like.new_zeros(units, units)
    for name, axes in spec.axes.items():
        if label not in axes or name.endswith(_STATISTICS) or (known is not None and not known.issuperset(axes)):
            continue
        for axis in (k for k, own in enumerate(axes) if own == label):
            rest = tuple(None if k == axis else own for k, own in enumerate(axes))
            orders = [p[own] for own in rest if own is not None]
            before, product = memory.get((name, axis), (None, None))
            if before is None or any(one is not other for one, other in zip(before, orders, strict=True)):
                product = _rows(target[name], axis, units) @ _rows(move(source[name], rest, p), axis, units).mT
                memory[name, axis] = orders, product
            total += product
    return total


def _rows(tensor: Tensor, axis: int, units: int) -> Tensor:
    """[units, all that belongs to one]; views wherever there can be one."""
    return tensor.unflatten(axis, (units, -1)).movedim(axis, 0).reshape(units, -1)


def _assign(cost: Tensor, groups: int) -> Tensor:
    """The order with the largest sum of cost[i, order[i]]; with groups, the best that keeps groups together."""
    cost = cost.detach().cpu()
    if groups == 1:
        cost = cost.amax(dim=1, keepdim=True) - cost  # the same problem, as a smallest sum with zeros in it:
        cost = cost - cost.amin(dim=0, keepdim=True)  # scipy then has a third less to do
        return torch.from_numpy(linear_sum_assignment(cost.numpy())[1])
    blocks = cost.unflatten(0, (groups, -1)).unflatten(2, (groups, -1)).transpose(1, 2)  # [g, h, units, units]
    size = blocks.shape[-1]
    inner = torch.stack([_assign(block, 1) for block in blocks.flatten(0, 1)]).view(groups, groups, size)
    value = blocks.gather(3, inner.unsqueeze(-1)).sum(dim=(2, 3))
    outer = _assign(value, 1)
    return (outer.unsqueeze(1) * size + inner[torch.arange(groups), outer]).flatten()


def _neighbours(spec: PermutationSpec) -> dict[str, set[str]]:
    """Which permutations share a parameter; one that sits on two axes of the same parameter is its own neighbour."""
    near: dict[str, set[str]] = {}
    for axes in spec.axes.values():
        for label in set(axes) - {None}:
            others = set(axes) - {None} if axes.count(label) > 1 else set(axes) - {None, label}
            near[label] = near.get(label, set()) | others
    return near


def _improve(spec: PermutationSpec, label: str, target: Params, source: Params, p: Permutations, memory: dict) -> bool:
    """Solve one assignment; keep it, in `p`, only if the objective really rises."""
    cost = weight_products(spec, label, target, source, p, memory=memory)
    new, at = _assign(cost, spec.groups.get(label, 1)), torch.arange(len(cost))
    if any(axes.count(label) > 1 for axes in spec.axes.values()):  # then the objective is not linear in it
        ways = (permute(spec, each, source) for each in ({**p, label: new}, p))
        after, before = (inner_product(target, moved) for moved in ways)
    else:
        after, before = (cost.cpu()[at, order].double().sum().item() for order in (new, p[label]))
    better = after > before + torch.finfo(cost.dtype).eps * len(cost) * cost.abs().max().item()
    p[label] = new if better else p[label]
    return better


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
    products = activation_products(spec, target, source, net=net, x=x)
    start = identity(spec, source)
    return start | {label: _assign(cost, spec.groups.get(label, 1)) for label, cost in products.items()}


def activation_products(
    spec: PermutationSpec, target: Params, source: Params, *, net: nn.Module, x: Float[Tensor, "n ..."]
) -> dict[str, Float[Tensor, "units units"]]:
    """{permutation: E[z_A z_Bᵀ]}, z [n, units] being what the layers that read these units get to see on x."""
    length, total = sizes(spec, source), {}
    readers = {
        name.removesuffix(".weight"): axes[1]
        for name, axes in spec.axes.items()
        if name.endswith(".weight")
        and len(axes) > 1
        and axes[1] is not None
        and isinstance(net.get_submodule(name.removesuffix(".weight")), (nn.Linear, nn.Conv1d, nn.Conv2d))
    }
    one: dict[str, Tensor] = {}
    other: dict[str, Tensor] = {}
    for params, read in ((target, one), (source, other)):
        probe(net, params, x, readers, lambda path, given, _, read=read: read.update({path: given}))
    for path, label in readers.items():
        a, b = (_rows(z[path], unit_axis(net, path, z[path]), length[label]) for z in (one, other))
        total[label] = total.get(label, 0.0) + a @ b.mT / a.shape[1]
    return total


def unit_axis(net: nn.Module, layer: str, z: Tensor) -> int:
    """The axis of z [n, ...], read or said by a layer, that holds its units: the last if linear, else the second."""
    return z.ndim - 1 if isinstance(net.get_submodule(layer), nn.Linear) else 1


def match_many(
    spec: PermutationSpec, models: Stack, matcher: Callable[..., Permutations] = weight_matching, **settings: Any
) -> list[Permutations]:
    """One order for each of K models, so that all fit together; the first keeps its own.

    Each in turn is matched to the mean of the others, and a new order is kept if it brings the weights nearer to that
    mean, until nothing improves (Git Re-Basin, MergeMany). settings: the matcher's own, as `net` and `x`.
    """
    own = [take(models, k) for k in range(len(next(iter(models.values()))))]
    if len(own) < 2:
        raise ShapeError(f"matching needs two or more models, got {len(own)}.")
    p, improved = [identity(spec, own[0]) for _ in own], True
    while improved:
        improved = False
        for k in range(1, len(own)) if len(own) == 2 else range(len(own)):
            others = [permute(spec, p[j], own[j]) for j in range(len(own)) if j != k]
            mean = {name: tensor.mean(dim=0) for name, tensor in join(others).items()}
            new = matcher(spec, mean, own[k], **settings)
            after, before = (inner_product(mean, permute(spec, each, own[k])) for each in (new, p[k]))
            if after > before + 1e-6 * abs(before):
                p[k], improved = new, True
    return [compose(inverse(p[0]), each) for each in p]


def reorder(
    spec: PermutationSpec,
    target: Params,
    source: Params,
    matcher: Callable[..., Permutations] = weight_matching,
    **settings: Any,
) -> Params:
    """The source in the target's order, as the matcher finds it: what can be mixed with the target."""
    return permute(spec, matcher(spec, target, source, **settings), source)


def reorder_many(
    spec: PermutationSpec, models: Stack, matcher: Callable[..., Permutations] = weight_matching, **settings: Any
) -> Stack:
    """All models in one order, the first one's (see `match_many`)."""
    found = match_many(spec, models, matcher, **settings)
    return join([permute(spec, p, take(models, k)) for k, p in enumerate(found)])


def reorder_each(spec: PermutationSpec, a: Stack, b: Stack, **settings: Any) -> Stack:
    """Every model of b in the order of its partner in a (see `reorder`)."""
    number = len(next(iter(a.values())))
    return join([reorder(spec, take(a, k), take(b, k), **settings) for k in range(number)])


def _comparable(target: Params, source: Params) -> None:
    """Two models of one architecture, of finite numbers; else an error that names the first difference."""
    compare(source, target, "the two models to match")
    for who, params in {"target": target, "source": source}.items():
        for name, tensor in params.items():
            if not tensor.isfinite().all():
                raise WeightsError(f"the {who}'s {name!r} holds values that are NaN or infinite.")
