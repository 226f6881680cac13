"""Ways to use another network, on equal terms: tuned on `quote` alone, measured on `audit` alone, chosen on `quote`.

Many pairs at once are two stacks: the k-th buyer and the k-th other network. A case is a pair and the part of its quote
that may be tuned on: all of it, or all but one fold. All cases of all pairs are one stack.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from tqdm.auto import tqdm

from paramarket import align, market, merge, specialists, stack, train
from paramarket.align import PermutationSpec
from paramarket.base import Interval, interval, is_watched, stream
from paramarket.data import Split
from paramarket.errors import DataError, ParameterError, ShapeError, WeightsError, unknown
from paramarket.merge import MergeMethod
from paramarket.stack import Stack

NOTHING = "nothing"  # the way that buys nothing
LABELS = "trained on quote's labels"  # the way that needs no partner
POINTS = 9  # shares of the other network to try: 0, 1/8, …, 1
FEW_POINTS = 5  # where a candidate takes longer: 0, 1/4, …, 1
FOLDS = 4  # parts of quote: each is judged by what was tuned on the others
STEPS = 50  # of a router, and of a student
EPOCHS = (0, 1, 2, 4, 8)  # on the labels of quote: the number to take is tuned
BATCH = 64  # examples in a step of training on labels
LEARNING_RATE = 1e-3
ROUTER_SETTINGS = {"lr": 5e-3, "weight_decay": 0.1, "schedule": "constant"}  # those of `specialists.fit_router`
CLEAR = 1.96  # standard errors: what is saved by more is clear of chance
AT_ONCE = 2**23  # numbers, about, in the examples and models of the pairs that are tuned at once
TEMPERATURES = [2 ** (k / 4) for k in range(-12, 13)]  # to calibrate candidates: from 1/8 to 8

Leak = Literal["weights", "probabilities", "nothing"]
Needs = Literal["answers", "one architecture", "one MLP"]


@dataclass(frozen=True, eq=False)
class Cases:
    """What a way may look at, of P pairs in V = 1 + FOLDS cases each. Audit is not in it.

    own, other: two stacks [P], of `net` and of `other_net` · spec: the symmetry of the one architecture; None if there
    are two, or if it is unknown
    x, y: quote, x [n, ...] for all pairs or [P, n, ...], y [P, n] · fold [P, n]: the fold that an example belongs to
    kept [P, V, n]: the examples that a case may tune on; first all of them, then all but fold 0, 1, …
    max_class_loss: accuracy points that a mixture may cost on the buyer's own classes, on average
    seed: of every draw; all pairs draw the same numbers, so that a pair gets in company what it would get alone
    What several ways ask for is made once.
    """

    net: nn.Module
    spec: PermutationSpec | None
    own: Stack
    other_net: nn.Module
    other: Stack
    x: Tensor
    y: Int[Tensor, "P n"]
    fold: Int[Tensor, "P n"]
    kept: Bool[Tensor, "P V n"]
    max_class_loss: float
    seed: int

    @property
    def parts(self) -> int:
        """V, the number of cases of one pair."""
        return self.kept.shape[1]

    def repeat(self, models: Stack) -> Stack:
        """One model a pair [P] as one a case [P · V]."""
        return stack.map(lambda tensor: tensor.repeat_interleave(self.parts, dim=0), models)

    @property
    def case_x(self) -> Tensor:
        """The examples of quote for models [P · V]."""
        return self.x if _is_shared(self.x) else self.x.repeat_interleave(self.parts, dim=0)

    @cached_property
    def each(self) -> list[tuple[int, Bool[Tensor, " n"]]]:
        """For every case its pair, and the examples that it may tune on."""
        return [(pair, kept) for pair, some in enumerate(self.kept) for kept in some]

    @cached_property
    def splits(self) -> list[Split]:
        """What each case may tune on."""
        return [self.split(pair, kept) for pair, kept in self.each]

    def split(self, pair: int, kept: Bool[Tensor, " n"]) -> Split:
        """Some examples of one pair's quote."""
        x = self.x if _is_shared(self.x) else self.x[pair]
        return Split(x[kept], self.y[pair, kept])

    @cached_property
    def held_out(self) -> Int[Tensor, "P folds most"]:
        """The examples of every fold; in a smaller fold the last stands twice."""
        sizes = self.fold[0].bincount(minlength=FOLDS)
        starts = sizes.cumsum(0) - sizes
        places = torch.arange(int(sizes.max())).minimum(sizes.unsqueeze(1) - 1)
        return self.fold.argsort(dim=1, stable=True)[:, starts.unsqueeze(1) + places]

    @cached_property
    def fold_x(self) -> Float[Tensor, "P_folds most ..."]:
        """The examples of every fold, for a model each."""
        x = self.x.expand(len(self.y), *self.x.shape) if _is_shared(self.x) else self.x
        rows = torch.arange(len(x)).view(-1, 1, 1)
        return x[rows, self.held_out].flatten(0, 1)

    @cached_property
    def log_chances(self) -> Float[Tensor, "2 P n classes"]:
        """What both networks of every pair answer on quote, as logarithms of probabilities."""
        return _log_chances(self.net, self.own, self.other_net, self.other, self.x)

    @cached_property
    def own_classes(self) -> Bool[Tensor, "P V classes"]:
        """Those that the buyer does best in a case: the better half."""
        return _better_half(self.log_chances[0], self.y, self.kept)

    @cached_property
    def share(self) -> Float[Tensor, "P V"]:
        """The share of the other's probabilities that serves best."""
        shares = torch.linspace(0, 1, POINTS)
        answers = _blended(self.log_chances.unsqueeze(2), shares.view(-1, 1, 1))
        return shares[_best(self, answers.unsqueeze(1))]

    @cached_property
    def by_weights(self) -> Stack:
        """The others [P], their units in the order of the own ones; quote is not looked at."""
        return align.reorder_pairs(self.spec, self.own, self.other)

    @cached_property
    def by_activations(self) -> Stack:
        """The others [P · V], their units in the order in which they say most alike on what a case may look at."""
        found = []
        own, other = self.repeat(self.own), self.repeat(self.other)
        for k, split in enumerate(self.splits):
            look = {"matcher": align.activation_matching, "net": self.net, "x": split.x}
            found.append(align.reorder(self.spec, stack.take(own, k), stack.take(other, k), **look))
        return stack.join(found)

    @cached_property
    def matched(self) -> Stack:
        """The others [P · V] in the better order of the two; by weights, if both are as good."""
        by_weights, own = self.repeat(self.by_weights), self.repeat(self.own)
        averages = [merge.average_pairs(own, other) for other in (by_weights, self.by_activations)]
        answers = [_answers(self.net, each, self.case_x).unflatten(0, (-1, self.parts)) for each in averages]
        losses = _calibrated_losses(torch.stack(answers, dim=2), self.y, self.kept)
        better = _first_least(_mean_over(losses, self.kept.unsqueeze(2))).flatten()
        orders = stack.map(lambda *two: torch.stack(two, dim=1), by_weights, self.by_activations)
        return stack.take(orders, (torch.arange(len(better)), better))


