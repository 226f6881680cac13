"""Can two networks of one architecture be combined at all, and in which way?"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from paramarket import align, cka, merge, stack, train
from paramarket.base import interval
from paramarket.data import Split
from paramarket.errors import ParameterError, WeightsError
from paramarket.stack import Params

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

    cka: {layer: debiased linear CKA of what the two say there} · losses (nats, calibrated): {"a", "b", "averaged
    weights", "reordered, averaged", "averaged outputs"}, and "base" if there is one · accuracies (shares): the same
    naive_barrier, aligned_barrier (nats, calibrated): on the straight line between the two, as they are and with b in
    a's order
    verdict: "merge" if the line is free of a barrier (.05 nats), "reorder, then merge" if it is so after weight
    matching, otherwise "keep both" for their averaged outputs. Where that is worse than the better of the two, or than
    the base, the best combination takes its place; where that is worse as well, "keep the better one" or "keep the
    base". Worse is a loss higher by more than .001 nats, or fewer right answers, clear of chance (paired, 95 %)
    reason: the same in a sentence, accuracy beside loss
    """

    cka: dict[str, float]
    losses: dict[str, float]
    accuracies: dict[str, float]
    naive_barrier: float
    aligned_barrier: float
    verdict: Verdict
    reason: str


class _Scored(NamedTuple):
    """A candidate on the split: its calibrated loss (nats), and whether it is right on every example."""

    loss: float
    right: Bool[Tensor, " n"]

    @property
    def accuracy(self) -> float:
        return self.right.float().mean().item()


@torch.no_grad()
def compatibility(
    net: nn.Module, a: Params, b: Params, split: Split, *, base: Params | None = None, points: int = 11
) -> Compatibility:
    """Compare two models where they are to be used: by layer, on the line between them, by their outputs.

    base: the model that both grew from, if it is at hand; the verdict then says so where it is better than any
    combination · points: stops on the line, an odd number, the ends included.
    Losses are calibrated: the logits of every candidate are divided by the one number, its temperature, that suits them
    on the split (Guo et al. 2017, section 4.2). A network that is too sure of itself is none the worse for it, and one
    number fitted to hundreds of examples flatters by about 1 / (2 n) nats, all candidates alike.
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
    straight = _score(train.logits(net, merge.path(a, b, points), split.x), split)
    aligned = _score(train.logits(net, merge.path(a, reordered, points), split.x), split)
    scores = {
        "a": straight[0],
        "b": straight[-1],
        "averaged weights": straight[points // 2],
        "reordered, averaged": aligned[points // 2],
        "averaged outputs": _score(_mean_chances(net, a, b, split), split)[0],
    }
    if base is not None:
        scores["base"] = _score(train.logits(net, stack.join([base]), split.x), split)[0]
    naive_barrier = _barrier(straight)
    aligned_barrier = _barrier(aligned)
    verdict, reason = _judge(naive_barrier, aligned_barrier, scores)
    return Compatibility(
        cka=_cka_by_layer(net, a, b, split),
        losses={name: score.loss for name, score in scores.items()},
        accuracies={name: score.accuracy for name, score in scores.items()},
        naive_barrier=naive_barrier,
        aligned_barrier=aligned_barrier,
        verdict=verdict,
        reason=reason,
    )


def _check_base(net: nn.Module, base: Params) -> None:
    stack.check(net, stack.join([base]), "the base and the net")
    for name, tensor in base.items():
        if not tensor.isfinite().all():
            raise WeightsError(f"the base's {name!r} holds values that are NaN or infinite.")


def _score(answers: Float[Tensor, "K n classes"], split: Split) -> list[_Scored]:
    """Every one of K candidates, calibrated."""
    truth = split.y.cpu()
    losses = train.score_logits(_calibrated(answers, split), truth).loss.tolist()
    right = answers.cpu().argmax(dim=-1) == truth
    return [_Scored(loss, each) for loss, each in zip(losses, right, strict=True)]


def _barrier(line: list[_Scored]) -> float:
    return merge.barrier(torch.tensor([stop.loss for stop in line])).item()


def _mean_chances(net: nn.Module, a: Params, b: Params, split: Split) -> Float[Tensor, "1 n classes"]:
    """Logarithms of the mean of both networks' probabilities, each calibrated first: none is heard more."""
    logs = _calibrated(train.logits(net, stack.join([a, b]), split.x), split).log_softmax(dim=-1)
    return logs.logsumexp(dim=0, keepdim=True) - math.log(2)


