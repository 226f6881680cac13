"""Who trades, on what terms, judged by which examples: agents, terms, markets, splits; the market paper's setting."""

import math
import numbers
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple, no_type_check

import numpy as np
from torch import Tensor

from paramarket.base import stream, whole_number
from paramarket.data import Split, holding
from paramarket.errors import ParameterError, unknown
from paramarket.market.broker import MATCHES, PARTS
from paramarket.stack import Params

FORMS = ("alone", "trade", "average")
RULES = ("word", "quote", "audit", "warranty", "reputation")
MEASURES = ("accuracy", "loss")
GRID = tuple(round(0.05 + 0.1 * k, 2) for k in range(10))  # the authors' purchase weights; no purchase is always there

MOST_EUROS = 1e10  # for a point, or for a transfer: whatever comes of it, cents can count it

_CHOICES = {"form": FORMS, "match": MATCHES, "rule": RULES, "by": MEASURES, "parts": PARTS}
_NUMBERS = {  # the range of each, ends included
    "power": (0.0, 1.0),
    "fee": (0.0, 1.0),
    "warranted": (0.0, 1.0),
    "cost": (0.0, MOST_EUROS),
    "claim": (-100.0, 100.0),
    "max_class_loss": (0.0, 100.0),
}
_COUNTS = ("first", "every", "sellers")
MOST_SELLERS = 3


@no_type_check  # __post_init__ does it, naming the term
@dataclass(frozen=True)
class Terms:
    """How a market trades. A number of any type will do, and any sequence of shares; they become float, int and tuple.

    form: "trade", "alone" (no market), or "average" (all take the mean, weighed by examples: FedAvg)
    match: how a seller's units are brought into the buyer's order, "none" | "weights" | "activations"
    rule, what a gain rests on: "word": nothing is tried, half of the seller goes in, it promises `claim` · "quote": the
    best mixture on `quote` and its gain there · "audit": the same mixture, the lower bound of its gain on `audit` ·
    "warranty": as quote, the seller warrants the share `warranted` of it, and whoever finds less on its own examples
    (`audit`) gets its money and its weights back · "reputation": as quote; buyers report what they found, and nobody
    buys from a seller whose reports are negative on average
    by: gains in points of "accuracy", or in percent of the "loss" (the paper's Delta)
    power: the seller's, in the Nash price · cost: euros, the seller's for one transfer · fee: broker's share of a price
    first, every: rounds · sellers: how many a buyer asks in a round, in rotation · parts: "whole" | "layers"
    Raises ParameterError naming the term.

    >>> from paramarket import market
    >>> terms = market.Terms(rule="quote", shares=[0.25, 0.5], cost=2)
    >>> terms.shares, terms.cost
    ((0.25, 0.5), 2.0)
    >>> terms == market.Terms(rule="quote", shares=(0.25, 0.5), cost=2.0)
    True
    """

    form: str = "trade"
    match: str = "activations"
    rule: str = "audit"
    by: str = "accuracy"
    shares: tuple[float, ...] = GRID
    parts: str = "whole"
    sellers: int = 1
    power: float = 0.5
    cost: float = 1.0
    fee: float = 0.0
    claim: float = 5.0
    warranted: float = 0.5
    max_class_loss: float = 100.0
    first: int = 1
    every: int = 1

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ParameterError(unknown(name, getattr(self, name), known))
        for name, (low, high) in _NUMBERS.items():
            object.__setattr__(self, name, number(name, getattr(self, name), low, high))
        for name in _COUNTS:
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least=1))
        if self.sellers > MOST_SELLERS:
            raise ParameterError(f"sellers = {self.sellers}, expected one to three.")
        object.__setattr__(self, "shares", _shares(self.shares))


def plain_number(value: Any) -> float:
    """A number of any make (numpy's, torch's, a fraction, a decimal) as Python's float; NaN for what is none.

    Texts and truth values are none, and neither are several numbers.
    """
    if isinstance(value, (np.generic, np.ndarray, Tensor)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, Decimal)):
        return math.nan
    try:
        return float(value)
    except (OverflowError, ValueError):  # a whole number of 400 digits; a decimal that signals
        return math.nan


def number(name: str, value: Any, low: float, high: float) -> float:
    """The value as a float; ParameterError for text, True and False, and what is not between low and high."""
    if low <= plain_number(value) <= high:
        return plain_number(value)
    raise ParameterError(f"{name} = {value!r}, expected a number between {low:g} and {high:g}.")


