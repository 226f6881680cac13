"""The class is the market: everyone hands in one file with a bid, all of them trade for a day, a league table says how.

The folder holds one folder a student, `class/anna/me.safetensors`: weights and an interface card, with the bid on it.
"""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from jaxtyping import Float
from torch import Tensor, nn

from paramarket import stack
from paramarket.errors import DataError, ParamarketError, ParameterError, WeightsError
from paramarket.market.rounds import Outcome, run
from paramarket.market.terms import MOST_EUROS, Agent, Market, Splits, Terms
from paramarket.stack import Params, Stack
from paramarket.train import evaluate

ENTRY_FILE = "me.safetensors"


class Entries(NamedTuple):
    """Who came, with which weights and bids (euros a point); and who was turned away, with the reason."""

    names: list[str]
    models: Stack
    bids: list[float]
    refused: dict[str, str]


def hand_in(folder: Path | str, params: Params, card: Mapping[str, str], bid: float) -> Path:
    """Write folder/me.safetensors. bid: the euros that one accuracy point more is worth to you."""
    if not 0 <= bid <= MOST_EUROS:
        raise ParameterError(f"bid = {bid}, expected 0 euros or more, up to {MOST_EUROS:g}.")
    path = Path(folder) / ENTRY_FILE
    stack.save(path, params, {**card, "bid": repr(float(bid))})
    return path


def read_entries(folder: Path | str, net: nn.Module, card: Mapping[str, str], x: Float[Tensor, "n ..."]) -> Entries:
    """All that was handed in, by name. A file that is no model of this net, with this card, is named and left out.

    x: some examples, to see that every network has finite answers. Raises DataError if fewer than two remain.
    """
    names = []
    models = []
    bids = []
    refused = {}
    for path in sorted(Path(folder).glob(f"*/{ENTRY_FILE}")):
        name = path.parent.name
        try:
            entry = _entry(path, net, card, x)
        except ParamarketError as error:
            refused[name] = str(error)
            continue
        names.append(name)
        models.append(entry.params)
        bids.append(entry.bid)
    if len(names) < 2:
        turned = "; ".join(refused.values()) or "none was there"
        raise DataError(f"{folder}: {len(names)} usable files */{ENTRY_FILE}, expected two or more. Refused: {turned}")
    return Entries(names, stack.join(models), bids, refused)


class _Entry(NamedTuple):
    params: Params
    bid: float


def _entry(path: Path, net: nn.Module, card: Mapping[str, str], x: Tensor) -> _Entry:
    params = stack.map(Tensor.float, stack.load(path, card))
    alone = stack.join([params])
    stack.check(net, alone, f"{path} and the net")
    if not stack.forward(net, alone, x).square().sum().isfinite():
        raise WeightsError(f"{path}: its answers are not finite.")
    text = stack.card_of(path).get("bid", "")
    try:
        bid = float(text)
    except ValueError:
        bid = math.nan
    if not 0 <= bid <= MOST_EUROS:
        raise WeightsError(f"{path}: its bid is {text!r}, expected 0 euros or more: write the file with hand_in.")
    return _Entry(params, bid)


def trading_day(net: nn.Module, entries: Entries, splits: Splits, terms: Terms, *, money: float = 1000.0) -> Outcome:
    """Everyone meets everyone once, as a buyer (if it asks one seller at a time); nobody trains. See `market.run`."""
    agents = []
    for k, name in enumerate(entries.names):
        agents.append(Agent(name, None, entries.bids[k], stack.take(entries.models, k)))
    return run(net, [Market(agents, terms, 0)], splits, rounds=len(agents) - 1, steps=0, money=money)


def league(
    net: nn.Module, entries: Entries, outcome: Outcome, splits: Splits, *, value: float, money: float = 1000.0
) -> pd.DataFrame:
    """One row a student, the best at the top: accuracy before and after (test), what was bought and sold, euros won.

    won: money at the end, less what was there, plus `value` euros for each point gained, the same for all: by its own
    bid, whoever overstates it would climb
    """
    before = evaluate(net, entries.models, splits.test).accuracy.double().numpy()
    after = outcome.accuracy[0, -1].double().numpy()
    table = pd.DataFrame({"name": entries.names, "bid": entries.bids, "before": before, "after": after})
    bought, sold = _counts(outcome.ledger.rows)
    table["bought"] = [bought[name] for name in entries.names]
    table["sold"] = [sold[name] for name in entries.names]
    table["money"] = outcome.euros[0, -1, :-1].numpy() - money
    table["won"] = table["money"] + value * 100 * (after - before)
    return table.sort_values("won", ascending=False, ignore_index=True, kind="stable").round(3)


class _Counts(NamedTuple):
    bought: Counter[str]
    sold: Counter[str]


def _counts(rows: pd.DataFrame) -> _Counts:
    """How often everybody bought, and how often it had a part in what was sold."""
    bought, sold = Counter(), Counter()
    for trade in rows.itertuples():
        if trade.traded:
            bought[trade.buyer] += 1
            sold.update(trade.sellers)
    return _Counts(bought, sold)
