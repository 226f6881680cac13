"""The books: accounts in whole cents, every quote and trade in a tidy table, and the way back from any purchase."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paramarket import stack
from paramarket.errors import ParameterError, ShapeError
from paramarket.price import to_cents
from paramarket.stack import Params, Stack


class Ledger(NamedTuple):
    """What happened, and what it takes to undo it.

    rows: one row a quote, its index the trade's number: market, seed, match, rule, round, buyer, sellers (those with a
    part in the offer, or else all who were asked: a tuple of names), seller (the same in one line, to be shown); share
    (theirs in it), quoted, audited, tested (gains in accuracy points on the three splits), audited_low, relative (the
    tested share of the loss before), own_classes (tested points on the classes the buyer knew best), promised (points,
    or percent of the loss), paid, received, buyer_surplus, seller_surplus (euros, in whole cents), traded, refunded,
    why (there is no trade, if there is none), hash (of what was bought)
    before: the buyer's weights before each trade, by its number
    """

    rows: pd.DataFrame
    before: dict[int, Params]


class Books(NamedTuple):
    """accounts [markets, agents + 1]: cents, the broker's last · reports [markets, agents]: points that buyers found in
    what an agent sold, summed · ledger: see there
    """

    accounts: Int[Tensor, "markets accounts"]
    reports: Float[Tensor, "markets agents"]
    ledger: Ledger


def open_books(markets: int, agents: int, euros: float) -> Books:
    """The books before anything happened; see `open_accounts`."""
    reports = torch.zeros(markets, agents, dtype=torch.float64)
    return Books(open_accounts(markets, agents, euros), reports, Ledger(pd.DataFrame(), {}))


def open_accounts(markets: int, agents: int, euros: float) -> Int[Tensor, "markets accounts"]:
    """Accounts in cents, an agent a column, the broker's last; every agent starts with as much, the broker with 0."""
    if not 0 <= euros < float("inf"):
        raise ParameterError(f"money = {euros}, expected 0 euros or more.")
    accounts = torch.full((markets, agents + 1), int(to_cents(euros)), dtype=torch.int64)
    accounts[:, -1] = 0
    return accounts


def split_cents(cents: Int[Tensor, " Q"], shares: Float[Tensor, "Q S"]) -> Int[Tensor, "Q S"]:
    """Q sums of money, each divided among S by their shares: whole cents, not one more or less.

    Everyone gets the whole cents of its exact part; the cents that are left go, one each, to the largest remainders,
    the first of equals (the method of the largest remainder). So nobody without a share gets a cent, and nobody is a
    cent away from its exact part. The shares of a sum need not add up to 1. ParameterError if nobody has one,
    ShapeError unless every sum has its row of shares.

    >>> import torch
    >>> from paramarket import market
    >>> market.split_cents(torch.tensor([301, 100]), torch.tensor([[0.0, 0.25, 0.25], [0.3, 0.3, 0.3]])).tolist()
    [[0, 151, 150], [34, 33, 33]]
    """
    if shares.ndim != 2 or cents.shape != shares.shape[:1]:
        raise ShapeError(f"cents {tuple(cents.shape)}, shares {tuple(shares.shape)}: expected a row of shares a sum.")
    shares = shares.double()  # in float32 a third of 300 cents may be 99
    total = shares.sum(dim=1)
    if ((cents > 0) & (total <= 0)).any() or (shares < 0).any() or (cents < 0).any():
        raise ParameterError("a sum of 0 cents or more is divided by shares of 0 or more, one of them above 0.")
    exact = cents.unsqueeze(1) * shares / total.clamp_min(torch.finfo(torch.float64).tiny).unsqueeze(1)
    whole = exact.floor()
    remainder = (exact - whole).mul(1e6).round()  # equal remainders stay equal, whatever a computer makes of thirds
    remainder[shares == 0] = -1
    left = cents - whole.long().sum(dim=1)
    place = remainder.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return whole.long() + (place < left.unsqueeze(1))


def pay(
    accounts: Int[Tensor, "markets accounts"],
    *,
    market: Int[Tensor, " Q"],
    buyer: Int[Tensor, " Q"],
    sellers: Int[Tensor, "Q S"],
    shares: Float[Tensor, "Q S"],
    paid: Int[Tensor, " Q"],
    received: Int[Tensor, " Q"],
) -> Int[Tensor, "markets accounts"]:
    """The accounts after Q payments, not a cent more or less in all.

    shares: how much of what was bought is each seller's; see `split_cents` · paid, received: cents; the difference is
    the broker's
    Raises ShapeError, by name, for what is not one for each payment.
    """
    for name, each in {"buyer": buyer, "paid": paid, "received": received}.items():
        if each.shape != market.shape:
            raise ShapeError(f"{name} has shape {tuple(each.shape)}, market {tuple(market.shape)}: expected one shape.")
    if sellers.shape != shares.shape:
        raise ShapeError(f"sellers {tuple(sellers.shape)}, shares {tuple(shares.shape)}: expected one shape.")
    after = accounts.clone()
    after.index_put_((market, buyer), -paid, accumulate=True)
    after.index_put_((market.unsqueeze(1).expand_as(sellers), sellers), split_cents(received, shares), accumulate=True)
    after[:, -1].index_put_((market,), paid - received, accumulate=True)
    return after


def record_quotes(
    ledger: Ledger, columns: Mapping[str, Sequence[Any]], before: Stack, bought: Stack, traded: Bool[Tensor, " Q"]
) -> Ledger:
    """The ledger with one more row for each of Q quotes, and the weights before those that became trades."""
    rows = pd.DataFrame(columns)
    rows.index += len(ledger.rows)
    weights_before = dict(ledger.before)
    hashes = [""] * len(rows)
    for q in traded.nonzero().flatten().tolist():
        hashes[q] = stack.content_hash(stack.take(bought, q))
        weights_before[int(rows.index[q])] = stack.copy(stack.take(before, q))
    rows["hash"] = hashes
    if len(ledger.rows):
        rows = pd.concat([ledger.rows, rows])
    return Ledger(rows, weights_before)


def revert(ledger: Ledger, trade: int) -> Params:
    """The buyer's weights as they were before that trade, bit for bit. Raises ParameterError for what was no trade.

    >>> import torch, pandas as pd
    >>> from paramarket import market
    >>> ledger = market.Ledger(pd.DataFrame({"buyer": ["A"], "traded": [True]}), {0: {"1.bias": torch.tensor([2.0])}})
    >>> market.revert(ledger, trade=0)
    {'1.bias': tensor([2.])}
    """
    if trade not in ledger.before:
        raise ParameterError(f"trade = {trade}: no purchase bears that number; ledger.rows.query('traded') lists them.")
    return stack.copy(ledger.before[trade])