def _shares(given: Any) -> tuple[float, ...]:
    shares = given.tolist() if hasattr(given, "tolist") else given  # of numpy, of torch
    if not isinstance(shares, Iterable) or isinstance(shares, str | Mapping):
        raise ParameterError(f"shares = {given!r}, expected a list of numbers between 0 and 1.")
    shares = tuple(number("a share in shares", share, 0, 1) for share in shares)
    if not shares:
        raise ParameterError("shares = (), expected one or more numbers between 0 and 1.")
    return shares


class Agent(NamedTuple):
    """One who trains and trades: bid is the euros that a point more is worth to it.

    split: what it learns from; None for one who learns no more · weights: what it starts from; None is a random point
    buys: a cheat only sells
    """

    name: str
    split: Split | None
    bid: float = 100.0
    weights: Params | None = None
    buys: bool = True


def plants(split: Split, classes: int, *, count: int, share: float, bid: float, seed: int) -> list[Agent]:
    """Agents A, B, … that rarely see half of the classes, each another half: of these they hold only that share.

    For two agents, and an even number of classes, A lacks the second half and B the first.
    """
    count = whole_number("count", count)
    if not 1 <= count <= 26:
        raise ParameterError(f"count = {count}, expected 1 to 26 agents.")
    agents = []
    for k in range(count):
        first = classes // 2 + k * classes // count
        rare = [(first + j) % classes for j in range(classes - classes // 2)]
        held = holding(split, rare, share, stream(seed, "plant", k))
        agents.append(Agent(chr(ord("A") + k), held, bid))
    return agents


class Market(NamedTuple):
    """Some agents under one set of terms; markets of equal seed start, and shuffle, alike."""

    agents: Sequence[Agent]
    terms: Terms
    seed: int


class Splits(NamedTuple):
    """The three sets that a market needs, one use each: mixtures are chosen, gains priced, results reported."""

    quote: Split
    audit: Split
    test: Split


def check_market(market: Market) -> None:
    """ParameterError, by name, for what stands in the wrong place, and for two agents of one name."""
    agents, terms, seed = market
    if not isinstance(agents, list | tuple) or not all(isinstance(agent, Agent) for agent in agents):
        raise ParameterError(f"agents: expected a list of market.Agent, got {_kind(agents)}.")
    if not isinstance(terms, Terms):
        raise ParameterError(f"terms: expected market.Terms, got {_kind(terms)}.")
    whole_number("the seed of a market", seed, least=0)
    for agent in agents:
        _check_agent(agent)
    name, times = Counter(agent.name for agent in agents).most_common(1)[0] if agents else ("", 1)
    if times > 1:
        raise ParameterError(f"{times} agents are called {name!r}: the ledger knows them by name.")


def _check_agent(agent: Agent) -> None:
    if not isinstance(agent.name, str):
        raise ParameterError(f"the name of an agent is {agent.name!r}, expected text.")
    if not isinstance(agent.split, Split | None):
        raise ParameterError(f"the split of agent {agent.name}: expected data.Split or None, got {_kind(agent.split)}.")
    number(f"the bid of agent {agent.name}", agent.bid, 0, MOST_EUROS)
    if not isinstance(agent.weights, dict | None):
        raise ParameterError(f"the weights of agent {agent.name}: expected one model, got {_kind(agent.weights)}.")
    if not isinstance(agent.buys, bool):
        raise ParameterError(f"agent {agent.name}: buys = {agent.buys!r}, expected True or False.")


def check_splits(splits: Splits) -> None:
    """ParameterError, by name, for what is no split, and for one that serves twice."""
    for name, split in splits._asdict().items():
        if not isinstance(split, Split):
            raise ParameterError(f"{name}: expected data.Split, got {_kind(split)}.")
    for one, other in (("quote", "audit"), ("quote", "test"), ("audit", "test")):
        if getattr(splits, one).x.equal(getattr(splits, other).x):
            raise ParameterError(f"{one} and {other} are the same examples: what chooses a mixture may not judge it.")


def _kind(value: Any) -> str:
    """What somebody gave, for an error."""
    kind = type(value).__name__
    if type(value) in (list, tuple) and value:
        return f"a {kind} with {type(value[0]).__name__} in it"
    return kind


# MNIST with Adam as in the authors' code: net, share kept of the rare half, and what `run` takes. They tune, decide and
# report on one set; here the three stay apart. They reset Adam after a purchase; here all do, every round.
AUTHORS = {
    "hidden": [32, 32, 32, 16],
    "kept_share": 0.2,
    "terms": Terms(match="weights", rule="quote", by="loss", cost=0.0),
    "settings": {"rounds": 50, "steps": None, "batch": 512, "lr": 0.01, "weight_decay": 0.0, "reset": True},
}
