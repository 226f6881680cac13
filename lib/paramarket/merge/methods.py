"""Ways to make one model of several. Every one is a `MergeMethod`; models lie in one order already."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn.functional import batch_norm

from paramarket import stack
from paramarket.align import PermutationSpec, unit_axis
from paramarket.base import check_list
from paramarket.data import Split
from paramarket.errors import ParameterError, ShapeError, WeightsError
from paramarket.merge.landscape import path
from paramarket.stack import Params, Stack
from paramarket.train import evaluate, fit

Weights = Sequence[float] | None  # how much of each model, in any unit: 3 and 1 are .75 and .25; None is equal shares
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@runtime_checkable
class MergeMethod(Protocol):
    """Makes one model of several of one net: its names, shapes and device are theirs.

    models: two or more in one order (`align.reorder_many`); they stay as they are, and equal ones give that model ·
    spec: the net's symmetry, which tells its hidden layers · split: examples to measure or to tune on, so never those
    on which the result is judged · generator: whatever is drawn is drawn from it.
    Raises ShapeError for fewer than two models or models of another net, WeightsError for weights that are not finite.
    What else a method can be told is by keyword; `weights`, where it is offered, holds one number a model, divided by
    their sum where they are shares. Raises ParameterError for weights that are not finite, or no shares.
    """

    def __call__(
        self, net: nn.Module, spec: PermutationSpec, models: Stack, split: Split, generator: Generator
    ) -> Params: ...


def average(
    net: nn.Module, spec: PermutationSpec, models: Stack, split: Split, generator: Generator, *, weights: Weights = None
) -> Params:
    """The weighted mean of the weights. Needs no data.

    >>> import torch
    >>> from paramarket import align, base, data, merge, stack
    >>> net, split = stack.mlp(4, [3], 2), data.Split(torch.zeros(1, 4), torch.zeros(1, dtype=torch.long))
    >>> spec, models = align.permutation_spec(net, split.x), stack.init(net, copies=2, seed=0)
    >>> merged = merge.average(net, spec, models, split, base.stream(0, "merge"))
    >>> bool(torch.allclose(merged["1.weight"], models["1.weight"].mean(dim=0)))
    True
    """
    return stack.take(stack.mix(_shares(net, models, weights), models), 0)


def _shares(net: nn.Module, models: Stack, weights: Weights) -> Float[Tensor, "1 K"]:
    """The weights, divided by their sum, as a row for `stack.mix`, float64; see `_factors`."""
    given = _factors(net, models, weights)
    if (given < 0).any() or not (given > 0).any():
        raise ParameterError(f"weights = {weights}, expected numbers ≥ 0, one of them above 0.")
    given = given / given.max()  # the sum of 1e308 and 1e308 is infinite
    return given / given.sum()


def _factors(net: nn.Module, models: Stack, weights: Any) -> Float[Tensor, "1 K"]:
    """The weights as a row for `stack.mix`, after a look at the models: two or more, of this net, finite."""
    copies = stack.check(net, models)
    if copies < 2:
        raise ShapeError(f"a merge needs two or more models, got {copies}.")
    for name, tensor in models.items():
        if not tensor.isfinite().all():
            raise WeightsError(f"{name!r} of the models to merge holds values that are NaN or infinite.")
    if weights is None:
        return torch.full((1, copies), 1 / copies, dtype=torch.float64)
    check_list("weights", weights)
    if len(weights) != copies:
        raise ParameterError(f"weights = {weights} for {copies} models: expected one number for each.")
    try:
        given = torch.tensor([[float(weight) for weight in weights]], dtype=torch.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ParameterError(f"weights = {weights}, expected numbers ({error}).") from error
    if not given.isfinite().all():
        raise ParameterError(f"weights = {weights}, expected finite numbers.")
    return given


def repair(
    net: nn.Module, spec: PermutationSpec, models: Stack, split: Split, generator: Generator, *, weights: Weights = None
) -> Params:
    """The average with its units' statistics set right (REPAIR, Jordan et al. 2023, section 4).

    Averaged units vary too little. Layer by layer, every hidden pre-activation gets the mean and the standard deviation
    that the models themselves have there on split.x, on average; measured through the layers repaired before, folded
    into weight and bias. A net with BatchNorm has its statistics measured anew instead, which does the same.
    """
    shares = _shares(net, models, weights)
    merged = stack.take(stack.mix(shares, stack.single(models)), 0)
    if _has_norms(net):
        return _stored_as(models, _recompute(net, merged, split.x))
    return _stored_as(models, _repaired(net, merged, _goals(net, spec, models, split.x), shares[0], split.x))


def _stored_as(models: Stack | Params, merged: Params) -> Params:
    """What was computed, in the types that the models have."""
    return stack.map(lambda tensor, model: tensor.to(model.dtype), merged, models)


def repaired_path(net: nn.Module, spec: PermutationSpec, a: Params, b: Params, x: Tensor, *, points: int) -> Stack:
    """The path from a to b with every model between the ends repaired on the examples x [n, ...]."""
    line = path(stack.single(a), stack.single(b), points)
    between = [stack.take(line, k) for k in range(1, points - 1)]
    if _has_norms(net):
        repaired = [_recompute(net, params, x) for params in between]
        return stack.join([a, *(_stored_as(a, params) for params in repaired), b])
    goals = _goals(net, spec, stack.join([a, b]), x)
    repaired = []
    for t, params in zip(torch.linspace(0, 1, points)[1:-1], between, strict=True):
        repaired.append(_repaired(net, params, goals, torch.stack([1 - t, t]), x))
    return stack.join([a, *(_stored_as(a, params) for params in repaired), b])


class _Moments(NamedTuple):
    """Mean and standard deviation of every unit: [units], or [K, units] of K models."""

    mean: Tensor
    std: Tensor


def _moments(net: nn.Module, layer: str, said: Tensor) -> _Moments:
    """Over examples and places, in float64 on the way."""
    std, mean = torch.std_mean(said.double(), dim=_all_axes_but(unit_axis(net, layer, said), said))
    return _Moments(mean.to(said), std.to(said))


def _goals(net: nn.Module, spec: PermutationSpec, models: Stack, x: Tensor) -> dict[str, _Moments]:
    """{hidden layer: the moments [K, units] of what each model says there on x}."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    hidden = [stack.layer_of(name) for name, axes in spec.axes.items() if name.endswith("weight") and axes[0]]
    layers = [layer for layer in hidden if isinstance(net.get_submodule(layer), kinds)]
    found: dict[str, list[_Moments]] = {layer: [] for layer in layers}

    def look(layer: str, read: Tensor, said: Tensor) -> None:
        found[layer].append(_moments(net, layer, said))

    for k in range(stack.count(models)):
        stack.probe(net, stack.take(models, k), x, layers, look)
    _used_once(found, stack.count(models))
    goals = {}
    for layer, moments in found.items():
        means, stds = zip(*moments, strict=True)
        goals[layer] = _Moments(torch.stack(means), torch.stack(stds))
    return goals


