"""Fitting a whole stack: K models, each with its own data, order and generator, in one batched step."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, SupportsIndex

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from paramarket.base import is_watched, lend_generator, stream, whole_number
from paramarket.data import Split
from paramarket.errors import DataError, ParameterError, ShapeError, TrainingError
from paramarket.stack import Stack, apply, check, copy, device, forward
from paramarket.stack import map as map_stack
from paramarket.train.optimisers import make_optimizer, make_schedule, optimizer_state, prepare_pull, pull_back


class Fit(NamedTuple):
    """What training leaves behind.

    stack: the trained models
    history: one row per epoch and model: epoch, step, model, loss (mean training cross-entropy of the epoch, nats)
    state: the optimiser's tensors, each with the stack's leading axis · kept: copies of the stack, by step
    """

    stack: Stack
    history: pd.DataFrame
    state: dict[str, Tensor]
    kept: dict[int, Stack]


def fit(
    net: nn.Module,
    stack: Stack,
    data: Split | Sequence[Split],
    *,
    epochs: SupportsIndex | None = None,
    steps: SupportsIndex | None = None,
    batch: SupportsIndex = 64,
    lr: float = 1e-3,
    optimizer: str = "adamw",
    schedule: str = "one-cycle",
    weight_decay: float = 0.01,
    seed: SupportsIndex = 0,
    generators: Sequence[torch.Generator] | None = None,
    keep: Iterable[SupportsIndex] = (),
    state: dict[str, Tensor] | None = None,
    pull: Mapping[str, Tensor] | None = None,
) -> Fit:
    """Train all K models at once, on one split or on one each; give `epochs` or `steps`.

    An epoch is ceil(n / batch) steps of the largest split; smaller ones are reshuffled as often as they run out.
    seed: model k draws its order from the stream (seed, "order", k) · generators: instead, one stream for each model,
    so that a model's order does not hang on where it stands
    optimizer: "adamw" | "sgd" (momentum .9) · schedule: "one-cycle" | "constant"
    keep: steps at which to keep a copy, from 0, the start, to the last
    state: another fit's `state`: the optimiser goes on from it; order and schedule begin anew, so give another seed
    pull: {parameter: shares, [K, ...] or 1 on an axis}: after every step each weight goes that share of its way back to
    where it started: 0 is free, 1 frozen, a little is an L2 penalty on the distance to the start (L2-SP)
    Raises ParameterError, ShapeError and DataError before work starts; TrainingError naming model and step if a loss is
    not finite.

    >>> from paramarket import data, stack, train
    >>> digits = data.load("digits")
    >>> net = stack.mlp(64, [16], 10)
    >>> fit = train.fit(net, stack.init(net, copies=3, seed=0), digits.train, steps=20, keep=[0, 10])
    >>> stack.count(fit.stack), sorted(fit.kept), list(fit.history.columns)
    (3, [0, 10], ['epoch', 'step', 'model', 'loss'])
    """
    copies = check(net, stack)
    batch = whole_number("batch", batch, least=1)
    if not lr > 0:
        raise ParameterError(f"lr = {lr}, expected a number above 0.")
    splits = _split_for_each(data, copies)
    per_epoch = math.ceil(max(map(len, splits)) / batch)
    steps = _step_count(epochs, steps, per_epoch)
    keep = _kept_steps(keep, steps)
    orders = _orders(seed, generators, copies)
    _try_one_example(net, stack, splits)
    models = copy(stack)
    learnt = {name: models[name].requires_grad_() for name, _ in net.named_parameters()}
    back = prepare_pull(stack, pull or {}, learnt)
    opt = make_optimizer(learnt, optimizer, lr, weight_decay, state)
    pace = make_schedule(opt, schedule, lr, steps)
    batches = _batches(splits, batch, orders, device(models))
    losses, kept = [], {}
    with lend_generator(orders[0]):
        for step in tqdm(range(steps), f"training {copies} models", leave=False, delay=1, disable=not is_watched()):
            if step in keep:
                kept[step] = copy(models)
            x, y = next(batches)
            losses.append(one_step(net, models, x, y, opt))
            pull_back(learnt, stack, back)
            pace.step()
            if (step + 1) % per_epoch == 0 or step + 1 == steps:
                check_finite(losses, models, steps)
    if steps in keep:
        kept[steps] = copy(models)
    done = map_stack(lambda tensor: tensor.detach(), models)
    return Fit(done, _history(losses, per_epoch), optimizer_state(opt, learnt, copies), kept)


def _split_for_each(data: Split | Sequence[Split], copies: int) -> list[Split]:
    splits = [data] * copies if isinstance(data, Split) else list(data)
    if len(splits) != copies:
        raise ShapeError(f"{len(splits)} splits for {copies} models: expected one split for all, or one for each.")
    shapes = {tuple(split.x.shape[1:]) for split in splits}
    if len(shapes) > 1:
        raise ShapeError(f"the splits hold examples of different shapes: {', '.join(map(str, sorted(shapes)))}.")
    return splits


def _step_count(epochs: SupportsIndex | None, steps: SupportsIndex | None, per_epoch: int) -> int:
    if (epochs is None) == (steps is None):
        raise ParameterError(f"give either epochs or steps, got epochs = {epochs} and steps = {steps}.")
    if epochs is None:
        return whole_number("steps", steps, least=1)
    return whole_number("epochs", epochs, least=1) * per_epoch


def _kept_steps(keep: object, steps: int) -> set[int]:
    """The steps to keep; ParameterError for one that training will never reach."""
    if isinstance(keep, str) or not isinstance(keep, Iterable):
        raise ParameterError(f"keep = {keep!r}, expected a list of steps from 0 to {steps}.")
    kept = {whole_number("a step to keep", step, least=0) for step in keep}
    if kept and max(kept) > steps:
        raise ParameterError(f"keep: step {max(kept)} lies beyond the last, {steps}.")
    return kept


@torch.no_grad()
def _try_one_example(net: nn.Module, stack: Stack, splits: Sequence[Split]) -> None:
    """One example through the net before work starts: a GPU would stop at a bad label without saying why."""
    classes = forward(net, stack, splits[0].x[:1]).shape[-1]
    for y in (split.y for split in splits):
        if y.ndim != splits[0].y.ndim or (y.ndim == 2 and y.shape[1] != classes):
            raise DataError(f"y of shape {tuple(y.shape)} for a net with {classes} classes: labels, or [n, {classes}].")
    low = min(float(split.y.min()) for split in splits)
    high = max(float(split.y.max()) for split in splits)
    if low < 0 or high >= classes:
        raise DataError(f"labels from {low:g} to {high:g} in the splits for a net with {classes} classes, from 0 on.")


def _orders(seed: SupportsIndex, generators: Sequence[torch.Generator] | None, copies: int) -> list[torch.Generator]:
    if generators is None:
        return [stream(seed, "order", k) for k in range(copies)]
    if len(generators) != copies:
        raise ParameterError(f"{len(generators)} generators for {copies} models: expected one for each model.")
    return list(generators)


def _batches(
    splits: list[Split], batch: int, orders: list[torch.Generator], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches x [K, batch, ...], y [K, batch]; x is overwritten by the next. A shared split is held once."""
    unique = list({id(split): split for split in splits}.values())
    starts = dict(zip(map(id, unique), torch.tensor([0, *map(len, unique)]).cumsum(0).tolist(), strict=False))
    x = torch.cat([split.x for split in unique]).to(device)
    y = torch.cat([split.y for split in unique]).to(device)
    buffer = x.new_empty(len(splits) * batch, *x.shape[1:])  # fresh memory at each step would cost more than the copy
    queues = [torch.empty(0, dtype=torch.long)] * len(splits)
    while True:
        for k, (split, order) in enumerate(zip(splits, orders, strict=True)):
            while len(queues[k]) < batch:
                shuffled = starts[id(split)] + torch.randperm(len(split), generator=order)
                queues[k] = torch.cat([queues[k], shuffled])
        rounds = min(map(len, queues)) // batch
        index = torch.stack([queue[: rounds * batch] for queue in queues]).to(device)
        queues = [queue[rounds * batch :] for queue in queues]
        for chosen in index.split(batch, dim=1):
            torch.index_select(x, 0, chosen.flatten(), out=buffer)
            yield buffer.unflatten(0, chosen.shape), y[chosen]


