"""Ways to make one model of several.

Every way has one signature, method(net, spec, models, split, generator) -> Params, with weights=None behind it where
the models can be weighed. Models lie in one order already (`align.reorder_many`). Add yours to METHODS, and every
figure shows it. The lines and planes between models live in `landscape`, passed on here: write `merge.path`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn.functional import batch_norm

from paramarket.align import PermutationSpec, unit_axis
from paramarket.data import Split
from paramarket.errors import ShapeError, WeightsError
from paramarket.merge.landscape import (
    barrier,
    beneath,
    best_blend,
    blend,
    halfway,
    layer_path,
    layer_rise,
    path,
    plane,
    walk,
)
from paramarket.stack import Params, Stack, check, forward, join, mix, probe, take
from paramarket.train import evaluate, fit

__all__ = ["METHODS", "average", "barrier", "beneath", "best_blend", "blend", "couples", "distil", "ensemble"]
__all__ += ["halfway", "layer_path", "layer_rise", "path", "plane", "regmean", "repair", "repaired_path"]
__all__ += ["task_arithmetic", "ties", "walk"]

Weights = Sequence[float] | None  # how much of each model; None is equal shares
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def average(
    net: nn.Module, spec: PermutationSpec, models: Stack, split: Split, generator: Generator, weights: Weights = None
) -> Params:
    """The weighted mean of the weights. Needs no data."""
    return take(mix(_shares(net, models, weights), models), 0)


def _shares(net: nn.Module, models: Stack, weights: Weights) -> Float[Tensor, "1 K"]:
    """The weights as a row for `mix`, after a look at the models: two or more, of this net, finite."""
    copies = check(net, models)
    if copies < 2 or (weights is not None and len(weights) != copies):
        raise ShapeError(f"{copies} models and weights {weights}: expected two or more models, a weight for each.")
    for name, tensor in models.items():
        if not tensor.isfinite().all():
            raise WeightsError(f"{name!r} of the models to merge holds values that are NaN or infinite.")
    return torch.tensor([[1 / copies] * copies if weights is None else list(map(float, weights))])


def repair(
    net: nn.Module, spec: PermutationSpec, models: Stack, split: Split, generator: Generator, weights: Weights = None
) -> Params:
    """The average with its units' statistics set right (REPAIR, Jordan et al. 2023, section 4).

    Averaged units vary too little. Layer by layer, every hidden pre-activation gets the mean and the standard deviation
    that the models themselves have there on split.x, on average; measured through the layers repaired before, folded
    into weight and bias. A net with BatchNorm has its statistics measured anew instead, which does the same.
    """
    merged = average(net, spec, models, split, generator, weights)
    if any(isinstance(module, _NORMS) for module in net.modules()):
        return _recompute(net, merged, split.x)
    return _repaired(net, merged, _goals(net, spec, models, split.x), _shares(net, models, weights)[0], split.x)


def _goals(net: nn.Module, spec: PermutationSpec, models: Stack, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """{hidden layer: (means [K, units], standard deviations [K, units])} of what each model says there."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    hidden = [name.removesuffix(".weight") for name, axes in spec.axes.items() if name.endswith("weight") and axes[0]]
    layers = [path for path in hidden if isinstance(net.get_submodule(path), kinds)]
    found: dict[str, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}
    for k in range(len(next(iter(models.values())))):
        probe(net, take(models, k), x, layers, lambda layer, _, said: found[layer].append(_moments(said, net, layer)))
    return {layer: tuple(map(torch.stack, zip(*moments, strict=True))) for layer, moments in found.items()}