def _used_once(found: dict[str, list], models: int) -> None:
    """ShapeError naming a layer that was not run once by every model: a merge would have to be right for two uses."""
    for layer, entries in found.items():
        if len(entries) != models:
            raise ShapeError(f"layer {layer!r} is used {len(entries) // models} times in the net, expected once.")


def _repaired(net: nn.Module, merged: Params, goals: dict[str, _Moments], shares: Tensor, x: Tensor) -> Params:
    """One pass: each layer is put right on the way, so that the next one is measured behind it."""
    merged = dict(merged)

    def look(layer: str, read: Tensor, said: Tensor) -> Tensor:
        goal_mean, goal_std = (torch.tensordot(shares.to(each), each, dims=1) for each in goals[layer])
        mean, std = _moments(net, layer, said)
        ratio = torch.where(std > 1e-12, goal_std / std, 1.0)
        shift = torch.zeros_like(mean)
        weight, bias = merged[f"{layer}.weight"], merged.get(f"{layer}.bias")
        merged[f"{layer}.weight"] = weight * ratio.view(-1, *[1] * (weight.ndim - 1))
        if bias is not None:
            merged[f"{layer}.bias"] = (bias - mean) * ratio + goal_mean
            shift = -mean * ratio + goal_mean
        along_units = [1] * said.ndim
        along_units[unit_axis(net, layer, said)] = -1
        return said * ratio.view(along_units) + shift.view(along_units)

    stack.probe(net, merged, x, goals, look)
    return merged


