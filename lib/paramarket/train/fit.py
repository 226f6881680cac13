"""Fitting a whole stack: K models, each with its own data, order and generator, in one batched step."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple, SupportsIndex

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot
from tqdm.auto import tqdm

from paramarket.base import is_watched, lend_generator, stream, whole_number
from paramarket.data import Split
from paramarket.errors import DataError, ParameterError, ShapeError, TrainingError
from paramarket.stack import Params, Stack, check, copy, counters, device, forward, pack, single, table
from paramarket.train.gradients import make_backward
from paramarket.train.optimisers import StackOptimizer, learning_rates, prepare_pull, pull_back

COUNTER = "counter/"  # before the name of what a layer counts, in a state


class Fit(NamedTuple):
    """What training leaves behind.

    stack: the trained models
    history: one row per epoch and model: epoch, step, model, loss (mean training cross-entropy of the epoch, nats)
    state: the optimiser's tensors and what layers have counted, each with the stack's leading axis
    kept: copies of the stack, by step
    """

    stack: Stack
    history: pd.DataFrame
    state: dict[str, Tensor]
    kept: dict[int, Stack]

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The history, one row a model and epoch: the columns of a grid (see `stack.grid`) say which model.

        Behind them: `epoch` and `step` (how many are done), `loss` (mean training cross-entropy of the epoch, nats).
        """
        epochs = self.history.epoch.unique()
        by_model = self.history.sort_values(["model", "epoch"])
        shape = (-1, len(epochs))
        step = by_model.step.to_numpy().reshape(shape)
        loss = by_model.loss.to_numpy().reshape(shape)
        return table(rows, {"epoch": epochs}, step=step, loss=loss)


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
    optimizer: "adamw" | "sgd" (momentum .9) · schedule: "one-cycle" | "linear" | "constant", see `learning_rates`
    keep: steps at which to keep a copy, from 0, the start, to the last
    state: another fit's `state`: the optimiser goes on from it; order and schedule begin anew, so give another seed
    pull: {parameter: shares, [K, ...] or 1 on an axis}: after every step each weight goes that share of its way back to
    where it started: 0 is free, 1 frozen, a little is an L2 penalty on the distance to the start (L2-SP)
    Models of half precision are trained, and come out, in float32.
    Raises ParameterError, ShapeError and DataError before work starts; TrainingError naming model and step if a loss is
    not finite.

    >>> from paramarket import data, stack, train
    >>> digits = data.load("digits")
    >>> net = stack.mlp(64, [16], 10)
    >>> fit = train.fit(net, stack.init(net, copies=3, seed=0), digits.train, steps=20, keep=[0, 10])
    >>> stack.count(fit.stack), sorted(fit.kept), list(fit.history.columns)
    (3, [0, 10], ['epoch', 'step', 'model', 'loss'])
    """
    stack = single(stack)
    copies = check(net, stack)
    batch = whole_number("batch", batch, least=1)
    if not lr > 0:
        raise ParameterError(f"lr = {lr}, expected a number above 0.")
    splits = _split_for_each(data, copies)
    per_epoch = math.ceil(max(map(len, splits)) / batch)
    steps = _step_count(epochs, steps, per_epoch)
    keep = _kept_steps(keep, steps)
    orders = _orders(seed, generators, copies)
    rates = learning_rates(schedule, lr, steps)
    classes = _try_one_example(net, stack, splits)

    weights = pack({name: stack[name] for name, _ in net.named_parameters()})
    slopes = pack(weights.models)  # their gradients, written anew at every step
    buffers = copy({name: tensor for name, tensor in stack.items() if name not in weights.models})
    models = dict.fromkeys(stack) | buffers | weights.models  # in the order of the stack
    counting = _counting(net, state, device(models))
    backward = make_backward(net, models, slopes.models, batch, counting=counting)
    opt = StackOptimizer(optimizer, weights, weight_decay=weight_decay, state=state)
    back = prepare_pull(stack, pull or {}, weights.models)

    batches = _batches(splits, classes, batch, orders, device(models), weights.numbers.dtype)
    losses = weights.numbers.new_empty(steps, copies)
    kept = {}
    with torch.no_grad(), lend_generator(orders[0]):
        for step in tqdm(range(steps), f"training {copies} models", leave=False, delay=1, disable=not is_watched()):
            if step in keep:
                kept[step] = copy(models)
            x, targets = next(batches)
            losses[step] = backward(x, targets)
            opt.step(slopes, rates[step])
            pull_back(weights.models, stack, back)
            if (step + 1) % per_epoch == 0:  # a weight that is not finite shows in the next loss
                check_finite(losses[: step + 1], {}, steps)
    check_finite(losses, models, steps)
    if steps in keep:
        kept[steps] = copy(models)
    counted = {f"{COUNTER}{name}": number.expand(copies, *number.shape).clone() for name, number in counting.items()}
    return Fit(models, _history(losses, per_epoch), opt.state() | counted, kept)


def _counting(net: nn.Module, state: Mapping[str, Tensor] | None, device: torch.device) -> Params:
    """What the net's layers have counted so far, by a state, or else from the net's own numbers on."""
    counting = {}
    for name, own in counters(net).items():
        found = (state or {}).get(f"{COUNTER}{name}", own.unsqueeze(0))
        if not (found == found[0]).all():
            raise ShapeError(f"models of unlike age: {name!r} has counted differently in each. Train them one by one.")
        counting[name] = found[0].to(device).clone()
    return counting


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
def _try_one_example(net: nn.Module, stack: Stack, splits: Sequence[Split]) -> int:
    """One example through the net before work starts: a GPU would stop at a bad label without saying why.

    Gives the number of classes.
    """
    classes = forward(net, stack, splits[0].x[:1]).shape[-1]
    for y in (split.y for split in splits):
        if y.ndim != splits[0].y.ndim or (y.ndim == 2 and y.shape[1] != classes):
            raise DataError(f"y of shape {tuple(y.shape)} for a net with {classes} classes: labels, or [n, {classes}].")
        if y.ndim == 2 and ((y < 0).any() or ((y.sum(dim=1) - 1).abs() > 1e-4).any()):
            raise DataError("y of probabilities: expected rows of numbers ≥ 0 that sum to 1; divide by their sum.")
    low = min(float(split.y.min()) for split in splits)
    high = max(float(split.y.max()) for split in splits)
    if low < 0 or high >= classes:
        raise DataError(f"labels from {low:g} to {high:g} in the splits for a net with {classes} classes, from 0 on.")
    return classes


def _orders(seed: SupportsIndex, generators: Sequence[torch.Generator] | None, copies: int) -> list[torch.Generator]:
    if generators is None:
        return [stream(seed, "order", k) for k in range(copies)]
    if len(generators) != copies:
        raise ParameterError(f"{len(generators)} generators for {copies} models: expected one for each model.")
    return list(generators)


def _batches(
    splits: list[Split],
    classes: int,
    batch: int,
    orders: list[torch.Generator],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[Float[Tensor, "K batch ..."], Float[Tensor, "K batch classes"]]]:
    """Endless batches: examples, and what to answer as probabilities; both are overwritten by the next.

    Only what a batch takes is copied, into memory that is kept; models in a row that share a split are served at once.
    """
    example = splits[0].x[0]
    x = torch.empty(len(splits) * batch, *example.shape, device=device, dtype=dtype)
    targets = torch.empty(len(splits) * batch, classes, device=device, dtype=dtype)
    gathered, start = [], 0  # from where, to where, for which rows
    for _, sharing in groupby(splits, key=id):
        split, *others = sharing
        rows = slice(start, start + batch * (1 + len(others)))
        answers = probabilities(split.y.to(device), classes).to(targets)
        gathered += [(split.x.to(x), x[rows], rows), (answers, targets[rows], rows)]
        start = rows.stop
    for chosen in _next_examples(splits, batch, orders, device):
        for source, to, rows in gathered:
            torch.index_select(source, 0, chosen[rows], out=to)
        yield x.unflatten(0, (-1, batch)), targets.unflatten(0, (-1, batch))


def _next_examples(
    splits: list[Split], batch: int, orders: list[torch.Generator], device: torch.device
) -> Iterator[Int[Tensor, " K_times_batch"]]:
    """Endless: numbers of the examples that come next, of all models one behind the other.

    A split that runs out is reshuffled; what is left of it comes first.
    """
    queues = [torch.empty(0, dtype=torch.long)] * len(splits)
    while True:
        for k, (split, order) in enumerate(zip(splits, orders, strict=True)):
            while len(queues[k]) < batch:
                queues[k] = torch.cat([queues[k], torch.randperm(len(split), generator=order)])
        rounds = min(map(len, queues)) // batch
        chosen = torch.stack([queue[: rounds * batch].view(rounds, batch) for queue in queues], dim=1)
        yield from chosen.flatten(1).to(device)
        queues = [queue[rounds * batch :] for queue in queues]


def probabilities(y: Tensor, classes: int) -> Float[Tensor, "*n classes"]:
    """y as probabilities: labels [n] become 1 for their class; probabilities [n, classes] stay as they are."""
    return y if y.is_floating_point() else one_hot(y, classes).float()


def check_finite(losses: Float[Tensor, "done K"], models: Stack, steps: int) -> None:
    """TrainingError, naming model and step, unless losses and weights are finite. Rarely asked: a GPU has to wait."""
    bad = ~losses.isfinite()
    for tensor in models.values():
        if not bad.any() and not tensor.sum().isfinite():  # one pass, where isfinite takes five; now look closely
            bad = torch.cat([bad, ~tensor.flatten(1).isfinite().all(dim=1)[None]])
    if bad.any():
        step, model = bad.nonzero()[0].tolist()
        what = f"the loss or the weights of model {model} are not finite at step {step} of {steps}"
        raise TrainingError(f"{what}: try a smaller lr, or look at its data.")


def _history(losses: Float[Tensor, "steps K"], per_epoch: int) -> pd.DataFrame:
    """One row per epoch and model, see `Fit`."""
    rows, steps = [], 0
    for epoch, part in enumerate(losses.cpu().split(per_epoch), start=1):
        steps += len(part)
        rows += [(epoch, steps, model, loss) for model, loss in enumerate(part.mean(dim=0).numpy())]
    return pd.DataFrame(rows, columns=["epoch", "step", "model", "loss"])
