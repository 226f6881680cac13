"""The market: agents train, and every so many steps a broker lets each of them buy weights from others.

All agents of all markets are one stack: seeds and arms cost no loop. All quotes of a round are made before any trade of
that round, so that nobody comes first (Train 'n Trade, section 3).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from paramarket.align import PermutationSpec, permutation_spec
from paramarket.base import watched
from paramarket.errors import ParameterError
from paramarket.market.broker import Quote
from paramarket.market.ledger import Ledger, opened, revert
from paramarket.market.rounds import Books, Splits, trade
from paramarket.market.terms import AUTHORS, RULES, Agent, Market, Terms, plants
from paramarket.stack import Stack, chain, compare, init, mix, take
from paramarket.train import evaluate, fit

__all__ = [
    "AUTHORS",
    "RULES",
    "Agent",
    "Ledger",
    "Market",
    "Outcome",
    "Quote",
    "Splits",
    "Terms",
    "plants",
    "revert",
    "run",
]


class Outcome(NamedTuple):
    """ledger: see there · models: all agents at the end, market by market
    accuracy [markets, rounds, agents]: on test, after the trades of each round · euros [markets, rounds, agents + 1]:
    what everyone has then, the broker last
    """

    ledger: Ledger
    models: Stack
    accuracy: Float[Tensor, "markets rounds agents"]
    euros: Float[Tensor, "markets rounds accounts"]


def run(
    net: nn.Module,
    markets: Sequence[Market],
    splits: Splits,
    *,
    rounds: int,
    steps: int | None = None,
    batch: int = 64,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    reset: bool = False,
    money: float = 10_000.0,
    device: torch.device | str = "cpu",
) -> Outcome:
    """Every round all agents train, then all markets trade, each under its terms.

    steps: of training between two rounds; None is an epoch of the largest agent · lr: constant
    reset: whether every round begins with a fresh optimiser, in all arms, as in the authors' code
    money: euros that every agent starts with
    Raises ParameterError for markets of unequal size or under two agents, and for an evaluation set that serves twice.
    """
    size = _look(markets, splits, rounds)
    agents = [agent for market in markets for agent in market.agents]
    models = _started(net, markets, size, device)
    spec = permutation_spec(net, splits.quote.x[:1])
    reports = torch.zeros(len(markets), size, dtype=torch.float64)
    books = Books(opened(len(markets), size, money), reports, Ledger(pd.DataFrame(), {}))
    how = {"batch": batch, "lr": lr, "weight_decay": weight_decay, "schedule": "constant"}
    how |= {"steps": _epoch(agents, batch) if steps is None else steps}
    state, seen, had = None, [], []
    for turn in tqdm(range(rounds), "rounds", leave=False, disable=not watched()):
        models, state = _trained(net, models, markets, turn, state, how)
        state = None if reset else state
        for those in _alike(markets, turn):
            models, books = _open(net, spec, models, books, markets, those, splits, turn)
        seen.append(evaluate(net, models, splits.test).accuracy.cpu().view(len(markets), size))
        had.append(books.accounts.double() / 100)
    return Outcome(books.ledger, models, torch.stack(seen, dim=1), torch.stack(had, dim=1))


def _look(markets: Sequence[Market], splits: Splits, rounds: int) -> int:
    sizes = {len(market.agents) for market in markets}
    if len(sizes) != 1 or min(sizes) < 2 or rounds < 1:
        found = f"markets of {sorted(sizes)} agents, rounds = {rounds}"
        raise ParameterError(f"{found}: expected markets of equal size, two or more agents each, and a round or more.")
    if any(m.terms.form == "average" and not all(agent.split for agent in m.agents) for m in markets):
        raise ParameterError("an average is weighed by examples: every agent in such a market needs a split.")
    for one, other in (("quote", "audit"), ("quote", "test"), ("audit", "test")):
        a, b = getattr(splits, one).x, getattr(splits, other).x
        if a.shape == b.shape and torch.equal(a, b):
            raise ParameterError(f"{one} and {other} are the same examples: what chooses a mixture may not judge it.")
    return sizes.pop()


def _started(net: nn.Module, markets: Sequence[Market], size: int, device: torch.device | str) -> Stack:
    """Agent k of every market of one seed starts at the same point, unless it brings its weights."""
    starts = {seed: init(net, size, seed, device) for seed in {market.seed for market in markets}}
    models = chain([starts[market.seed] for market in markets])
    for at, agent in enumerate(agent for market in markets for agent in market.agents):
        if agent.weights is not None:
            compare(agent.weights, take(models, at), f"the weights of agent {agent.name} and the net")
            for name, tensor in agent.weights.items():
                models[name][at] = tensor
    return models


def _epoch(agents: Sequence[Agent], batch: int) -> int:
    return math.ceil(max((len(agent.split) for agent in agents if agent.split), default=0) / batch)


def _trained(
    net: nn.Module, models: Stack, markets: Sequence[Market], turn: int, state: dict | None, how: dict
) -> tuple[Stack, dict | None]:
    """A round of training for those who learn, each in an order that its seed, its number and the round decide."""
    agents = [(agent, market.seed, k) for market in markets for k, agent in enumerate(market.agents)]
    learners = [at for at, (agent, _, _) in enumerate(agents) if agent.split]
    if not learners or how["steps"] == 0:
        return models, state
    data = [agents[at][0].split for at in learners]
    orders = [1_000_000 * agents[at][1] + 1_000 * agents[at][2] + turn for at in learners]
    done = fit(net, take(models, learners), data, seed=orders, state=state, **how)
    at = torch.tensor(learners, device=next(iter(models.values())).device)
    return {name: tensor.index_copy(0, at, done.stack[name]) for name, tensor in models.items()}, done.state


def _alike(markets: Sequence[Market], turn: int) -> list[list[int]]:
    """The markets that open in this turn, grouped by their terms."""
    groups: dict[Terms, list[int]] = {}
    for m, market in enumerate(markets):
        due = turn + 1 >= market.terms.first and (turn + 1 - market.terms.first) % market.terms.every == 0
        if due and market.terms.form != "alone":
            groups.setdefault(market.terms, []).append(m)
    return list(groups.values())


def _open(
    net: nn.Module,
    spec: PermutationSpec,
    models: Stack,
    books: Books,
    markets: Sequence[Market],
    those: list[int],
    splits: Splits,
    turn: int,
) -> tuple[Stack, Books]:
    if markets[those[0]].terms.form == "trade":
        return trade(net, spec, models, books, markets, those, splits, turn)
    return _averaged(models, markets, those), books


def _averaged(models: Stack, markets: Sequence[Market], those: list[int]) -> Stack:
    """Every agent gets the mean of its market, weighed by examples (FedAvg, McMahan et al. 2017)."""
    counts = torch.tensor([[float(len(agent.split)) for agent in markets[m].agents] for m in those])
    weights = (counts / counts.sum(dim=1, keepdim=True)).unsqueeze(1).expand(-1, counts.shape[1], -1)
    at = torch.tensor(those, device=next(iter(models.values())).device)
    groups = {name: tensor.unflatten(0, (len(markets), -1)) for name, tensor in models.items()}
    means = mix(weights, take(groups, at))
    return {name: tensor.index_copy(0, at, means[name]).flatten(0, 1) for name, tensor in groups.items()}
