"""Pairs of plants whose right answer is known: does what we promise about a trade come true?"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import nn

from paramarket import align, data, stack, train
from paramarket.base import Interval, atomic, interval, stream, whole_number
from paramarket.data import Split
from paramarket.decide.forecast import Forecast, PairMeasurements, fit_forecast, forecast, pair_measurements
from paramarket.decide.ways import LABELS, NOTHING, Offers, Ways, measure_ways, recommend, tune_ways
from paramarket.stack import Stack

HIDDEN = 24  # units of every network
STEPS = 200  # in which every network is trained
BATCH = 32
LEARNING_RATE = 1e-2
IMAGES = 250  # of quote, and of audit, for every pair
SELLERS = ("other half", "same half", "all kinds", "shuffled labels", "untrained")
SHARES = (0.5, 0.2, 0.14, 0.08, 0.08)  # of pairs with such a seller
SHUFFLED = 0.9  # of the labels replaced by one of the nine others: what is left says nothing of the truth
WAYS = (  # that are tuned for many pairs at once
    "the other's network",
    "averaged, matched by weights",
    "output ensemble",
    "routed by answers",
    "distilled ensemble",
    LABELS,
)
MAX_CLASS_LOSS = 1.0  # accuracy points that a way may cost on the buyer's own classes
ROUNDING = 1e-4  # points: a table is kept to so many digits
COVERAGE = Path(__file__).with_name("coverage.csv")


class Simulated(NamedTuple):
    """P pairs of one architecture, side by side, and the world that they live in.

    rows: one row a pair, how it was drawn: seller ("other half": it sees often what the buyer rarely sees; "same half":
    both rarely see the same kinds; "all kinds": it sees all; "shuffled labels" and "untrained": noise) · same_start:
    whether both networks grew from one random start · own_images, other_images: dealt to each, before most of those of
    the rare kinds are taken away · own_kept, other_kept: the share of these that stays · other_noise: the share of
    wrong labels at the seller's
    own, other: the buyers [P] and their sellers · quote, audit: one of each a pair
    population: all images that there are; quote and audit are drawn from it, so what is measured on it is the truth
    """

    rows: pd.DataFrame
    net: nn.Module
    own: Stack
    other: Stack
    quote: list[Split]
    audit: list[Split]
    population: Split


def simulate_pairs(pairs: int, *, seed: int) -> Simulated:
    """Draw pairs of every kind, train all of them side by side, and draw what they are tuned on and judged by.

    The plants learn from the training part of "digits" (1,078 images). The other 719 images are the population: the
    quote and the audit of a pair, 250 images each, are drawn from it with replacement, so that they are independent
    draws, and what they estimate is exactly the mean over the population. A way that learns from quote may learn images
    of the population by heart; in this world it is better on them from then on, and that is part of its true gain.
    Pair k depends on `seed` and k alone, not on how many there are. Raises ParameterError for fewer than one pair.

    >>> from paramarket import decide
    >>> simulated = decide.simulate_pairs(3, seed=0)
    >>> len(simulated.rows), len(simulated.quote[0]), len(simulated.population)
    (3, 250, 719)
    """
    pairs = whole_number("pairs", pairs, least=1)
    digits = data.load("digits")
    population = data.concat(digits.quote, digits.audit, digits.test)
    net = stack.mlp(digits.train.x[0].numel(), [HIDDEN], len(digits.classes))
    rows, holdings = [], []
    for k in range(pairs):
        drawn = _draw_pair(stream(seed, "simulated pair", k))
        rows.append(drawn.row)
        holdings.append(_hold(digits.train, drawn, stream(seed, "simulated holding", k)))
    rows = pd.DataFrame(rows)
    own, other = _train(net, rows, holdings, seed)
    quote = [_draw_images(population, stream(seed, "simulated quote", k)) for k in range(pairs)]
    audit = [_draw_images(population, stream(seed, "simulated audit", k)) for k in range(pairs)]
    return Simulated(rows, net, own, other, quote, audit, population)


def tune_simulated(simulated: Simulated, *, seed: int) -> Offers:
    """The ways that are tuned for many pairs at once (WAYS), on the quote of each."""
    spec = align.permutation_spec(simulated.net, simulated.population.x[:1])
    return tune_ways(
        simulated.net,
        spec,
        simulated.own,
        simulated.other,
        simulated.quote,
        seed=seed,
        max_class_loss=MAX_CLASS_LOSS,
        only=WAYS,
    )


def measure_simulated(simulated: Simulated) -> PairMeasurements:
    """What the two of every pair answer to the images of its quote, without the labels."""
    x = torch.stack([split.x for split in simulated.quote])
    return pair_measurements(simulated.net, simulated.own, simulated.other, x)


def fit_on_simulated(simulated: Simulated, offers: Offers, *, seed: int) -> Forecast:
    """The forecast that these pairs teach (see `fit_forecast`); seed: that they were drawn with."""
    truth = measure_ways(offers, simulated.population)
    way = _recommended(offers)
    return fit_forecast(measure_simulated(simulated), _of(truth.gain_points.mean, way), seed=seed)


def coverage(simulated: Simulated, offers: Offers) -> pd.DataFrame:
    """What we say about every pair, and the truth: one row a pair, the columns of `simulated.rows` first.

    All gains are accuracy points; `_low` and `_high` are the ends of the 95 % interval.
    way, gain_points, true_gain_points: the recommended way, its gain on audit, its gain on the population
    true_own_class_change: what it truly costs on the buyer's own classes
    forecast_points: what was forecast of that gain
    naive_way, naive_gain_points, naive_true_gain_points: the way with the largest gain on audit, told by the same
    audit, which is the winner's curse
    oracle_way, oracle_gain_points: the way with the largest true gain · decision_loss_points: how much more it is than
    the recommended way's
    All three choices leave out what costs more than one point on the buyer's own classes: on quote, on audit, in
    truth. A recommended way may do so in truth; its decision loss can then be negative.
    """
    audit = measure_ways(offers, simulated.audit)
    truth = measure_ways(offers, simulated.population)
    way = _recommended(offers)
    naive = _largest(audit)
    oracle = _largest(truth)
    told = forecast(measure_simulated(simulated))
    names = np.array(offers.way)
    true_gain = _of(truth.gain_points.mean, way)
    oracle_gain = _of(truth.gain_points.mean, oracle)
    return simulated.rows.assign(
        way=names[way],
        **_gains(audit, way).columns("gain_points"),
        true_gain_points=true_gain,
        true_own_class_change=_of(truth.own_class_change.mean, way),
        **told.columns("forecast_points"),
        naive_way=names[naive],
        **_gains(audit, naive).columns("naive_gain_points"),
        naive_true_gain_points=_of(truth.gain_points.mean, naive),
        oracle_way=names[oracle],
        oracle_gain_points=oracle_gain,
        decision_loss_points=oracle_gain - true_gain,
    )


def write_coverage(table: pd.DataFrame, seed: int) -> None:
    """Make a `coverage` table the one that comes with the library; seed: that its pairs were drawn with."""
    with atomic(COVERAGE) as beside:
        table.assign(seed=seed).round(4).to_csv(beside, index=False)


def read_coverage() -> pd.DataFrame:
    """The table that comes with the library, one row a pair, and the column `seed`.

    Pair k hangs on that seed and on k alone: whoever doubts a row can simulate it anew.

    >>> from paramarket import decide
    >>> len(decide.read_coverage()) >= 1000
    True
    """
    return pd.read_csv(COVERAGE)


def coverage_summary(table: pd.DataFrame) -> pd.DataFrame:
    """How often each interval of a `coverage` table holds the truth: one row a kind of interval.

    interval: "gain" (of the recommended way), "forecast", "naive" · over: "all" pairs, or only those "with a way":
    where doing nothing is advised, its gain is 0, which is trivially covered · pairs: how many these are
    coverage: a share, with its 95 % interval (Wilson) · bias_points: what was told less the truth, on average
    width_points: of the intervals, on average
    Raises ParameterError for a table with fewer than two such pairs.
    """
    trade = table[table.way != NOTHING]
    naive_trade = table[table.naive_way != NOTHING]
    judged = [
        ("gain", "with a way", trade, "gain_points", "true_gain_points"),
        ("gain", "all", table, "gain_points", "true_gain_points"),
        ("forecast", "with a way", trade, "forecast_points", "true_gain_points"),
        ("forecast", "all", table, "forecast_points", "true_gain_points"),
        ("naive", "with a way", naive_trade, "naive_gain_points", "naive_true_gain_points"),
        ("naive", "all", table, "naive_gain_points", "naive_true_gain_points"),
    ]
    rows = []
    for kind, over, pairs, told, truth in judged:
        low, high = pairs[f"{told}_low"], pairs[f"{told}_high"]
        covered = (low <= pairs[truth] + ROUNDING) & (pairs[truth] <= high + ROUNDING)
        row = {"interval": kind, "over": over, "pairs": len(pairs)}
        row |= interval(covered.to_numpy(dtype=float), "shares").columns("coverage")
        row |= {"bias_points": (pairs[told] - pairs[truth]).mean(), "width_points": (high - low).mean()}
        rows.append(row)
    return pd.DataFrame(rows)


def coverage_lines(table: pd.DataFrame) -> list[str]:
    """The summary of a `coverage` table in plain sentences, as they are printed."""
    lines = [f"{len(table)} pairs; for {(table.way != NOTHING).sum()} of them a way is recommended."]
    for row in coverage_summary(table).itertuples():
        covered = f"{row.coverage:.1%} ({row.coverage_low:.1%} to {row.coverage_high:.1%})"
        told = f"{row.width_points:.1f} points wide, told less true {row.bias_points:+.2f} points"
        lines.append(f"The interval of the {row.interval} covers {covered} of {row.pairs} pairs, {row.over}: {told}.")
    recommended = table.true_gain_points.mean()
    best = table.oracle_gain_points.mean()
    lines.append(f"The recommended way truly gains {recommended:.2f} points on average, the best one {best:.2f}.")
    harmful = table.true_own_class_change < -MAX_CLASS_LOSS - ROUNDING
    mean, low, high = interval(table.decision_loss_points[~harmful])
    lines.append(f"Advice that keeps the guard in truth loses {mean:.2f} points ({low:.2f} to {high:.2f}) of the best.")
    cost = -table.true_own_class_change[harmful].mean()
    lines.append(f"{harmful.mean():.1%} of the advice does not: it costs {cost:.1f} points on the buyer's own classes.")
    return lines


def _recommended(offers: Offers) -> Int[np.ndarray, " P"]:
    return np.array([offers.way.index(name) for name in recommend(offers, MAX_CLASS_LOSS)])


def _largest(ways: Ways) -> Int[np.ndarray, " P"]:
    """The way with the largest gain of those that do no harm; of equal ones the first, so that nothing comes first."""
    harmless = ways.own_class_change.mean >= -MAX_CLASS_LOSS - ROUNDING
    return np.where(harmless, ways.gain_points.mean, -np.inf).argmax(axis=1)


def _of(values: Float[np.ndarray, "P ways"], way: Int[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
    """Every pair's value of its way."""
    return values[np.arange(len(way)), way]


