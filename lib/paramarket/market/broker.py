"""The broker: lines up a buyer with its sellers, tries every mixture on `quote`, measures the chosen one on `audit`.

A lineup is a buyer and those it may buy from, one behind the other, in the buyer's order of units: a stack [Q, M] for Q
buyers and M - 1 sellers each. All buyers are served at once. Models stay on their device, numbers come back on the CPU.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from paramarket import align, stack
from paramarket.align import Permutations, PermutationSpec
from paramarket.base import Interval, check_list, interval, whole_number
from paramarket.data import Split
from paramarket.errors import ParameterError, ShapeError, unknown
from paramarket.stack import Params, Stack

MATCHES = ("none", "weights", "activations")
PARTS = ("whole", "layers")
LEAST_LOSS = 1e-9  # nats: a share of less, or of none at all, is told as one of so much


def lineup(
    net: nn.Module,
    spec: PermutationSpec,
    models: Stack,
    *,
    buyers: Sequence[int],
    sellers: Sequence[Sequence[int]],
    match: str,
    x: Float[Tensor, "n ..."],
) -> Stack:
    """[Q, M]: each buyer and behind it its sellers, their units in the buyer's order.

    buyers, sellers: numbers of models, and for each buyer those it may buy from · match: "none" | "weights" |
    "activations" (on x). Every pair is matched once: what lays B onto A, backwards lays A onto B.
    """
    if match not in MATCHES:
        raise ParameterError(unknown("match", match, MATCHES))
    check_list("buyers", buyers)
    check_list("sellers", sellers)
    if len(buyers) != len(sellers):
        raise ParameterError(f"{len(buyers)} buyers, sellers for {len(sellers)}: expected sellers for each buyer.")
    orders: dict[tuple[int, int], Permutations] = {}
    rows = []
    for buyer, its_sellers in zip(buyers, sellers, strict=True):
        target = stack.take(models, buyer)
        row = [target]
        for seller in its_sellers:
            source = stack.take(models, seller)
            if match == "none":
                row.append(source)
                continue
            if (buyer, seller) not in orders:
                order = _order(net, spec, target, source, match, x)
                orders[buyer, seller] = order
                orders[seller, buyer] = align.inverse(order)
            row.append(align.permute(spec, orders[buyer, seller], source))
        rows.append(stack.join(row))
    return stack.join(rows)


def _order(
    net: nn.Module, spec: PermutationSpec, target: Params, source: Params, match: str, x: Tensor
) -> Permutations:
    if match == "weights":
        return align.weight_matching(spec, target, source)
    return align.activation_matching(spec, target, source, net=net, x=x)


def purchase_weights(
    shares: Sequence[float], layers: int, *, sellers: int = 1, parts: str = "whole"
) -> Float[Tensor, "C layers M"]:
    """The mixtures to try: how much of the buyer and of every seller goes into each layer; each row sums to 1.

    The first is no purchase, so that a chosen gain is never negative. Then every share, of every seller and of equal
    parts of every two, three and more of them, in the whole net; with parts = "layers" in each layer alone as well.

    >>> from paramarket import market
    >>> market.purchase_weights([0.25, 0.5], layers=1).squeeze(1)
    tensor([[1.0000, 0.0000],
            [0.7500, 0.2500],
            [0.5000, 0.5000]])
    """
    if parts not in PARTS:
        raise ParameterError(unknown("parts", parts, PARTS))
    check_list("shares", shares)
    if not all(0 <= share <= 1 for share in shares):
        raise ParameterError(f"shares = {list(shares)}, expected numbers between 0 and 1.")
    layers = whole_number("layers", layers, least=1)
    sellers = whole_number("sellers", sellers, least=1)
    everyone = range(1, sellers + 1)
    groups = [group for size in everyone for group in itertools.combinations(everyone, size)]
    places = [slice(None)]
    if parts == "layers":
        places += range(layers)
    weights = torch.zeros(1 + len(places) * len(groups) * len(shares), layers, 1 + sellers)
    weights[:, :, 0] = 1
    for row, (place, group, share) in enumerate(itertools.product(places, groups, shares), start=1):
        weights[row, place, 0] = 1 - share
        for seller in group:
            weights[row, place, seller] = share / len(group)
    return weights


def mix_layers(models: Stack, weights: Float[Tensor, "Q C layers M"]) -> Stack:
    """C mixtures of every lineup [Q, M], a stack [Q, C]: each layer by its own row of weights (see `stack.mix`)."""
    layers = stack.layers(models)
    if weights.shape[2] != len(layers):
        raise ShapeError(f"weights for {weights.shape[2]} layers, expected {len(layers)}: {', '.join(layers)}.")
    weights_of = dict(zip(layers, weights.unbind(dim=2), strict=True))
    mixed = {}
    for name, tensor in models.items():
        mixed |= stack.mix(weights_of[stack.layer_of(name)], {name: tensor})
    return mixed


class MixtureScores(NamedTuple):
    """Of Q lineups and C mixtures, on each of n examples: the loss (nats), and whether it is right. On the CPU."""

    losses: Float[Tensor, "Q C n"]
    hits: Bool[Tensor, "Q C n"]


@torch.no_grad()
def evaluate_mixtures(
    net: nn.Module, models: Stack, weights: Float[Tensor, "C layers M"], split: Split, *, block: int = 2**19
) -> MixtureScores:
    """Every mixture of every lineup [Q, M] on every example.

    block: numbers that a layer says at a time, few enough to stay in the processor's cache.
    Raises ParameterError for mixtures whose weights do not sum to 1.
    """
    if not ((weights.sum(dim=-1) - 1).abs() < 1e-4).all():  # of NaN, too
        raise ParameterError("the weights of a mixture must sum to 1 in every layer: divide them by their sum.")
    models = stack.single(models)
    lineups, _, units = stack.leading(models, 3)  # behind Q and M: the units of the first layer
    mixtures, n = len(weights), len(split)
    batch = min(n, max(1, block // (units * mixtures)))
    turn = max(1, block // (units * mixtures * batch))
    x, y = stack.place(split.x, models), split.y.to(stack.device(models))
    losses = x.new_empty(lineups, mixtures, n)
    hits = x.new_empty(lineups, mixtures, n, dtype=torch.bool)
    for q in range(0, lineups, turn):
        some = stack.take(models, slice(q, q + turn))
        mixed = stack.flat(mix_layers(some, weights.expand(stack.count(some), *weights.shape)))
        for i in range(0, n, batch):
            logits = _mixture_logits(net, some, mixed, weights, x[i : i + batch])
            labels = y[i : i + batch].expand(len(logits), -1)
            loss = cross_entropy(logits.mT, labels, reduction="none")  # classes not last: vectorised over examples
            hit = logits.argmax(dim=-1) == labels
            losses[q : q + turn, :, i : i + batch] = loss.unflatten(0, (-1, mixtures))
            hits[q : q + turn, :, i : i + batch] = hit.unflatten(0, (-1, mixtures))
    return MixtureScores(losses.cpu(), hits.cpu())


def _mixture_logits(
    net: nn.Module, models: Stack, mixed: Stack, weights: Float[Tensor, "C layers M"], x: Float[Tensor, "n ..."]
) -> Float[Tensor, "QC n classes"]:
    """Logits of all mixtures. What a linear first layer says is linear in its weights: the M products of a lineup serve
    all its C mixtures."""
    split = stack.split_first(net)
    if split is None:
        return stack.forward(net, mixed, x)
    layer, rest = split
    products = stack.linear(net, stack.flat(models), layer, x.flatten(1))  # [Q · M, n, units]
    n, units = products.shape[1:]
    by_lineup = products.view(-1, weights.shape[-1], n * units)  # [Q, M, n · units]
    first = weights[:, 0].to(products) @ by_lineup  # [Q, C, n · units]
    return stack.apply(rest, mixed, first.view(-1, n, units), shared=False, training=False)


class Quote(NamedTuple):
    """What the broker found for each of Q buyers among C mixtures, the first of which is no purchase.

    choice: the mixture with the lowest loss · weights: its share of the buyer and of every seller, by layer
    gain_nats, gain_points (accuracy points), gain_relative (share of the loss before, the market paper's Delta): all
    on the split that made the choice, so they flatter · losses (nats): of every mixture · models: what a buyer gets, on
    the models' device; all else on the CPU
    """

    choice: Int[Tensor, " Q"]
    weights: Float[Tensor, "Q layers M"]
    gain_nats: Float[Tensor, " Q"]
    gain_points: Float[Tensor, " Q"]
    gain_relative: Float[Tensor, " Q"]
    losses: Float[Tensor, "Q C"]
    models: Stack

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """One row a lineup: the columns of a grid, and what the chosen mixture is and gains on the split that chose it.

        `mixture` (its number, 0 is no purchase), `share` (of the sellers in it, mean over layers), `gain_nats`,
        `gain_points` (accuracy points), `gain_relative` (share of the loss before)
        """
        return stack.table(
            rows,
            mixture=self.choice,
            share=1 - self.weights[:, :, 0].mean(dim=1),
            gain_nats=self.gain_nats,
            gain_points=self.gain_points,
            gain_relative=self.gain_relative,
        )


def quote(
    net: nn.Module,
    models: Stack,
    weights: Float[Tensor, "C layers M"],
    split: Split,
    *,
    own_classes: Bool[Tensor, "Q classes"] | None = None,
    max_class_loss: float = 100.0,
) -> Quote:
    """Try before you buy: for every lineup the mixture with the lowest loss on the split; of equal ones the first.

    own_classes: those that a buyer already knows · max_class_loss: accuracy points that a purchase may cost on these,
    on average; mixtures that cost more are not on offer. Never give the split that the gain is priced on.
    """
    if own_classes is not None:
        _check_own_classes(own_classes, stack.count(models), split)
    scores = evaluate_mixtures(net, models, weights, split)
    losses = scores.losses.mean(dim=-1)
    accuracy = 100 * scores.hits.double().mean(dim=-1)  # money hangs on it: in float32 2.8 points are a cent too few
    offered = losses
    if own_classes is not None:
        counted = own_classes.cpu()[:, split.y.cpu()]
        offered = losses.masked_fill(_harmful(scores.hits, counted, max_class_loss), torch.inf)
    choice = _first_least(offered)
    buyers = torch.arange(len(choice))
    chosen = weights.cpu()[choice]
    gain_nats = losses[:, 0] - losses[buyers, choice]
    gain_points = accuracy[buyers, choice] - accuracy[:, 0]
    gain_relative = gain_nats / losses[:, 0].clamp_min(LEAST_LOSS)
    bought = stack.take(mix_layers(models, chosen.unsqueeze(1)), (slice(None), 0))
    return Quote(choice, chosen, gain_nats, gain_points, gain_relative, losses, bought)


def _check_own_classes(own_classes: Tensor, buyers: int, split: Split) -> None:
    classes = int(split.y.max()) + 1
    shape = tuple(own_classes.shape)
    if len(shape) != 2 or shape[0] != buyers or shape[1] < classes:
        raise ShapeError(
            f"own_classes has shape {shape}, expected a row for each of {buyers} buyers, of {classes} classes or more."
        )


def _first_least(losses: Float[Tensor, "Q C"]) -> Int[Tensor, " Q"]:
    """The first of the mixtures with the lowest loss; a difference of less than a millionth of it is rounding."""
    equal = losses <= (1 + 1e-6) * losses.amin(dim=1, keepdim=True)
    return equal.int().argmax(dim=1)


def _harmful(hits: Bool[Tensor, "Q C n"], counted: Bool[Tensor, "Q n"], max_class_loss: float) -> Bool[Tensor, "Q C"]:
    """Which mixtures cost a buyer more than so many accuracy points on the examples that count for it."""
    right = (hits & counted.unsqueeze(1)).sum(dim=-1)
    lost = right[:, :1] - right
    return 100 * lost > max_class_loss * counted.sum(dim=1, keepdim=True)  # no division: exactly so many is allowed


class Audit(NamedTuple):
    """What a purchase changes on a split that did not choose it. All on the CPU.

    gain_points (accuracy points), gain_nats, gain_relative (share of the loss before): [Q], with their interval over
    the examples · class_points: change of accuracy by class, points (NaN for a class without an example)
    changes: of every example, 100 points if it is right now, -100 if it was
    """

    gain_points: Interval
    gain_nats: Interval
    gain_relative: Interval
    class_points: Float[Tensor, "Q classes"]
    changes: Float[Tensor, "Q n"]

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """One row a purchase: the columns of a grid, and its gains, each with `_low` and `_high` (its interval).

        `gain_points` (accuracy points), `gain_nats`, `gain_relative` (share of the loss before)
        """
        return stack.table(
            rows,
            **self.gain_points.columns("gain_points"),
            **self.gain_nats.columns("gain_nats"),
            **self.gain_relative.columns("gain_relative"),
        )

    def class_table(self, rows: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
        """One row a purchase and class: the columns of a grid, `class`, `gain_points` (accuracy points) on it."""
        return stack.table(rows, {"class": classes}, gain_points=self.class_points)


@torch.no_grad()
def audit(net: nn.Module, before: Stack, after: Stack, split: Split) -> Audit:
    """Measure Q purchases anew: every buyer as it was and as it would be, on examples that chose nothing."""
    logits = torch.stack([stack.forward(net, before, split.x), stack.forward(net, after, split.x)]).cpu()
    y = split.y.cpu()
    labels = y.expand(logits.shape[:-1])  # [2, Q, n]
    losses = cross_entropy(logits.flatten(0, 2), labels.flatten(), reduction="none")
    loss_before, loss_after = losses.view(labels.shape)
    right_before, right_after = (logits.argmax(dim=-1) == labels).float()
    changes = 100 * (right_after - right_before)
    members = one_hot(y, logits.shape[-1]).float()
    class_points = (changes @ members) / members.sum(dim=0)
    points = interval(changes.mT, "examples")
    nats = interval((loss_before - loss_after).mT, "examples")
    had = loss_before.mean(dim=-1).clamp_min(LEAST_LOSS).double().numpy()
    relative = Interval(nats.mean / had, nats.low / had, nats.high / had)
    return Audit(points, nats, relative, class_points, changes)
