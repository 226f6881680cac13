"""What a purchase is worth, and how far its own test flatters it: winner's curse, labels, lemons, the surplus."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from paramarket import stack
from paramarket.base import check_list
from paramarket.errors import ParameterError, ShapeError
from paramarket.price.rules import settle
from paramarket.price.theory import DRAWS, expected_maximum, resampled


class Curse(NamedTuple):
    """By how much the gain of the chosen mixture is told too high, nats, for Q purchases and every number of examples.

    measured: on examples drawn again and again · gaussian: means of the mixtures as drawn from a normal distribution
    with the covariance that they have · independent: mixtures equally good, of independent noise, the upper limit
    """

    measured: Float[Tensor, "Q sizes"]
    gaussian: Float[Tensor, "Q sizes"]
    independent: Float[Tensor, "Q sizes"]

    def table(self, rows: pd.DataFrame, sizes: Sequence[int]) -> pd.DataFrame:
        """One row a purchase, number of examples and estimate: by how much the gain is told too high, nats.

        Columns: a grid's, `examples` (the sizes), `estimate` ("measured", "gaussian", "independent"), `excess_nats`.
        """
        excess = torch.stack(list(self), dim=-1)
        return stack.table(rows, {"examples": sizes, "estimate": self._fields}, excess_nats=excess)


def winners_curse(losses: Float[Tensor, "Q C n"], sizes: Sequence[int], generator: Generator) -> Curse:
    """Choose the best of C mixtures by `size` examples, judge it by the same, and compare with all n examples.

    The n examples play the world: `size` of them are drawn with replacement, 2,000 times. A gain is counted from the
    first mixture, no purchase. For equally good, independent mixtures the least of C means lies E[max of C normals]
    standard errors too low: 1.54 for ten.
    """
    check_list("sizes", sizes)
    candidates = losses.shape[1] - 1
    truth = losses.mean(dim=-1, keepdim=True).mT  # [Q, 1, C]
    deviation = losses.std(dim=-1)[:, 1:].mean(dim=1)
    factor = torch.linalg.cholesky(_covariance(losses))
    measured = []
    gaussian = []
    independent = []
    for size in sizes:
        weights = resampled(losses.shape[-1], size, generator).to(losses)
        normal = torch.randn(DRAWS, losses.shape[1], generator=generator).to(losses)
        measured.append(_flattery(weights @ losses.mT, truth))
        gaussian.append(_flattery(truth + normal @ factor.mT / size**0.5, truth))
        independent.append(expected_maximum(candidates) * (deviation / size**0.5))
    return Curse(
        measured=torch.stack(measured, dim=-1).cpu(),
        gaussian=torch.stack(gaussian, dim=-1).cpu(),
        independent=torch.stack(independent, dim=-1).cpu(),
    )


def _covariance(losses: Float[Tensor, "Q C n"]) -> Float[Tensor, "Q C C"]:
    centred = losses - losses.mean(dim=-1, keepdim=True)
    covariance = centred @ centred.mT / losses.shape[-1]
    ridge = 1e-5 * covariance.diagonal(dim1=-2, dim2=-1).mean(dim=-1)  # neighbours on a line are almost one mixture
    return covariance + ridge[:, None, None] * torch.eye(losses.shape[1]).to(losses)


def _flattery(means: Float[Tensor, "Q draws C"], truth: Float[Tensor, "Q 1 C"]) -> Float[Tensor, " Q"]:
    """By how much the gain of the mixture with the least mean exceeds its true gain, on average over the draws."""
    truth = truth.expand_as(means)
    chosen = means.argmin(dim=-1, keepdim=True)
    claimed_gain = means[..., :1] - means.gather(-1, chosen)
    true_gain = truth[..., :1] - truth.gather(-1, chosen)
    return (claimed_gain - true_gain).mean(dim=(1, 2))


def labels_worth(
    curve: Float[Tensor, "Q points"], extra: Sequence[float], reached: Float[Tensor, " Q"]
) -> Float[Tensor, " Q"]:
    """How many labels more would have brought each buyer as far: its own learning curve, read backwards.

    curve: accuracy with `extra` labels, ascending; a later dip is taken as level · reached: accuracy after the
    purchase. Where the curve is level, the fewest labels count. What lies beyond its ends gets their number.

    >>> import torch
    >>> from paramarket import price
    >>> curve = torch.tensor([[0.5, 0.6, 0.6, 0.6, 0.7]])
    >>> price.labels_worth(curve, extra=[0, 10, 20, 30, 40], reached=torch.tensor([0.6])).item()
    10.0
    """
    check_list("extra", extra)
    if curve.shape[1] != len(extra):
        raise ShapeError(f"a curve of {curve.shape[1]} points over {len(extra)} numbers of labels: expected as many.")
    if list(extra) != sorted(extra):
        raise ParameterError(f"extra = {list(extra)}: expected ascending numbers of labels.")
    if reached.shape != curve.shape[:1]:
        raise ShapeError(f"{len(curve)} curves, reached of shape {tuple(reached.shape)}: expected a number for each.")
    rising = curve.cummax(dim=1).values.cpu().numpy()
    labels = [_fewest(row, extra, y) for row, y in zip(rising, reached.tolist(), strict=True)]
    return torch.tensor(labels)


def _fewest(rising: np.ndarray, extra: Sequence[float], y: float) -> float:
    first = np.searchsorted(rising, y - 1e-6)  # a smaller difference is rounding: accuracies are counts over n
    if first < len(rising) and rising[first] <= y + 1e-6:
        return float(extra[first])  # np.interp would take the last of several points as high
    return float(np.interp(y, rising, extra))


class LemonMarket(NamedTuple):
    """Surplus of a meeting, euros, by the share of lemons: where sellers give no warranty, and where they give one."""

    no_warranty: Float[Tensor, "Q shares"]
    warranty: Float[Tensor, "Q shares"]

    def table(self, rows: pd.DataFrame, shares: Sequence[float]) -> pd.DataFrame:
        """One row a meeting, share of lemons and kind of market: the surplus, euros.

        Columns: a grid's, `lemons` (their share among the sellers), `warranty` (whether there is one), `surplus`.
        """
        surplus = torch.stack([self.no_warranty, self.warranty], dim=-1)
        return stack.table(rows, {"lemons": shares, "warranty": [False, True]}, surplus=surplus)


def lemon_market(
    good: Float[Tensor, " Q"],
    bad: Float[Tensor, " Q"],
    *,
    cost: float,
    shares: Sequence[float],
    kept: Float[Tensor, " Q"],
) -> LemonMarket:
    """What is left of a market when a share of the sellers sells lemons.

    good, bad: euros that a purchase from an honest seller, from a lemon, is worth · shares: of lemons among the sellers

    Without a warranty all look alike: a buyer pays what a purchase is worth on average, and once that does not cover
    their cost the honest leave, and nothing is traded (Akerlof 1970). With one, all lemons come back, and the share
    `kept` of honest sales stays; a sale that comes back has cost its seller all the same.
    Raises ShapeError, by name, for numbers that are not one for each purchase.
    """
    check_list("shares", shares)
    if not all(0 <= share <= 1 for share in shares):
        raise ParameterError(f"shares = {list(shares)}, expected numbers between 0 and 1.")
    for name, each in {"bad": bad, "kept": kept}.items():
        if each.shape != good.shape:
            raise ShapeError(f"{name} has shape {tuple(each.shape)}, good {tuple(good.shape)}: expected one shape.")
    share = torch.tensor(shares, dtype=good.dtype, device=good.device)
    average = (1 - share) * good.unsqueeze(1) + share * bad.unsqueeze(1)
    honest = (kept.to(good) * good - cost).clamp(min=0)
    return LemonMarket((average - cost).clamp(min=0).cpu(), ((1 - share) * honest.unsqueeze(1)).cpu())


class SurplusParts(NamedTuple):
    """What buyer, seller and broker get of all that could be gained, and what is lost of it; means over meetings.

    Together they are the mean of all gains that there are (v - c where positive).
    """

    buyer: Float[Tensor, " groups"]
    seller: Float[Tensor, " groups"]
    broker: Float[Tensor, " groups"]
    lost: Float[Tensor, " groups"]

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """One row a group of meetings and part: the columns of a grid, `part`, `surplus` (a meeting, in their unit).

        part: "buyer", "seller", "broker" or "lost"
        """
        return stack.table(rows, {"part": self._fields}, surplus=torch.stack(list(self), dim=-1))


def surplus_parts(value: np.ndarray, cost: np.ndarray, paid: Any, received: Any = None) -> SurplusParts:
    """Who gets how much of what value and cost [groups, meetings] allow, in their unit, for each group of meetings.

    paid, received: prices, as `settle` takes them
    """
    deal = settle(value, cost, paid, received)
    lost = np.maximum(value - cost, 0) - deal.buyer - deal.seller - deal.broker
    return SurplusParts(
        buyer=torch.as_tensor(deal.buyer.mean(axis=1)),
        seller=torch.as_tensor(deal.seller.mean(axis=1)),
        broker=torch.as_tensor(deal.broker.mean(axis=1)),
        lost=torch.as_tensor(lost.mean(axis=1)),
    )