def _gains(ways: Ways, way: Int[np.ndarray, " P"]) -> Interval:
    return Interval(*(_of(part, way) for part in ways.gain_points))


class _Drawn(NamedTuple):
    """A row of the table, and the kinds that buyer and seller rarely see."""

    row: dict[str, object]
    own_rare: list[int]
    other_rare: list[int]


def _draw_pair(generator: torch.Generator) -> _Drawn:
    order = torch.randperm(10, generator=generator).tolist()
    seller = SELLERS[int(torch.multinomial(torch.tensor(SHARES), 1, generator=generator))]
    uniform = torch.rand(6, generator=generator).tolist()
    row = {
        "seller": seller,
        "same_start": uniform[0] < 0.5,
        "own_images": round(_between(150, 1000, uniform[1])),
        "other_images": round(_between(150, 1000, uniform[2])),
        "own_kept": _between(0.02, 0.6, uniform[3]),
        "other_kept": _between(0.02, 0.6, uniform[4]),
        "other_noise": max(0.0, 0.6 * uniform[5] - 0.3),  # of half of them none
    }
    if seller == "shuffled labels":
        row["other_noise"] = SHUFFLED
    rare = {"same half": order[:5], "all kinds": []}
    return _Drawn(row, own_rare=order[:5], other_rare=rare.get(seller, order[5:]))


