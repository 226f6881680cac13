"""The ledger: every quote and trade in a tidy table, money in whole cents, and the way back from any purchase."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from paramarket.errors import ParameterError
from paramarket.stack import Params, Stack, content_hash, take


class Ledger(NamedTuple):
    """What happened, and what it takes to undo it.

    rows: one row a quote, its index the trade's number: market, seed, match, rule, round, buyer, seller (those with a
    part in the offer, or else all who were asked); share (theirs in it), quoted, audited, tested (gains in accuracy
    points on the three splits), audited_low, relative (the tested share of the loss before), own_classes (tested points
    on the classes the buyer knew best), promised, paid, received, buyer_surplus, seller_surplus (euros), traded,
    refunded, why (there is no trade, if there is none), hash (of what was bought)
    before: the buyer's weights before each trade, by its number
    """

    rows: pd.DataFrame
    before: dict[int, Params]


def revert(ledger: Ledger, trade: int) -> Params:
    """The buyer's weights as they were before that trade, bit for bit. Raises ParameterError for what was no trade."""
    if trade not in ledger.before:
        raise ParameterError(f"trade = {trade}: no purchase bears that number; ledger.rows.query('traded') lists them.")
    return {name: tensor.clone() for name, tensor in ledger.before[trade].items()}


def opened(markets: int, agents: int, euros: float) -> Int[Tensor, "markets accounts"]:
    """Accounts in cents, an agent a column, the broker's last; every agent starts with as much, the broker with 0."""
    if not euros >= 0:
        raise ParameterError(f"money = {euros}, expected 0 euros or more.")
    accounts = torch.full((markets, agents + 1), round(100 * euros), dtype=torch.int64)
    accounts[:, -1] = 0
    return accounts


def move(
    accounts: Int[Tensor, "markets accounts"],
    market: Int[Tensor, " Q"],
    buyer: Int[Tensor, " Q"],
    sellers: Int[Tensor, "Q S"],
    shares: Tensor,
    paid: Tensor,
    received: Tensor,
) -> Int[Tensor, "markets accounts"]:
    """The accounts after Q payments, not a cent more or less in all.

    shares [Q, S]: how much of what was bought is each seller's; cents that do not divide go to the first
    paid, received [Q]: euros; the difference is the broker's
    """
    out, into = ((100 * euros).round().long() for euros in (paid, received))
    shares = shares.double()  # in float32 a third of 300 cents may be 99
    parts = (into.unsqueeze(1) * shares / shares.sum(dim=1, keepdim=True).clamp_min(1e-12)).floor().long()
    parts[:, 0] += into - parts.sum(dim=1)
    after = accounts.clone()
    after.index_put_((market, buyer), -out, accumulate=True)
    for s in range(sellers.shape[1]):
        after.index_put_((market, sellers[:, s]), parts[:, s], accumulate=True)
    after[:, -1].index_put_((market,), out - into, accumulate=True)
    return after


def written(
    ledger: Ledger, columns: Mapping[str, Sequence[Any]], before: Stack, bought: Stack, traded: Bool[Tensor, " Q"]
) -> Ledger:
    """The ledger with one more row for each of Q quotes, and the weights before those that became trades."""
    rows = pd.DataFrame(columns)
    rows.index += len(ledger.rows)
    kept, hashes = dict(ledger.before), [""] * len(rows)
    for q in traded.nonzero().flatten().tolist():
        hashes[q] = content_hash(take(bought, q))
        kept[int(rows.index[q])] = {name: tensor.clone() for name, tensor in take(before, q).items()}
    rows["hash"] = hashes
    return Ledger(rows if ledger.rows.empty else pd.concat([ledger.rows, rows]), kept)
