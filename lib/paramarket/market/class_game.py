"""The class game, played many times: is it best to hand in the best network that one has?

In every class six students learn from images of their own. One of them, drawn by lot, plays several strategies, all
else being equal: the same class, the same five others, the same day. The others hand in what they trained, or two of
them hold back. What is found is a best reply among the strategies tried, and no proof that none is better.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from paramarket import align, data, stack, train
from paramarket.base import atomic, interval, paired, stream, whole_number
from paramarket.data import Split
from paramarket.market.classroom import foreign_origin, score
from paramarket.market.rounds import run
from paramarket.market.terms import Agent, Market, Splits, Terms
from paramarket.stack import Params, Stack

OWN_BIDS = {"half bid": 100.0, "noise, low bid": 20.0}  # euros a point, of strategies that the game does not allow
STRATEGIES = ("honest", "noise", "sandbag", "half training", "copy", "permuted copy", "part copy", *OWN_BIDS)
OTHERS = {"honest": STRATEGIES, "two sandbag": ("honest", "noise", "sandbag", "half training")}  # what is tried beside
STUDENTS = 6
HIDDEN = 32  # units of every network
STEPS = 150  # in which every network is trained
SANDBAG = 15  # steps after which a sandbagger hands in
HALF = 75  # steps after which one hands in who stops half way
PART = 0.25  # of another's weights in a part copy
BATCH = 32
LEARNING_RATE = 1e-2
IMAGES = (1000, 200, 200)  # of train, dealt to the students, of quote and of audit; the rest is test
KINDS = (3, 8)  # how many a student knows well, ends included
KEPT = (0.02, 0.3)  # the share of the other kinds that it sees, ends included
VALUE = 200.0  # euros that a point is worth
COST = 100.0  # euros, the least that a seller takes
MONEY = 20_000.0  # euros that everyone starts with
TERMS = Terms(rule="audit", cost=COST)
AT_A_TIME = 20  # classes that are trained in one stack
CLASS_GAME = Path(__file__).with_name("class_game.csv")


class _Class(NamedTuple):
    """Drawn for one class: the images, each student's share and what it knows; who plays, and whom it may copy.

    sandbaggers: who of the others holds back, where two do · shuffling: the seed of a permuted copy's order
    """

    splits: Splits
    shares: list[Split]
    kinds: list[int]
    kept: list[float]
    player: int
    victim: int
    sandbaggers: list[int]
    shuffling: int


def play_classes(classes: int, *, seed: int) -> pd.DataFrame:
    """Draw and train classes, and let one student of each play every strategy: one row a class and play.

    class: its number; class k hangs on `seed` and k alone, not on how many there are · kinds, kept: how many kinds the
    player knows, and the share of all others that it sees
    others: what the five others hand in: what they trained ("honest"), or two of them their networks after a tenth of
    the training ("two sandbag")
    strategy: the player hands in its trained network ("honest"), its untrained start ("noise"), its network after a
    tenth of the training ("sandbag") or after half of it ("half training"), another's network ("copy"), that in another
    order of its units ("permuted copy"), or a quarter of that, brought into the own order, and three quarters of the
    own ("part copy"); "half bid" and "noise, low bid" are "honest" and "noise" with a bid of 100 and 20 euros a point
    own_bid: whether it is one of these two, for the game knows one value for all (see `trading_day`)
    handed_in, after: accuracy on test (NaN where it was turned away) · money, won: euros, see `league`; the reference
    is the network that it trained, and a point is worth 200 euros, whatever was bid · turned_away: whether some of its
    weights grew from another's start
    Each class deals the 1,797 images of "digits" anew, so that the luck of the images is another in each. The rule is
    "audit"; a point is worth 200 euros, a seller takes 100 or more. Raises ParameterError for fewer than one class.
    """
    classes = whole_number("classes", classes, least=1)
    digits = data.load("digits")
    images = data.concat(digits.train, digits.quote, digits.audit, digits.test)
    net = stack.mlp(images.x[0].numel(), [HIDDEN], len(digits.classes))
    rows = []
    for first in range(0, classes, AT_A_TIME):
        some = range(first, min(first + AT_A_TIME, classes))
        drawn = [_draw(images, stream(seed, "class game", k)) for k in some]
        trained = _train(net, drawn, some, seed)
        for place, (k, each) in enumerate(zip(some, drawn, strict=True)):
            for row in _play(net, each, _Networks(*[stack.take(models, place) for models in trained])):
                rows.append({"class": k, **row})
    return pd.DataFrame(rows)


def _draw(images: Split, generator: torch.Generator) -> _Class:
    order = torch.randperm(len(images), generator=generator)
    train_part, quote, audit, test = [
        Split(images.x[part], images.y[part]) for part in order.tensor_split(np.cumsum(IMAGES).tolist())
    ]
    least, most = KINDS
    kinds = torch.randint(least, most + 1, (STUDENTS,), generator=generator).tolist()
    low, high = KEPT
    kept = (low * (high / low) ** torch.rand(STUDENTS, generator=generator)).tolist()  # evenly on the logarithmic scale
    dealing = int(torch.randint(2**31, (), generator=generator))
    shares = []
    for k in range(STUDENTS):
        rare = torch.randperm(10, generator=generator)[kinds[k] :].tolist()
        dealt = stream(dealing, "deal")  # the same for all, so that the shares are disjoint
        shares.append(data.holding(train_part, rare, kept[k], dealt, student=k + 1, students=STUDENTS))
    player, victim, *others = torch.randperm(STUDENTS, generator=generator).tolist()
    shuffling = int(torch.randint(2**31, (), generator=generator))
    return _Class(Splits(quote, audit, test), shares, kinds, kept, player, victim, others[:2], shuffling)


class _Networks(NamedTuple):
    """Of the students of one class [6], or of several [classes, 6]: at the start, early, half way, at the end."""

    starts: Stack
    early: Stack
    half: Stack
    trained: Stack


def _train(net: nn.Module, drawn: list[_Class], numbers: range, seed: int) -> _Networks:
    """All students of several classes side by side; class k as if it were alone."""
    starts = stack.chain([stack.init(net, STUDENTS, seed, purpose=f"class game {k}") for k in numbers])
    shares = [share for each in drawn for share in each.shares]
    orders = [stream(seed, "class game order", k, student) for k in numbers for student in range(STUDENTS)]
    settings = {"steps": STEPS, "batch": BATCH, "lr": LEARNING_RATE, "generators": orders, "keep": [SANDBAG, HALF]}
    done = train.fit(net, starts, shares, **settings)
    shape = (len(drawn), STUDENTS)
    found = (starts, done.kept[SANDBAG], done.kept[HALF], done.stack)
    return _Networks(*[stack.unflat(models, shape) for models in found])


def _play(net: nn.Module, drawn: _Class, networks: _Networks) -> list[dict[str, object]]:
    """The player's strategies beside each kind of others, each in a market of its own; all markets in one run."""
    entries = _entries(net, drawn, networks)
    allowed = {}
    for name, entry in entries.items():
        if not foreign_origin(net, entry, networks.starts, drawn.splits.quote.x, drawn.player + 1):
            allowed[name] = entry
    accuracies = train.evaluate(net, stack.join(list(allowed.values())), drawn.splits.test).accuracy.double()
    handed_in = dict(zip(allowed, accuracies, strict=True))
    plays = [(others, name) for others, names in OTHERS.items() for name in names if name in allowed]
    markets = []
    for others, name in plays:
        models = _others(drawn, networks, others)
        markets.append(Market(_agents(models, drawn.player, allowed[name], OWN_BIDS.get(name, VALUE)), TERMS, 0))
    outcome = run(net, markets, drawn.splits, rounds=STUDENTS - 1, steps=0, money=MONEY)
    after = dict(zip(plays, outcome.accuracy[:, -1, drawn.player].double(), strict=True))
    money = dict(zip(plays, outcome.euros[:, -1, drawn.player] - MONEY, strict=True))
    rows = []
    for play in [(others, name) for others, names in OTHERS.items() for name in names]:
        others, name = play
        row = {"kinds": drawn.kinds[drawn.player], "kept": drawn.kept[drawn.player], "others": others}
        row.update(strategy=name, own_bid=name in OWN_BIDS)
        row.update(handed_in=np.nan, after=np.nan, money=0.0, won=0.0, turned_away=name not in allowed)
        if play in after:
            won = score(money[play], after[play], handed_in["honest"], value=VALUE)
            row.update(handed_in=float(handed_in[name]), after=float(after[play]))
            row.update(money=float(money[play]), won=float(won))
        rows.append(row)
    return rows