def _between(low: float, high: float, uniform: float) -> float:
    """Evenly on the logarithmic scale."""
    return low * math.exp(uniform * math.log(high / low))


def _hold(images: Split, drawn: _Drawn, generator: torch.Generator) -> tuple[Split, Split]:
    """What buyer and seller learn from."""
    row = drawn.row
    own = _some(images, row["own_images"], generator)
    own = data.holding(own, drawn.own_rare, row["own_kept"], generator)
    other = _some(images, row["other_images"], generator)
    other = data.holding(other, drawn.other_rare, row["other_kept"], generator)
    return own, data.flip_labels(other, row["other_noise"], 10, generator)


def _some(images: Split, number: int, generator: torch.Generator) -> Split:
    chosen = torch.randperm(len(images), generator=generator)[:number]
    return Split(images.x[chosen], images.y[chosen])


def _draw_images(population: Split, generator: torch.Generator) -> Split:
    """Each drawn from all, whether it was drawn before or not."""
    chosen = torch.randint(len(population), (IMAGES,), generator=generator)
    return Split(population.x[chosen], population.y[chosen])


def _train(net: nn.Module, rows: pd.DataFrame, holdings: list[tuple[Split, Split]], seed: int) -> tuple[Stack, Stack]:
    """The buyers, and the sellers."""
    pairs = len(rows)
    own = stack.init(net, pairs, seed=seed, purpose="simulated buyer")
    another = stack.init(net, pairs, seed=seed, purpose="simulated seller")
    other = _choose(rows.same_start, own, another)
    splits = [own for own, _ in holdings] + [other for _, other in holdings]
    orders = [stream(seed, "simulated order", who, k) for who in ("buyer", "seller") for k in range(pairs)]
    settings = {"steps": STEPS, "batch": BATCH, "lr": LEARNING_RATE, "generators": orders}
    trained = train.fit(net, stack.chain([own, other]), splits, **settings).stack
    sellers = _choose(rows.seller == "untrained", other, stack.take(trained, slice(pairs, None)))
    return stack.take(trained, slice(pairs)), sellers


def _choose(first: pd.Series, a: Stack, b: Stack) -> Stack:
    """Model k of `a` where `first` says so, otherwise that of `b`."""
    index = torch.from_numpy(np.where(first, 0, 1))
    return stack.take(stack.chain([a, b]), index * len(first) + torch.arange(len(first)))
