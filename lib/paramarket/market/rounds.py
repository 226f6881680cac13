"""The market: rounds of training and trade, of many markets side by side.

All agents of all markets are one stack: seeds and arms cost no loop. In a round everybody trains; then every market
that opens quotes, audits and settles for all its buyers at once. All quotes of a round are made before any trade of
that round, so that nobody comes first (Train 'n Trade, section 3). Money is counted in whole cents throughout.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from paramarket import price, stack
from paramarket.align import PermutationSpec, permutation_spec
from paramarket.base import is_watched, stream
from paramarket.errors import ParameterError, ShapeError
from paramarket.market import broker
from paramarket.market.broker import Audit, Quote
from paramarket.market.ledger import Books, Ledger, open_books, pay, record_quotes
from paramarket.market.terms import Agent, Market, Splits, Terms, check_market, check_splits, plain_number
from paramarket.price import Deal, to_cents, whole_units
from paramarket.stack import Stack
from paramarket.train import evaluate, fit


class Outcome(NamedTuple):
    """ledger: see there · models: all agents at the end, market by market, on their device
    accuracy [markets, rounds, agents]: on test, after the trades of each round · euros [markets, rounds, agents + 1]:
    what everyone has then, the broker last; both on the CPU
    """

    ledger: Ledger
    models: Stack
    accuracy: Float[Tensor, "markets rounds agents"]
    euros: Float[Tensor, "markets rounds accounts"]

    def table(self, rows: pd.DataFrame, agents: Sequence[str]) -> pd.DataFrame:
        """One row a market, day and agent: the columns of a grid, `day`, `agent`, `accuracy` (a share, on test).

        agents: their names, in the order in which they stand in every market · day: the round, from 1 on
        """
        return stack.table(rows, {"day": self._days(), "agent": agents}, accuracy=self.accuracy)

    def money_table(self, rows: pd.DataFrame, agents: Sequence[str]) -> pd.DataFrame:
        """One row a market, day and account: the columns of a grid, `day`, `account`, `euros` (on it, after the day).

        account: the agents' names, as in `table`, and "broker"
        """
        return stack.table(rows, {"day": self._days(), "account": [*agents, "broker"]}, euros=self.euros)

    def quote_table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """One row a quote, its index the trade's number: the columns of a grid say of which market, then the ledger's.

        The ledger's own words for a market (`market`, `seed`, `match`, `rule`) give way to the grid's, its `round` is
        called `day`; see `Ledger` for all others and their units.
        Raises ShapeError unless there is one row a market, ParameterError for a column of the grid that the ledger has
        as well, and where nobody has asked for a quote.
        """
        quotes = self.ledger.rows
        if len(rows) != len(self.accuracy):
            raise ShapeError(f"a grid of {len(rows)} rows for {len(self.accuracy)} markets: expected a row a market.")
        if quotes.empty:
            raise ParameterError("nobody has asked for a quote: no market opened, or nobody in it buys.")
        told = quotes.drop(columns=["market", "seed", "match", "rule"]).rename(columns={"round": "day"})
        for name in rows:
            if name in told:
                raise ParameterError(f"two columns would be called {name!r}: rename the grid's.")
        of_market = rows.iloc[quotes.market].set_index(quotes.index)
        return of_market.join(told)

    def _days(self) -> range:
        return range(1, self.accuracy.shape[1] + 1)


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
    money: euros that every agent starts with · device: of the models
    Raises ParameterError for markets of unequal size or under two agents, for an evaluation set that serves twice, and
    for whatever stands in the wrong place, by name.
    """
    agents = _check(markets, splits, rounds)
    books = open_books(len(markets), agents, money)
    models = _starts(net, markets, agents, device)
    spec = permutation_spec(net, splits.quote.x[:1])
    training = {
        "steps": _epoch(markets, batch) if steps is None else steps,
        "batch": batch,
        "lr": lr,
        "weight_decay": weight_decay,
        "schedule": "constant",
    }
    state = None
    accuracy = []
    euros = []
    for turn in tqdm(range(rounds), "rounds", leave=False, disable=not is_watched()):
        models, state = _train(net, models, markets, turn=turn, state=state, training=training)
        if reset:
            state = None
        for due in _due(markets, turn):
            if markets[due[0]].terms.form == "average":
                models = _average(models, markets, due)
            else:
                models, books = trade(net, spec, models, splits, books=books, markets=markets, due=due, turn=turn)
        accuracy.append(evaluate(net, models, splits.test).accuracy.view(len(markets), agents))
        euros.append(books.accounts.double() / 100)
    return Outcome(books.ledger, models, torch.stack(accuracy, dim=1), torch.stack(euros, dim=1))


