"""From two checkpoints to a decision. So far: can these two be combined at all, and in which way?"""

import math
from typing import Literal, NamedTuple

import torch
from torch import nn

from paramarket import align, cka, merge, stack
from paramarket.data import Split
from paramarket.errors import ParameterError, WeightsError
from paramarket.stack import Params
from paramarket.train import Score, evaluate

NEGLIGIBLE_BARRIER = 0.05  # nats: a lower barrier counts as none, as in notebook 02
NEGLIGIBLE_LOSS = 1e-3  # nats: so much worse counts as no worse

Verdict = Literal["merge", "reorder, then merge", "keep both", "keep the better one", "keep the base"]
_COMBINATIONS: dict[str, Verdict] = {  # each way to combine two, and the verdict that advises it
    "averaged weights": "merge",
    "reordered, averaged": "reorder, then merge",
    "averaged outputs": "keep both",
}


class Compatibility(NamedTuple):
    """What two models of one architecture have in common on a split, and what that allows.

    cka: {layer: debiased linear CKA of what the two say there} · losses (nats): {"a", "b", "averaged weights",
    "reordered, averaged", "averaged outputs"}, and "base" if there is one · accuracies (shares): the same
    naive_barrier, aligned_barrier (nats): on the straight line between the two, as they are and with b in a's order
    verdict: "merge" if the line is free of a barrier (.05 nats), "reorder, then merge" if it is so after weight
    matching, otherwise "keep both" for their averaged outputs; but "keep the better one" where that would be worse than
    it by more than .001 nats. A base of a lower loss than a and b counts, too: where it beats the way so found by more
    than .001 nats, the best way takes its place; where it beats that as well, "keep the base". Losses decide
    reason: the same in a sentence, accuracy beside loss
    """

    cka: dict[str, float]
    losses: dict[str, float]
    accuracies: dict[str, float]
    naive_barrier: float
    aligned_barrier: float
    verdict: Verdict
    reason: str