def _repaired(net: nn.Module, merged: Params, goals: dict, shares: Tensor, x: Tensor) -> Params:
    """One pass: each layer is put right on the way, so that the next one is measured behind it."""
    merged = dict(merged)

    def look(layer: str, read: Tensor, said: Tensor) -> Tensor:
        goal_mean, goal_std = (torch.tensordot(shares.to(each), each, dims=1) for each in goals[layer])
        mean, std = _moments(said, net, layer)
        ratio = torch.where(std > 1e-12, goal_std / std, 1.0)
        weight, bias = merged[f"{layer}.weight"], merged.get(f"{layer}.bias")
        merged[f"{layer}.weight"] = weight * ratio.view(-1, *[1] * (weight.ndim - 1))
        if bias is not None:
            merged[f"{layer}.bias"] = (bias - mean) * ratio + goal_mean
        at = [1] * said.ndim
        at[unit_axis(net, layer, said)] = -1
        shift = -mean * ratio + goal_mean if bias is not None else torch.zeros_like(mean)
        return said * ratio.view(at) + shift.view(at)

    probe(net, merged, x, goals, look)
    return merged


def repaired_path(net: nn.Module, spec: PermutationSpec, a: Params, b: Params, points: int, x: Tensor) -> Stack:
    """The path from a to b with every model between the ends repaired on the examples x [n, ...]."""
    line, ends = path(a, b, points), join([a, b])
    if any(isinstance(module, _NORMS) for module in net.modules()):
        return join([a, *(_recompute(net, take(line, k), x) for k in range(1, points - 1)), b])
    goals, t = _goals(net, spec, ends, x), torch.linspace(0, 1, points)
    between = [_repaired(net, take(line, k), goals, torch.stack([1 - t[k], t[k]]), x) for k in range(1, points - 1)]
    return join([a, *between, b])


