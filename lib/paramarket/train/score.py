"""Scoring a whole stack on a split: loss, accuracy, accuracy by class; how sure its models should be."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from paramarket.data import Split
from paramarket.errors import DataError, TrainingError
from paramarket.stack import Stack, forward, table


class Score(NamedTuple):
    """What K models reach on a split; of lines of models, or on several splits, with one more axis behind K.

    loss: mean cross-entropy (nats) · accuracy · class_accuracy: NaN where the split has no example of a class
    """

    loss: Float[Tensor, " K"]
    accuracy: Float[Tensor, " K"]
    class_accuracy: Float[Tensor, "K classes"]

    def table(self, rows: pd.DataFrame, along: Mapping[str, Iterable[object]] | None = None) -> pd.DataFrame:
        """The rows of a grid (see `stack.grid`), with `loss` (mean cross-entropy, nats) and `accuracy` (a share).

        along: the axis behind K, where there is one, and the values along it, as `stack.table` takes them
        """
        return table(rows, along, loss=self.loss, accuracy=self.accuracy)

    def class_table(self, rows: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
        """One row a model and class: the columns of a grid, `class`, and the `accuracy` on that class (a share)."""
        return table(rows, {"class": classes}, accuracy=self.class_accuracy)


@torch.no_grad()
def evaluate(net: nn.Module, stack: Stack, split: Split, *, batch: int = 250) -> Score:
    """Score all K models on a split, in batches, every example weighing the same; on the CPU, wherever the models are.

    Raises DataError for labels that the net has no class for, TrainingError naming a model whose loss is not finite.

    >>> from paramarket import data, stack, train
    >>> digits = data.load("digits")
    >>> net = stack.mlp(64, [16], 10)
    >>> score = train.evaluate(net, stack.init(net, copies=3, seed=0), digits.test)
    >>> tuple(score.loss.shape), tuple(score.class_accuracy.shape)
    ((3,), (3, 10))
    """
    return score_logits(logits(net, stack, split.x, batch=batch), split.y)


@torch.no_grad()
def logits(
    net: nn.Module, stack: Stack, x: Float[Tensor, "n ..."], *, batch: int = 250
) -> Float[Tensor, "K n classes"]:
    """What all K models answer to the same n examples, in batches, where the models are; without gradients."""
    return torch.cat([forward(net, stack, part) for part in x.split(batch)], dim=1)


@torch.no_grad()
def score_logits(answers: Float[Tensor, "K n classes"], y: Shaped[Tensor, "_ ..."]) -> Score:
    """Score what K models answered to n examples, of which y are the labels; on the CPU. Errors as for `evaluate`.

    Logarithms of probabilities are logits, too: so are those of several models' mean probabilities.
    """
    if y.ndim != 1:
        raise DataError("a score needs labels; this split holds probabilities, to learn from.")
    truth = y.to(answers.device)
    if int(truth.max()) >= answers.shape[-1]:
        raise DataError(f"label {int(truth.max())} in a split for a net with {answers.shape[-1]} classes.")
    loss = cross_entropy(answers.mT, truth.expand(len(answers), -1), reduction="none")
    if not loss.isfinite().all():  # an accuracy would still come out, and look plausible
        model = int((~loss.isfinite()).any(dim=1).nonzero()[0])
        raise TrainingError(f"the loss of model {model} is not finite: look at its weights.")
    hit = (answers.argmax(dim=-1) == truth).float()
    members = nn.functional.one_hot(truth, answers.shape[-1]).float()
    class_accuracy = (hit @ members) / members.sum(dim=0)
    return Score(loss.mean(dim=1).cpu(), hit.mean(dim=1).cpu(), class_accuracy.cpu())


@torch.no_grad()
def fit_temperatures(answers: Float[Tensor, "K n classes"], y: Int[Tensor, " _"]) -> Float[Tensor, " K"]:
    """For each of K models the temperature T at which the loss of their logits, divided by T, is lowest.

    Temperature scaling (Guo et al. 2017, section 4.2): a model that is too sure of itself has T above 1. Fitted on one
    split and used on another, it gives the *calibrated* loss; no answer changes, only how sure a model is of it. The
    loss is convex in 1 / T: its slope there, the mean of sum_c p_c z_c - z_y, is followed to 0 by halving. T stays
    between 1/20 and 20: of a model without a mistake the loss would fall for ever.

    >>> import torch
    >>> from paramarket import train
    >>> sure = torch.tensor([[[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]]])  # of 0, which is right 3 times of 4
    >>> print(f"{train.fit_temperatures(sure, torch.tensor([0, 0, 0, 1])).item():.2f}")  # 4 / T = log 3
    3.64
    """
    truth = y.to(answers.device).expand(len(answers), -1).unsqueeze(-1)
    of_truth = answers.gather(-1, truth).squeeze(-1)
    low = answers.new_full((len(answers),), -math.log(20))  # of log(1 / T)
    high = -low
    for _ in range(24):  # to a millionth
        middle = (low + high) / 2
        chances = (middle.exp().view(-1, 1, 1) * answers).softmax(dim=-1)
        slope = ((chances * answers).sum(dim=-1) - of_truth).mean(dim=1)
        low = torch.where(slope < 0, middle, low)
        high = torch.where(slope < 0, high, middle)
    return (-(low + high) / 2).exp()
