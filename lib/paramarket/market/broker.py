"""The broker: lines up a buyer with its sellers, tries every mixture on `quote`, measures the chosen one on `audit`.

A lineup is a buyer and those it may buy from, one behind the other, in the buyer's order of units: a stack [Q, M] for Q
buyers and M - 1 sellers each. All buyers are served at once.
"""

import itertools
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from paramarket import align
from paramarket.align import Permutations, PermutationSpec
from paramarket.base import Interval, interval
from paramarket.data import Split
from paramarket.errors import ParameterError, unknown
from paramarket.stack import Stack, flat, forward, init, is_dense, join, mix, run, take

MATCHES = ("none", "weights", "activations")
PARTS = ("whole", "layers")


class Quote(NamedTuple):
    """What the broker found for each of Q buyers among C mixtures, the first of which is no purchase.

    choice: the mixture with the lowest loss · weights: its share of the buyer and of every seller, by layer
    gain_nats, gain_points (accuracy points), gain_relative (share of the loss before, the market paper's Delta): all
    on the split that made the choice, so they flatter · losses (nats): of every mixture · models: what a buyer gets
    """

    choice: Int[Tensor, " Q"]
    weights: Float[Tensor, "Q layers M"]
    gain_nats: Float[Tensor, " Q"]
    gain_points: Float[Tensor, " Q"]
    gain_relative: Float[Tensor, " Q"]
    losses: Float[Tensor, "Q C"]
    models: Stack


class Audit(NamedTuple):
    """What a purchase changes on a split that did not choose it.

    gain_points (accuracy points), gain_nats, gain_relative (share of the loss before): [Q], with their interval over
    the examples · class_points: change of accuracy by class, points (NaN for a class without an example)
    changes: of every example, 100 points if it is right now, -100 if it was
    """

    gain_points: Interval
    gain_nats: Interval
    gain_relative: Interval
    class_points: Float[Tensor, "Q classes"]
    changes: Float[Tensor, "Q n"]


def lineup(
    net: nn.Module,
    spec: PermutationSpec,
    models: Stack,
    buyers: Sequence[int],
    sellers: Sequence[Sequence[int]],
    match: str,
    x: Float[Tensor, "n ..."],
) -> Stack:
    """[Q, M]: each buyer and behind it its sellers, their units in the buyer's order.

    match: "none" | "weights" | "activations" (on x). Every pair is matched once: what lays B onto A, backwards lays A
    onto B.
    """
    if match not in MATCHES:
        raise ParameterError(unknown("match", match, MATCHES))
    found: dict[tuple[int, int], Permutations] = {}
    rows = []
    for buyer, others in zip(buyers, sellers, strict=True):
        target, row = take(models, buyer), [take(models, buyer)]
        for seller in others:
            source = take(models, seller)
            if match != "none" and (buyer, seller) not in found:
                found[buyer, seller] = _matched(net, spec, target, source, match, x)
                found[seller, buyer] = align.inverse(found[buyer, seller])
            row.append(source if match == "none" else align.permute(spec, found[buyer, seller], source))
        rows.append(join(row))
    return join(rows)


def _matched(
    net: nn.Module, spec: PermutationSpec, target: Stack, source: Stack, match: str, x: Tensor
) -> Permutations:
    if match == "weights":
        return align.weight_matching(spec, target, source)
    return align.activation_matching(spec, target, source, net=net, x=x)


def mixtures(
    shares: Sequence[float], layers: int, sellers: int = 1, parts: str = "whole"
) -> Float[Tensor, "C layers M"]:
    """The mixtures to try: how much of the buyer and of every seller goes into each layer; each row sums to 1.

    The first is no purchase, so that a chosen gain is never negative. Then every share, of every seller and of equal
    parts of every two and three of them, in the whole net; with parts = "layers" in each layer alone as well.
    """
    if parts not in PARTS:
        raise ParameterError(unknown("parts", parts, PARTS))
    groups = [g for size in range(1, sellers + 1) for g in itertools.combinations(range(1, sellers + 1), size)]
    where = [slice(None), *range(layers if parts == "layers" else 0)]
    weights = torch.zeros(1 + len(shares) * len(groups) * len(where), layers, 1 + sellers)
    weights[:, :, 0] = 1
    for row, (part, group, share) in enumerate(itertools.product(where, groups, shares), start=1):
        weights[row, part, 0] = 1 - share
        for seller in group:
            weights[row, part, seller] = share / len(group)
    return weights


def mixed(models: Stack, weights: Float[Tensor, "Q C layers M"]) -> Stack:
    """The mixtures of every lineup, [Q, C], each layer by its own row of weights (see `stack.mix`)."""
    layers, made = list(dict.fromkeys(map(_layer, models))), {}
    for k, layer in enumerate(layers):
        made |= mix(weights[:, :, k], {name: tensor for name, tensor in models.items() if _layer(name) == layer})
    return made


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def layer_count(models: Stack) -> int:
    """How many layers `mixtures` and `mixed` tell apart: modules with parameters of their own."""
    return len(set(map(_layer, models)))