def _check(markets: Sequence[Market], splits: Splits, rounds: int) -> int:
    """How many agents every market has; ParameterError for what cannot be run."""
    if rounds < 1:
        raise ParameterError(f"rounds = {rounds}, expected a round or more.")
    for market in markets:
        check_market(market)
    sizes = {len(market.agents) for market in markets}
    if len(sizes) != 1 or min(sizes) < 2:
        found = f"markets of {sorted(sizes)} agents"
        raise ParameterError(f"{found}: expected markets of equal size, of two or more agents each.")
    for market in markets:
        if market.terms.form == "average" and not all(agent.split for agent in market.agents):
            raise ParameterError("an average is weighed by examples: every agent in such a market needs a split.")
    check_splits(splits)
    return sizes.pop()


def _starts(net: nn.Module, markets: Sequence[Market], agents: int, device: torch.device | str) -> Stack:
    """Agent k of every market of one seed starts at the same point, unless it brings its weights."""
    drawn = {seed: stack.init(net, agents, seed, device) for seed in {market.seed for market in markets}}
    models = []
    for market in markets:
        for k, agent in enumerate(market.agents):
            start = stack.take(drawn[market.seed], k)
            if agent.weights is not None:
                stack.compare(agent.weights, start, f"the weights of agent {agent.name} and the net")
                start = stack.map(lambda here, brought: brought.to(here), start, agent.weights)
            models.append(start)
    return stack.join(models)


def _epoch(markets: Sequence[Market], batch: int) -> int:
    """Steps for an epoch of the agent that has most examples; 0 if nobody learns."""
    lengths = [len(agent.split) for market in markets for agent in market.agents if agent.split]
    return math.ceil(max(lengths, default=0) / batch)


# Between two rounds


class Trained(NamedTuple):
    """The models after a round of training, and what the optimiser remembers of it."""

    models: Stack
    state: dict[str, Tensor] | None


def _train(
    net: nn.Module,
    models: Stack,
    markets: Sequence[Market],
    *,
    turn: int,
    state: dict[str, Tensor] | None,
    training: Mapping[str, Any],
) -> Trained:
    """A round of training for those who learn."""
    learners = []  # where each stands in the stack
    splits = []  # what it learns from
    orders = []  # and in which order
    for m, market in enumerate(markets):
        for k, agent in enumerate(market.agents):
            if agent.split:
                learners.append(m * len(market.agents) + k)
                splits.append(agent.split)
                orders.append(_order(market.seed, k, turn))
    if not learners or training["steps"] == 0:
        return Trained(models, state)
    where = torch.tensor(learners)
    done = fit(net, stack.take(models, where), splits, generators=orders, state=state, **training)
    return Trained(_replaced(models, where, done.stack), done.state)


def _order(seed: int, agent: int, turn: int) -> torch.Generator:
    """The stream from which an agent, by its number in the market, draws the order of its examples in one round.

    Markets of equal seed shuffle alike; otherwise no two streams are one.
    """
    return stream(seed, "market", "order", agent, turn)


def _replaced(models: Stack, where: Int[Tensor, " J"], others: Stack) -> Stack:
    """The models, with `others` [J] in those places."""
    here = where.to(stack.device(models))
    return stack.map(lambda tensor, other: tensor.index_copy(0, here, other), models, others)


# Who meets whom


def _due(markets: Sequence[Market], turn: int) -> list[list[int]]:
    """The markets that open in this turn, from 0 on, by their numbers; those of equal terms together."""
    groups: dict[Terms, list[int]] = {}
    for m, market in enumerate(markets):
        terms = market.terms
        since_first = turn + 1 - terms.first
        if terms.form != "alone" and since_first >= 0 and since_first % terms.every == 0:
            groups.setdefault(terms, []).append(m)
    return list(groups.values())


