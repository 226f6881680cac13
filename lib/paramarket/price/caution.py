"""What caution costs and saves: a buyer who values a purchase by less than the mean of what it measured."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from paramarket import stack
from paramarket.base import check_list, whole_number
from paramarket.errors import ParameterError
from paramarket.price.rules import nash_price, settle
from paramarket.price.theory import resampled


class Caution(NamedTuple):
    """How buyers fare who subtract so many standard errors from a gain measured on so many examples.

    traded, regretted, missed: shares of the draws. Regretted: traded, and truly worth less than was paid; missed: not
    traded, and truly worth more than it costs · buyer, seller, together: true surplus, euros a meeting, on average
    """

    cautions: tuple[float, ...]
    sizes: tuple[int, ...]
    traded: Float[Tensor, "Q cautions sizes"]
    regretted: Float[Tensor, "Q cautions sizes"]
    missed: Float[Tensor, "Q cautions sizes"]
    buyer: Float[Tensor, "Q cautions sizes"]
    seller: Float[Tensor, "Q cautions sizes"]
    together: Float[Tensor, "Q cautions sizes"]

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """One row a purchase, caution and number of examples: the columns of a grid, and what came of it.

        Columns: `caution` (standard errors), `examples`, `traded`, `regretted`, `missed` (shares of the draws),
        `buyer_surplus`, `seller_surplus`, `together` (true surplus, euros a meeting).
        """
        along = {"caution": self.cautions, "examples": self.sizes}
        return stack.table(
            rows,
            along,
            traded=self.traded,
            regretted=self.regretted,
            missed=self.missed,
            buyer_surplus=self.buyer,
            seller_surplus=self.seller,
            together=self.together,
        )


def cautious_trades(
    changes: Float[Tensor, "Q n"],
    *,
    worth: float,
    cost: float,
    cautions: Sequence[float],
    sizes: Sequence[int],
    generator: Generator,
) -> Caution:
    """Let a buyer see `size` examples, value the purchase cautiously, and trade at Nash's price where both then gain.

    changes: what each of Q purchases changes on each of n examples, accuracy points (100, 0 or -100); these n play the
    world, as in `winners_curse`, and their mean is the truth · worth: euros a point · cost: the seller's, euros ·
    cautions: standard errors that the buyer subtracts from the mean: 0 is the mean, 1.96 the lower end of a 95 %
    interval (normal) · sizes: numbers of examples, 2 or more, drawn with replacement, 2,000 times

    A purchase valued at 0 is never made, not even where it costs nothing. The price follows the value that the buyer
    states, so a cautious buyer pays less where it trades: caution moves money to the buyer, and loses trades.
    Raises ParameterError for a worth or a caution that is negative or not finite, and for a size below 2.
    """
    check_list("cautions", cautions)
    check_list("sizes", sizes)
    _check_settings(worth, cautions, sizes)
    changes = changes.detach().cpu().double()
    truth = worth * (changes.sum(dim=1) / changes.shape[1])
    by_size = []
    for size in sizes:
        mean, error = _measured(changes, size, generator)
        estimates = mean - torch.tensor(cautions, dtype=torch.float64)[:, None, None] * error
        by_size.append(_outcomes(estimates, truth, worth, cost))
    return Caution(tuple(cautions), tuple(sizes), *torch.stack(by_size, dim=-1))


def _check_settings(worth: float, cautions: Sequence[float], sizes: Sequence[int]) -> None:
    if not 0 <= worth < math.inf:
        raise ParameterError(f"worth = {worth}, expected euros a point, 0 or more.")
    if not all(0 <= caution < math.inf for caution in cautions):
        raise ParameterError(f"cautions = {list(cautions)}, expected numbers of standard errors, 0 or more.")
    for size in sizes:
        whole_number("size", size, least=2)  # one example has no standard deviation


def _measured(
    changes: Float[Tensor, "Q n"], size: int, generator: Generator
) -> tuple[Float[Tensor, "draws Q"], Float[Tensor, "draws Q"]]:
    """Mean and standard error of the examples drawn."""
    counts = (resampled(changes.shape[1], size, generator).double() * size).round()  # sums of whole numbers are exact
    total = counts @ changes.mT
    squares = counts @ changes.mT.square()
    variance = (squares - total.square() / size).clamp(min=0) / (size - 1)
    return total / size, (variance / size).sqrt()


def _outcomes(
    estimates: Float[Tensor, "cautions draws Q"], truth: Float[Tensor, " Q"], worth: float, cost: float
) -> Float[Tensor, "outcomes Q cautions"]:
    """What is traded, regretted, missed, and the true surplus of buyer, seller and both; means over the draws."""
    value = (worth * estimates.clamp(min=0)).numpy()
    deal = settle(value, cost, nash_price(value, cost).price, agreed=value > 0)
    traded = torch.as_tensor(deal.traded)
    paid = torch.as_tensor(deal.paid)
    regretted = traded & (truth < paid)
    missed = ~traded & (truth > cost)
    buyer = torch.where(traded, truth - paid, 0.0)
    seller = torch.as_tensor(deal.seller)
    outcomes = torch.stack([traded.double(), regretted.double(), missed.double(), buyer, seller, buyer + seller])
    return outcomes.mean(dim=2).mT
