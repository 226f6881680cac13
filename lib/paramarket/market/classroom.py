"""The class is the market: everyone hands in one file, all of them trade for a day, a league table says how.

The folder holds one folder a student, `class/anna/me.safetensors`: weights and an interface card with her number on it.
The teacher has dealt student k a share of the images (`data.holding(..., student=k)`) and a start
(`stack.init(net, n, seed)`), so the teacher knows what the class's recipe makes of both, and where a network began.

The rules are made so that handing in the best network that one has is best, whatever the others do:

- The score counts from a **reference** that nobody can move (see `league`). Counted from what was handed in, an entry
  of noise would win: it gains most.
- A point is worth the same to all, and the broker prices with that value. With bids of one's own, half of the true bid
  beats the true bid, and noise with a tiny bid buys nearly for nothing.
- A network must have grown from its owner's own start, and no part of it from another's (see `foreign_origin`), so
  nobody hands in what somebody else has trained by copying it, whole, in another order, or in parts of some size.

What these rules cannot do. The starts are known, so whoever knows the rule and works at it may pass: with a network of
its own that was taught another's answers, or with a small enough part of another's. And no weight tells which images a
network has seen: whoever trains on quote, audit or test, or on more than the share that was dealt, passes. In earnest
the teacher prices and scores on images that no student has.
"""

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, SupportsIndex

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from paramarket import align, stack
from paramarket.align import PermutationSpec, permutation_spec
from paramarket.base import is_watched, whole_number
from paramarket.errors import DataError, ParamarketError, ParameterError, WeightsError, unknown
from paramarket.market.rounds import Outcome, run
from paramarket.market.terms import Agent, Market, Splits, Terms
from paramarket.stack import Params, Stack
from paramarket.train import evaluate

ENTRY_FILE = "me.safetensors"
LARGEST = 1e6  # no weight of a network that learnt, and nothing that it says, comes near
LIKENESSES = ("sign", "size")
MISTAKES = 1e-3  # in so many classes chance finds a single likeness between some network and some start, or fewer


class Entries(NamedTuple):
    """Who came, with which student's number (from 1 on) and weights; and who was turned away, with the reason."""

    names: list[str]
    students: list[int]
    models: Stack
    refused: dict[str, str]


def hand_in(folder: Path | str, params: Params, card: Mapping[str, str], *, student: SupportsIndex) -> Path:
    """Write folder/me.safetensors. student: your number in the class, from 1 on; your start goes with it.

    Raises ParameterError for a number that is none, WeightsError for weights that are not finite.
    """
    number = whole_number("student", student, least=1)
    path = Path(folder) / ENTRY_FILE
    stack.save(path, params, {**card, "student": str(number)})
    return path


def read_entries(
    folder: Path | str, net: nn.Module, card: Mapping[str, str], x: Float[Tensor, "n ..."], starts: Stack
) -> Entries:
    """All that was handed in, by name. Whoever may not trade is named and left out, with the reason.

    That is a file that is no model of this net, with this card; a network that did not grow from its student's own
    start, or has a part that grew from another's (see `origins`); and two entries with one number.
    x: examples, the more the better, to see that every network has answers of a size that can be traded, and which
    inputs vary at all (see `origins`)
    starts: where the students began, number k at place k - 1
    Whatever one file holds, the others are read. Raises DataError if fewer than two remain, and ParameterError for
    fewer than two starts.
    """
    _check_starts(starts)
    found = {}
    refused = {}
    for path in tqdm(_handed_in(Path(folder)), "at the door", leave=False, disable=not is_watched()):
        name = path.parent.name
        try:
            entry = _entry(path, net, card, x, starts)
        except ParamarketError as error:
            refused[name] = str(error)
        except Exception as error:  # what is wrong with one file must not end the day of thirty
            refused[name] = f"{path} cannot be read ({type(error).__name__}: {error})."
        else:
            found[name] = entry
    twice = _numbers_used_twice(found)
    refused.update(twice)
    names = [name for name in found if name not in twice]
    if len(names) < 2:
        turned = "; ".join(refused.values()) or "none was there"
        raise DataError(f"{folder}: {len(names)} usable files */{ENTRY_FILE}, expected two or more. Refused: {turned}")
    students = [found[name].student for name in names]
    models = stack.join([found[name].params for name in names])
    return Entries(names, students, models, refused)