class Service(NamedTuple):
    """What buyers run from then on.

    run: it takes `networks` and x, [n, ...] or one batch for each [K, n, ...], and gives logits, or logarithms of
    probabilities, [K, n, classes], on the CPU
    networks: stacks [K], one model a case, or a pair: networks, gates, shares
    models: networks in service · megabytes: of their weights · labels: how many labelled examples went into it
    """

    run: Callable[[tuple[Stack, ...], Tensor], Tensor]
    networks: tuple[Stack, ...]
    models: int
    megabytes: float
    labels: int

    def answers(self, x: Tensor) -> Float[Tensor, "K n classes"]:
        """What the service says of x, [n, ...] or [K, n, ...]; see `run`."""
        return self.run(self.networks, x)


class Way(Protocol):
    """Makes of every case what the buyer will run. What there is to tune is tuned on the examples that it keeps."""

    def __call__(self, cases: Cases) -> Service: ...


class _Entry(NamedTuple):
    make: Way
    needs: Needs
    leaks: Leak


class Offers(NamedTuple):
    """Every way to use another network, tuned on quote for P pairs, and how it does there.

    services: one a way, of a network a pair · own_classes [P, classes]: those that each buyer does best on quote, the
    better half · temperatures [P, ways]: that suit the answers on quote
    quote_gain_points [P, ways] (accuracy points), quote_own_class_change [P, ways] (points on the own classes): on
    quote, each part of it judged by what was tuned on the others, as differences to the buyer's own network
    models: networks in service · megabytes: of weights · multiplications: an example takes so many · labels: of quote
    that it was tuned or trained with · leaks: what of the other network, or its answers, leaves its owner
    """

    way: tuple[str, ...]
    services: tuple[Service, ...]
    own_classes: Bool[Tensor, "P classes"]
    temperatures: Float[Tensor, "P ways"]
    quote_gain_points: Interval
    quote_own_class_change: Float[np.ndarray, "P ways"]
    models: tuple[int, ...]
    megabytes: tuple[float, ...]
    multiplications: tuple[int, ...]
    labels: tuple[int, ...]
    leaks: tuple[Leak, ...]

    def service(self, way: str) -> Service:
        """What the P buyers run if they take this way. Raises ParameterError for a way that is not among them."""
        if way not in self.way:
            raise ParameterError(unknown("way", way, self.way))
        return self.services[self.way.index(way)]


class Ways(NamedTuple):
    """What every way gains, for each of P pairs, on examples that tuned nothing.

    gain_points (accuracy points), gain_nats (calibrated on quote), own_class_change (accuracy points on the classes
    that the buyer does best on quote): [P, ways], differences to the buyer's own network example by example
    differences [P, ways, n]: 1 where only the way is right, -1 where only the own network is, else 0
    """

    offers: Offers
    gain_points: Interval
    gain_nats: Interval
    own_class_change: Interval
    differences: Int[Tensor, "P ways n"]

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """One row a pair and way: the columns of a grid with P rows, `way`, and what it gains and takes to run.

        Every gain has its interval beside it, as `_low` and `_high`.
        """
        offers = self.offers
        pairs = len(self.differences)
        constant = {
            name: np.tile(np.array(getattr(offers, name)), (pairs, 1))
            for name in ("models", "megabytes", "multiplications", "labels", "leaks")
        }
        return stack.table(
            rows,
            {"way": offers.way},
            **self.gain_points.columns("gain_points"),
            **self.gain_nats.columns("gain_nats"),
            **self.own_class_change.columns("own_class_change"),
            **offers.quote_gain_points.columns("quote_gain_points"),
            quote_own_class_change=offers.quote_own_class_change,
            **constant,
        )


