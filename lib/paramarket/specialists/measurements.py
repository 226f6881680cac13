"""What can be measured of two specialists before anybody merges them, and what to forecast with it.

A couple is a model of stack `a` and the model of stack `b` at the same place, grown from the model of `bases` there.
"""

from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from paramarket import cka, stack
from paramarket.data import Split
from paramarket.errors import ShapeError
from paramarket.merge import average_pairs
from paramarket.stack import Stack
from paramarket.train import evaluate, make_backward, probabilities, score_logits

COUPLES_AT_ONCE = 64  # what all layers say of all images is held for so many, to save memory


class Measurements(NamedTuple):
    """What was measured of every couple, on the CPU.

    Of the weights alone:
    weight_distance: Euclidean, between a and b · task_cosine: between the task vectors a - base and b - base (Ilharco
    et al. 2023)
    Of answers, without labels:
    cka: debiased linear CKA of the last hidden layers of a and b · base_cka: of each with the base, the mean of the two
    disagreement: the share of images on which a and b give
    different answers · confidence_gain: how much surer the averaged probabilities of a and b are than the base's, each
    as the mean over images of the largest probability
    With labels:
    barrier: the loss of the averaged weights less the mean loss of a and b (nats) · gain: the accuracy of the averaged
    weights less the base's (a share), the thing itself
    """

    weight_distance: Float[Tensor, " couples"]
    task_cosine: Float[Tensor, " couples"]
    cka: Float[Tensor, " couples"]
    base_cka: Float[Tensor, " couples"]
    disagreement: Float[Tensor, " couples"]
    confidence_gain: Float[Tensor, " couples"]
    barrier: Float[Tensor, " couples"]
    gain: Float[Tensor, " couples"]

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """One row a couple: the columns of a grid, then the measurements under their names."""
        return stack.table(rows, **self._asdict())


@torch.no_grad()
def measure(net: nn.Sequential, a: Stack, b: Stack, bases: Stack, split: Split) -> Measurements:
    """Measure every couple on a split, on which its gain is to be forecast; choose `quote`.

    Raises ShapeError unless the three stacks have as many models of this net.
    """
    sizes = [stack.check(net, models) for models in (a, b, bases)]
    if len(set(sizes)) != 1:
        raise ShapeError(f"{sizes[0]} models in a, {sizes[1]} in b, {sizes[2]} bases: expected as many of each.")
    parts = []
    for start in range(0, sizes[0], COUPLES_AT_ONCE):
        some = slice(start, start + COUPLES_AT_ONCE)
        three = [stack.take(models, some) for models in (a, b, bases)]
        parts.append(_measure_some(net, *three, split))
    return Measurements(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _measure_some(net: nn.Sequential, a: Stack, b: Stack, bases: Stack, split: Split) -> Measurements:
    weights = {"a": stack.vectors(a), "b": stack.vectors(b), "base": stack.vectors(bases)}
    *_, hidden_a, logits_a = stack.features(net, a, split.x).values()
    *_, hidden_b, logits_b = stack.features(net, b, split.x).values()
    together = (logits_a.softmax(dim=-1) + logits_b.softmax(dim=-1)) / 2
    *_, hidden_base, logits_base = stack.features(net, bases, split.x).values()
    of_base = logits_base.softmax(dim=-1)
    stray_a = cka.linear_cka(hidden_a, hidden_base, debiased=True)
    stray_b = cka.linear_cka(hidden_b, hidden_base, debiased=True)
    average = evaluate(net, average_pairs(a, b), split)
    alone = (score_logits(logits_a, split.y).loss + score_logits(logits_b, split.y).loss) / 2
    found = Measurements(
        weight_distance=(weights["a"] - weights["b"]).norm(dim=1),
        task_cosine=cosine_similarity(weights["a"] - weights["base"], weights["b"] - weights["base"]),
        cka=cka.linear_cka(hidden_a, hidden_b, debiased=True),
        base_cka=(stray_a + stray_b) / 2,
        disagreement=(logits_a.argmax(dim=-1) != logits_b.argmax(dim=-1)).float().mean(dim=1),
        confidence_gain=_confidence(together) - _confidence(of_base),
        barrier=average.loss - alone,
        gain=average.accuracy - score_logits(logits_base, split.y).accuracy,
    )
    return Measurements(*(each.float().cpu() for each in found))


def _confidence(chances: Float[Tensor, "couples n classes"]) -> Float[Tensor, " couples"]:
    return chances.amax(dim=-1).mean(dim=1)


@torch.no_grad()
def gradient_cosine(net: nn.Module, bases: Stack, left: Split, right: Split) -> Float[Tensor, " K"]:
    """How far two jobs pull every base the same way: the cosine of its gradients on the two splits; on the CPU."""
    of_left = _gradient(net, bases, left)
    of_right = _gradient(net, bases, right)
    return cosine_similarity(of_left, of_right).cpu()


def _gradient(net: nn.Module, models: Stack, split: Split) -> Float[Tensor, "K weights"]:
    copies = stack.check(net, models)
    slopes = stack.map(torch.zeros_like, models)
    x = stack.place(split.x, models)
    classes = stack.forward(net, models, split.x[:1]).shape[-1]
    truth = stack.place(probabilities(split.y, classes), models)
    backward = make_backward(net, models, slopes, len(split))
    backward(x.expand(copies, *x.shape), truth.expand(copies, *truth.shape))
    return stack.vectors(slopes)