def origins(
    net: nn.Module,
    models: Stack,
    starts: Stack,
    x: Float[Tensor, "n ..."],
    *,
    by: str = "sign",
    any_order: bool = False,
) -> Float[Tensor, "K students layers"]:
    """How far each network is like each start, layer by layer, in standard errors of what chance would make of it.

    A network remembers where it began: training adds to its start, and turns few of its signs. With weights w and a
    start s the likeness is sum(v s) / sqrt(sum(v^2 s^2)), v = sign(w), over the weights of a layer. Each start is as
    likely as its mirror image, so for a network that has nothing to do with s this is a sum of coins: its standard
    error is 1, and it exceeds t with a probability below exp(-t^2 / 2), whatever the network (Hoeffding 1963,
    theorem 2). See `least_likeness` for the bar.
    by: "sign", of which none outshouts another: a few huge weights hide nothing, nor does it help to make a unit
    larger and what reads it smaller · "size": v = w, which finds a smaller part of another's where nobody hides it
    x: examples; a weight on an input that is the same in all of them counts for nothing, for it says nothing that a
    bias could not say, and can be anything. (Looked for in dense nets, whose first layer reads every input alone.)
    Neither does a weight with which all starts begin, as the ones of a norm.
    any_order: whether the units of each network are first laid in the order that fits each start best, which raises
    the likeness of the whole (weight matching of v); so a copy with its units in another order is found
    Raises ParameterError for fewer than two starts and another `by`, and ShapeError for models of another net.
    """
    if by not in LIKENESSES:
        raise ParameterError(unknown("by", by, LIKENESSES))
    _check_starts(starts)
    stack.compare(stack.take(models, 0), stack.take(starts, 0), "the models and the starts")
    dealt = _telling(net, starts, x)
    # Named in the order of the starts: a file may have another.
    values = stack.map(lambda start, tensor: tensor.cpu() * (start != 0).any(dim=0), dealt, models)
    if by == "sign":
        values = stack.map(torch.sign, values)
    if not any_order:
        return _likeness(values, dealt)
    spec = permutation_spec(net, x[:1])
    rows = []
    for k in range(stack.count(models)):
        own = stack.take(values, k)
        fitted = stack.join([align.reorder(spec, stack.take(dealt, j), own) for j in range(stack.count(starts))])
        rows.append(_likeness(fitted, dealt).diagonal().T)
    return torch.stack(rows)


def _telling(net: nn.Module, starts: Stack, x: Float[Tensor, "n ..."]) -> Stack:
    """The starts, 0 wherever a weight tells nothing: all begin with it, or it reads what never varies over x."""
    dealt = stack.map(lambda tensor: tensor.cpu() * (tensor != tensor[0]).any(dim=0).cpu(), starts)
    if not stack.is_dense(net):
        return dealt
    first = next(name for name, part in net.named_children() if not isinstance(part, nn.Flatten))
    if isinstance(net.get_submodule(first), nn.Linear):
        inputs = x.flatten(1).cpu()
        dealt[f"{first}.weight"] = dealt[f"{first}.weight"] * (inputs != inputs[0]).any(dim=0)
    return dealt


def _likeness(values: Stack, dealt: Stack) -> Float[Tensor, "K students layers"]:
    found = []
    for layer in stack.layers(dealt):
        value = stack.vectors(_of_layer(values, layer)).double()
        start = stack.vectors(_of_layer(dealt, layer)).double()
        error = (value.square() @ start.square().T).sqrt()
        found.append(value @ start.T / error.clamp_min(torch.finfo(torch.float64).tiny))
    return torch.stack(found, dim=-1)


