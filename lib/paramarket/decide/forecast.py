"""What a trade will gain, told before anything is merged: from what two networks answer to images without labels.

What the forecast knows it learnt from simulated pairs (`simulate_pairs`), whose true gains are known; forecast.json
holds it. It is calibrated for pairs like these; where yours differ much, let it say where to look first, and audit.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from paramarket import stack
from paramarket.base import Interval, atomic
from paramarket.errors import ParameterError, ShapeError
from paramarket.stack import Stack

FORECAST = Path(__file__).with_name("forecast.json")
COVERED = 0.95  # of new pairs
BATCH = 250  # images that all networks answer at once


class PairMeasurements(NamedTuple):
    """What the answers of a buyer and a seller to images without labels say about P pairs; all are shares.

    own_confidence, other_confidence: the largest probability, the mean over images
    other_surer: the share of images on which the two answer differently and the seller is the surer
    own_evenness, other_evenness: how evenly the answers are spread over the kinds, 1 if all are as frequent, 0 if one
    takes all (the entropy of the mean answer, as a share of its largest value): who rarely saw a kind rarely names it
    Tried and left out, for the forecast is no narrower with them: CKA, disagreement, what the averaged probabilities
    gain in confidence.
    """

    own_confidence: Float[Tensor, " P"]
    other_confidence: Float[Tensor, " P"]
    other_surer: Float[Tensor, " P"]
    own_evenness: Float[Tensor, " P"]
    other_evenness: Float[Tensor, " P"]

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """One row a pair: the columns of a table with P rows, then the measurements under their names."""
        return stack.table(rows, **self._asdict())


class Forecast(NamedTuple):
    """How measurements become a gain: the intercept and weights times measurements add up to accuracy points.

    weights: by the name of the measurement · width: the interval reaches so many times √(1 + forecast) to either side
    pairs, seed: the simulated pairs that it was fitted on
    """

    intercept: float
    weights: dict[str, float]
    width: float
    pairs: int
    seed: int


@torch.no_grad()
def pair_measurements(
    net: nn.Module, own: Stack, other: Stack, x: Tensor, other_net: nn.Module | None = None
) -> PairMeasurements:
    """Ask both networks of P pairs about images, and compare what they say. No label is needed, nothing is merged.

    own, other: the buyers and the sellers, stacks [P] · x: images, [n, ...] for all pairs or [P, n, ...], as they come
    where the network will work · other_net: the sellers' architecture, if it is another one
    Raises ShapeError where the networks do not fit their nets, or one another.

    >>> from paramarket import data, decide, stack
    >>> net, images = stack.mlp(64, [8], 10), data.load("digits").quote.x
    >>> own = stack.init(net, 2, seed=0)
    >>> decide.pair_measurements(net, own, own, images).other_surer
    tensor([0., 0.])
    """
    other_net = other_net or net
    buyers, sellers = stack.check(net, own), stack.check(other_net, other)
    if buyers != sellers:
        raise ShapeError(f"{sellers} sellers for {buyers} buyers: expected one for each.")
    of_own = _chances(net, own, x)
    of_other = _chances(other_net, other, x)
    if of_own.shape != of_other.shape:
        raise ShapeError(f"the buyers tell {of_own.shape[-1]} kinds apart, the sellers {of_other.shape[-1]}.")
    own_surest, own_answer = of_own.max(dim=-1)
    other_surest, other_answer = of_other.max(dim=-1)
    surer = (own_answer != other_answer) & (other_surest > own_surest)
    return PairMeasurements(
        own_confidence=own_surest.mean(dim=1),
        other_confidence=other_surest.mean(dim=1),
        other_surer=surer.float().mean(dim=1),
        own_evenness=_evenness(of_own),
        other_evenness=_evenness(of_other),
    )


def forecast(measured: PairMeasurements, by: Forecast | None = None) -> Interval:
    """What the way that `recommend` will advise gains, in accuracy points [P], before any way is tried.

    by: a fit of one's own; otherwise the one that comes with the library. The interval covers the true gain of 95 % of
    new pairs that are drawn as those were that it was fitted on (see `fit_forecast`). To do nothing is a way, too: no
    forecast and no end of an interval lies below 0.

    >>> import torch
    >>> from paramarket import decide
    >>> none, half, all = torch.zeros(1), torch.full((1,), 0.5), torch.ones(1)
    >>> alike = decide.PairMeasurements(all, all, other_surer=none, own_evenness=all, other_evenness=all)
    >>> unlike = decide.PairMeasurements(half, all, other_surer=half, own_evenness=half, other_evenness=all)
    >>> bool(decide.forecast(unlike).mean > decide.forecast(alike).mean)
    True
    """
    by = by or read_forecast()
    weights = [by.weights[name] for name in PairMeasurements._fields]
    expected = np.maximum(0, by.intercept + _columns(measured) @ weights)
    reach = by.width * _spread(expected)
    return Interval(expected, np.maximum(0, expected - reach), np.minimum(100, expected + reach))


def fit_forecast(measured: PairMeasurements, gain_points: Float[np.ndarray, " P"], *, seed: int) -> Forecast:
    """Learn the forecast from pairs whose true gain is known, and how far it errs on others.

    gain_points: what the recommended way truly gains each of the P pairs · seed: that these pairs were drawn with
    Least squares on every second pair. On the others the errors are divided by √(1 + forecast), as a larger gain is
    less sure, and the ⌈.95 (m + 1)⌉-th smallest of these m says how far the interval reaches: the error of one more
    pair is as likely to stand at any place among them (split conformal prediction with scaled errors: Lei et al.,
    JASA 2018, sections 2.2 and 5.2).
    Raises ParameterError for fewer than 40 pairs: that place would lie beyond the largest error.
    """
    pairs = len(gain_points)
    if pairs < 40:
        raise ParameterError(f"{pairs} pairs to fit a forecast on: expected 40 or more.")
    columns = np.column_stack([np.ones(pairs), _columns(measured)])
    (intercept, *weights), *_ = np.linalg.lstsq(columns[::2], gain_points[::2])
    fitted = Forecast(float(intercept), _by_name(weights), width=0.0, pairs=pairs, seed=seed)
    others = PairMeasurements(*(each[1::2] for each in measured))
    expected = forecast(others, fitted).mean
    errors = np.abs(gain_points[1::2] - expected) / _spread(expected)
    place = math.ceil(COVERED * (len(errors) + 1))
    return fitted._replace(width=float(np.sort(errors)[place - 1]))


def write_forecast(fitted: Forecast) -> None:
    """Make a fit the one that comes with the library."""
    with atomic(FORECAST) as beside:
        beside.write_text(json.dumps(fitted._asdict(), indent=2) + "\n", encoding="utf-8")


def read_forecast() -> Forecast:
    """The fit that comes with the library."""
    return Forecast(**json.loads(FORECAST.read_text(encoding="utf-8")))


def _by_name(weights: list[float]) -> dict[str, float]:
    return {name: float(weight) for name, weight in zip(PairMeasurements._fields, weights, strict=True)}


def _columns(measured: PairMeasurements) -> Float[np.ndarray, "P measurements"]:
    return torch.stack(measured, dim=1).double().numpy()


def _spread(expected: Float[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
    """How far forecasts err, up to a factor."""
    return np.sqrt(1 + expected)


def _chances(net: nn.Module, models: Stack, x: Tensor) -> Float[Tensor, "P n classes"]:
    parts = x.split(BATCH, dim=0 if x.ndim in (2, 4) else 1)
    return torch.cat([stack.forward(net, models, part).float().softmax(dim=-1).cpu() for part in parts], dim=1)


def _evenness(chances: Float[Tensor, "P n classes"]) -> Float[Tensor, " P"]:
    mean = chances.mean(dim=1)
    return torch.special.entr(mean).sum(dim=-1) / math.log(mean.shape[-1])