def one_step(
    net: nn.Module, models: Stack, x: Float[Tensor, "K n ..."], y: Tensor, opt: torch.optim.Optimizer
) -> Float[Tensor, " K"]:
    """One step on cross-entropy for every model, each on its own batch; their losses before it, nats.

    y: labels [K, n], or probabilities [K, n, classes]. The sum over models keeps each model's gradient its own.
    """
    logits = apply(net, models, x, shared=False, training=True)
    y = y.mT if y.is_floating_point() else y
    losses = cross_entropy(logits.mT, y, reduction="none").mean(dim=1)  # classes not last: vectorised over examples
    opt.zero_grad()
    losses.sum().backward()  # not autograd.grad: the fused optimisers need gradients laid out as their parameters are
    opt.step()
    return losses.detach()


def check_finite(losses: list[Float[Tensor, " K"]], models: Stack, steps: int) -> None:
    """TrainingError, naming model and step, unless losses and weights are finite. Rarely asked: a GPU has to wait."""
    bad = ~torch.stack(losses).isfinite()
    for tensor in models.values():
        if not bad.any() and not tensor.isfinite().all():
            bad = torch.cat([bad, ~tensor.flatten(1).isfinite().all(dim=1)[None]])
    if bad.any():
        step, model = bad.nonzero()[0].tolist()
        what = f"the loss or the weights of model {model} are not finite at step {step} of {steps}"
        raise TrainingError(f"{what}: try a smaller lr, or look at its data.")


def _history(losses: list[Tensor], per_epoch: int) -> pd.DataFrame:
    """One row per epoch and model, see `Fit`."""
    rows, steps = [], 0
    for epoch, part in enumerate(torch.stack(losses).cpu().split(per_epoch), start=1):
        steps += len(part)
        rows += [(epoch, steps, model, loss) for model, loss in enumerate(part.mean(dim=0).numpy())]
    return pd.DataFrame(rows, columns=["epoch", "step", "model", "loss"])