class Meetings(NamedTuple):
    """Q buyers and those they ask, as numbers within their market."""

    market: Int[Tensor, " Q"]
    buyer: Int[Tensor, " Q"]
    sellers: Int[Tensor, "Q S"]


def meetings(markets: Sequence[Market], due: Sequence[int], turn: int) -> Meetings:
    """Who asks whom in this turn, from 0 on: everyone who buys asks as many others as the terms say, in rotation.

    The rotation goes on from opening to opening, so that a market which opens seldom leaves nobody out.
    """
    terms = markets[due[0]].terms
    agents = len(markets[due[0]].agents)
    others = agents - 1
    asked = min(terms.sellers, others)
    openings = (turn + 1 - terms.first) // terms.every  # before this one
    # Agents sit in a circle, and everyone asks those so many seats further on: at the first opening the next ones, at
    # the second those behind them, and so on round the circle. Seats 1 to `others` further on are the others.
    seats = [1 + (openings * asked + s) % others for s in range(asked)]
    market = []
    buyer = []
    sellers = []
    for m in due:
        for k, agent in enumerate(markets[m].agents):
            if agent.buys:
                market.append(m)
                buyer.append(k)
                sellers.append([(k + seat) % agents for seat in seats])
    whole = torch.int64
    return Meetings(
        torch.tensor(market, dtype=whole),
        torch.tensor(buyer, dtype=whole),
        torch.tensor(sellers, dtype=whole).view(len(buyer), asked),
    )


# One round of trade


class Traded(NamedTuple):
    """The models and the books after a round of trade."""

    models: Stack
    books: Books


class Appraisal(NamedTuple):
    """What is on offer to Q buyers, and what it changes on audit and on test; own: the classes that each knows best."""

    offer: Quote
    audited: Audit
    tested: Audit
    own: Bool[Tensor, "Q classes"]


class Settled(NamedTuple):
    """What was promised (points, or percent of the loss), the deals in cents, and why there is none: "" if there is."""

    promised: Float[np.ndarray, " Q"]
    deal: Deal
    why: list[str]


def trade(
    net: nn.Module,
    spec: PermutationSpec,
    models: Stack,
    splits: Splits,
    *,
    books: Books,
    markets: Sequence[Market],
    due: Sequence[int],
    turn: int,
) -> Traded:
    """Models and books after one turn of the markets `due`, which share their terms; the others stay as they are."""
    terms = markets[due[0]].terms
    agents = len(markets[due[0]].agents)
    met = meetings(markets, due, turn)
    if not len(met.buyer):
        return Traded(models, books)
    buyers = [markets[m].agents[k] for m, k in zip(met.market.tolist(), met.buyer.tolist(), strict=True)]
    where = met.market * agents + met.buyer  # the buyers in the stack, and the sellers
    sellers = met.market.unsqueeze(1) * agents + met.sellers
    lineups = broker.lineup(
        net,
        spec,
        models,
        buyers=where.tolist(),
        sellers=sellers.tolist(),
        match=terms.match,
        x=splits.quote.x,
    )
    before = stack.take(lineups, (slice(None), 0))
    appraisal = _appraise(net, lineups, before, terms, buyers, splits)
    settled = _settle(terms, buyers, met, appraisal, books)
    bought = appraisal.offer.models
    traded = torch.as_tensor(settled.deal.traded)
    columns = _ledger_columns(markets, met, turn, appraisal, settled)
    ledger = record_quotes(books.ledger, columns, before, bought, traded)
    after = _replaced(models, where[traded], stack.take(bought, traded))
    return Traded(after, _with_payments(books, met, appraisal, settled.deal, ledger))


