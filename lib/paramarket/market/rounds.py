"""One round of trade under one set of terms: everybody meets, is quoted, audited, and settles; all at once."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from paramarket import price
from paramarket.align import PermutationSpec
from paramarket.data import Split
from paramarket.market import broker
from paramarket.market.broker import Audit, Quote
from paramarket.market.ledger import Ledger, move, written
from paramarket.market.terms import Agent, Market, Terms
from paramarket.price import Deal
from paramarket.stack import Stack, forward, take


class Splits(NamedTuple):
    """The three sets that a market needs, one use each: mixtures are chosen, gains priced, results reported."""

    quote: Split
    audit: Split
    test: Split


class Books(NamedTuple):
    """accounts [markets, agents + 1]: cents, the broker's last · reports [markets, agents]: points that buyers found in
    what an agent sold, summed · ledger: see there
    """

    accounts: Int[Tensor, "markets accounts"]
    reports: Float[Tensor, "markets agents"]
    ledger: Ledger


class Meetings(NamedTuple):
    """Q buyers and those they ask, as numbers within their market."""

    market: Int[Tensor, " Q"]
    buyer: Int[Tensor, " Q"]
    sellers: Int[Tensor, "Q S"]


def meetings(markets: Sequence[Market], those: Sequence[int], turn: int) -> Meetings:
    """Who asks whom in this turn, from 0 on: everyone who buys asks as many others as the terms say, in rotation.

    The rotation goes on from opening to opening, so that a market which opens seldom leaves nobody out.
    """
    terms, others, rows = markets[those[0]].terms, len(markets[those[0]].agents) - 1, []
    ask, opening = min(terms.sellers, others), (turn + 1 - terms.first) // terms.every
    for m in those:
        for i in (i for i, agent in enumerate(markets[m].agents) if agent.buys):
            rows.append([m, i, *((i + 1 + (opening * ask + s) % others) % (others + 1) for s in range(ask))])
    table = torch.tensor(rows, dtype=torch.int64).view(len(rows), 2 + ask)
    return Meetings(table[:, 0], table[:, 1], table[:, 2:])


def trade(
    net: nn.Module,
    spec: PermutationSpec,
    models: Stack,
    books: Books,
    markets: Sequence[Market],
    those: Sequence[int],
    splits: Splits,
    turn: int,
) -> tuple[Stack, Books]:
    """Models and books after one turn of the markets `those`, which share their terms; the others stay as they are."""
    terms, met, size = markets[those[0]].terms, meetings(markets, those, turn), len(markets[0].agents)
    if not len(met.buyer):
        return models, books
    mine, others = met.market * size + met.buyer, met.market.unsqueeze(1) * size + met.sellers
    lines = broker.lineup(net, spec, models, mine.tolist(), others.tolist(), terms.match, splits.quote.x)
    buyers = [markets[m].agents[i] for m, i in zip(met.market.tolist(), met.buyer.tolist(), strict=True)]
    before = take(lines, (slice(None), 0))
    own = _known(buyers, forward(net, before, splits.test.x[:1]).shape[-1])
    offer = _offer(net, lines, terms, splits.quote, own)
    audited, tested = (broker.audit(net, before, offer.models, split) for split in (splits.audit, splits.test))
    promised, deal, why = _settle(terms, buyers, met, offer, audited, books)
    traded = torch.as_tensor(deal.traded)
    after = {name: tensor.clone() for name, tensor in models.items()}
    for name in after:
        after[name][mine[traded]] = offer.models[name][traded]
    columns = _columns(markets, met, turn, terms, offer, promised, deal, why) | _gains(audited, tested, own)
    ledger = written(books.ledger, columns, before, offer.models, traded)
    return after, _booked(books, met, offer, audited, deal, ledger)


def _known(buyers: Sequence[Agent], classes: int) -> Bool[Tensor, "Q classes"]:
    """The classes that a buyer has seen most of: half as often as its commonest, or oftener."""
    counts = [torch.ones(classes) if b.split is None else b.split.y.bincount(minlength=classes) for b in buyers]
    return torch.stack([2 * count >= count.max() for count in counts])


def _offer(net: nn.Module, lines: Stack, terms: Terms, split: Split, own: Tensor) -> Quote:
    """What the buyer would get: the best mixture on the split; by word alone, half of it, and the sellers."""
    layers, sellers = broker.layer_count(lines), next(iter(lines.values())).shape[1] - 1
    if terms.rule != "word":
        weights = broker.mixtures(terms.shares, layers, sellers, terms.parts)
        return broker.quote(net, lines, weights, split, own, terms.max_class_loss)
    weights = broker.mixtures([0.5], layers, sellers)[-1:]
    return broker.quote(net, lines, weights, split)


def _settle(
    terms: Terms, buyers: Sequence[Agent], met: Meetings, offer: Quote, audited: Audit, books: Books
) -> tuple[np.ndarray, Deal, list[str]]:
    """What every seller promises (points, or percent of the loss), the deals, and what hinders each, if anything."""
    gains, scale = (audited.gain_points, 1) if terms.by == "accuracy" else (audited.gain_relative, 100)
    quoted = offer.gain_points if terms.by == "accuracy" else 100 * offer.gain_relative
    by_rule = {"word": np.full(len(buyers), terms.claim), "audit": scale * gains.low}
    promised = by_rule.get(terms.rule, quoted.double().numpy())
    value = promised.clip(min=0) * [buyer.bid for buyer in buyers]
    cost = terms.cost * np.maximum(_given(offer).sum(dim=1).numpy(), 1)  # each seller's own
    asked = np.minimum(price.nash_price(value, cost, terms.power).price, np.floor(100 * value) / 100)  # whole cents
    against = {
        "no gain": promised <= 0 if terms.rule == "word" else (promised <= 0) | (offer.choice == 0).numpy(),
        "seller not trusted": _doubted(books, met, offer) & (terms.rule == "reputation"),
        "no money": books.accounts[met.market, met.buyer].numpy() < 100 * np.nan_to_num(asked),
    }
    agreed = ~np.any(list(against.values()), axis=0)
    warranty = {"promised": terms.warranted * promised, "found": scale * gains.mean} if terms.rule == "warranty" else {}
    deal = price.settle(value, cost, asked, asked * (1 - terms.fee), agreed=agreed, unit=0.01, **warranty)
    against |= {"refunded": deal.refunded, "no price suits both": ~deal.traded}
    return promised, deal, [next((why for why, holds in against.items() if holds[q]), "") for q in range(len(buyers))]


def _given(offer: Quote) -> Bool[Tensor, "Q S"]:
    """Which of those who were asked have a part in what is offered."""
    return (offer.weights[:, :, 1:] > 0).any(dim=1)


def _doubted(books: Books, met: Meetings, offer: Quote) -> np.ndarray:
    return (_given(offer) & (books.reports[met.market.unsqueeze(1), met.sellers] < 0)).any(dim=1).numpy()


def _columns(
    markets: Sequence[Market],
    met: Meetings,
    turn: int,
    terms: Terms,
    offer: Quote,
    promised: np.ndarray,
    deal: Deal,
    why: list[str],
) -> dict:
    rows = zip(met.sellers.tolist(), _given(offer).tolist(), strict=True)
    sellers = [list(itertools.compress(asked, gives)) or asked for asked, gives in rows]
    who = [(markets[m], m, i, s) for m, i, s in zip(met.market.tolist(), met.buyer.tolist(), sellers, strict=True)]
    return {
        "market": [m for _, m, _, _ in who],
        "seed": [market.seed for market, *_ in who],
        "match": terms.match,
        "rule": terms.rule,
        "round": turn + 1,
        "buyer": [market.agents[i].name for market, _, i, _ in who],
        "seller": [" + ".join(market.agents[k].name for k in sellers) for market, _, _, sellers in who],
        "share": (1 - offer.weights[:, :, 0].mean(dim=1)).numpy(),
        "quoted": offer.gain_points.numpy(),
        "promised": promised,
        "paid": deal.paid,
        "received": deal.received,
        "buyer_surplus": deal.buyer,
        "seller_surplus": deal.seller,
        "traded": deal.traded,
        "refunded": deal.refunded,
        "why": why,
    }


def _gains(audited: Audit, tested: Audit, own: Bool[Tensor, "Q classes"]) -> dict:
    kept = tested.class_points.where(own, torch.nan)
    return {
        "audited": audited.gain_points.mean,
        "audited_low": audited.gain_points.low,
        "tested": tested.gain_points.mean,
        "relative": tested.gain_relative.mean,
        "own_classes": kept.nanmean(dim=1).numpy(),
    }


def _booked(books: Books, met: Meetings, offer: Quote, audited: Audit, deal: Deal, ledger: Ledger) -> Books:
    """Money moves, and every buyer reports what it found in what it bought of whom."""
    shares = offer.weights[:, :, 1:].mean(dim=1)
    paid, received = (torch.as_tensor(part) for part in (deal.paid, deal.received))
    accounts = move(books.accounts, met.market, met.buyer, met.sellers, shares, paid, received)
    done = torch.as_tensor(deal.traded).double()
    found = torch.as_tensor(audited.gain_points.mean).double() * done
    reports = books.reports.index_put(
        (met.market.unsqueeze(1).expand_as(met.sellers), met.sellers),
        found.unsqueeze(1) * (shares > 0),  # of whom nothing was bought nothing was found
        accumulate=True,
    )
    return Books(accounts, reports, ledger)