@torch.no_grad()
def tune_ways(
    net: nn.Module,
    spec: PermutationSpec | None,
    own: Stack,
    other: Stack,
    quote: Split | Sequence[Split],
    *,
    seed: int,
    max_class_loss: float = 1.0,
    other_net: nn.Module | None = None,
    only: Sequence[str] | None = None,
) -> Offers:
    """Every way to use the other network, beside doing nothing and beside training on the labels of quote instead.

    own, other: P buyers and the network that each may use, as stacks [P] · quote: for all pairs, or one for each, all
    of one size: what the ways are tuned on. Measure them elsewhere (`measure_ways`); to choose among them take
    `recommend`, which looks at quote alone, so that the gain of the chosen one on audit is right on average.
    spec: of the one architecture, for whatever mixes weights; None leaves these ways out · other_net: the others'
    architecture, if it is another one; spec is None then · max_class_loss: accuracy points that a mixture may cost
    on the buyer's own classes; one that costs more on quote is not taken · only: names of ways, for less work
    A loss is calibrated: the answers of each way, and the buyer's own, are divided by the temperature that suits their
    answers on quote (those by cross-fitting; Guo et al. 2017, section 4.2).
    Raises ShapeError and DataError naming what does not fit, WeightsError for weights that are not finite,
    ParameterError for a way that these networks do not allow.

    >>> from paramarket import data, decide, stack
    >>> digits = data.load("digits")
    >>> net = stack.mlp(64, [8], 10)
    >>> own, others = stack.init(net, 3, seed=0), stack.init(net, 3, seed=1)
    >>> offers = decide.tune_ways(net, None, own, others, digits.quote, seed=0, only=["output ensemble"])
    >>> offers.way, decide.recommend(offers)
    (('nothing', 'output ensemble'), ['nothing', 'nothing', 'nothing'])
    """
    other_net = other_net or net
    own, other = stack.single(own), stack.single(other)
    pairs = _check(net, own, "the buyer's network")
    if _check(other_net, other, "the other network") != pairs:
        raise ShapeError(f"{stack.count(other)} other networks for {pairs} buyers: expected one for each.")
    entries = _chosen(_offered(net, spec), only)
    x, y = _examples(quote, pairs)
    example = x[:1] if _is_shared(x) else x[0, :1]
    _check_labels(y, stack.forward(net, stack.take(own, slice(1)), example).shape[-1])
    fold = _folds(y, seed)
    kept = _kept(fold)
    at_once = _pairs_at_once(own, other, x)
    steps = len(entries) * math.ceil(pairs / at_once)
    found = []
    with tqdm(total=steps, desc="tuning ways", leave=False, delay=1, disable=not is_watched()) as bar:
        for start in range(0, pairs, at_once):
            some = slice(start, start + at_once)
            cases = Cases(
                net,
                spec,
                stack.take(own, some),
                other_net,
                stack.take(other, some),
                x if _is_shared(x) else x[some],
                y[some],
                fold[some],
                kept[some],
                max_class_loss,
                seed,
            )
            found.append(_tuned(entries, cases, bar))
    return _offers(entries, found, x)


def measure_ways(offers: Offers, split: Split | Sequence[Split]) -> Ways:
    """What the tuned ways gain on a split that tuned nothing: audit, where money hangs on it, or test, to report.

    split: for all pairs, or one for each, all of one size. Raises DataError and ShapeError for what does not fit.
    """
    pairs, classes = offers.own_classes.shape
    x, y = _examples(split, pairs)
    _check_labels(y, classes)
    differences, saved = [], []
    axis = 0 if _is_shared(x) else 1
    for part, truth in zip(x.split(BATCH, dim=axis), y.split(BATCH, dim=1), strict=True):
        answers = torch.stack([service.answers(part) for service in offers.services], dim=1)
        differences.append(_differences(answers, truth))
        losses = _losses(answers / offers.temperatures[:, :, None, None], truth).double()
        saved.append(losses[:, :1] - losses)
    differences = torch.cat(differences, dim=2)
    return Ways(
        offers=offers,
        gain_points=_points(differences),
        gain_nats=_interval(torch.cat(saved, dim=2)),
        own_class_change=_own_class_interval(differences, offers.own_classes.gather(1, y)),
        differences=differences,
    )


def recommend(offers: Offers, max_class_loss: float = 1.0) -> list[str]:
    """For every pair the way with the largest gain in points on quote, of those that do help there and do no harm.

    Help: the interval of the gain lies above 0; where no way helps, "nothing". Harm: it costs more than max_class_loss
    accuracy points on the buyer's own classes. Of ways with as many right answers the one with the fewest networks in
    service, of these the first.
    Only quote is looked at: what the chosen way gains on audit is right on average, though it is the best of many.
    """
    helps = offers.quote_gain_points.low > 0
    harmless = offers.quote_own_class_change >= -max_class_loss - 1e-9  # exactly so many points are allowed
    offered = helps & harmless
    offered[:, 0] = True  # nothing
    gains = np.where(offered, offers.quote_gain_points.mean, -np.inf)
    best = gains >= gains.max(axis=1, keepdims=True) - 1e-9  # less than one example apart is rounding
    networks = np.where(best, offers.models, np.inf)
    return [offers.way[k] for k in networks.argmin(axis=1)]


# Pairs, and what they are tuned on


def _check(net: nn.Module, models: Stack, what: str) -> int:
    """The number of models, after a look at them."""
    number = stack.check(net, models, f"{what} and its net")
    for name, tensor in models.items():
        finite = tensor.flatten(1).isfinite().all(dim=1)
        if not finite.all():
            pair = int((~finite).nonzero()[0])
            raise WeightsError(f"{what}: {name!r} holds values that are NaN or infinite, in pair {pair}.")
    return number


def _is_shared(x: Tensor) -> bool:
    """Whether x holds examples for all models, [n, ...], and not a batch for each; see `stack.forward`."""
    return x.ndim in (2, 4)


def _examples(splits: Split | Sequence[Split], pairs: int) -> tuple[Tensor, Int[Tensor, "P n"]]:
    """Of splits x, [n, ...] for all pairs or [P, n, ...], and y [P, n]."""
    if isinstance(splits, Split):
        _check_y([splits])
        return splits.x, splits.y.cpu().expand(pairs, -1)
    if len(splits) != pairs:
        raise ShapeError(f"{len(splits)} splits for {pairs} pairs: expected one split for all, or one for each.")
    _check_y(splits)
    shapes = {tuple(split.x.shape) for split in splits}
    if len(shapes) > 1:
        raise ShapeError(f"splits of {len(shapes)} shapes, as {min(shapes)} and {max(shapes)}: expected one.")
    return torch.stack([split.x for split in splits]), torch.stack([split.y.cpu() for split in splits])


def _check_y(splits: Sequence[Split]) -> None:
    if any(split.y.ndim != 1 for split in splits):
        raise DataError("ways are judged by labels; this split holds probabilities, to learn from.")