def _of_layer(models: Stack, layer: str) -> Stack:
    return {name: models[name] for name in models if stack.layer_of(name) == layer}


def least_likeness(
    net: nn.Module, starts: Stack, x: Float[Tensor, "n ..."], *, any_order: bool = False
) -> Float[Tensor, " layers"]:
    """The likeness (see `origins`) that chance reaches in any layer in fewer than one class in a thousand.

    Each of n networks meets each of n starts in each of L layers in four ways: by sign and by size, in the order that
    it has and in the best, which may be any of N = u1! u2! for a layer between u1 and u2 units. Chance has so many
    tries: with 4 n^2 L N exp(-t^2 / 2) = 1 / 1000, t = sqrt(2 log(4000 n^2 L N)). any_order: N of the layer, else N = 1

    >>> import torch
    >>> from paramarket import market, stack
    >>> net = stack.mlp(64, [32], 10)
    >>> starts, x = stack.init(net, 6, seed=0), torch.zeros(1, 64)
    >>> market.least_likeness(net, starts, x)
    tensor([5.0141, 5.0141], dtype=torch.float64)
    >>> market.least_likeness(net, starts, x, any_order=True)
    tensor([13.7207, 13.7207], dtype=torch.float64)
    """
    layers = stack.layers(starts)
    tries = math.log(4 * stack.count(starts) ** 2 * len(layers) / MISTAKES)
    orders = [0.0] * len(layers)  # log N
    if any_order:
        spec = permutation_spec(net, x[:1])
        orders = [_log_orders(spec, starts, layer) for layer in layers]
    return torch.tensor([math.sqrt(2 * (tries + count)) for count in orders], dtype=torch.float64)


def _log_orders(spec: PermutationSpec, starts: Stack, layer: str) -> float:
    """The logarithm of how many orders the units that a layer reads, and those that it says, can stand in."""
    of_layer = replace(spec, axes={name: axes for name, axes in spec.axes.items() if stack.layer_of(name) == layer})
    return sum(math.lgamma(1 + count) for count in align.sizes(of_layer, stack.take(starts, 0)).values())


def foreign_origin(net: nn.Module, params: Params, starts: Stack, x: Float[Tensor, "n ..."], student: int) -> str:
    """Why a network is not this student's own (number `student`, from 1 on), or not all of it; "" if it is.

    It must be like no other's start in any layer, whatever the order of its units, by sign and by size (see `origins`,
    `least_likeness`): a single layer of another's is a copy, too. And it must be like its own, by sign, in every layer,
    but for one so small that even a start is not twice as like itself as the bar, which tells nothing.

    Measured on nine networks of three times 64 units, trained on a ninth of mnist-5k each, bar 5.3, in another order
    20.9 (the outer layers) or 29.1. Part: a quarter of another's weights, brought into one's own order and mixed with
    one's own, is found, and so are 8 of its 64 units a layer in any order; of 15 % of the weights not all. Of smaller
    networks only larger parts are: with one layer of 32 units (`play_classes`) half was found in 18 of 20 classes, a
    quarter in none. Honest: the likeness to the own start is least in the last layer; with a learning rate of 3e-3 it
    was 16.8 or more, up to 2,000 steps and a weight decay of 0.6. Large steps with much decay forget: at 1e-2 and 0.3
    it was 7.6 after 500 steps and nothing after 1,000, where an honest network is refused.
    """
    alone = stack.join([params])
    return _from_another(net, alone, starts, x, student) or _not_from_own(net, alone, starts, x, student)


def _from_another(net: nn.Module, alone: Stack, starts: Stack, x: Float[Tensor, "n ..."], student: int) -> str:
    for any_order, order in ((False, "the order of its units"), (True, "the best order of its units")):
        bar = least_likeness(net, starts, x, any_order=any_order)
        for by in LIKENESSES:
            found = origins(net, alone, starts, x, by=by, any_order=any_order)[0]
            other = _other_origin(found, bar, student)
            if other is not None:
                return (
                    f"it grew, as a whole or in part, from the start of student {other.student} (layer {other.layer}: "
                    f"in {order} likeness {other.likeness:.1f} by {by}, by chance {other.bar:.1f} or less)"
                )
    return ""


