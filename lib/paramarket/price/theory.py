"""What chance does to a measured gain, and what linear theory says of a mixture: yardsticks for our own numbers."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from paramarket import stack
from paramarket.base import check_list, whole_number
from paramarket.errors import ParameterError, ShapeError

DRAWS = 2000
WAYS = ("alone", "half", "best")
SHARES = (0.0, 0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95)  # of the seller, in "best"


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


class RegressionMarket(NamedTuple):
    """The buyer's squared distance to its optimum, by day, from day 0, where it is 1.

    errors: "alone", "half" and "best", by repeat · bound: what theory says of the first two on average over repeats
    """

    errors: Float[Tensor, "3 days repeats"]
    bound: Float[Tensor, "2 days"]

    def table(self) -> pd.DataFrame:
        """One row a way of trading, day and repeat. Columns: `way`, `day`, `repeat`, `squared_error`."""
        _, days, repeats = self.errors.shape
        along = {"day": range(days), "repeat": range(repeats)}
        return stack.table(stack.grid(way=WAYS), along, squared_error=self.errors)

    def bound_table(self) -> pd.DataFrame:
        """One row a way that theory speaks of, and day. Columns: `way`, `day`, `squared_error`."""
        days = self.bound.shape[1]
        return stack.table(stack.grid(way=WAYS[:2]), {"day": range(days)}, squared_error=self.bound)


def regression_market(
    generator: Generator,
    *,
    features: int,
    examples: int,
    rounds: int,
    lr: float,
    repeats: int,
    gap: float = 0.0,
) -> RegressionMarket:
    """Two who learn linear regression and trade every day: how much faster, and how much nearer, do they get?

    A day: buyer and seller each draw `examples` fresh examples (x normal, noise of standard deviation 1) and take one
    gradient step of half the mean squared error, of size `lr`; then each buys from the other, both at once. Three ways:
    "alone" buys nothing; "half" takes the mean of the two; in "best" each takes the share of the other (0, .05, .15, …,
    .95) that brings it nearest to its own optimum, which no real buyer knows. All start at 0, and all three ways see
    the same examples. The buyer's optimum has norm 1; the seller's lies `gap` away, in a random direction.

    Theorem (strongly convex f). Let f be mu-strongly convex and L-smooth with optimum θ*, lr ≤ 1/L, gradients unbiased
    with variance ≤ s². A step takes e = θ - θ* to e' with
        E|e'|² ≤ (1 - lr mu) |e|² + lr² s²        alone: in the long run lr s² / mu
        E|e'|² ≤ (1 - lr mu) |e|² + lr² s² / 2    half: in the long run lr s² / (2 mu), half of it
    Why: E|e'|² ≤ |e - lr ∇f|² + lr² s²; strong convexity and |∇f|² ≤ 2 L (f - f*) bound the first term by
    (1 - lr mu) |e|². With "half" both start from one point and the two gradients' errors are independent: their mean
    is an unbiased gradient of variance s² / 2. Where they start from two points, |.|² is convex, so the mean of the two
    is no further off than they are on average, and the same bound holds with that average for |e|². So the mean of two
    is legitimate beyond quadratics; it needs one optimum, a strongly convex f and independent errors, and a network has
    neither of the first two. The form for values of f: Bottou, Curtis and Nocedal 2018, Theorem 4.6.

    Here mu = L = 1, and the gradient's variance grows with |e|², so `bound` is exact instead, an equality: for normal x
    in d dimensions and n examples, alone E|e'|² = ((1 - lr)² + lr² (d + 1) / n) |e|² + lr² d / n, and for half with
    gap 0 the same with 2n for n. With a gap there are two optima, and half ends about gap² / 4 further off: the theorem
    does not speak of it; `bound` still gives its mean.
    Raises ParameterError for a gap that is negative, and unless 0 < lr < 2 / (1 + (d + 1) / n): beyond, "alone"
    diverges.
    """
    _check_market(features, examples, rounds, lr, repeats, gap)
    optima = _draw_optima(features, repeats, gap, generator)
    weights = torch.zeros(len(WAYS), *optima.shape, dtype=torch.float64)
    errors = [_squared_distance(weights, optima)[:, 0]]
    for _ in range(rounds):
        alone, half, best = _gradient_step(weights, optima, examples, lr, generator)
        half = half.mean(dim=0).expand_as(half)
        best = _buy_best_share(best, optima)
        weights = torch.stack([alone, half, best])
        errors.append(_squared_distance(weights, optima)[:, 0])
    alone_expected = _expected_alone(features, examples, rounds, lr)
    half_expected = _expected_half(features, examples, rounds, lr, gap)
    return RegressionMarket(
        errors=torch.stack(errors, dim=1), bound=torch.tensor([alone_expected, half_expected], dtype=torch.float64)
    )


def _check_market(features: int, examples: int, rounds: int, lr: float, repeats: int, gap: float) -> None:
    for name, value in {"features": features, "examples": examples, "rounds": rounds, "repeats": repeats}.items():
        whole_number(name, value, least=1)
    limit = 2 / (1 + (features + 1) / examples)
    if not 0 < lr < limit:
        raise ParameterError(
            f"lr = {lr}, expected more than 0 and less than {limit:.3g}: with {examples} examples of {features} "
            "features, steps of that size or more diverge."
        )
    if not 0 <= gap < math.inf:
        raise ParameterError(f"gap = {gap}, expected a distance, 0 or more.")


def _draw_optima(
    features: int, repeats: int, gap: float, generator: Generator
) -> Float[Tensor, "agents repeats features"]:
    """The buyer's, of norm 1, and the seller's."""
    directions = torch.randn(2, repeats, features, generator=generator, dtype=torch.float64)
    buyer, step = directions / directions.norm(dim=-1, keepdim=True)
    return torch.stack([buyer, buyer + gap * step])


def _squared_distance(
    weights: Float[Tensor, "*many agents repeats features"], optima: Float[Tensor, "agents repeats features"]
) -> Float[Tensor, "*many agents repeats"]:
    return (weights - optima).square().sum(dim=-1)


def _gradient_step(
    weights: Float[Tensor, "ways agents repeats features"],
    optima: Float[Tensor, "agents repeats features"],
    examples: int,
    lr: float,
    generator: Generator,
) -> Float[Tensor, "ways agents repeats features"]:
    """One step on fresh examples, the same ones in every way of trading."""
    agents, repeats, features = optima.shape
    x = torch.randn(agents, repeats, examples, features, generator=generator, dtype=torch.float64)
    noise = torch.randn(agents, repeats, examples, generator=generator, dtype=torch.float64)
    residual = torch.einsum("arnf,warf->warn", x, weights - optima) - noise
    gradient = torch.einsum("arnf,warn->warf", x, residual) / examples
    return weights - lr * gradient


def _buy_best_share(
    weights: Float[Tensor, "agents repeats features"], optima: Float[Tensor, "agents repeats features"]
) -> Float[Tensor, "agents repeats features"]:
    """Each of the two moves towards the other by the share that brings it nearest to its own optimum; 0 is one."""
    shares = torch.tensor(SHARES, dtype=weights.dtype)
    towards_other = weights.flip(0) - weights
    mixtures = weights + shares[:, None, None, None] * towards_other
    best = _squared_distance(mixtures, optima).argmin(dim=0)
    return weights + shares[best].unsqueeze(-1) * towards_other


def _expected_alone(features: int, examples: int, rounds: int, lr: float) -> list[float]:
    """E|e|² of gradient steps from distance 1, day by day."""
    factor = (1 - lr) ** 2 + lr**2 * (features + 1) / examples
    noise = lr**2 * features / examples
    expected = [1.0]
    for _ in range(rounds):
        expected.append(factor * expected[-1] + noise)
    return expected


def _expected_half(features: int, examples: int, rounds: int, lr: float, gap: float) -> list[float]:
    """E|e|² of the buyer where both take the mean of the two every day.

    The seller's error is e - g, g being the way from the buyer's optimum to the seller's. The mean step takes e to
    (1 - lr) e + lr g / 2; its variance is a quarter of the sum of the two agents' own.
    """
    luck = lr**2 / (4 * examples)
    along_gap = 0.0  # E[e·g]
    expected = [1.0]
    for _ in range(rounds):
        buyer = expected[-1]
        seller = buyer - 2 * along_gap + gap**2
        mean_step = (1 - lr) ** 2 * buyer + lr * (1 - lr) * along_gap + (lr * gap / 2) ** 2
        expected.append(mean_step + luck * ((features + 1) * (buyer + seller) + 2 * features))
        along_gap = (1 - lr) * along_gap + lr * gap**2 / 2
    return expected
