"""From two checkpoints to a decision. So far: can these two be combined at all, and in which way?"""

import math
from typing import Literal, NamedTuple

import torch
from torch import nn

from paramarket import align, cka, merge, stack
from paramarket.data import Split
from paramarket.errors import ParameterError
from paramarket.stack import Params
from paramarket.train import evaluate

NEGLIGIBLE_BARRIER = 0.05  # nats: a lower barrier counts as none, as in notebook 02

Verdict = Literal["merge", "reorder, then merge", "keep both", "keep the better one"]


class Compatibility(NamedTuple):
    """What two models of one architecture have in common on a split, and what that allows.

    cka: {layer: debiased linear CKA of what the two say there} · losses (nats): {"a", "b", "averaged weights",
    "reordered, averaged", "averaged outputs"}
    naive_barrier, aligned_barrier (nats): on the straight line between the two, as they are and with b in a's order
    verdict: "merge" if the line is free of a barrier (.05 nats), "reorder, then merge" if it is so after weight
    matching, otherwise "keep both" for their averaged outputs; but "keep the better one" where that would be worse than
    it by more than .001 nats · reason: the same in a sentence
    """

    cka: dict[str, float]
    losses: dict[str, float]
    naive_barrier: float
    aligned_barrier: float
    verdict: Verdict
    reason: str


@torch.no_grad()
def compatibility(net: nn.Sequential, a: Params, b: Params, split: Split, *, points: int = 11) -> Compatibility:
    """Compare two models where they are to be used: by layer, on the line between them, by their outputs.

    net: an MLP as `stack.mlp` or `residual_mlp` makes it · points: stops on the line, an odd number, the ends included.
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
    """
    if points < 3 or points % 2 == 0:
        raise ParameterError(f"points = {points}, expected an odd number from 3 on: the middle belongs to the line.")
    stack.check(net, stack.join([a, b]))
    reordered = align.reorder(align.permutation_spec(net, split.x[:1]), a, b)
    straight = evaluate(net, merge.path(a, b, points), split).loss
    aligned = evaluate(net, merge.path(a, reordered, points), split).loss
    losses = {
        "a": straight[0].item(),
        "b": straight[-1].item(),
        "averaged weights": straight[points // 2].item(),
        "reordered, averaged": aligned[points // 2].item(),
        "averaged outputs": _ensemble_loss(net, a, b, split),
    }
    naive_barrier = merge.barrier(straight).item()
    aligned_barrier = merge.barrier(aligned).item()
    verdict, reason = _judge(naive_barrier, aligned_barrier, losses)
    return Compatibility(_cka_by_layer(net, a, b, split), losses, naive_barrier, aligned_barrier, verdict, reason)


def _cka_by_layer(net: nn.Sequential, a: Params, b: Params, split: Split) -> dict[str, float]:
    outputs = stack.features(net, stack.join([a, b]), split.x)
    return {layer: cka.linear_cka(of_a, of_b, debiased=True) for layer, (of_a, of_b) in outputs.items()}


def _ensemble_loss(net: nn.Module, a: Params, b: Params, split: Split) -> float:
    """Cross-entropy of `merge.ensemble`, in logarithms: a probability that rounds to 0 would cost infinitely much."""
    logs = stack.forward(net, stack.join([a, b]), split.x).log_softmax(dim=-1)
    mean = logs.logsumexp(dim=0) - math.log(2)
    return nn.functional.nll_loss(mean, split.y.to(mean.device)).item()


def _judge(naive_barrier: float, aligned_barrier: float, losses: dict[str, float]) -> tuple[Verdict, str]:
    """The verdict, and one sentence: what it rests on, and what it is worth here."""
    if naive_barrier <= NEGLIGIBLE_BARRIER:
        verdict, way = "merge", "averaged weights"
        why = "no barrier stands between the two as they are"
    elif aligned_barrier <= NEGLIGIBLE_BARRIER:
        verdict, way = "reorder, then merge", "reordered, averaged"
        why = "a barrier stands between the two, and none once the units of b are in a's order"
    else:
        verdict, way = "keep both", "averaged outputs"
        why = "a barrier stands between the two that no order of units removes"
    best = min(("a", "b"), key=losses.get)
    if losses[way] > losses[best] + 1e-3:
        verdict = "keep the better one"
    return verdict, f"{why}; here the {way} have a loss of {losses[way]:.3f} nats, {best} alone has {losses[best]:.3f}."
