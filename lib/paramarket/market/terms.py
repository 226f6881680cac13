"""Who trades and how: agents, the terms of a market, and the market paper's own setting."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from paramarket.base import stream
from paramarket.data import Split, holding
from paramarket.errors import ParameterError, unknown
from paramarket.market.broker import MATCHES, PARTS
from paramarket.stack import Params

FORMS = ("alone", "trade", "average")
RULES = ("word", "quote", "audit", "warranty", "reputation")
MEASURES = ("accuracy", "loss")
GRID = tuple(round(0.05 + 0.1 * k, 2) for k in range(10))  # the authors' purchase weights; no purchase is always there


@dataclass(frozen=True)
class Terms:
    """How a market trades.

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
        for name, known in {"form": FORMS, "match": MATCHES, "rule": RULES, "by": MEASURES, "parts": PARTS}.items():
            if getattr(self, name) not in known:
                raise ParameterError(unknown(name, getattr(self, name), known))
        for name in ("power", "fee", "warranted"):
            if not 0 <= getattr(self, name) <= 1:
                raise ParameterError(f"{name} = {getattr(self, name)}, expected a number between 0 and 1.")
        if not self.shares or not all(0 <= share <= 1 for share in self.shares):
            raise ParameterError(f"shares = {self.shares}, expected one or more numbers between 0 and 1.")
        if not (self.max_class_loss >= 0 and self.claim < float("inf")):
            found = f"max_class_loss = {self.max_class_loss}, claim = {self.claim}"
            raise ParameterError(f"{found}: expected 0 or more points, and a finite number of them.")
        if not self.cost >= 0 or self.first < 1 or self.every < 1 or not 1 <= self.sellers <= 3:
            found = f"cost = {self.cost}, first = {self.first}, every = {self.every}, sellers = {self.sellers}"
            raise ParameterError(f"{found}: expected a cost from 0, first and every from 1, one to three sellers.")


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


def plants(split: Split, classes: int, count: int, share: float, bid: float, seed: int) -> list[Agent]:
    """Agents A, B, … that rarely see half of the classes, each another half: of these they hold only that share.

    For two agents, and an even number of classes, A lacks the second half and B the first.
    """
    if not 1 <= count <= 26:
        raise ParameterError(f"count = {count}, expected 1 to 26 agents.")
    made = []
    for k in range(count):
        rare = [(classes // 2 + k * classes // count + j) % classes for j in range(classes - classes // 2)]
        made.append(Agent(chr(ord("A") + k), holding(split, rare, share, stream(seed, "plant", k)), bid))
    return made


class Market(NamedTuple):
    """Some agents under one set of terms; markets of equal seed start, and shuffle, alike."""

    agents: Sequence[Agent]
    terms: Terms
    seed: int


# MNIST with Adam as in the authors' code: net, share kept of the rare half, and what `run` takes. They tune, decide and
# report on one set; here the three stay apart. They reset Adam after a purchase; here all do, every round.
AUTHORS = {
    "hidden": [32, 32, 32, 16],
    "kept_share": 0.2,
    "terms": Terms(match="weights", rule="quote", by="loss", cost=0.0),
    "how": {"rounds": 50, "steps": None, "batch": 512, "lr": 0.01, "weight_decay": 0.0, "reset": True},
}
