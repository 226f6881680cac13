"""The class is the market: everyone hands in one file with a bid, all of them trade for a day, a league table says how.

The folder holds one folder a student, `class/anna/me.safetensors`: weights and an interface card, with the bid on it.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from jaxtyping import Float
from torch import Tensor, nn

from paramarket.errors import DataError, ParamarketError, ParameterError, WeightsError
from paramarket.market.rounds import Splits
from paramarket.market.run import Outcome, run
from paramarket.market.terms import Agent, Market, Terms
from paramarket.stack import Params, Stack, card_of, compare, forward, join, load, save, take
from paramarket.train import evaluate

FILE = "me.safetensors"


class Entries(NamedTuple):
    """Who came, with which weights and bids (euros a point); and who was turned away, with the reason."""

    names: list[str]
    models: Stack
    bids: list[float]
    refused: dict[str, str]


def hand_in(folder: Path | str, params: Params, card: Mapping[str, str], bid: float) -> Path:
    """Write folder/me.safetensors. bid: the euros that one accuracy point more is worth to you."""
    if not (math.isfinite(bid) and bid >= 0):
        raise ParameterError(f"bid = {bid}, expected 0 euros or more.")
    path = Path(folder) / FILE
    save(path, params, {**card, "bid": repr(float(bid))})
    return path


def read(folder: Path | str, net: nn.Module, card: Mapping[str, str], x: Float[Tensor, "n ..."]) -> Entries:
    """All that was handed in, by name. A file that is no model of this net, with this card, is named and left out.

    x: some examples, to see that every network has finite answers. Raises DataError if fewer than two remain.
    """
    like = {name: tensor for name, tensor in net.state_dict().items() if tensor.is_floating_point()}
    found, refused = {}, {}
    for path in sorted(Path(folder).glob(f"*/{FILE}")):
        try:
            found[path.parent.name] = _entry(path, net, card, like, x)
        except ParamarketError as error:
            refused[path.parent.name] = str(error)
    if len(found) < 2:
        turned = "; ".join(refused.values()) or "none was there"
        raise DataError(f"{folder}: {len(found)} usable files */{FILE}, expected two or more. Refused: {turned}")
    return Entries(
        list(found), join([params for params, _ in found.values()]), [bid for _, bid in found.values()], refused
    )


def _entry(path: Path, net: nn.Module, card: Mapping[str, str], like: Params, x: Tensor) -> tuple[Params, float]:
    params = {name: tensor.float() for name, tensor in load(path, card).items()}
    compare(params, like, f"{path} and the net")
    if not forward(net, join([params]), x).square().sum().isfinite():
        raise WeightsError(f"{path}: its answers are not finite.")
    text = card_of(path).get("bid", "")
    try:
        bid = float(text)
    except ValueError:
        bid = math.nan
    if not (math.isfinite(bid) and bid >= 0):
        raise WeightsError(f"{path}: its bid is {text!r}, expected 0 euros or more: write the file with hand_in.")
    return params, bid


def trading_day(net: nn.Module, entries: Entries, splits: Splits, terms: Terms, money: float = 1000.0) -> Outcome:
    """Everyone meets everyone once, as a buyer (if it asks one seller at a time); nobody trains. See `market.run`."""
    who = enumerate(zip(entries.names, entries.bids, strict=True))
    agents = [Agent(name, None, bid, take(entries.models, k)) for k, (name, bid) in who]
    return run(net, [Market(agents, terms, 0)], splits, rounds=len(agents) - 1, steps=0, money=money)


def league(
    net: nn.Module, entries: Entries, outcome: Outcome, splits: Splits, value: float, money: float = 1000.0
) -> pd.DataFrame:
    """One row a student, the best at the top: accuracy before and after (test), what was bought and sold, euros won.

    won: money at the end, less what was there, plus `value` euros for each point gained, the same for all: by its own
    bid, whoever overstates it would climb
    """
    before, rows = evaluate(net, entries.models, splits.test).accuracy.cpu(), outcome.ledger.rows
    before, after, euros = (each.double().numpy() for each in (before, outcome.accuracy[0, -1], outcome.euros[0, -1]))
    table = pd.DataFrame({"name": entries.names, "bid": entries.bids, "before": before, "after": after})
    rows = rows[rows["traded"]] if len(rows) else pd.DataFrame({"buyer": [], "seller": []}, dtype=str)
    for what, column in (("bought", "buyer"), ("sold", "seller")):
        counts = rows[column].str.split(" + ", regex=False).explode().value_counts()
        table[what] = table["name"].map(counts).fillna(0).astype(int)
    table["money"] = euros[:-1] - money
    table["won"] = table["money"] + value * 100 * (after - before)
    return table.sort_values("won", ascending=False, ignore_index=True).round(3)
