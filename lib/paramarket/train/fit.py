"""Fitting and scoring a whole stack: K models, each with its own data, order and generator, in one batched step."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from paramarket.base import lent, stream, watched
from paramarket.data import Split
from paramarket.errors import DataError, ParameterError, ShapeError, TrainingError
from paramarket.stack import Stack, check, forward, run
from paramarket.train.optimisers import go_back, optimizer_of, schedule_of, state_of, toward


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


class Score(NamedTuple):
    """Mean cross-entropy (nats), accuracy, and accuracy per class (NaN where the split has no example of a class)."""

    loss: Float[Tensor, " K"]
    accuracy: Float[Tensor, " K"]
    class_accuracy: Float[Tensor, "K classes"]


def fit(
    net: nn.Module,
    stack: Stack,
    data: Split | Sequence[Split],
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch: int = 64,
    lr: float = 1e-3,
    optimizer: str = "adamw",
    schedule: str = "one-cycle",
    weight_decay: float = 0.01,
    seed: int | Sequence[int] = 0,
    keep: Sequence[int] = (),
    state: dict[str, Tensor] | None = None,
    pull: Mapping[str, Tensor] | None = None,
) -> Fit:
    """Train all K models at once, on one split or on one each; give `epochs` or `steps`.

    An epoch is ceil(n / batch) steps of the largest split; smaller ones are reshuffled as often as they run out.
    seed: an int, and model k draws its order from (seed, k); or K ints, and each draws from its own, wherever it stands
    optimizer: "adamw" | "sgd" (momentum .9) · schedule: "one-cycle" | "constant"
    keep: steps at which to keep a copy, 0 being the start
    state: another fit's `state`: the optimiser goes on from it; order and schedule begin anew, so give another seed
    pull: {parameter: shares, [K, ...] or 1 on an axis}: after every step each weight goes that share of its way back to
    where it started: 0 is free, 1 frozen, a little is an L2 penalty on the distance to the start (L2-SP)
    Raises TrainingError naming model and step if a loss is not finite.
    """
    copies = check(net, stack)
    _positive(batch=batch, epochs=epochs, steps=steps, lr=lr)
    splits = _one_each(data, copies)
    per_epoch = math.ceil(max(map(len, splits)) / batch)
    steps, orders = _steps(epochs, steps, per_epoch), _orders(seed, copies)
    _try(net, stack, splits)
    models = {name: tensor.detach().clone() for name, tensor in stack.items()}
    learnt = {name: models[name].requires_grad_() for name, _ in net.named_parameters()}
    back = toward(stack, pull or {}, learnt)
    opt = optimizer_of(learnt, optimizer, lr, weight_decay, state)
    pace = schedule_of(opt, schedule, lr, steps)
    losses, kept, batches = [], {}, _batches(splits, batch, orders, learnt)
    with lent(orders[0]):
        for step in tqdm(range(steps), f"training {copies} models", leave=False, delay=1, disable=not watched()):
            _keep(kept, models, step, keep)
            losses.append(one_step(net, models, *next(batches), opt))
            go_back(learnt, stack, back)
            pace.step()
            if (step + 1) % per_epoch == 0 or step + 1 == steps:
                finite(losses, models, steps)
    _keep(kept, models, steps, keep)
    done = {name: tensor.detach() for name, tensor in models.items()}
    return Fit(done, _history(losses, per_epoch), state_of(opt, learnt, copies), kept)


def _positive(**settings: float | None) -> None:
    for name, value in settings.items():
        whole = name == "lr" or value is None or isinstance(value, int)
        if not whole or (value is not None and not value > 0):
            raise ParameterError(f"{name} = {value}, expected a {'' if name == 'lr' else 'whole '}number above 0.")


def _one_each(data: Split | Sequence[Split], copies: int) -> list[Split]:
    splits = [data] * copies if isinstance(data, Split) else list(data)
    if len(splits) != copies:
        raise ShapeError(f"{len(splits)} splits for {copies} models: expected one split for all, or one for each.")
    shapes = {tuple(split.x.shape[1:]) for split in splits}
    if len(shapes) > 1:
        raise ShapeError(f"the splits hold examples of different shapes: {', '.join(map(str, sorted(shapes)))}.")
    return splits


@torch.no_grad()
def _try(net: nn.Module, stack: Stack, splits: Sequence[Split]) -> None:
    """One example through the net before work starts: a GPU would stop at a bad label without saying why."""
    classes = forward(net, stack, splits[0].x[:1]).shape[-1]
    for y in (split.y for split in splits):
        if y.ndim != splits[0].y.ndim or (y.ndim == 2 and y.shape[1] != classes):
            raise DataError(f"y of shape {tuple(y.shape)} for a net with {classes} classes: labels, or [n, {classes}].")
    low, high = min(float(split.y.min()) for split in splits), max(float(split.y.max()) for split in splits)
    if low < 0 or high >= classes:
        raise DataError(f"labels from {low:g} to {high:g} in the splits for a net with {classes} classes, from 0 on.")


def _steps(epochs: int | None, steps: int | None, per_epoch: int) -> int:
    if (epochs is None) == (steps is None):
        raise ParameterError(f"give either epochs or steps, got epochs = {epochs} and steps = {steps}.")
    return steps if epochs is None else epochs * per_epoch


def _orders(seed: int | Sequence[int], copies: int) -> list[torch.Generator]:
    if isinstance(seed, int):
        return [stream(seed, "order", k) for k in range(copies)]
    if len(seed) != copies:
        raise ParameterError(f"{len(seed)} seeds for {copies} models: expected one int, or one for each model.")
    return [stream(own, "order") for own in seed]


def _batches(
    splits: list[Split], batch: int, orders: list[torch.Generator], like: dict[str, Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches x [K, batch, ...], y [K, batch]; x is overwritten by the next. A shared split is held once."""
    device = next(iter(like.values())).device
    unique = list({id(split): split for split in splits}.values())
    starts = dict(zip(map(id, unique), torch.tensor([0, *map(len, unique)]).cumsum(0).tolist(), strict=False))
    x, y = (torch.cat([getattr(split, part) for split in unique]).to(device) for part in ("x", "y"))
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
    logits = run(net, models, x, shared=False, training=True)
    y = y.mT if y.is_floating_point() else y
    losses = cross_entropy(logits.mT, y, reduction="none").mean(dim=1)  # classes not last: vectorised over examples
    opt.zero_grad()
    losses.sum().backward()  # not autograd.grad: the fused optimisers need gradients laid out as their parameters are
    opt.step()
    return losses.detach()