def _not_from_own(net: nn.Module, alone: Stack, starts: Stack, x: Float[Tensor, "n ..."], student: int) -> str:
    bar = least_likeness(net, starts, x)
    whole = origins(net, stack.take(starts, [student - 1]), starts, x)[0, student - 1]
    asked = (whole > 2 * bar).nonzero().flatten().tolist()
    if not asked:
        return "whose it is cannot be told: no layer has weights enough, on inputs that vary, that the starts differ in"
    own = origins(net, alone, starts, x)[0, student - 1]
    for layer in asked:
        if own[layer] <= bar[layer]:
            return (
                f"it did not grow from the start of student {student}, or not all of it (layer {layer + 1}: likeness "
                f"{own[layer]:.1f}, of a network's own more than {bar[layer]:.1f})"
            )
    return ""


class _Origin(NamedTuple):
    """Of a network's layer: the student whose start it is like; both count from 1."""

    student: int
    layer: int
    likeness: float
    bar: float


def _other_origin(
    found: Float[Tensor, "students layers"], bar: Float[Tensor, " layers"], student: int
) -> _Origin | None:
    """Where the network of this student is like another's start, the likest place; None if it is nowhere."""
    above = found - bar
    above[student - 1] = -math.inf
    if above.max() <= 0:
        return None
    other, layer = divmod(int(above.argmax()), len(bar))
    return _Origin(other + 1, layer + 1, float(found[other, layer]), float(bar[layer]))


def _check_starts(starts: Stack) -> None:
    if stack.count(starts) < 2:
        raise ParameterError(f"{stack.count(starts)} start(s), expected one for each of two students or more.")


def _handed_in(folder: Path) -> list[Path]:
    """The students' files; what only bears the name of one, a link to nothing, say, is among them."""
    if not folder.is_dir():
        return []
    paths = [each / ENTRY_FILE for each in sorted(folder.iterdir())]
    return [path for path in paths if os.path.lexists(path)]


class _Entry(NamedTuple):
    path: Path
    student: int
    params: Params


def _entry(path: Path, net: nn.Module, card: Mapping[str, str], x: Tensor, starts: Stack) -> _Entry:
    _check_place(path, net)
    params = stack.map(Tensor.float, stack.load(path, card))
    alone = stack.join([params])
    stack.check(net, alone, f"{path} and the net")
    fault = _fault(net, alone, x)
    if fault:
        raise WeightsError(f"{path}: {fault}.")
    student = _student_on(path, stack.count(starts))
    foreign = foreign_origin(net, params, starts, x, student)
    if foreign:
        raise WeightsError(f"{path}: {foreign}.")
    return _Entry(path, student, params)


def _student_on(path: Path, students: int) -> int:
    """The number on a file's card; WeightsError if there is none in this class."""
    text = stack.card_of(path).get("student", "")
    plain = text.isascii() and text.isdecimal() and len(text) < 10
    number = int(text) if plain else 0
    if not 1 <= number <= students:
        raise WeightsError(
            f"{path}: its student is {text[:40]!r}, expected a number from 1 to {students}: write the file with "
            "hand_in."
        )
    return number


def _numbers_used_twice(found: Mapping[str, _Entry]) -> dict[str, str]:
    """Why nobody of several entries with one number trades, by name: which is the student's own cannot be told."""
    numbers = Counter(entry.student for entry in found.values())
    reasons = {}
    for name, entry in found.items():
        if numbers[entry.student] > 1:
            others = [other for other in found if found[other].student == entry.student and other != name]
            reasons[name] = f"{entry.path}: student {entry.student} has handed in as {' and as '.join(others)}, too."
    return reasons


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


