"""Scoring a whole stack on a split: loss, accuracy, accuracy by class."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from paramarket.data import Split
from paramarket.errors import DataError, TrainingError
from paramarket.stack import Stack, device, forward, table


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
    if split.y.ndim != 1:
        raise DataError("a score needs labels; this split holds probabilities, to learn from.")
    truth = split.y.to(device(stack))
    losses, hits = [], []
    for x, y in zip(split.x.split(batch), truth.split(batch), strict=True):
        logits = forward(net, stack, x)
        if int(y.max()) >= logits.shape[-1]:
            raise DataError(f"label {int(y.max())} in a split for a net with {logits.shape[-1]} classes.")
        losses.append(cross_entropy(logits.mT, y.expand(len(logits), -1), reduction="none"))
        hits.append(logits.argmax(dim=-1) == y)
    loss = torch.cat(losses, dim=1)
    hit = torch.cat(hits, dim=1).float()
    if not loss.isfinite().all():  # an accuracy would still come out, and look plausible
        model = int((~loss.isfinite()).any(dim=1).nonzero()[0])
        raise TrainingError(f"the loss of model {model} is not finite: look at its weights.")
    members = nn.functional.one_hot(truth, logits.shape[-1]).float()
    class_accuracy = (hit @ members) / members.sum(dim=0)
    return Score(loss.mean(dim=1).cpu(), hit.mean(dim=1).cpu(), class_accuracy.cpu())