def _moments(out: Tensor, net: nn.Module, path: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every unit, over examples and places, in float64."""
    std, mean = torch.std_mean(out.double(), dim=_others(out, unit_axis(net, path, out)))
    return mean.to(out), std.to(out)


def _recompute(net: nn.Module, params: Params, x: Tensor) -> Params:
    """BatchNorm's running statistics, measured on x in one pass; each norm sees what those before it have put right."""
    own = dict(params)
    norms = {name: module for name, module in net.named_modules() if isinstance(module, _NORMS)}

    def look(name: str, read: Tensor, said: Tensor) -> Tensor:
        found = dict(zip(("running_var", "running_mean"), torch.var_mean(read, dim=_others(read, 1)), strict=True))
        own.update({f"{name}.{part}": value for part, value in found.items() if f"{name}.{part}" in own})
        weight, bias = own.get(f"{name}.weight"), own.get(f"{name}.bias")
        return batch_norm(read, None, None, weight, bias, training=True, eps=norms[name].eps)

    probe(net, own, x, norms, look)
    return own


def _others(z: Tensor, axis: int) -> list[int]:
    return [k for k in range(z.ndim) if k != axis]


def task_arithmetic(
    net: nn.Module, spec: PermutationSpec, models: Stack, split: Split, generator: Generator, weights: Weights = None
) -> Params:
    """The first model plus what the others differ by: theta_0 + sum_k w_k (theta_k - theta_0) (Ilharco et al. 2023).

    Without `weights` all w_k are one number, the best of 0, .05, …, 1 by the loss on `split`.
    """
    shares = _shares(net, models, weights)
    if weights is None:
        tried = torch.cat([torch.linspace(0, 1, 21), shares[0, :1]])  # the plain average is one of them
        shares = tried[:, None].repeat(1, shares.shape[1])
    shares[:, 0] = 1 - shares[:, 1:].sum(dim=1)
    return _best(net, mix(shares, models), split)


def _best(net: nn.Module, candidates: Stack, split: Split) -> Params:
    """The candidate with the lowest loss on the split."""
    copies = len(next(iter(candidates.values())))
    return take(candidates, int(evaluate(net, candidates, split).loss.argmin()) if copies > 1 else 0)


def ties(
    net: nn.Module, spec: PermutationSpec, models: Stack, split: Split, generator: Generator, *, density: float = 0.2
) -> Params:
    """Trim, elect a sign, merge what agrees with it (TIES, Yadav et al. 2023), relative to the first model.

    Of each difference theta_k - theta_0 the largest `density` stay; where the others disagree in sign, the heavier side
    wins. What remains is averaged and added by a factor: the best of 0, .1, …, 2 by the loss on `split`.
    """
    _shares(net, models, None)
    base = take(models, 0)
    change = {name: tensor[1:] - base[name] for name, tensor in models.items()}
    sizes = torch.cat([tensor.flatten(1).abs() for tensor in change.values()], dim=1)
    keep = sizes.topk(max(1, round(density * sizes.shape[1])), dim=1).values[:, -1]
    merged = {name: base[name] + _elected(tensor, keep) for name, tensor in change.items()}
    scales = torch.linspace(0, 2, 21)
    return _best(net, mix(torch.stack([1 - scales, scales], dim=1), join([base, merged])), split)


def _elected(change: Float[Tensor, "others ..."], keep: Float[Tensor, " others"]) -> Tensor:
    kept = torch.where(change.abs() >= keep.view(-1, *[1] * (change.ndim - 1)), change, 0.0)
    agree = (kept * kept.sum(dim=0).sign()) > 0
    return (kept * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1)


def regmean(
    net: nn.Module, spec: PermutationSpec, models: Stack, split: Split, generator: Generator, weights: Weights = None
) -> Params:
    """Linear layers that answer, in least squares, as each model does on what it reads (RegMean, Jin et al. 2023).

    W = (sum_k w_k G_k)⁻¹ sum_k w_k G_k W_k with G_k = X_kᵀX_k, off the diagonal times .9 as the paper does; X_k is what
    the layer of model k reads on split.x. All other parameters are averaged.
    """
    shares, merged = _shares(net, models, weights), average(net, spec, models, split, generator, weights)
    layers = [layer for layer, module in net.named_modules() if type(module) is nn.Linear]
    reads: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    for k in range(shares.shape[1]):
        probe(net, take(models, k), split.x, layers, lambda layer, read, _: reads[layer].append(read.flatten(0, -2)))
    for layer in layers:
        x = torch.stack(reads[layer]).double()
        grams = shares[0].to(x)[:, None, None] * (x.mT @ x)
        grams = 0.9 * grams + 0.1 * torch.diag_embed(grams.diagonal(dim1=1, dim2=2))
        ridge = (1e-6 * grams.sum(dim=0).diagonal().mean()).clamp(min=1e-9) * torch.eye(x.shape[-1]).to(
            x
        )  # dead inputs
        wanted = (grams @ models[f"{layer}.weight"].double().mT).sum(dim=0)
        mean = merged[f"{layer}.weight"]
        solved = torch.linalg.solve(grams.sum(dim=0) + ridge, wanted + ridge @ mean.double().mT)
        merged[f"{layer}.weight"] = solved.mT.to(mean)
    return merged


METHODS: dict[str, Callable[..., Params]] = {
    "average": average,
    "repair": repair,
    "task arithmetic": task_arithmetic,
    "ties": ties,
    "regmean": regmean,
}


def couples(
    method: Callable[..., Params], net: nn.Module, spec: PermutationSpec, a: Stack, b: Stack, *rest: Any
) -> Stack:
    """A way to merge, applied to every model of a and its partner in b: one model for each. rest: split, generator."""
    two = {name: torch.stack([tensor, b[name]], dim=1) for name, tensor in a.items()}
    return join([method(net, spec, take(two, k), *rest) for k in range(len(next(iter(a.values()))))])


@torch.no_grad()
def ensemble(
    net: nn.Module, models: Stack, x: Float[Tensor, "n ..."], weights: Weights = None
) -> Float[Tensor, "n classes"]:
    """The weighted mean of the models' probabilities: every model is kept and run."""
    chances = forward(net, models, x).softmax(dim=-1)
    return torch.tensordot(_shares(net, models, weights)[0].to(chances), chances, dims=1)


def distil(
    net: nn.Module, spec: PermutationSpec, models: Stack, split: Split, generator: Generator, *, steps: int = 100
) -> Params:
    """The first model trained on to say on split.x what the ensemble says (Hinton et al. 2015). Labels are not used."""
    taught = Split(split.x, ensemble(net, models, split.x))
    seed = int(torch.randint(2**31, (), generator=generator))
    return take(fit(net, take(models, slice(1)), taught, steps=steps, seed=seed).stack, 0)