def _has_norms(net: nn.Module) -> bool:
    return any(isinstance(module, _NORMS) for module in net.modules())


def _recompute(net: nn.Module, params: Params, x: Tensor) -> Params:
    """BatchNorm's running statistics, measured on x in one pass; each norm sees what those before it have put right."""
    own = dict(params)
    norms = {name: module for name, module in net.named_modules() if isinstance(module, _NORMS)}

    def look(name: str, read: Tensor, said: Tensor) -> Tensor:
        var, mean = torch.var_mean(read, dim=_all_axes_but(1, read))
        if f"{name}.running_mean" in own:
            own[f"{name}.running_mean"] = mean
            own[f"{name}.running_var"] = var
        weight, bias = own.get(f"{name}.weight"), own.get(f"{name}.bias")
        return batch_norm(read, None, None, weight, bias, training=True, eps=norms[name].eps)

    stack.probe(net, own, x, norms, look)
    return own


def _all_axes_but(axis: int, z: Tensor) -> list[int]:
    return [k for k in range(z.ndim) if k != axis]


def task_arithmetic(
    net: nn.Module, spec: PermutationSpec, models: Stack, split: Split, generator: Generator, *, weights: Weights = None
) -> Params:
    """The first model plus what the others differ by: theta_0 + sum_k w_k (theta_k - theta_0) (Ilharco et al. 2023).

    The w_k are factors, of any sign and sum, and no shares: w_0 does not count.
    Without `weights` all w_k are one number, the best of 0, .05, …, 1 by the loss on `split`; of equal ones the first.
    """
    shares = _factors(net, models, weights)
    if weights is None:
        factors = torch.cat([torch.linspace(0, 1, 21), shares[0, :1]])  # the plain average is one of them
        shares = factors[:, None].repeat(1, shares.shape[1])
    shares[:, 0] = 1 - shares[:, 1:].sum(dim=1)
    return _stored_as(models, _best(net, stack.mix(shares, stack.single(models)), split))


def _best(net: nn.Module, candidates: Stack, split: Split) -> Params:
    """The candidate with the lowest loss on the split; of equal ones the first."""
    if stack.count(candidates) == 1:
        return stack.take(candidates, 0)
    return stack.take(candidates, int(evaluate(net, candidates, split).loss.argmin()))


def ties(
    net: nn.Module, spec: PermutationSpec, models: Stack, split: Split, generator: Generator, *, density: float = 0.2
) -> Params:
    """Trim, elect a sign, merge what agrees with it (TIES, Yadav et al. 2023), relative to the first model.

    Of each difference theta_k - theta_0 the largest `density` stay; where the others disagree in sign, the heavier side
    wins. What remains is averaged and added by a factor: the best of 0, .1, …, 2 by the loss on `split`; of
    equal ones the first.
    """
    if not 0 <= density <= 1:
        raise ParameterError(f"density = {density}, expected a share of the weights, from 0 to 1.")
    _shares(net, models, None)
    given, models = models, stack.single(models)
    base = stack.take(models, 0)
    change = stack.map(lambda tensor, start: tensor[1:] - start, models, base)
    sizes = stack.vectors(change).abs()
    kept = max(1, round(density * sizes.shape[1]))
    least = sizes.topk(kept, dim=1).values[:, -1]
    merged = stack.map(lambda start, tensor: start + _elected(tensor, least), base, change)
    factors = torch.linspace(0, 2, 21)
    line = stack.mix(torch.stack([1 - factors, factors], dim=1), stack.join([base, merged]))
    return _stored_as(given, _best(net, line, split))


