"""Before anything is computed with two files: are they what they say, do they fit each other and the data?"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from paramarket import align, stack, train
from paramarket.align import PermutationSpec
from paramarket.base import interval
from paramarket.data import Dataset, Split, concat, for_network, torchvision
from paramarket.decide.pilot import pilot_examples
from paramarket.errors import DataError, ParamarketError, ParameterError, WeightsError
from paramarket.stack import Params

ARCHITECTURES = ("mlp", "resnet18")  # or "module:factory"
INTERFACE = ("input_shape", "mean", "std", "classes")  # what two cards must agree on, whatever the architectures
PRECISION = 0.10  # a share: a gain that audit cannot even tell to ± 10 points is no ground for a verdict
CLEARLY = 0.05  # a share: an order of classes is taken for wrong if another one is right on so many more examples,
SURELY = 0.5  # and on so many at all: a network that learnt nothing has no order


class Pair(NamedTuple):
    """Two networks, ready to be compared. A is the buyer's.

    net_a, net_b: structures, the same one if the architectures are equal · a, b: parameters · spec: the symmetry of
    the one architecture; None where there is none to reorder by · reason: why not, or ""
    """

    net_a: nn.Module
    a: Params
    net_b: nn.Module
    b: Params
    spec: PermutationSpec | None
    reason: str


def load_pair(
    path_a: Path | str,
    path_b: Path | str,
    images: Dataset,
    *,
    architecture: str = "mlp",
    architecture_b: str | None = None,
) -> Pair:
    """Read two files of weights, and check them against each other and against the data, before anything is computed.

    architecture: "mlp" (a structure is read off the weights), "resnet18" (torchvision's), or "module:factory": that
    code is imported and run, and must return a net, given the number of classes · architecture_b: of the second file,
    if it is another one
    Two networks of one architecture can be reordered and mixed; of two, only the answers can be compared.
    Raises WeightsError for a pickle, a damaged file, values that are not finite, a card that says something else than
    the other one or than the data; ShapeError for tensors that do not fit the net; ParameterError for an architecture
    that is none. A file without a card is taken as it is.
    """
    a = stack.load(path_a, _expected(path_a, images))
    b = stack.load(path_b, _expected(path_b, images))
    net_a = _build(architecture, a, images, path_a)
    net_b = _build(architecture_b or architecture, b, images, path_b)
    for net, params, path in ((net_a, a, path_a), (net_b, b, path_b)):
        stack.check(net, stack.join([params]), f"{path} and its architecture")
        _check_answers(net, params, images, path)
    if str(net_a) != str(net_b):
        return Pair(net_a, a, net_b, b, None, "two architectures: only predictions can be shared")
    spec, reason = _symmetry(net_a, images.quote)
    return Pair(net_a, a, net_a, b, spec, reason)


def for_both(images: Dataset, path_a: Path | str, path_b: Path | str) -> Dataset:
    """Own images, none of which either network has seen, as a decision uses them and as the networks expect them.

    What the first card says of normalisation and classes is done to the images; the second must agree (`load_pair`).
    Own files are cut into two parts only: train joins quote, where ways are tuned and chosen, and test joins audit.
    """
    card = stack.card_of(path_a) or stack.card_of(path_b)
    if {"mean", "std", "classes"} <= set(card):
        try:
            mean, std = (torch.tensor(json.loads(card[name]), dtype=torch.float32) for name in ("mean", "std"))
            classes = [str(name) for name in json.loads(card["classes"])]
        except (ValueError, TypeError) as error:
            raise WeightsError(f"{path_a} has a card that cannot be read ({error}).") from error
        images = for_network(images, mean, std, classes)
    quote, audit = concat(images.train, images.quote), concat(images.audit, images.test)
    return replace(images, quote=quote, audit=audit)


def known_answers(net: nn.Module, params: Params, split: Split, classes: Sequence[str], name: str) -> None:
    """Ask a network questions whose answers are known, to find out whether it numbers the classes as the data do.

    On every second example the one-to-one order of classes is found in which most answers are right (an assignment,
    Kuhn 1955); on the others it is tried. Raises WeightsError if it is right on five points more, clear of chance, and
    on more than half.
    """
    from scipy.optimize import linear_sum_assignment  # not above: scipy.optimize is slow to import

    answers = train.logits(net, stack.join([params]), split.x)[0].argmax(dim=-1).cpu()
    learnt = torch.arange(len(split)) % 2 == 0
    counts = _confusion(answers[learnt], split.y[learnt], len(classes))
    answered, meant = linear_sum_assignment(-counts.numpy())
    order = torch.empty(len(classes), dtype=torch.int64)
    order[torch.as_tensor(answered)] = torch.as_tensor(meant)
    truth = split.y[~learnt]
    right = (answers[~learnt] == truth).double()
    right_in_order = (order[answers[~learnt]] == truth).double()
    better = interval(right_in_order - right, "examples")
    if better.low > 0 and better.mean > CLEARLY and right_in_order.mean() > SURELY:
        moved = [f"{classes[k]!r} for {classes[meant]!r}" for k, meant in enumerate(order.tolist()) if k != meant]
        raise WeightsError(
            f"{name} numbers its classes in another order than the data: it is right on {right.mean():.0%} of the "
            f"examples, and on {right_in_order.mean():.0%} if it says {', '.join(moved)}. Put its last layer, or the "
            "classes of the data, into one order."
        )


def enough_examples(pair: Pair, quote: Split, audit: Split) -> None:
    """DataError, saying how many are needed, if audit cannot even tell a gain to ± 10 points.

    How many that takes depends on how often a way to use both differs from A alone. Their mean probabilities stand for
    all ways: they need no tuning.
    """
    chances = []
    for net, params in ((pair.net_a, pair.a), (pair.net_b, pair.b)):
        chances.append(train.logits(net, stack.join([params]), quote.x)[0].softmax(dim=-1).cpu())
    right_alone = chances[0].argmax(dim=-1) == quote.y
    right_together = (chances[0] + chances[1]).argmax(dim=-1) == quote.y
    better = (right_together & ~right_alone).double().mean().item()
    worse = (right_alone & ~right_together).double().mean().item()
    if better + worse == 0:
        return
    needed = pilot_examples(better, worse, PRECISION)
    if len(audit) < needed:
        share = len(audit) / (len(audit) + len(quote))
        raise DataError(
            f"{len(audit)} examples to measure a gain on are too few for a verdict: both networks together differ from "
            f"A alone on {better + worse:.0%} of them, and to tell the gain to ± {100 * PRECISION:.0f} points {needed} "
            f"are needed. Give about {math.ceil(needed / share)} labelled examples in all."
        )


def _expected(path: Path | str, images: Dataset) -> dict[str, str]:
    """What the data say of an interface, as far as the file has a card that says something of it."""
    found = stack.card_of(path)
    told = {
        "input_shape": json.dumps(list(images.train.x.shape[1:])),
        "mean": json.dumps(images.mean.tolist()),
        "std": json.dumps(images.std.tolist()),
        "classes": json.dumps(images.classes),
    }
    return {name: told[name] for name in INTERFACE if name in found}


def _build(architecture: str, params: Params, images: Dataset, path: Path | str) -> nn.Module:
    if architecture == "mlp":
        try:
            return stack.mlp_of(stack.join([params]))
        except (ParamarketError, KeyError, IndexError, ValueError) as error:
            raise WeightsError(
                f"{path} holds no MLP as stack.mlp makes it ({error}). Name its architecture."
            ) from error
    classes = len(images.classes)
    if architecture == "resnet18":
        torchvision()
        from torchvision import models

        return models.resnet18(weights=None, num_classes=classes).eval()
    module, _, factory = architecture.partition(":")
    if not factory:
        known = ", ".join(map(repr, ARCHITECTURES))
        raise ParameterError(f"architecture = {architecture!r}, expected {known} or 'module:factory'.")
    try:
        net = getattr(import_module(module), factory)(classes)
    except Exception as error:  # it is somebody's code, and may raise anything
        raise ParameterError(
            f"architecture = {architecture!r} made no net ({type(error).__name__}: {error})."
        ) from error
    if not isinstance(net, nn.Module):
        raise ParameterError(
            f"architecture = {architecture!r} made a {type(net).__name__}, expected a torch.nn.Module."
        )
    return net.eval()


def _check_answers(net: nn.Module, params: Params, images: Dataset, path: Path | str) -> None:
    """WeightsError unless the network answers an example of the data with as many numbers as there are classes."""
    try:
        answers = train.logits(net, stack.join([params]), images.quote.x[:1])
    except (RuntimeError, ParamarketError) as error:
        shape = tuple(images.quote.x.shape[1:])
        raise WeightsError(f"{path} does not run on examples of shape {shape}: {error}") from error
    if answers.shape[-1] != len(images.classes):
        raise WeightsError(
            f"{path} answers with {answers.shape[-1]} numbers, and the data have {len(images.classes)} classes."
        )


def _symmetry(net: nn.Module, quote: Split) -> tuple[PermutationSpec | None, str]:
    try:
        return align.permutation_spec(net, quote.x[:1]), ""
    except ParamarketError as error:
        return None, f"its units cannot be followed ({error}): only predictions can be shared"


def _confusion(answers: Int[Tensor, " n"], truth: Int[Tensor, " n"], classes: int) -> Int[Tensor, "classes classes"]:
    """[answered, meant]: how often."""
    return (answers * classes + truth).bincount(minlength=classes**2).view(classes, classes)
