"""What a purchase is worth, and how far its own test flatters it: winner's curse, labels, refunds, linear theory."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from paramarket.errors import ParameterError, ShapeError
from paramarket.price.rules import settle

REPEATS = 2000


class Curse(NamedTuple):
    """By how much the gain of the chosen mixture is told too high, nats, for Q purchases and every number of examples.

    measured: on examples drawn again and again · gaussian: means of the mixtures as drawn from a normal distribution
    with the covariance that they have · independent: mixtures equally good, of independent noise, the upper limit
    """

    measured: Float[Tensor, "Q sizes"]
    gaussian: Float[Tensor, "Q sizes"]
    independent: Float[Tensor, "Q sizes"]


def winners_curse(losses: Float[Tensor, "Q C n"], sizes: Sequence[int], generator: Generator) -> Curse:
    """Choose the best of C mixtures by `size` examples, judge it by the same, and compare with all n examples.

    The n examples play the world: `size` of them are drawn with replacement, 2,000 times. A gain is counted from the
    first mixture, no purchase. For equally good, independent mixtures the least of C means lies E[max of C normals]
    standard errors too low: 1.54 for ten.
    """
    truth = losses.mean(dim=-1, keepdim=True).mT  # [Q, 1, C]
    spread = torch.linalg.cholesky(_covariance(losses))
    found = []
    for size in sizes:
        share = _resampled(losses.shape[-1], size, generator).to(losses)
        noise = torch.randn(REPEATS, losses.shape[1], generator=generator).to(losses) @ spread.mT / size**0.5
        error = losses.std(dim=-1)[:, 1:].mean(dim=1) / size**0.5
        found.append(
            [_told(share @ losses.mT, truth), _told(truth + noise, truth), expected_top(losses.shape[1] - 1) * error]
        )
    return Curse(*(torch.stack(each, dim=1) for each in zip(*found, strict=True)))


def _covariance(losses: Tensor) -> Tensor:
    centred = losses - losses.mean(dim=-1, keepdim=True)
    covariance = centred @ centred.mT / losses.shape[-1]
    ridge = 1e-5 * covariance.diagonal(dim1=-2, dim2=-1).mean(dim=-1)  # neighbours on a line are almost one mixture
    return covariance + ridge[:, None, None] * torch.eye(losses.shape[1]).to(losses)


def _resampled(n: int, size: int, generator: Generator) -> Tensor:
    """[REPEATS, n]: the weight of every example in every draw of `size`."""
    drawn = torch.randint(n, (REPEATS, size), generator=generator)
    return torch.zeros(REPEATS, n).scatter_add_(1, drawn, torch.full(drawn.shape, 1 / size))


def _told(means: Float[Tensor, "Q R C"], truth: Float[Tensor, "Q 1 C"]) -> Float[Tensor, " Q"]:
    """Told less true gain, on average over the draws."""
    best = means.argmin(dim=-1, keepdim=True)
    told, true = (of[..., :1] - of.gather(-1, best) for of in (means, truth.expand_as(means)))
    return (told - true).mean(dim=(1, 2))


def expected_top(count: int) -> float:
    """E[max] of that many independent standard normals: 1.5388 for ten."""
    if count < 1:
        raise ParameterError(f"count = {count}, expected one or more.")
    from scipy.stats import norm  # not above: scipy.stats takes longer to import than all the rest

    x = np.linspace(-9, 9, 20_001)
    return float(np.trapezoid(count * x * norm.pdf(x) * norm.cdf(x) ** (count - 1), x))


def labels(
    curve: Float[Tensor, "Q points"], extra: Sequence[float], reached: Float[Tensor, " Q"]
) -> Float[Tensor, " Q"]:
    """How many labels more would have brought each buyer as far: its own learning curve, read backwards.

    curve: accuracy with `extra` labels, ascending; a later dip is taken as level · reached: accuracy after the
    purchase. What lies beyond the ends of the curve gets their number.
    """
    if curve.shape[1] != len(extra) or list(extra) != sorted(extra):
        raise ShapeError(f"a curve of {curve.shape[1]} points over {list(extra)}: expected as many, ascending.")
    rising = curve.cummax(dim=1).values.numpy()
    return torch.tensor([float(np.interp(y, row, extra)) for y, row in zip(reached.tolist(), rising, strict=True)])


def refund_rate(
    change: Float[Tensor, "Q n"],
    quoted: Float[Tensor, " Q"],
    promises: Sequence[float],
    size: int,
    generator: Generator,
) -> Float[Tensor, "Q promises"]:
    """How often a buyer who checks by `size` examples finds less than was promised, and gets its money back.

    change: what the purchase changes on each of n examples, accuracy points; they play the world, as in `winners_curse`
    promises: shares of the quoted gain
    """
    found = (_resampled(change.shape[1], size, generator).to(change) @ change.mT).mT  # [Q, REPEATS]
    promised = quoted.to(change).unsqueeze(1) * torch.tensor(promises).to(change)
    return (found.unsqueeze(1) < promised.unsqueeze(2)).float().mean(dim=2)


def lemons(
    good: Float[Tensor, " Q"], bad: Float[Tensor, " Q"], cost: float, shares: Sequence[float], kept: Float[Tensor, " Q"]
) -> tuple[Float[Tensor, "Q shares"], Float[Tensor, "Q shares"]]:
    """Surplus of a meeting, euros, by the share of lemons among the sellers: without a warranty, and with one.

    Without, all look alike: a buyer pays what a purchase is worth on average, and once that does not cover their cost
    the honest leave, and nothing is traded (Akerlof 1970). With one, all lemons come back, and the share `kept` of
    honest sales stays; a sale that comes back has cost its seller all the same.
    good, bad: what a purchase from an honest seller, from a lemon, is worth
    """
    share = torch.tensor(shares, dtype=good.dtype)
    average = (1 - share) * good.unsqueeze(1) + share * bad.unsqueeze(1)
    return (average - cost).clamp(min=0), (1 - share) * (kept * good - cost).clamp(min=0).unsqueeze(1)


def parties(
    value: np.ndarray, cost: np.ndarray, paid: Any, received: Any = None
) -> dict[str, Float[Tensor, " groups"]]:
    """Who gets how much of what value and cost [groups, meetings] allow: means over the meetings of each group.

    {"buyer", "seller", "broker", "lost"}; together they are the mean of all gains that there are (v - c where positive)
    """
    deal = settle(value, cost, paid, received)
    lost = np.maximum(value - cost, 0) - deal.buyer - deal.seller - deal.broker
    parts = {"buyer": deal.buyer, "seller": deal.seller, "broker": deal.broker, "lost": lost}
    return {who: torch.as_tensor(part.mean(axis=1)) for who, part in parts.items()}


class Regressions(NamedTuple):
    """Errors of least squares, by repeat: buyer and seller [repeats, features]; and their expected squares."""

    buyer: Float[Tensor, "repeats features"]
    seller: Float[Tensor, "repeats features"]
    mse_buyer: float
    mse_seller: float


def regressions(own: int, other: int, features: int, repeats: int, generator: Generator) -> Regressions:
    """Buyer and seller estimate the same coefficients by least squares, from `own` and `other` noisy examples.

    Designs are drawn once, noise (standard deviation 1) anew at each repeat. MSE = trace (X'X)^-1.
    """
    if min(own, other) < features:
        raise ParameterError(
            f"own = {own}, other = {other}: expected as many examples as features, {features}, or more."
        )
    errors, expected = [], []
    for count in (own, other):
        x = torch.randn(count, features, generator=generator, dtype=torch.float64)
        noise = torch.randn(repeats, count, generator=generator, dtype=torch.float64)
        errors.append(noise @ torch.linalg.pinv(x).mT)
        expected.append(torch.linalg.inv(x.mT @ x).trace().item())
    return Regressions(*(each.float() for each in errors), *expected)