def _calibrated(answers: Float[Tensor, "K n classes"], split: Split) -> Float[Tensor, "K n classes"]:
    answers = answers.float().cpu()
    return answers / train.fit_temperatures(answers, split.y.cpu()).view(-1, 1, 1)


def _cka_by_layer(net: nn.Module, a: Params, b: Params, split: Split) -> dict[str, float]:
    """For an MLP every layer; for another net every part that it is made of, as far as it says numbers."""
    if stack.is_dense(net):
        outputs = stack.features(net, stack.join([a, b]), split.x)
    else:
        of_a, of_b = (_said_by_parts(net, params, split.x) for params in (a, b))
        outputs = {name: (of_a[name], of_b[name]) for name in of_a}
    return {layer: cka.linear_cka(of_a, of_b, debiased=True) for layer, (of_a, of_b) in outputs.items()}


def _said_by_parts(net: nn.Module, params: Params, x: Tensor) -> dict[str, Float[Tensor, "n numbers"]]:
    said = {}

    def look(name: str, _: Tensor, output: object) -> None:
        if isinstance(output, Tensor) and len(output) == len(x):
            said[name] = output.flatten(1).float()

    names = [name for name, part in net.named_children() if any(True for _ in part.parameters())]
    stack.probe(net, params, x, names, look)
    return said


def _judge(naive_barrier: float, aligned_barrier: float, scores: Mapping[str, _Scored]) -> tuple[Verdict, str]:
    """The verdict, and one sentence: what it rests on, and what it is worth here."""
    way, why = _way(naive_barrier, aligned_barrier)
    verdict = _COMBINATIONS[way]
    better = min(("a", "b"), key=lambda name: scores[name].loss)
    rivals = {better: f"{better} alone"}
    if "base" in scores:
        rivals["base"] = "their base"
    found_better = [rival for rival in rivals if _is_worse(scores[way], scores[rival])]
    if found_better:
        best = min(_COMBINATIONS, key=lambda name: scores[name].loss)
        still_better = [rival for rival in rivals if _is_worse(scores[best], scores[rival])]
        if still_better:
            verdict = "keep the base" if _base_wins(scores, better) else "keep the better one"
            why += f", but {rivals[still_better[-1]]} is better than any combination"
        else:
            verdict = _COMBINATIONS[best]
            why += f", but the {way} are worse than {rivals[found_better[-1]]}, and the {best} are not"
        way = best
    said = {name: f"{score.loss:.3f} nats (accuracy {score.accuracy:.1%})" for name, score in scores.items()}
    worth = f"here the {way} have a loss of {said[way]}, {better} alone has {said[better]}"
    if "base" in scores:
        worth += f", the base has {said['base']}"
    return verdict, f"{why}; {worth}."


def _base_wins(scores: Mapping[str, _Scored], better: str) -> bool:
    """Whether the base is the one to keep, rather than the better of the two."""
    return "base" in scores and scores["base"].loss < scores[better].loss


def _way(naive_barrier: float, aligned_barrier: float) -> tuple[str, str]:
    """How the barriers say that two can be combined, and what they say."""
    if naive_barrier <= NEGLIGIBLE_BARRIER:
        return "averaged weights", "no barrier stands between the two as they are"
    if aligned_barrier <= NEGLIGIBLE_BARRIER:
        why = "a barrier stands between the two, and none once the units of b are in a's order"
        return "reordered, averaged", why
    return "averaged outputs", "a barrier stands between the two that no order of units removes"


def _is_worse(one: _Scored, than: _Scored) -> bool:
    """By its calibrated loss, or by its right answers, clear of chance."""
    more_right = one.right.double() - than.right.double()
    return one.loss > than.loss + NEGLIGIBLE_LOSS or interval(more_right, "examples").high < 0
