"""Pairs of plants whose right answer is known: does what we promise about a trade come true?"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from paramarket import data, stack, train
from paramarket.base import stream, whole_number
from paramarket.data import Split
from paramarket.stack import Stack

HIDDEN = 24  # units of every network
STEPS = 200  # in which every network is trained
BATCH = 32
LEARNING_RATE = 1e-2
IMAGES = 250  # of quote, and of audit, for every pair
SELLERS = ("other half", "same half", "all kinds", "shuffled labels", "untrained")
SHARES = (0.5, 0.2, 0.14, 0.08, 0.08)  # of pairs with such a seller
SHUFFLED = 0.9  # of the labels replaced by one of the nine others: what is left says nothing of the truth


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