def _appraise(
    net: nn.Module, lineups: Stack, before: Stack, terms: Terms, buyers: Sequence[Agent], splits: Splits
) -> Appraisal:
    """The best mixture on `quote`, by word alone half of the buyer and half of the sellers; and what it changes."""
    classes = stack.forward(net, before, splits.test.x[:1]).shape[-1]
    own = _known_classes(buyers, classes)
    layers = len(stack.layers(lineups))
    sellers = stack.leading(lineups, 2)[1] - 1
    if terms.rule == "word":
        half_of_all = broker.purchase_weights([0.5], layers, sellers=sellers)[-1:]
        offer = broker.quote(net, lineups, half_of_all, splits.quote)
    else:
        weights = broker.purchase_weights(terms.shares, layers, sellers=sellers, parts=terms.parts)
        offer = broker.quote(net, lineups, weights, splits.quote, own_classes=own, max_class_loss=terms.max_class_loss)
    audited = broker.audit(net, before, offer.models, splits.audit)
    tested = broker.audit(net, before, offer.models, splits.test)
    return Appraisal(offer, audited, tested, own)


def _known_classes(buyers: Sequence[Agent], classes: int) -> Bool[Tensor, "Q classes"]:
    """The classes that a buyer has seen most of: half as often as its commonest, or oftener; all, if it learns none."""
    known = []
    for buyer in buyers:
        counts = torch.ones(classes) if buyer.split is None else buyer.split.y.bincount(minlength=classes).cpu()
        known.append(2 * counts >= counts.max())
    return torch.stack(known)


def _settle(terms: Terms, buyers: Sequence[Agent], met: Meetings, appraisal: Appraisal, books: Books) -> Settled:
    """What the sellers promise, what that is worth, what it costs, the price between the two, and what comes of it."""
    offer = appraisal.offer
    promised, found = _promise(terms, appraisal)
    bids = np.array([plain_number(buyer.bid) for buyer in buyers])
    value = to_cents(promised.clip(min=0) * bids, "down")
    cost = to_cents(terms.cost, "up") * _sells(offer).sum(dim=1).clamp_min(1).numpy()  # each seller's own
    paid = whole_units(price.nash_price(value, cost, power=terms.power).price, 1)  # cents; NaN if there is none
    received = paid - whole_units(terms.fee * paid, 1)

    no_gain = promised <= 0
    if terms.rule != "word":
        no_gain |= (offer.choice == 0).numpy()
    distrusted = np.zeros(len(buyers), dtype=bool)
    if terms.rule == "reputation":
        reports = books.reports[met.market.unsqueeze(1), met.sellers]
        distrusted = (_sells(offer) & (reports < 0)).any(dim=1).numpy()
    poor = books.accounts[met.market, met.buyer].numpy() < np.nan_to_num(paid)
    agreed = ~(no_gain | distrusted | poor)
    warranty = {}
    if terms.rule == "warranty":
        warranty = {"promised": terms.warranted * promised, "found": found}
    deal = price.settle(value, cost, paid, received, agreed=agreed, **warranty)
    hindrances = {
        "no gain": no_gain,
        "seller not trusted": distrusted,
        "no money": poor,
        "refunded": deal.refunded,
        "no price suits both": ~deal.traded,
    }
    return Settled(promised, deal, [_first_reason(hindrances, q) for q in range(len(buyers))])


class Promise(NamedTuple):
    """What a rule lets a seller promise, and what the buyer finds: gains in points, or in percent of the loss."""

    promised: Float[np.ndarray, " Q"]
    found: Float[np.ndarray, " Q"]


def _promise(terms: Terms, appraisal: Appraisal) -> Promise:
    offer, audited = appraisal.offer, appraisal.audited
    if terms.by == "accuracy":
        quoted, low, found = offer.gain_points, audited.gain_points.low, audited.gain_points.mean
    else:
        quoted = 100 * offer.gain_relative
        low, found = 100 * audited.gain_relative.low, 100 * audited.gain_relative.mean
    if terms.rule == "word":
        return Promise(np.full(len(quoted), terms.claim), found)
    if terms.rule == "audit":
        return Promise(low, found)
    return Promise(quoted.double().numpy(), found)


def _first_reason(hindrances: Mapping[str, Bool[np.ndarray, " Q"]], q: int) -> str:
    """The first of the reasons that hold for quote q; "" if none does."""
    for why, holds in hindrances.items():
        if holds[q]:
            return why
    return ""