def _entries(net: nn.Module, drawn: _Class, networks: _Networks) -> dict[str, Params]:
    """What the player hands in, strategy by strategy."""
    own = stack.take(networks.trained, drawn.player)
    start = stack.take(networks.starts, drawn.player)
    copied = stack.take(networks.trained, drawn.victim)
    spec = align.permutation_spec(net, drawn.splits.quote.x[:1])
    order = align.random_permutations(spec, copied, stream(drawn.shuffling, "permuted copy"))
    fitted = align.reorder(
        spec, own, copied, matcher=align.activation_matching, net=net, x=drawn.shares[drawn.player].x
    )
    mixed = stack.mix(torch.tensor([[1 - PART, PART]]), stack.join([own, fitted]))
    return {
        "honest": own,
        "noise": start,
        "sandbag": stack.take(networks.early, drawn.player),
        "half training": stack.take(networks.half, drawn.player),
        "copy": copied,
        "permuted copy": align.permute(spec, order, copied),
        "part copy": stack.take(mixed, 0),
        "half bid": own,
        "noise, low bid": start,
    }


def _others(drawn: _Class, networks: _Networks, others: str) -> Stack:
    """What the class hands in beside the player."""
    models = []
    for k in range(STUDENTS):
        holds_back = others == "two sandbag" and k in drawn.sandbaggers
        models.append(stack.take(networks.early if holds_back else networks.trained, k))
    return stack.join(models)