@torch.no_grad()
def tried(
    net: nn.Module, models: Stack, weights: Float[Tensor, "C layers M"], split: Split, block: int = 2**19
) -> tuple[Float[Tensor, "Q C n"], Bool[Tensor, "Q C n"]]:
    """Loss (nats) and hit of every mixture of every lineup on every example.

    block: numbers that a layer says at a time, few enough to stay in the processor's cache.
    """
    first = next(iter(models.values()))
    wide, count, n = first.shape[2] * len(weights), len(weights), len(split)
    batch = min(n, max(1, block // wide))
    turn = max(1, block // (wide * batch))
    loss, hit = first.new_empty(len(first), count, n), first.new_empty(len(first), count, n, dtype=torch.bool)
    for q in range(0, len(first), turn):
        these = take(models, slice(q, q + turn))
        whole = mixed(these, weights.expand(len(next(iter(these.values()))), *weights.shape))
        row = flat(whole)
        for i in range(0, n, batch):
            here = slice(q, q + turn), slice(None), slice(i, i + batch)
            logits = _answers(net, these, row, weights, split.x[i : i + batch].to(first))
            y = split.y[i : i + batch].to(first.device).expand(len(logits), -1)
            losses = cross_entropy(logits.mT, y, reduction="none")  # classes not last: vectorised over examples
            loss[here], hit[here] = (of.unflatten(0, (-1, count)) for of in (losses, logits.argmax(dim=-1) == y))
    return loss, hit


def _answers(net: nn.Module, models: Stack, whole: Stack, weights: Tensor, x: Tensor) -> Float[Tensor, "QC n classes"]:
    """Logits of all mixtures. What the first layer of an MLP says before its ReLU is linear in the weights: the M
    products of a lineup serve all its C mixtures."""
    names = list(net._modules)
    k = next((k for k, part in enumerate(net._modules.values()) if not isinstance(part, nn.Flatten)), len(names))
    if not is_dense(net) or k + 1 >= len(names) or f"{names[k]}.bias" not in models:
        return forward(net, whole, x)
    own = {name.removeprefix(names[k] + "."): models[name].flatten(0, 1) for name in models if _layer(name) == names[k]}
    said = torch.baddbmm(own["bias"].unsqueeze(1), x.flatten(1).expand(len(own["bias"]), -1, -1), own["weight"].mT)
    said = weights[:, 0].to(said) @ said.view(-1, weights.shape[-1], said[0].numel())  # [Q, C, n · units]
    tail = nn.Sequential(OrderedDict((name, net._modules[name]) for name in names[k + 1 :]))
    return run(tail, whole, said.view(-1, len(x), own["bias"].shape[1]), shared=False, training=False)


def quote(
    net: nn.Module,
    models: Stack,
    weights: Float[Tensor, "C layers M"],
    split: Split,
    own: Bool[Tensor, "Q classes"] | None = None,
    max_class_loss: float = 100.0,
) -> Quote:
    """Try before you buy: for every lineup the mixture with the lowest loss on the split.

    own: the classes that a buyer already knows · max_class_loss: accuracy points that a purchase may cost on these, on
    average; mixtures that cost more are not on offer. Never give the split that the gain is priced on.
    """
    loss, hit = (each.cpu() for each in tried(net, models, weights, split))
    losses, accuracy = loss.mean(dim=-1), 100 * hit.float().mean(dim=-1)
    offered = losses.clone()
    if own is not None:
        known = own[:, split.y.cpu()].float().unsqueeze(-1)
        at_home = 100 * (hit.float() @ known).squeeze(-1) / known.sum(dim=1)
        offered[at_home < at_home[:, :1] - max_class_loss] = torch.inf
    choice = offered.argmin(dim=1)
    at, chosen = (torch.arange(len(choice)), choice), weights[choice]
    gain, points = losses[:, 0] - losses[at], accuracy[at] - accuracy[:, 0]
    made = take(mixed(models, chosen.unsqueeze(1)), (slice(None), 0))
    return Quote(choice, chosen, gain, points, gain / losses[:, 0], losses, made)


@torch.no_grad()
def audit(net: nn.Module, before: Stack, after: Stack, split: Split) -> Audit:
    """Measure Q purchases anew: every buyer as it was and as it would be, on examples that chose nothing."""
    logits, y = torch.stack([forward(net, models, split.x) for models in (before, after)]).cpu(), split.y.cpu()
    losses = cross_entropy(logits.flatten(0, 2), y.repeat(logits[..., 0, 0].numel()), reduction="none")
    was, becomes = losses.view(logits.shape[:-1])
    change = 100 * (logits.argmax(dim=-1) == y).float().diff(dim=0)[0]
    members = one_hot(y, logits.shape[-1]).float()
    by_class = (change @ members) / members.sum(dim=0)
    points, nats = (interval(gains.mT, "examples") for gains in (change, was - becomes))
    before_it = was.mean(dim=-1).double().cpu().numpy()
    return Audit(points, nats, Interval(*(part / before_it for part in nats)), by_class, change)


def milliseconds(net: nn.Module, weights: Float[Tensor, "C layers M"], split: Split, seed: int) -> float:
    """The time that one purchase takes: matching, quote and audit, on networks that were never trained."""
    spec, models = align.permutation_spec(net, split.x[:1]), init(net, 2, seed)
    since = time.perf_counter()
    row = lineup(net, spec, models, [0], [[1]], "activations", split.x)
    audit(net, take(models, [0]), quote(net, row, weights, split).models, split)
    return 1000 * (time.perf_counter() - since)