def _sells(offer: Quote) -> Bool[Tensor, "Q S"]:
    """Which of those who were asked have a part in what is offered."""
    return (offer.weights[:, :, 1:] > 0).any(dim=1)


# What is written down


def _ledger_columns(
    markets: Sequence[Market], met: Meetings, turn: int, appraisal: Appraisal, settled: Settled
) -> dict[str, Sequence[Any]]:
    """The columns of the ledger for the quotes of one turn; see `Ledger`."""
    quotes = zip(met.market.tolist(), met.buyer.tolist(), _named_sellers(markets, met, appraisal.offer), strict=True)
    columns = {name: [] for name in ("market", "seed", "match", "rule", "round", "buyer", "sellers", "seller")}
    for m, k, sellers in quotes:
        market = markets[m]
        columns["market"].append(m)
        columns["seed"].append(market.seed)
        columns["match"].append(market.terms.match)
        columns["rule"].append(market.terms.rule)
        columns["round"].append(turn + 1)
        columns["buyer"].append(market.agents[k].name)
        columns["sellers"].append(sellers)
        columns["seller"].append(" + ".join(sellers))
    offer, audited, tested, own = appraisal
    deal = settled.deal
    return {
        **columns,
        "share": (1 - offer.weights[:, :, 0].mean(dim=1)).numpy(),
        "quoted": offer.gain_points.numpy(),
        "promised": settled.promised,
        "paid": deal.paid / 100,
        "received": deal.received / 100,
        "buyer_surplus": deal.buyer / 100,
        "seller_surplus": deal.seller / 100,
        "traded": deal.traded,
        "refunded": deal.refunded,
        "why": settled.why,
        "audited": audited.gain_points.mean,
        "audited_low": audited.gain_points.low,
        "tested": tested.gain_points.mean,
        "relative": tested.gain_relative.mean,
        "own_classes": tested.class_points.where(own, torch.nan).nanmean(dim=1).numpy(),
    }


def _named_sellers(markets: Sequence[Market], met: Meetings, offer: Quote) -> list[tuple[str, ...]]:
    """The names of those with a part in each offer; of all who were asked, if nobody has one."""
    named = []
    for m, asked, sells in zip(met.market.tolist(), met.sellers, _sells(offer), strict=True):
        numbers = asked[sells] if sells.any() else asked
        named.append(tuple(markets[m].agents[k].name for k in numbers.tolist()))
    return named


def _with_payments(books: Books, met: Meetings, appraisal: Appraisal, deal: Deal, ledger: Ledger) -> Books:
    """Money moves, and every buyer reports what it found in what it bought of whom."""
    shares = appraisal.offer.weights[:, :, 1:].mean(dim=1)
    accounts = pay(
        books.accounts,
        market=met.market,
        buyer=met.buyer,
        sellers=met.sellers,
        shares=shares,
        paid=torch.as_tensor(deal.paid).long(),
        received=torch.as_tensor(deal.received).long(),
    )
    found = np.where(deal.traded, appraisal.audited.gain_points.mean, 0.0)
    reports = books.reports.index_put(
        (met.market.unsqueeze(1).expand_as(met.sellers), met.sellers),
        torch.as_tensor(found).unsqueeze(1) * (shares > 0),  # of whom nothing was bought nothing was found
        accumulate=True,
    )
    return Books(accounts, reports, ledger)


# Instead of trade


def _average(models: Stack, markets: Sequence[Market], due: Sequence[int]) -> Stack:
    """Every agent of those markets gets the mean of its market, weighed by examples (FedAvg, McMahan et al. 2017)."""
    counts = torch.tensor([[float(len(agent.split)) for agent in markets[m].agents] for m in due])
    weights = counts / counts.sum(dim=1, keepdim=True)
    agents = counts.shape[1]
    by_market = stack.unflat(models, (len(markets), agents))
    where = torch.tensor(due)
    means = stack.mix(weights.unsqueeze(1).expand(-1, agents, -1), stack.take(by_market, where))
    return stack.flat(_replaced(by_market, where, means))