def _agents(models: Stack, player: int, entry: Params, bid: float) -> list[Agent]:
    """The class, its player with this entry and this bid."""
    agents = []
    for k in range(STUDENTS):
        weights = entry if k == player else stack.take(models, k)
        agents.append(Agent(str(k + 1), None, bid if k == player else VALUE, weights))
    return agents


def write_class_game(table: pd.DataFrame, seed: int) -> None:
    """Make a `play_classes` table the one that comes with the library; seed: that its classes were drawn with."""
    with atomic(CLASS_GAME) as beside:
        table.assign(seed=seed).round({"kept": 4, "handed_in": 4, "after": 4, "money": 2, "won": 2}).to_csv(
            beside, index=False
        )


def read_class_game() -> pd.DataFrame:
    """The `play_classes` table that comes with the library, and the column `seed`.

    >>> from paramarket import market
    >>> market.read_class_game().groupby("others").strategy.unique().map(len).to_dict()
    {'honest': 9, 'two sandbag': 4}
    """
    return pd.read_csv(CLASS_GAME)


def class_game_differences(table: pd.DataFrame) -> pd.DataFrame:
    """What the honest won more than each other strategy, in the same class beside the same others: one row each.

    class, strategy, others, own_bid: as in `play_classes` · honest_more: euros
    """
    parts = []
    for others, names in OTHERS.items():
        beside = table[table.others == others]
        for name in names[1:]:
            more = paired(beside, "won", by="class", of="honest", minus=name)
            columns = {"class": more.index, "strategy": name, "others": others, "own_bid": name in OWN_BIDS}
            parts.append(pd.DataFrame({**columns, "honest_more": more.to_numpy()}))
    return pd.concat(parts, ignore_index=True)


def class_game_summary(table: pd.DataFrame) -> pd.DataFrame:
    """By strategy and others: what the honest won more on average, its 95 % interval over classes; who won how often.

    strategy, others, own_bid: as in `play_classes` · turned_away: in how many classes · honest_more, honest_more_low,
    honest_more_high: euros · honest_better, equal, other_better: classes
    """
    keys = ["strategy", "others", "own_bid"]
    away = table.groupby(keys).turned_away.sum()
    rows = []
    for key, each in class_game_differences(table).groupby(keys, sort=False):
        more = each.honest_more
        counts = {
            "honest_better": int((more > 0).sum()),
            "equal": int((more == 0).sum()),
            "other_better": int((more < 0).sum()),
        }
        named = dict(zip(keys, key, strict=True))
        row = {**named, "turned_away": int(away[key]), **interval(more).columns("honest_more"), **counts}
        rows.append(row)
    return pd.DataFrame(rows)
