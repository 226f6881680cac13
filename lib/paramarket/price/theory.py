"""What chance does to a measured gain, and what linear theory says of a mixture: yardsticks for our own numbers."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from paramarket.base import check_list, whole_number
from paramarket.errors import ParameterError, ShapeError

DRAWS = 2000


def expected_maximum(count: int) -> float:
    """E[max] of that many independent standard normals, the mean of their largest order statistic: 1.5388 for ten."""
    count = whole_number("count", count)
    if count < 1:
        raise ParameterError(f"count = {count}, expected one or more.")
    from scipy import stats  # not above: scipy.stats takes longer to import than all the rest

    return float(stats.order_statistic(stats.Normal(), n=count, r=count).mean())


def resampled(n: int, size: int, generator: Generator) -> Float[Tensor, "draws n"]:
    """The weight of each of n examples in 2,000 draws of `size` of them, with replacement; rows sum to 1."""
    size = whole_number("size", size)
    if size < 1:
        raise ParameterError(f"size = {size}, expected one example or more.")
    drawn = torch.randint(n, (DRAWS, size), generator=generator)
    return torch.zeros(DRAWS, n).scatter_add_(1, drawn, torch.full(drawn.shape, 1 / size))


def refund_rate(
    changes: Float[Tensor, "Q n"],
    quoted: Float[Tensor, " Q"],
    generator: Generator,
    *,
    promises: Sequence[float],
    size: int,
) -> Float[Tensor, "Q promises"]:
    """How often a buyer who checks by `size` examples finds less than was promised, and gets its money back.

    changes: what the purchase changes on each of n examples, accuracy points; they play the world, as in
    `winners_curse` · quoted: the gain that the broker quoted, points · promises: shares of it
    """
    check_list("promises", promises)
    if quoted.shape != changes.shape[:1]:
        raise ShapeError(f"{len(changes)} purchases, quoted of shape {tuple(quoted.shape)}: expected a gain for each.")
    weights = resampled(changes.shape[1], size, generator).to(changes)
    found = (weights @ changes.mT).mT  # [Q, draws]
    promised = quoted.to(changes).unsqueeze(1) * torch.tensor(promises).to(changes)
    too_little = found.unsqueeze(1) < promised.unsqueeze(2)
    return too_little.float().mean(dim=2).cpu()


class Regressions(NamedTuple):
    """Errors of least squares, by repeat: buyer and seller [repeats, features]; and their expected squares."""

    buyer: Float[Tensor, "repeats features"]
    seller: Float[Tensor, "repeats features"]
    mse_buyer: float
    mse_seller: float


def regressions(
    generator: Generator, *, buyer_examples: int, seller_examples: int, features: int, repeats: int
) -> Regressions:
    """Buyer and seller estimate the same coefficients by least squares, each from its own noisy examples.

    Designs are drawn once, noise (standard deviation 1) anew at each repeat. MSE = trace (X'X)^-1. Of such errors the
    mixture (1 - w) buyer + w seller is best at w = V_b / (V_b + V_s), with the MSE V_b V_s / (V_b + V_s).
    """
    if min(buyer_examples, seller_examples) < features:
        given = f"buyer_examples = {buyer_examples}, seller_examples = {seller_examples}"
        raise ParameterError(f"{given}: expected as many examples as features, {features}, or more.")
    buyer, mse_buyer = _least_squares(buyer_examples, features, repeats, generator)
    seller, mse_seller = _least_squares(seller_examples, features, repeats, generator)
    return Regressions(buyer, seller, mse_buyer, mse_seller)


def _least_squares(
    examples: int, features: int, repeats: int, generator: Generator
) -> tuple[Float[Tensor, "repeats features"], float]:
    """Errors of the estimate, and their expected square."""
    design = torch.randn(examples, features, generator=generator, dtype=torch.float64)
    noise = torch.randn(repeats, examples, generator=generator, dtype=torch.float64)
    errors = noise @ torch.linalg.pinv(design).mT
    mse = torch.linalg.inv(design.mT @ design).trace().item()
    return errors.float(), mse