def _elected(change: Float[Tensor, "others ..."], least: Float[Tensor, " others"]) -> Tensor:
    """The mean of the large changes (`least` or more) whose sign is that of their sum."""
    kept = torch.where(change.abs() >= least.view(-1, *[1] * (change.ndim - 1)), change, 0.0)
    agree = (kept * kept.sum(dim=0).sign()) > 0
    return (kept * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1)


def regmean(
    net: nn.Module, spec: PermutationSpec, models: Stack, split: Split, generator: Generator, *, weights: Weights = None
) -> Params:
    """Linear layers that answer, in least squares, as each model does on what it reads (RegMean, Jin et al. 2023).

    W = (sum_k w_k G_k)⁻¹ sum_k w_k G_k W_k with G_k = X_kᵀX_k, off the diagonal times .9 as the paper does; X_k is what
    the layer of model k reads on split.x. All other parameters are averaged.
    """
    merged = average(net, spec, models, split, generator, weights=weights)
    shares = _shares(net, models, weights)[0]
    layers = [layer for layer, module in net.named_modules() if type(module) is nn.Linear]
    inputs: dict[str, list[Tensor]] = {layer: [] for layer in layers}

    def look(layer: str, read: Tensor, said: Tensor) -> None:
        inputs[layer].append(read.flatten(0, -2))

    for k in range(stack.count(models)):
        stack.probe(net, stack.take(models, k), split.x, layers, look)
    _used_once(inputs, stack.count(models))
    for layer in layers:
        x = torch.stack(inputs[layer]).double()
        grams = shares.to(x)[:, None, None] * (x.mT @ x)
        grams = 0.9 * grams + 0.1 * torch.diag_embed(grams.diagonal(dim1=1, dim2=2))
        total = grams.sum(dim=0)
        little = (1e-6 * total.diagonal().mean()).clamp(min=1e-9)
        ridge = little * torch.eye(x.shape[-1]).to(x)  # an input that is always 0 would make the system singular
        wanted = (grams @ models[f"{layer}.weight"].double().mT).sum(dim=0)
        mean = merged[f"{layer}.weight"]
        solved = torch.linalg.solve(total + ridge, wanted + ridge @ mean.double().mT)
        merged[f"{layer}.weight"] = solved.mT.to(mean)
    return merged


METHODS: dict[str, MergeMethod] = {
    "average": average,
    "repair": repair,
    "task arithmetic": task_arithmetic,
    "ties": ties,
    "regmean": regmean,
}


def merge_pairs(
    net: nn.Module,
    spec: PermutationSpec,
    a: Stack,
    b: Stack,
    split: Split,
    generator: Generator,
    *,
    method: MergeMethod = average,
) -> Stack:
    """Every model of a merged with its partner in b. All pairs draw from the one generator, one after the other."""
    stack.compare(b, a, "the two stacks of partners")
    partners = stack.map(lambda *two: torch.stack(two, dim=1), a, b)
    pairs = [stack.take(partners, k) for k in range(stack.count(a))]
    return stack.join([method(net, spec, pair, split, generator) for pair in pairs])


@torch.no_grad()
def ensemble(
    net: nn.Module, models: Stack, x: Float[Tensor, "n ..."], *, weights: Weights = None
) -> Float[Tensor, "n classes"]:
    """The weighted mean of the models' probabilities: every one is kept and run, where it is. On the CPU."""
    shares = _shares(net, models, weights)[0]
    chances = stack.forward(net, models, x).softmax(dim=-1)
    return torch.tensordot(shares.to(chances), chances, dims=1).cpu()


def distil(
    net: nn.Module, spec: PermutationSpec, models: Stack, split: Split, generator: Generator, *, steps: int = 100
) -> Params:
    """The first model trained on to say on split.x what the ensemble says (Hinton et al. 2015). Labels are not used."""
    lesson = Split(split.x, ensemble(net, models, split.x))
    seed = int(torch.randint(2**31, (), generator=generator))
    student = fit(net, stack.take(models, slice(1)), lesson, steps=steps, seed=seed).stack
    return _stored_as(models, stack.take(student, 0))