def _keep(kept: dict[int, Stack], models: Stack, step: int, keep: Sequence[int]) -> None:
    if step in keep:
        kept[step] = {name: tensor.detach().clone() for name, tensor in models.items()}


def finite(losses: list[Float[Tensor, " K"]], models: Stack, steps: int) -> None:
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
    epochs = torch.stack(losses).cpu().split(per_epoch)
    step = torch.tensor([len(part) for part in epochs]).cumsum(0)
    mean = torch.stack([part.mean(dim=0) for part in epochs])
    epoch, model = (grid.flatten() for grid in torch.meshgrid(*map(torch.arange, mean.shape), indexing="ij"))
    columns = {"epoch": epoch + 1, "step": step[epoch], "model": model, "loss": mean.flatten()}
    return pd.DataFrame({name: column.numpy() for name, column in columns.items()})


@torch.no_grad()
def evaluate(net: nn.Module, stack: Stack, split: Split, batch: int = 250) -> Score:
    """Score all K models on a split, in batches, every example weighing the same."""
    truth, losses, hits = split.y.to(next(iter(stack.values())).device), [], []
    if truth.ndim != 1:
        raise DataError("a score needs labels; this split holds probabilities, to learn from.")
    for x, y in zip(split.x.split(batch), truth.split(batch), strict=True):
        logits = forward(net, stack, x)
        if int(y.max()) >= logits.shape[-1]:
            raise DataError(f"label {int(y.max())} in a split for a net with {logits.shape[-1]} classes.")
        losses.append(cross_entropy(logits.mT, y.expand(len(logits), -1), reduction="none"))
        hits.append(logits.argmax(dim=-1) == y)
    loss, hit = torch.cat(losses, dim=1), torch.cat(hits, dim=1).float()
    if not loss.isfinite().all():  # an accuracy would still come out, and look plausible
        model = int((~loss.isfinite()).any(dim=1).nonzero()[0])
        raise TrainingError(f"the loss of model {model} is not finite: look at its weights.")
    members = nn.functional.one_hot(truth, logits.shape[-1]).float()
    return Score(loss.mean(dim=1), hit.mean(dim=1), (hit @ members) / members.sum(dim=0))