def trading_day(
    net: nn.Module,
    entries: Entries,
    splits: Splits,
    terms: Terms,
    *,
    value: float,
    rounds: int | None = None,
    money: float = 1000.0,
) -> Outcome:
    """So many rounds of trade; in each everybody asks as many others as the terms say, and nobody trains.

    value: euros that an accuracy point is worth, to everyone alike · rounds: None is as many as there are others, so
    that each asks each (if they ask one at a time); a large class takes fewer, and asks in rotation (see `meetings`)
    Raises WeightsError, by name, for a network whose answers to the day's examples cannot be traded.
    """
    agents = []
    for k, name in enumerate(entries.names):
        for split in splits:
            fault = _fault(net, stack.take(entries.models, [k]), split.x)
            if fault:
                raise WeightsError(f"{name}: {fault}. Read the entries anew, with the day's own examples as x.")
        agents.append(Agent(name, None, value, stack.take(entries.models, k)))
    turns = len(agents) - 1 if rounds is None else rounds
    return run(net, [Market(agents, terms, 0)], splits, rounds=turns, steps=0, money=money)


def league(
    net: nn.Module,
    entries: Entries,
    outcome: Outcome,
    splits: Splits,
    *,
    reference: Float[Tensor, " students"],
    value: float,
    money: float = 1000.0,
) -> pd.DataFrame:
    """One row a student, the best at the top, and at the bottom those who were turned away.

    name · reference, handed_in, after: accuracies on test, of the reference, of what was handed in, and at the end ·
    bought, sold: how often · money: euros at the end, less what was there · won: money + value · 100 · (after -
    reference) · turned_away: the reason, "" for those who traded
    reference: for each number of a student, the accuracy **on test** of a network that the class's recipe makes of that
    student's share and start; the teacher has dealt both, so nothing that is handed in moves it. On test, because
    `after` is: the score is the difference of two accuracies, and on the same images what is luck of the images is
    mostly in both. Nothing is chosen by it, so `test` is still only reported.
    value, money: the same as of the day (`trading_day`)

    Who holds something back ("sandbagging") gains more by trade, and under `after - handed_in` climbs by that. Here it
    sells less, pays for every point that it buys back, and ends no higher. (It pays the sellers' share of the gain, so
    their `power` must be above 0.) Who is turned away trades nothing and wins 0: as much as by staying at home.
    Raises ParameterError for a student without a reference.
    """
    if max(entries.students) > len(reference):
        raise ParameterError(f"{len(reference)} references, but a student {max(entries.students)}: expected one each.")
    handed_in = evaluate(net, entries.models, splits.test).accuracy.double()
    after = outcome.accuracy[0, -1].double()
    before = torch.as_tensor(reference).double()[torch.tensor(entries.students) - 1]
    earned = outcome.euros[0, -1, :-1] - money
    bought, sold = _counts(outcome.ledger.rows)
    columns = {
        "name": entries.names,
        "reference": before.numpy(),
        "handed_in": handed_in.numpy(),
        "after": after.numpy(),
        "bought": [bought[name] for name in entries.names],
        "sold": [sold[name] for name in entries.names],
        "money": earned.numpy(),
        "won": score(earned, after, before, value=value).numpy(),
        "turned_away": "",
    }
    traders = pd.DataFrame(columns).sort_values("won", ascending=False, kind="stable")
    others = {"name": list(entries.refused), "bought": 0, "sold": 0, "money": 0.0, "won": 0.0}
    turned_away = pd.DataFrame({**others, "turned_away": list(entries.refused.values())})
    tables = [table for table in (traders, turned_away) if len(table)]
    return pd.concat(tables, ignore_index=True).round(3)


def score(
    money: Float[Tensor, "*n"], after: Float[Tensor, "*n"], reference: Float[Tensor, "*n"], *, value: float
) -> Float[Tensor, "*n"]:
    """Euros won: the money that trade brought in, and `value` for each accuracy point above the reference."""
    return money + value * 100 * (after - reference)


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
