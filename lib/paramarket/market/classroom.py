"""The class is the market: everyone hands in one file with a bid, all of them trade for a day, a league table says how.

The folder holds one folder a student, `class/anna/me.safetensors`: weights and an interface card, with the bid on it.
"""

import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jaxtyping import Float
from torch import Tensor, nn

from paramarket import stack
from paramarket.errors import DataError, ParamarketError, ParameterError, WeightsError
from paramarket.market.rounds import Outcome, run
from paramarket.market.terms import MOST_EUROS, Agent, Market, Splits, Terms, plain_number
from paramarket.stack import Params, Stack
from paramarket.train import evaluate

ENTRY_FILE = "me.safetensors"
LARGEST = 1e6  # no weight of a network that learnt, and nothing that it says, comes near


class Entries(NamedTuple):
    """Who came, with which weights and bids (euros a point); and who was turned away, with the reason."""

    names: list[str]
    models: Stack
    bids: list[float]
    refused: dict[str, str]


def hand_in(folder: Path | str, params: Params, card: Mapping[str, str], bid: Any) -> Path:
    """Write folder/me.safetensors. bid: the euros that one accuracy point more is worth to you, a number of any make.

    Raises ParameterError for a bid that is none, WeightsError for weights that are not finite.
    """
    euros = plain_number(bid)
    if not 0 <= euros <= MOST_EUROS:
        raise ParameterError(f"bid = {bid}, expected 0 euros or more, up to {MOST_EUROS:g}.")
    path = Path(folder) / ENTRY_FILE
    stack.save(path, params, {**card, "bid": repr(euros)})
    return path


def read_entries(folder: Path | str, net: nn.Module, card: Mapping[str, str], x: Float[Tensor, "n ..."]) -> Entries:
    """All that was handed in, by name. A file that is no model of this net, with this card, is named and left out.

    x: some examples, the more the better, to see that every network has answers of a size that can be traded. Whatever
    one file holds, the others are read. Raises DataError if fewer than two remain.
    """
    names = []
    models = []
    bids = []
    refused = {}
    for path in _handed_in(Path(folder)):
        name = path.parent.name
        try:
            entry = _entry(path, net, card, x)
        except ParamarketError as error:
            refused[name] = str(error)
            continue
        except Exception as error:  # what is wrong with one file must not end the day of thirty
            refused[name] = f"{path} cannot be read ({type(error).__name__}: {error})."
            continue
        names.append(name)
        models.append(entry.params)
        bids.append(entry.bid)
    if len(names) < 2:
        turned = "; ".join(refused.values()) or "none was there"
        raise DataError(f"{folder}: {len(names)} usable files */{ENTRY_FILE}, expected two or more. Refused: {turned}")
    return Entries(names, stack.join(models), bids, refused)


def _handed_in(folder: Path) -> list[Path]:
    """The students' files; what only bears the name of one, a link to nothing, say, is among them."""
    if not folder.is_dir():
        return []
    paths = [each / ENTRY_FILE for each in sorted(folder.iterdir())]
    return [path for path in paths if os.path.lexists(path)]


class _Entry(NamedTuple):
    params: Params
    bid: float


def _entry(path: Path, net: nn.Module, card: Mapping[str, str], x: Tensor) -> _Entry:
    _check_place(path, net)
    params = stack.map(Tensor.float, stack.load(path, card))
    alone = stack.join([params])
    stack.check(net, alone, f"{path} and the net")
    fault = _fault(net, alone, x)
    if fault:
        raise WeightsError(f"{path}: {fault}.")
    text = stack.card_of(path).get("bid", "")
    try:
        bid = math.nan if "_" in text else float(text)
    except ValueError:
        bid = math.nan
    if not 0 <= bid <= MOST_EUROS:
        raise WeightsError(f"{path}: its bid is {text[:40]!r}, expected 0 euros or more: write the file with hand_in.")
    return _Entry(params, bid)


def _check_place(path: Path, net: nn.Module) -> None:
    """WeightsError for a link, which could lead to anybody's file, and for a file far larger than such a model."""
    if path.is_symlink() or path.parent.is_symlink():
        raise WeightsError(f"{path} is a link: hand in the file itself.")
    if not path.is_file():
        raise WeightsError(f"{path} is no file.")
    numbers = sum(tensor.numel() for tensor in net.state_dict().values())
    most = 16 * numbers + 2**20  # in float64, with a long card
    if path.stat().st_size > most:
        raise WeightsError(f"{path} has {path.stat().st_size:,} bytes, a model of this net has {most:,} or fewer.")


def _fault(net: nn.Module, alone: Stack, x: Tensor) -> str:
    """What keeps a model from being matched, mixed and scored with others; nothing if it can be.

    A single weight of 1e30 would overflow in every mixture that has a part of it, and end the day for all.
    """
    if not all(tensor.isfinite().all() for tensor in alone.values()):
        return "its weights are not finite in float32"
    said = list(stack.features(net, alone, x).values()) if stack.is_dense(net) else [stack.forward(net, alone, x)]
    if not all(layer.isfinite().all() for layer in said):
        return "its answers are not finite"
    largest = max(float(tensor.abs().amax()) for tensor in [*alone.values(), *said])
    return f"its weights or answers reach {largest:.0e}, expected less than {LARGEST:.0e}" if largest > LARGEST else ""


def trading_day(net: nn.Module, entries: Entries, splits: Splits, terms: Terms, *, money: float = 1000.0) -> Outcome:
    """Everyone meets everyone once, as a buyer (if it asks one seller at a time); nobody trains. See `market.run`.

    Raises WeightsError, by name, for a network whose answers to the day's examples cannot be traded.
    """
    agents = []
    for k, name in enumerate(entries.names):
        for split in splits:
            fault = _fault(net, stack.take(entries.models, [k]), split.x)
            if fault:
                raise WeightsError(f"{name}: {fault}. Read the entries anew, with the day's own examples as x.")
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
