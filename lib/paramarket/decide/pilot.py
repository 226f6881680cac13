"""Try before you buy, and watch what you bought: how many labels that takes, when to stop, when to roll back.

A gain is a difference of two accuracies on the same examples, so it is paired: every example counts +1 where only the
candidate is right, -1 where only the old model is, 0 where both are right or both are wrong. Gains are shares: .02 is
two accuracy points.

One idea carries what follows: a bettor against a claim. Fair bets against a true claim make hardly anybody rich: the
chance that the capital ever reaches 1 / alpha times the first stake is at most alpha (Ville's inequality). So whoever
gets that rich has refuted the claim, however often the capital is looked at.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paramarket.base import check_list, interval, stream, whole_number
from paramarket.errors import ParameterError, ShapeError

BETS = [0.9 / 2**power for power in range(8)]  # shares of the capital at stake: some bet is within √2 of the best one
HALVINGS = 20  # of [-1, 1], to find an end of an interval: to 2e-6


class ConfidenceSequence(NamedTuple):
    """The ends of an interval for the mean gain after every example; all of them hold together."""

    low: Float[Tensor, "*runs n"]
    high: Float[Tensor, "*runs n"]


class Pilot(NamedTuple):
    """How a pilot ended, or K of them: plain values, or arrays [K].

    decision: "go", "stop", or "go on" if the examples ran out first · examples: how many were looked at
    low, high: the ends of the interval for the gain at that moment
    """

    decision: str | np.ndarray
    examples: int | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray


def pilot_examples(better: float, worse: float, precision: float, confidence: float = 0.95) -> int:
    """How many labelled examples tell the gain to ± `precision`, if they are looked at once, at the end.

    better, worse: shares of examples that only the candidate gets right, and only the old model · precision: a share
    A difference in {-1, 0, 1} has the variance better + worse - (better - worse)²; the interval is the normal one
    (Agresti, Categorical Data Analysis, 2013, section 11.1). Where the models seldom differ, few labels are enough.
    Raises ParameterError for shares that are none, or where the two never differ.

    Two models that differ on 15 % of the examples, and ±2 points:

    >>> from paramarket import decide
    >>> decide.pilot_examples(better=0.10, worse=0.05, precision=0.02)
    1417
    """
    _check_shares(better, worse)
    if better + worse == 0:
        raise ParameterError("better = worse = 0: a pilot cannot measure two models that never differ.")
    _check_between("precision", precision, 0, 1)
    _check_between("confidence", confidence, 0, 1)
    variance = better + worse - (better - worse) ** 2
    errors = NormalDist().inv_cdf((1 + confidence) / 2)
    return max(1, math.ceil(variance * (errors / precision) ** 2))


def confidence_sequence(differences: Int[Tensor, "*runs n"], alpha: float = 0.05) -> ConfidenceSequence:
    """Intervals for the mean gain, one after every example, that all hold together with the chance 1 - alpha or more.

    differences: -1, 0 or 1 for every example, in the order in which they came; one pilot [n], or K of them [K, n]
    Who looks again and again at a common 95 % interval, and stops once it suits, is wrong far more often than 5 %. Here
    that is allowed. What is assumed: given the past, every difference has the same mean.

    A gain m lies within as long as nobody gets rich by betting against it: a bettor who puts the share b of the capital
    on "the mean is above m" has it multiplied by 1 - b + b (1 + difference) / (1 + m) each time, the second bets that
    it is below (Waudby-Smith and Ramdas 2024, section 4). Each spreads the first stake evenly over fixed
    shares b and lets it run (Cover's universal portfolio, on a grid; Orabona and Jun 2024). Such a capital falls in m,
    so that the ends are found by halving, and it depends on counts alone, not on their order.
    Raises ParameterError for other values, ShapeError for no examples.

    >>> import torch
    >>> from paramarket import decide
    >>> low, high = decide.confidence_sequence(torch.tensor([1, 0, 1, 0, 1]).repeat(20))
    >>> print(f"{low[9]:.2f} to {high[9]:.2f} after 10 examples, {low[99]:.2f} to {high[99]:.2f} after 100")
    -0.17 to 0.94 after 10 examples, 0.43 to 0.75 after 100
    """
    _check_between("alpha", alpha, 0, 1)
    better, same, worse = _counts(differences)
    return ConfidenceSequence(*_ends(better, same, worse, alpha))


def pilot(differences: Int[Tensor, "*runs n"], go: float, no_go: float, alpha: float = 0.05) -> Pilot:
    """Look after every example, and decide as soon as the examples seen allow it.

    differences: -1, 0 or 1 for every example; one pilot [n], or K of them [K, n]
    "go" as soon as the low end of the confidence sequence lies above the line `go`, "stop" as soon as its high end lies
    below the line `no_go`; "go" where both happen at once. The chance of a wrong decision ("go" with a gain of `go` or
    less, "stop" with one of `no_go` or more) is at most alpha, whatever the gain.
    With go < no_go every pilot comes to an end (go = 0, no_go = .02: any gain is good, and what is sure to be less than
    two points is not worth the trouble). With no_go < go, a gain between the two leaves the pilot open, as it should.

    >>> import torch
    >>> from paramarket import decide
    >>> differences = torch.tensor([1, 0, 0, -1, 1, 0, 1, 0, 0, 0]).repeat(100)
    >>> found = decide.pilot(differences, go=0.0, no_go=0.05)
    >>> print(found.decision, found.examples)
    go 107
    """
    _check_between("alpha", alpha, 0, 1)
    _check_between("go", go, -1, 1)
    _check_between("no_go", no_go, -1, 1)
    better, same, worse = _counts(differences)
    rich = math.log(2 / alpha)  # two bettors share alpha
    goes = _log_capital(better, same, worse, torch.tensor(go)) >= rich
    stops = _log_capital(worse, same, better, torch.tensor(-no_go)) >= rich
    first = _first(goes | stops)
    last = first.where(first >= 0, differences.shape[-1] - 1).unsqueeze(-1)
    better, same, worse, goes, stops = (
        each.gather(-1, last).squeeze(-1) for each in (better, same, worse, goes, stops)
    )
    low, high = _ends(better, same, worse, alpha)
    decision = np.where(goes, "go", np.where(stops, "stop", "go on"))
    examples = last.squeeze(-1) + 1
    return Pilot(_plain(decision), _plain(examples.numpy()), _plain(low.numpy()), _plain(high.numpy()))


def pilot_power(
    better: float,
    worse: float,
    *,
    go: float,
    no_go: float,
    sizes: Sequence[int],
    seed: int,
    runs: int = 2000,
    alpha: float = 0.05,
) -> pd.DataFrame:
    """How often a pilot that may look at so many examples decides, and rightly: simulated, one row a size.

    better, worse: shares of examples that only the candidate gets right, and only the old model; the true gain is their
    difference · go, no_go, alpha: as `pilot` takes them · sizes: how many examples it may look at
    Columns: `examples` (the size) · `right` with `right_low` and `right_high`, `wrong`, `undecided`: shares of the
    runs; "go" is right above the line `go`, "stop" below the line `no_go` · `mean_examples`: how many were looked at.
    """
    _check_shares(better, worse)
    check_list("sizes", sizes)
    sizes = np.array([whole_number("sizes", size, least=1) for size in sizes])
    runs = whole_number("runs", runs, least=2)
    chance = torch.rand(runs, sizes.max(), generator=stream(seed, "pilot"), dtype=torch.float64)
    differences = (chance < better).int() - (chance >= 1 - worse).int()
    found = pilot(differences, go, no_go, alpha)
    gain = better - worse
    is_right = ((found.decision == "go") & (gain > go)) | ((found.decision == "stop") & (gain < no_go))
    in_time = (found.decision != "go on")[:, None] & (found.examples[:, None] <= sizes)  # [runs, sizes]
    right = in_time & is_right[:, None]
    wrong = in_time & ~is_right[:, None]
    return pd.DataFrame(
        {
            "examples": sizes,
            **interval(right, "examples").columns("right"),
            "wrong": wrong.mean(axis=0),
            "undecided": 1 - in_time.mean(axis=0),
            "mean_examples": np.minimum(found.examples[:, None], sizes).mean(axis=0),
        }
    )


def drift_alarm(wrong: Bool[Tensor, "*runs n"], before: float, alpha: float = 0.05) -> Int[Tensor, "*runs"]:
    """The example (counted from 0) at which a model in use has become worse than it was, or -1 for no alarm.

    wrong: whether each answer was wrong, in the order in which they came; one model [n], or K of them [K, n]
    before: the error rate that counts as good. Where it was measured, take the high end of its interval: the promise is
    about this number. As long as errors come at this rate or less, the chance that there is ever an alarm is at most
    alpha, however long the model is watched.

    The capital of a bettor against "the error rate is at most `before`", who multiplies a stake by 1 - b + b / before
    at an error and by 1 - b otherwise: the likelihood ratio of the error rate before + b (1 - before) against `before`.
    Stakes run for several shares b, and some start at every example, since who has bet from the first one on is poor
    when drift sets in late (a test begun anew at every example: Lorden 1971; in capital: Shin, Ramdas and Rinaldo
    2024). No such test finds drift that is there from the start in fewer examples, on average, than log(1 / alpha)
    / KL, with KL the Kullback-Leibler divergence (nats) of the error rate after the drift from `before` (Wald 1945).
    The later the drift, the longer this one takes: by at most about 1.5 log(examples before it) / KL.
    Raises ParameterError for a rate or an alpha that is not between 0 and 1, ShapeError for no examples.

    >>> import torch
    >>> from paramarket import decide
    >>> good = torch.arange(500) % 20 == 0  # one error in 20
    >>> bad = torch.arange(500) % 5 == 0
    >>> decide.drift_alarm(torch.cat([good, bad]), before=0.05).item()
    580
    """
    _check_between("alpha", alpha, 0, 1)
    _check_between("before", before, 0, 1)
    if wrong.shape[-1] == 0:
        raise ShapeError("no examples: a drift monitor needs at least one.")
    not_staked = torch.arange(wrong.shape[-1] + 1, dtype=torch.float64).add(1).rsqrt()  # falls slowly from 1 to 0
    stake = (not_staked[:-1] - not_staked[1:]).log()
    capital = not_staked[1:].log()
    wrong = wrong.cpu()
    for bet in BETS:
        factor = torch.where(wrong, 1 - bet + bet / before, 1 - bet).double().log()
        growth = factor.cumsum(dim=-1)
        of_all_starts = growth + (stake - growth + factor).logcumsumexp(dim=-1)
        capital = torch.logaddexp(capital, of_all_starts - math.log(len(BETS)))
    return _first(capital >= math.log(1 / alpha))


def _ends(better: Tensor, same: Tensor, worse: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Both ends of the interval for the gain; the high one is the low one's mirror image."""
    return _low_end(better, same, worse, alpha / 2), -_low_end(worse, same, better, alpha / 2)


def _low_end(better: Tensor, same: Tensor, worse: Tensor, alpha: float) -> Tensor:
    """The largest line up to which a bettor on "the gain is above it" has become rich; -1 if there is none."""
    low = torch.full_like(better, -1)
    high = torch.ones_like(better)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        refuted = _log_capital(better, same, worse, middle) >= math.log(1 / alpha)
        low = middle.where(refuted, low)
        high = high.where(refuted, middle)
    return low


def _log_capital(better: Tensor, same: Tensor, worse: Tensor, line: Tensor) -> Tensor:
    """The logarithm of the capital of who bets that the gain is above a line, from 1 on, by counts of differences."""
    capital = torch.full_like(better, -torch.inf)
    for bet in BETS:
        at_better = (1 - bet + 2 * bet / (1 + line)).log()
        at_same = (1 - bet + bet / (1 + line)).log()
        growth = better * at_better + same * at_same + worse * math.log(1 - bet)
        capital = torch.logaddexp(capital, growth)
    return capital - math.log(len(BETS))


def _counts(differences: Int[Tensor, "*runs n"]) -> list[Float[Tensor, "*runs n"]]:
    """How many examples so far were better, the same, worse, after each of them."""
    if differences.shape[-1] == 0:
        raise ShapeError("no examples: a pilot needs at least one.")
    if differences.abs().max() > 1:
        raise ParameterError("differences hold other values than -1, 0 and 1: expected new hits minus old hits.")
    differences = differences.cpu()
    return [(differences == value).cumsum(dim=-1).double() for value in (1, 0, -1)]


def _first(true: Bool[Tensor, "*runs n"]) -> Int[Tensor, "*runs"]:
    """Where each row is first true, or -1."""
    return true.int().argmax(dim=-1).where(true.any(dim=-1), -1)


def _plain(array: np.ndarray) -> str | int | float | np.ndarray:
    return array.item() if array.ndim == 0 else array


def _check_shares(better: float, worse: float) -> None:
    if not (better >= 0 and worse >= 0 and better + worse <= 1):
        raise ParameterError(f"better = {better}, worse = {worse}: expected shares of examples, together at most 1.")


def _check_between(name: str, value: float, low: float, high: float) -> None:
    if not low < value < high:
        raise ParameterError(f"{name} = {value}, expected a number between {low} and {high}.")