@torch.no_grad()
def compatibility(
    net: nn.Sequential, a: Params, b: Params, split: Split, *, base: Params | None = None, points: int = 11
) -> Compatibility:
    """Compare two models where they are to be used: by layer, on the line between them, by their outputs.

    net: an MLP as `stack.mlp` or `residual_mlp` makes it · base: the model that both grew from, if it is at hand; the
    verdict then says so where it is better than any combination · points: stops on the line, an odd number, the ends
    included.
    Raises ShapeError naming what does not fit, WeightsError for weights that are not finite, DataError for a layer that
    says the same of every example. The verdict is about this split; choose it as `quote`, judge it on `audit`.

    A model and its copy with the hidden units in another order:

    >>> import torch
    >>> from paramarket import data, decide, stack
    >>> images = data.Split(torch.eye(2).repeat(2, 1), torch.tensor([0, 1, 0, 1]))
    >>> a = {"1.weight": 9 * torch.eye(2), "1.bias": torch.zeros(2), "3.weight": torch.eye(2), "3.bias": torch.zeros(2)}
    >>> b = {**a, "1.weight": a["1.weight"].flip(0), "3.weight": a["3.weight"].flip(1)}
    >>> decide.compatibility(stack.mlp(2, [2], 2), a, b, images).verdict
    'reorder, then merge'

    And two that grew from it, and lean to one class since:

    >>> heir = {**a, "3.bias": torch.tensor([9.0, 0.0])}
    >>> decide.compatibility(stack.mlp(2, [2], 2), heir, heir, images, base=a).verdict
    'keep the base'
    """
    if points < 3 or points % 2 == 0:
        raise ParameterError(f"points = {points}, expected an odd number from 3 on: the middle belongs to the line.")
    stack.check(net, stack.join([a, b]))
    if base is not None:
        _check_base(net, base)
    reordered = align.reorder(align.permutation_spec(net, split.x[:1]), a, b)
    straight = evaluate(net, merge.path(a, b, points), split)
    aligned = evaluate(net, merge.path(a, reordered, points), split)
    scores = {
        "a": _loss_and_accuracy(straight, 0),
        "b": _loss_and_accuracy(straight, -1),
        "averaged weights": _loss_and_accuracy(straight, points // 2),
        "reordered, averaged": _loss_and_accuracy(aligned, points // 2),
        "averaged outputs": _of_averaged_outputs(net, a, b, split),
    }
    if base is not None:
        scores["base"] = _loss_and_accuracy(evaluate(net, stack.join([base]), split), 0)
    losses = {name: loss for name, (loss, _) in scores.items()}
    accuracies = {name: accuracy for name, (_, accuracy) in scores.items()}
    naive_barrier = merge.barrier(straight.loss).item()
    aligned_barrier = merge.barrier(aligned.loss).item()
    verdict, reason = _judge(naive_barrier, aligned_barrier, losses, accuracies)
    alike = _cka_by_layer(net, a, b, split)
    return Compatibility(alike, losses, accuracies, naive_barrier, aligned_barrier, verdict, reason)


def _check_base(net: nn.Module, base: Params) -> None:
    stack.check(net, stack.join([base]), "the base and the net")
    for name, tensor in base.items():
        if not tensor.isfinite().all():
            raise WeightsError(f"the base's {name!r} holds values that are NaN or infinite.")


def _loss_and_accuracy(score: Score, model: int) -> tuple[float, float]:
    return score.loss[model].item(), score.accuracy[model].item()


def _cka_by_layer(net: nn.Sequential, a: Params, b: Params, split: Split) -> dict[str, float]:
    outputs = stack.features(net, stack.join([a, b]), split.x)
    return {layer: cka.linear_cka(of_a, of_b, debiased=True) for layer, (of_a, of_b) in outputs.items()}


def _of_averaged_outputs(net: nn.Module, a: Params, b: Params, split: Split) -> tuple[float, float]:
    """As `merge.ensemble` would score, in logarithms: a probability that rounds to 0 would cost infinitely much."""
    logs = stack.forward(net, stack.join([a, b]), split.x).log_softmax(dim=-1)
    mean = logs.logsumexp(dim=0) - math.log(2)
    truth = split.y.to(mean.device)
    hits = mean.argmax(dim=-1) == truth
    return nn.functional.nll_loss(mean, truth).item(), hits.float().mean().item()


def _judge(
    naive_barrier: float, aligned_barrier: float, losses: dict[str, float], accuracies: dict[str, float]
) -> tuple[Verdict, str]:
    """The verdict, and one sentence: what it rests on, and what it is worth here."""
    way, why = _way(naive_barrier, aligned_barrier)
    verdict = _COMBINATIONS[way]
    better = min(("a", "b"), key=losses.get)
    if _is_worse(losses[way], losses[better]):
        verdict = "keep the better one"
    if "base" in losses and losses["base"] < losses[better] and _is_worse(losses[way], losses["base"]):
        best = min(_COMBINATIONS, key=losses.get)
        if _is_worse(losses[best], losses["base"]):
            verdict = "keep the base"
            why += ", but their base is better than any combination"
        else:
            verdict = _COMBINATIONS[best]
            why += f", but the {way} are worse than their base, and the {best} are not"
        way = best
    said = {name: f"{losses[name]:.3f} nats (accuracy {accuracies[name]:.1%})" for name in losses}
    worth = f"here the {way} have a loss of {said[way]}, {better} alone has {said[better]}"
    if "base" in losses:
        worth += f", the base has {said['base']}"
    return verdict, f"{why}; {worth}."


def _way(naive_barrier: float, aligned_barrier: float) -> tuple[str, str]:
    """How the barriers say that two can be combined, and what they say."""
    if naive_barrier <= NEGLIGIBLE_BARRIER:
        return "averaged weights", "no barrier stands between the two as they are"
    if aligned_barrier <= NEGLIGIBLE_BARRIER:
        why = "a barrier stands between the two, and none once the units of b are in a's order"
        return "reordered, averaged", why
    return "averaged outputs", "a barrier stands between the two that no order of units removes"


def _is_worse(loss: float, than: float) -> bool:
    return loss > than + NEGLIGIBLE_LOSS