def _check_labels(y: Int[Tensor, "P n"], classes: int) -> None:
    if int(y.max()) >= classes:
        raise DataError(f"label {int(y.max())} in a split for networks with {classes} classes.")


def _pairs_at_once(own: Stack, other: Stack, x: Tensor) -> int:
    """So many that neither their models nor their examples take much memory."""
    weights = stack.vectors(stack.take(own, slice(1))).numel() + stack.vectors(stack.take(other, slice(1))).numel()
    examples = x.numel() if _is_shared(x) else x[0].numel()
    return max(1, AT_ONCE // ((1 + FOLDS) * (examples + 5 * weights)))


def _folds(y: Int[Tensor, "P n"], seed: int) -> Int[Tensor, "P n"]:
    """The fold of every example, from 0 on; each class is dealt out evenly."""
    order = torch.randperm(y.shape[1], generator=stream(seed, "folds"))
    by_class = order[y[:, order].argsort(dim=1, stable=True)]
    dealt = torch.arange(y.shape[1]) % FOLDS
    return torch.empty_like(y).scatter_(1, by_class, dealt.expand(len(y), -1))


def _kept(fold: Int[Tensor, "P n"]) -> Bool[Tensor, "P V n"]:
    """What the cases of a pair may tune on: everything, then everything but one fold."""
    left_out = torch.arange(-1, FOLDS)
    return fold.unsqueeze(1) != left_out.view(-1, 1)


def _better_half(
    answers: Float[Tensor, "P n classes"], y: Int[Tensor, "P n"], kept: Bool[Tensor, "P V n"]
) -> Bool[Tensor, "P V classes"]:
    """The half of the classes on which answers are right most often; of equal ones the first."""
    hit = answers.argmax(dim=-1) == y
    members = nn.functional.one_hot(y, answers.shape[-1]).double()
    kept = kept.double()
    accuracy = (kept * hit.unsqueeze(1)) @ members / (kept @ members)
    order = accuracy.nan_to_num(nan=-1.0).argsort(dim=-1, descending=True, stable=True)
    chosen = torch.zeros_like(accuracy, dtype=torch.bool)
    return chosen.scatter(-1, order[..., : order.shape[-1] // 2], True)


# What is measured


class _Tuned(NamedTuple):
    """The ways of some pairs, on quote; see `Offers` and `Ways`."""

    services: list[Service]
    own_classes: Bool[Tensor, "P classes"]
    temperatures: Float[Tensor, "P ways"]
    own_class_change: Float[Tensor, "P ways"]
    differences: Int[Tensor, "P ways n"]


def _tuned(entries: dict[str, _Entry], cases: Cases, bar: tqdm) -> _Tuned:
    services, on_quote = [], []
    for entry in entries.values():
        service = entry.make(cases)
        on_quote.append(_cross_fitted(service, cases))
        services.append(_take(service, slice(None, None, cases.parts)))  # tuned on all of quote
        bar.update()
    answers = torch.stack(on_quote, dim=1)
    differences = _differences(answers, cases.y)
    own_classes = cases.own_classes[:, 0]
    counted = own_classes.gather(1, cases.y).unsqueeze(1)
    own_class_change = 100 * _mean_over(differences.double(), counted)
    return _Tuned(services, own_classes, _temperatures(answers, cases.y), own_class_change, differences)


def _cross_fitted(service: Service, cases: Cases) -> Float[Tensor, "P n classes"]:
    """What a way answers on quote, each example by the service that was tuned without its fold."""
    case = torch.arange(cases.parts * len(cases.y)).unflatten(0, (-1, cases.parts))
    tuned_without = case[:, 1:].flatten()
    return _on_folds(cases, _take(service, tuned_without).answers)


def _on_folds(cases: Cases, answers: Callable[[Tensor], Tensor]) -> Float[Tensor, "P n classes"]:
    """What P · FOLDS models answer, each on the examples of its fold, put together in the order of quote."""
    found = answers(cases.fold_x).unflatten(0, (-1, FOLDS))
    together = found.new_empty(*cases.y.shape, found.shape[-1])
    rows = torch.arange(len(together)).view(-1, 1, 1)
    together[rows, cases.held_out] = found
    return together


def _take(service: Service, index: slice | Int[Tensor, " _"]) -> Service:
    return service._replace(networks=tuple(stack.take(each, index) for each in service.networks))


def _offers(entries: dict[str, _Entry], found: list[_Tuned], x: Tensor) -> Offers:
    """All pairs together; x: quote."""
    example = x[:1] if _is_shared(x) else x[:1, :1]
    services = [_chained(parts) for parts in zip(*(each.services for each in found), strict=True)]
    own_classes = torch.cat([each.own_classes for each in found])
    differences = torch.cat([each.differences for each in found])
    return Offers(
        way=tuple(entries),
        services=tuple(services),
        own_classes=own_classes,
        temperatures=torch.cat([each.temperatures for each in found]),
        quote_gain_points=_points(differences),
        quote_own_class_change=torch.cat([each.own_class_change for each in found]).numpy(),
        models=tuple(service.models for service in services),
        megabytes=tuple(service.megabytes for service in services),
        multiplications=tuple(_multiplications(_take(service, slice(1)), example) for service in services),
        labels=tuple(service.labels for service in services),
        leaks=tuple(entry.leaks for entry in entries.values()),
    )


def _chained(parts: Sequence[Service]) -> Service:
    """One service for the pairs of all parts."""
    networks = zip(*(part.networks for part in parts), strict=True)
    return parts[0]._replace(networks=tuple(stack.chain(stacks) for stacks in networks))


def _differences(answers: Float[Tensor, "P ways n classes"], y: Int[Tensor, "P n"]) -> Int[Tensor, "P ways n"]:
    """What a way changes on every example: 1 if it is right and the buyer's own network, the first way, is not."""
    right = (answers.argmax(dim=-1) == y.unsqueeze(1)).to(torch.int8)
    return right - right[:, :1]


def _losses(answers: Float[Tensor, "P ways n classes"], y: Int[Tensor, "P n"]) -> Float[Tensor, "P ways n"]:
    truth = y[:, None, :, None].expand(-1, answers.shape[1], -1, 1)
    return answers.logsumexp(dim=-1) - answers.gather(-1, truth).squeeze(-1)


def _temperatures(answers: Float[Tensor, "P ways n classes"], y: Int[Tensor, "P n"]) -> Float[Tensor, "P ways"]:
    """Those of `train.fit_temperatures`, which wants one y for all: so the true class is brought to the first place."""
    classes = answers.shape[-1]
    places = (y.unsqueeze(-1) + torch.arange(classes)) % classes
    turned = answers.gather(-1, places.unsqueeze(1).expand_as(answers))
    first = torch.zeros(y.shape[1], dtype=torch.int64)
    return train.fit_temperatures(turned.flatten(0, 1), first).unflatten(0, answers.shape[:2])


def _interval(values: Float[Tensor, "P ways n"]) -> Interval:
    """Of the means over examples [P, ways]."""
    return interval(values.movedim(-1, 0), "examples")


def _points(differences: Int[Tensor, "P ways n"]) -> Interval:
    """In accuracy points [P, ways]. The first way is to do nothing: what it changes is known."""
    mean, low, high = interval(differences.movedim(-1, 0), "differences")
    low[:, 0] = high[:, 0] = 0
    return Interval(100 * mean, 100 * low, 100 * high)


def _own_class_interval(differences: Int[Tensor, "P ways n"], counted: Bool[Tensor, "P n"]) -> Interval:
    """Accuracy points on the examples that count, whose number may differ from pair to pair."""
    numbers = counted.sum(dim=1)
    if int(numbers.min()) < 2:
        pair = int(numbers.argmin())
        raise DataError(
            f"{int(numbers[pair])} examples of the classes that buyer {pair} does best: expected 2 or more."
        )
    found = np.empty((3, *differences.shape[:2]))
    for number in numbers.unique():
        rows = numbers == number
        some = differences[rows]
        chosen = some[counted[rows].unsqueeze(1).expand_as(some)].view(*some.shape[:2], -1)
        found[:, rows.numpy()] = _points(chosen)
    return Interval(*found)


def _multiplications(service: Service, example: Float[Tensor, "_ ..."]) -> int:
    """How many multiplications an example takes in matrix products and convolutions."""
    with _Counter() as counter:
        service.answers(example)
    return counter.operations // 2  # it counts each together with its addition


class _Counter(TorchDispatchMode):
    """Counts operations by PyTorch's own formulas. Its own counter would first import the compiler, for a second."""

    operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **(kwargs or {}), out_val=out)
        return out

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # where True, the compiler is imported to be told so


# How a candidate is chosen


def _best(cases: Cases, answers: Float[Tensor, "P _ J n classes"]) -> Int[Tensor, "P V"]:
    """In each case, of J candidates, the one of the lowest calibrated loss that does no harm; the first is no purchase.

    It stays so unless what is saved is clear of chance: a little of anybody's doubt, noise too, lowers a loss a little.
    answers: of each case, or [P, 1, …] where the candidates of a pair are the same in all its cases
    """
    losses = _calibrated_losses(answers, cases.y, cases.kept)
    means = _mean_over(losses, cases.kept.unsqueeze(2))
    means[_is_harmful(cases, answers)] = torch.inf
    chosen = _first_least(means)
    saved = losses[:, :, 0] - losses.gather(2, chosen[:, :, None, None].expand(-1, -1, 1, losses.shape[-1])).squeeze(2)
    return chosen * _is_clear(saved, cases.kept)


def _is_harmful(cases: Cases, answers: Float[Tensor, "P _ J n classes"]) -> Bool[Tensor, "P V J"]:
    """Whether a candidate costs more than max_class_loss points on the buyer's own classes."""
    right = (answers.argmax(dim=-1) == cases.y[:, None, None]).float()
    lost = right[:, :, :1] - right
    own = cases.own_classes.gather(2, cases.y.unsqueeze(1).expand(-1, cases.parts, -1))
    counted = (own & cases.kept).unsqueeze(2)
    return 100 * (lost * counted).sum(dim=-1) > cases.max_class_loss * counted.sum(dim=-1)


def _is_clear(saved: Float[Tensor, "P V n"], kept: Bool[Tensor, "P V n"]) -> Bool[Tensor, "P V"]:
    """Whether the mean of what is saved lies clearly above 0."""
    mean = _mean_over(saved, kept)
    variance = _mean_over((saved - mean.unsqueeze(-1)).square(), kept)
    return mean > CLEAR * (variance / kept.sum(dim=-1)).sqrt()


def _mean_over(values: Float[Tensor, "*#batch n"], kept: Bool[Tensor, "*#batch n"]) -> Float[Tensor, "..."]:
    """The mean over the examples that are kept."""
    return (values * kept).sum(dim=-1) / kept.sum(dim=-1)


def _calibrated_losses(
    answers: Float[Tensor, "P _ J n classes"], y: Int[Tensor, "P n"], kept: Bool[Tensor, "P V n"]
) -> Float[Tensor, "P V J n"]:
    """On every example the loss at that of TEMPERATURES which suits the examples that are kept."""
    answers = answers - answers.amax(dim=-1, keepdim=True)
    truth = y[:, None, None, :, None].expand(-1, *answers.shape[1:3], -1, 1)
    of_truth = answers.gather(-1, truth).squeeze(-1)
    answers = answers.mT.contiguous()  # examples side by side: five times as fast
    kept = kept.unsqueeze(2)
    least = torch.tensor(torch.inf)
    best = torch.zeros(1)
    for temperature in TEMPERATURES:
        losses = (answers / temperature).exp_().sum(dim=-2).log_() - of_truth / temperature
        means = _mean_over(losses, kept)
        best = torch.where((means < least).unsqueeze(-1), losses, best)
        least = torch.minimum(means, least)
    return best


def _first_least(losses: Float[Tensor, "*cases J"]) -> Int[Tensor, "*cases"]:
    """The first of those with the lowest loss; a difference of less than a millionth is rounding."""
    return (losses <= losses.amin(dim=-1, keepdim=True) + 1e-6).int().argmax(dim=-1)


# What ways have in common


@torch.no_grad()
def _answers(net: nn.Module, models: Stack, x: Tensor) -> Float[Tensor, "K n classes"]:
    """What K models say of x, [n, ...] or [K, n, ...], in batches, on the CPU."""
    parts = x.split(250, dim=0 if _is_shared(x) else 1)
    return torch.cat([stack.forward(net, models, part).float().cpu() for part in parts], dim=1)


def _megabytes(*stacks: Stack) -> float:
    """Of one model of each stack; a megabyte is a million bytes."""
    tensors = [tensor for models in stacks for tensor in models.values()]
    return sum(tensor[0].numel() * tensor.element_size() for tensor in tensors) / 1e6


def _single(net: nn.Module, models: Stack, labels: int) -> Service:
    """One network in service."""
    return Service(partial(_run_single, net), (models,), 1, _megabytes(models), labels)


def _run_single(net: nn.Module, networks: tuple[Stack], x: Tensor) -> Tensor:
    return _answers(net, networks[0], x)


def _labels(cases: Cases) -> int:
    return cases.y.shape[1]


def _best_models(cases: Cases, candidates: Stack) -> Service:
    """Of every case's candidates, a stack [P · V, J], the best."""
    number = stack.leading(candidates, 2)[1]
    x = cases.case_x if _is_shared(cases.x) else cases.case_x.repeat_interleave(number, dim=0)
    answers = _answers(cases.net, stack.flat(candidates), x)
    chosen = _best(cases, answers.unflatten(0, (-1, cases.parts, number))).flatten()
    return _single(cases.net, stack.take(candidates, (torch.arange(len(chosen)), chosen)), _labels(cases))


def _side_by_side(own: Stack, others: Stack) -> Stack:
    """Two stacks [K] as lineups [K, 2]."""
    return stack.map(lambda *two: torch.stack(two, dim=1), own, others)


def _best_mixtures(cases: Cases, lineups: Stack, weights: Float[Tensor, "J layers 2"]) -> Service:
    """The mixture that serves best in every case; lineups [P, 2] or [P · V, 2]."""
    pairs = len(cases.y)
    x = cases.x if stack.count(lineups) == pairs else cases.case_x
    answers = _mixture_answers(cases.net, lineups, weights, x)
    chosen = _best(cases, answers.unflatten(0, (pairs, -1)))
    if stack.count(lineups) == pairs:
        lineups = cases.repeat(lineups)
    mixed = market.mix_layers(lineups, weights[chosen.flatten()].unsqueeze(1))
    return _single(cases.net, stack.take(mixed, (slice(None), 0)), _labels(cases))


def _mixture_answers(
    net: nn.Module, lineups: Stack, weights: Float[Tensor, "J layers 2"], x: Tensor, *, block: int = 2**19
) -> Float[Tensor, "K J n classes"]:
    """What all mixtures of all lineups [K, 2] say of x, [n, ...] or [K, n, ...].

    What a linear first layer says is linear in its weights: the products of the two serve all their mixtures.
    block: numbers that a layer says at a time, few enough to stay in the processor's cache
    """
    mixtures, units = len(weights), stack.leading(lineups, 3)[2]
    batch = max(1, block // (units * mixtures))
    turn = max(1, batch // x.shape[0 if _is_shared(x) else 1])
    answers = []
    for start in range(0, stack.count(lineups), turn):
        some = stack.take(lineups, slice(start, start + turn))
        own_x = x if _is_shared(x) else x[start : start + turn]
        answers.append(_answers_of_some(net, some, weights, own_x, batch))
    return torch.cat(answers)


def _answers_of_some(
    net: nn.Module, lineups: Stack, weights: Float[Tensor, "J layers 2"], x: Tensor, batch: int
) -> Float[Tensor, "K J n classes"]:
    number, shared = stack.count(lineups), _is_shared(x)
    weights = weights.expand(number, *weights.shape)
    first = stack.split_first(net)
    if first is None:
        mixed = stack.flat(market.mix_layers(lineups, weights))
        answers = _answers(net, mixed, x if shared else x.repeat_interleave(weights.shape[1], dim=0))
        return answers.unflatten(0, (number, -1))
    rest = {name: tensor for name, tensor in lineups.items() if stack.layer_of(name) != first.name}
    mixed = stack.flat(market.mix_layers(rest, weights[:, :, 1:]))
    answers = []
    for part in x.split(batch, dim=0 if shared else 1):
        part = stack.place(part, lineups)
        read = part.flatten(1) if shared else part.flatten(2).repeat_interleave(2, dim=0)
        products = stack.linear(net, stack.flat(lineups), first.name, read).unflatten(0, (number, 2))
        said = (weights[:, :, 0].to(products) @ products.flatten(2)).unflatten(2, products.shape[2:])
        answers.append(stack.apply(first.rest, mixed, said.flatten(0, 1), shared=False, training=False))
    return torch.cat(answers, dim=1).float().cpu().unflatten(0, (number, -1))


def _log_chances(
    net: nn.Module, own: Stack, other_net: nn.Module, other: Stack, x: Tensor
) -> Float[Tensor, "2 K n classes"]:
    """What both networks answer, as logarithms of probabilities."""
    return torch.stack([_answers(net, own, x), _answers(other_net, other, x)]).log_softmax(dim=-1)


def _blended(
    log_chances: Float[Tensor, "2 *cases n classes"], shares: Float[Tensor, "*_ 1 1"]
) -> Float[Tensor, "*_cases n classes"]:
    """Logarithms of (1 - share) times the own probabilities plus share times the other's."""
    own, other = log_chances
    return torch.logaddexp((1 - shares).log() + own, shares.log() + other)


# The ways, one a function


def _nothing(cases: Cases) -> Service:
    return _single(cases.net, cases.repeat(cases.own), labels=0)


def _other(cases: Cases) -> Service:
    return _single(cases.other_net, cases.repeat(cases.other), labels=0)


def _matched_by_weights(cases: Cases) -> Service:
    return _best_mixtures(cases, _side_by_side(cases.own, cases.by_weights), _whole_shares(cases))


def _matched_by_activations(cases: Cases) -> Service:
    return _best_mixtures(cases, _side_by_side(cases.repeat(cases.own), cases.by_activations), _whole_shares(cases))


def _whole_shares(cases: Cases) -> Float[Tensor, "J layers 2"]:
    """A share of the other network in all layers."""
    shares = torch.linspace(0, 1, POINTS)[1:].tolist()
    return market.purchase_weights(shares, len(stack.layers(cases.own)))


def _repaired(cases: Cases) -> Service:
    own = cases.repeat(cases.own)
    paths = []
    for k, split in enumerate(cases.splits):
        ends = stack.take(own, k), stack.take(cases.matched, k)
        paths.append(merge.repaired_path(cases.net, cases.spec, *ends, split.x, points=FEW_POINTS))
    return _best_models(cases, stack.join(paths))


def _by_layers(cases: Cases) -> Service:
    """A share of the other network in all layers, or in one layer alone."""
    shares = torch.linspace(0, 1, FEW_POINTS)[1:].tolist()
    weights = market.purchase_weights(shares, len(stack.layers(cases.own)), parts="layers")
    return _best_mixtures(cases, _side_by_side(cases.repeat(cases.own), cases.matched), weights)


def _merged(cases: Cases, method: MergeMethod) -> Service:
    own = cases.repeat(cases.own)
    merged = []
    for k, split in enumerate(cases.splits):
        pair = stack.join([stack.take(own, k), stack.take(cases.matched, k)])
        merged.append(method(cases.net, cases.spec, pair, split, stream(cases.seed, "merge")))
    return _single(cases.net, stack.join(merged), _labels(cases))


def _ensemble(cases: Cases) -> Service:
    """The mean of both networks' probabilities, with the share that serves best on quote."""
    own, other = cases.repeat(cases.own), cases.repeat(cases.other)
    run = partial(_run_ensemble, cases.net, cases.other_net)
    return Service(run, (own, other, {"share": cases.share.flatten()}), 2, _megabytes(own, other), _labels(cases))


def _run_ensemble(net: nn.Module, other_net: nn.Module, networks: tuple[Stack, Stack, Stack], x: Tensor) -> Tensor:
    own, other, shares = networks
    return _blended(_log_chances(net, own, other_net, other, x), shares["share"].view(-1, 1, 1))


def _routed_by_answers(cases: Cases) -> Service:
    """A gate weighs both networks, example by example, by what they answer: it need not see their weights.

    As `specialists.OutputRouter`, with one gate a case: log sum_e p_e q_e, p = softmax(G LN(log q)), trained on all
    examples that a case keeps at once.
    """
    own, other = cases.repeat(cases.own), cases.repeat(cases.other)
    run = partial(_run_routed_by_answers, cases.net, cases.other_net)
    return Service(run, (own, other, _fit_gates(cases)), 2, _megabytes(own, other), _labels(cases))


@torch.enable_grad()
def _fit_gates(cases: Cases) -> Stack:
    pairs, parts = cases.kept.shape[:2]
    read = _read_by_gates(cases.log_chances)
    of_truth = cases.log_chances.gather(-1, cases.y[None, :, :, None].expand(2, -1, -1, 1)).squeeze(-1)
    of_truth = of_truth.movedim(0, -1).unsqueeze(1)  # [P, 1, n, 2]
    share = cases.kept.float() / cases.kept.sum(dim=-1, keepdim=True)
    weight = torch.zeros(pairs, read.shape[-1], parts * 2, requires_grad=True)
    bias = torch.zeros(pairs, parts, 1, 2, requires_grad=True)
    optimizer = train.AdamW([weight.detach(), bias.detach()], weight_decay=ROUTER_SETTINGS["weight_decay"])
    for _ in range(STEPS):
        said = (read @ weight).unflatten(-1, (parts, 2)).transpose(1, 2) + bias  # [P, V, n, 2]
        losses = -(said.log_softmax(dim=-1) + of_truth).logsumexp(dim=-1)
        optimizer.step(torch.autograd.grad((losses * share).sum(), [weight, bias]), ROUTER_SETTINGS["lr"])
    weight = weight.detach().unflatten(-1, (parts, 2)).movedim(2, 1)
    return stack.flat({"weight": weight, "bias": bias.detach()})


def _read_by_gates(log_chances: Float[Tensor, "2 K n classes"]) -> Float[Tensor, "K n answers"]:
    beside = torch.cat([log_chances[0], log_chances[1]], dim=-1)
    return nn.functional.layer_norm(beside, beside.shape[-1:])


def _run_routed_by_answers(
    net: nn.Module, other_net: nn.Module, networks: tuple[Stack, Stack, Stack], x: Tensor
) -> Tensor:
    own, other, gates = networks
    log_chances = _log_chances(net, own, other_net, other, x)
    said = torch.baddbmm(gates["bias"], _read_by_gates(log_chances), gates["weight"])
    return (said.log_softmax(dim=-1).movedim(-1, 0).unsqueeze(-1) + log_chances).logsumexp(dim=0)


def _routed_by_layers(cases: Cases) -> Service:
    """In every layer a gate mixes what both networks say there (`specialists.Router`)."""
    router = specialists.Router(cases.net, 2)
    start = specialists.init_router(router, [cases.repeat(cases.own), cases.matched])
    orders = _streams(cases, "router")
    fitted = train.fit(router, start, cases.splits, steps=STEPS, generators=orders, **ROUTER_SETTINGS).stack
    return Service(partial(_run_single, router), (fitted,), 2, _megabytes(fitted), _labels(cases))


def _streams(cases: Cases, purpose: str) -> list[torch.Generator]:
    """One a case; those of one pair are those of another."""
    return [stream(cases.seed, purpose, k % cases.parts) for k in range(len(cases.each))]


def _distilled(cases: Cases) -> Service:
    """The own network trained on to say what the ensemble says (Hinton et al. 2015); labels only tune the ensemble."""
    students = cases.repeat(cases.own)
    learners = cases.share.flatten().nonzero().flatten()  # who uses nothing of the other has nothing to learn
    if len(learners):
        chances = _blended(cases.log_chances.unsqueeze(2), cases.share[..., None, None]).exp().flatten(0, 1)
        orders = _streams(cases, "distil")
        lessons = []
        for k in learners.tolist():
            _, kept = cases.each[k]
            lessons.append(Split(cases.splits[k].x, chances[k, kept]))
        fit = train.fit(
            cases.net,
            stack.take(students, learners),
            lessons,
            steps=STEPS,
            lr=LEARNING_RATE,
            generators=[orders[k] for k in learners.tolist()],
        )
        students = stack.map(
            lambda before, learnt: before.index_copy(0, learners.to(before.device), learnt), students, fit.stack
        )
    return _single(cases.net, students, _labels(cases))


def _trained_on_labels(cases: Cases) -> Service:
    """The own network trained on with the labels of quote; for how long, is chosen by cross-validation there.

    A case leaves no fold out, or one. To judge it, one more is left out: what is trained without two serves two cases.
    """
    by_size = [list(itertools.combinations(range(FOLDS), number)) for number in range(3)]
    left_out = by_size[0] + by_size[1] + by_size[2]
    trained = [_train_on_labels(cases, sets) for sets in by_size]
    stages = stack.map(lambda *some: torch.cat(some, dim=1), *trained)  # [P, left out, stages]
    judged = []
    for own in left_out[: cases.parts]:
        judges = [left_out.index(tuple(sorted({*own, fold}))) for fold in range(FOLDS)]
        for stage in range(len(EPOCHS)):
            models = stack.flat(stack.take(stages, (slice(None), judges, stage)))
            judged.append(_on_folds(cases, partial(_answers, cases.net, models)))
    chosen = _best(cases, torch.stack(judged, dim=1).unflatten(1, (cases.parts, -1)))
    every_pair = torch.arange(len(chosen)).unsqueeze(1)
    every_part = torch.arange(cases.parts)
    models = stack.take(stages, (every_pair, every_part, chosen))
    return _single(cases.net, stack.flat(models), _labels(cases))


def _train_on_labels(cases: Cases, left_out: list[tuple[int, ...]]) -> Stack:
    """The own networks, trained without each set of folds, after each number of EPOCHS: [P, left out, stages]."""
    splits, orders = [], []
    for pair, folds in itertools.product(range(len(cases.y)), left_out):
        kept = torch.isin(cases.fold[pair], torch.tensor(folds, dtype=torch.int64), invert=True)
        splits.append(cases.split(pair, kept))
        orders.append(stream(cases.seed, "labels", *folds))
    per_epoch = math.ceil(max(map(len, splits)) / BATCH)
    steps = [epochs * per_epoch for epochs in EPOCHS]
    fit = train.fit(
        cases.net,
        stack.map(lambda tensor: tensor.repeat_interleave(len(left_out), dim=0), cases.own),
        splits,
        steps=steps[-1],
        batch=BATCH,
        lr=LEARNING_RATE,
        schedule="constant",  # so that each stage is where shorter training would have ended
        generators=orders,
        keep=steps,
    )
    stages = stack.map(lambda *kept: torch.stack(kept, dim=1), *(fit.kept[step] for step in steps))
    return stack.unflat(stages, (-1, len(left_out)))


def _offered(net: nn.Module, spec: PermutationSpec | None) -> dict[str, _Entry]:
    """The ways that two such networks allow, in the order of the table."""
    entries = {
        NOTHING: _Entry(_nothing, "answers", "nothing"),
        "the other's network": _Entry(_other, "answers", "weights"),
        "averaged, matched by weights": _Entry(_matched_by_weights, "one architecture", "weights"),
        "averaged, matched by activations": _Entry(_matched_by_activations, "one architecture", "weights"),
        "averaged and repaired": _Entry(_repaired, "one architecture", "weights"),
        "averaged by layers": _Entry(_by_layers, "one architecture", "weights"),
    }
    for name, method in merge.METHODS.items():
        if name not in ("average", "repair"):  # these two are above, with a share that is tuned
            entries[name] = _Entry(partial(_merged, method=method), "one architecture", "weights")
    entries |= {
        "routed by layers": _Entry(_routed_by_layers, "one MLP", "weights"),
        "output ensemble": _Entry(_ensemble, "answers", "probabilities"),
        "routed by answers": _Entry(_routed_by_answers, "answers", "probabilities"),
        "distilled ensemble": _Entry(_distilled, "answers", "probabilities"),
        LABELS: _Entry(_trained_on_labels, "answers", "nothing"),
    }
    possible: set[Needs] = {"answers"}
    if spec is not None:
        possible.add("one architecture")
        if stack.is_dense(net):
            possible.add("one MLP")
    return {name: entry for name, entry in entries.items() if entry.needs in possible}


def _chosen(entries: dict[str, _Entry], only: Sequence[str] | None) -> dict[str, _Entry]:
    """The ways that are asked for, in the order of the table; doing nothing, to compare with, is always among them."""
    if only is None:
        return entries
    for name in only:
        if name not in entries:
            raise ParameterError(unknown("way", name, entries))
    return {name: entry for name, entry in entries.items() if name == NOTHING or name in only}
