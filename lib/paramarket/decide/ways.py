"""Ways to use another network, on equal terms: tuned on `quote` alone, measured on `audit` alone, chosen on `quote`."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from paramarket import align, market, merge, specialists, stack, train
from paramarket.align import PermutationSpec
from paramarket.base import Interval, interval, stream
from paramarket.data import Dataset, Split
from paramarket.errors import WeightsError
from paramarket.merge import MergeMethod
from paramarket.stack import Params, Stack

POINTS = 9  # shares of the other network to try: 0, 1/8, …, 1
FOLDS = 4  # parts of quote: each is judged by what was tuned on the others
STEPS = 100  # of a router, and of a student
EPOCHS = (0, 1, 2, 4, 8, 16)  # on the labels of quote: the number to take is tuned
LEARNING_RATE = 1e-3

Leak = Literal["weights", "probabilities", "nothing"]
Needs = Literal["answers", "one architecture", "one MLP"]


class Case(NamedTuple):
    """What a way may look at. `audit` is not in it.

    own, other: two networks, of `net` and of `other_net` · spec: the symmetry of the one architecture; None if there
    are two, or if it is unknown · matched: the other with its units in the order of the own, by weights or by
    activations on quote: the order in which the average of the two is better there
    quote: examples to tune on · own_classes: those that the buyer does best there · max_class_loss: accuracy points
    that a mixture may cost on these, on average · seed: of every draw
    """

    net: nn.Module
    spec: PermutationSpec | None
    own: Params
    other_net: nn.Module
    other: Params
    matched: Params | None
    quote: Split
    own_classes: Bool[Tensor, " classes"]
    max_class_loss: float
    seed: int


class Service(NamedTuple):
    """What a buyer runs from then on.

    answers: logits, or logarithms of probabilities, [n, classes] of examples [n, ...], on the CPU · models: networks in
    service · megabytes: of their weights · labels: how many labelled examples went into it
    """

    answers: Callable[[Tensor], Tensor]
    models: int
    megabytes: float
    labels: int


class Way(Protocol):
    """Makes of a case what the buyer will run. Whatever there is to tune is tuned on case.quote."""

    def __call__(self, case: Case) -> Service: ...


class _Entry(NamedTuple):
    make: Way
    needs: Needs
    leaks: Leak


class Ways(NamedTuple):
    """Every way to use another network: what it gains, and what it takes to run. Arrays have one entry a way.

    gain_points (accuracy points), gain_nats (calibrated): measured on audit, as differences to the buyer's own network
    example by example, with their intervals · own_class_change: accuracy points on the classes that the buyer does
    best on quote, the better half, measured on audit
    quote_gain_points, quote_own_class_change: the same on quote, each part of it judged by what was tuned on the others
    models: networks in service · megabytes: of weights · multiplications: an example takes so many · labels: of quote
    that it was tuned or trained with · leaks: what of the other network, or its answers, leaves its owner
    """

    way: tuple[str, ...]
    gain_points: Interval
    gain_nats: Interval
    own_class_change: Interval
    quote_gain_points: Interval
    quote_own_class_change: Float[np.ndarray, " ways"]
    models: tuple[int, ...]
    megabytes: tuple[float, ...]
    multiplications: tuple[int, ...]
    labels: tuple[int, ...]
    leaks: tuple[Leak, ...]

    def table(self) -> pd.DataFrame:
        """One row a way; every gain has its interval beside it, as `_low` and `_high`."""
        return pd.DataFrame(
            {
                "way": self.way,
                **self.gain_points.columns("gain_points"),
                **self.gain_nats.columns("gain_nats"),
                **self.own_class_change.columns("own_class_change"),
                **self.quote_gain_points.columns("quote_gain_points"),
                "quote_own_class_change": self.quote_own_class_change,
                "models": self.models,
                "megabytes": self.megabytes,
                "multiplications": self.multiplications,
                "labels": self.labels,
                "leaks": self.leaks,
            }
        )


def ways(
    net: nn.Module,
    spec: PermutationSpec | None,
    own: Params,
    other: Params,
    images: Dataset,
    *,
    seed: int,
    max_class_loss: float = 1.0,
    other_net: nn.Module | None = None,
) -> Ways:
    """Every way to use the other network, beside doing nothing and beside training on the labels of quote instead.

    A way is tuned on images.quote and measured on images.audit, never the other way round. To choose among the ways
    take `recommend`: it looks at quote alone, so the chosen one's gain on audit is right on average.

    spec: of the one architecture, for whatever mixes weights; None leaves these ways out · other_net: the other's
    architecture, if it is another one; spec is None then · max_class_loss: accuracy points that a mixture may cost
    on the buyer's own classes; one that costs more on quote is not taken
    A loss is calibrated: the answers of each way, and the buyer's own, are divided by the temperature that suits their
    answers on quote (those by cross-fitting; Guo et al. 2017, section 4.2).
    Raises ShapeError naming what does not fit, WeightsError for weights that are not finite.

    >>> from paramarket import align, data, decide, stack
    >>> digits = data.load("digits")
    >>> net = stack.mlp(64, [8], 10)
    >>> models = stack.init(net, 2, seed=0)
    >>> one, other = stack.take(models, 0), stack.take(models, 1)
    >>> decide.ways(net, None, one, other, digits, seed=0).way[:3]
    ('nothing', "the other's network", 'output ensemble')
    """
    other_net = other_net or net
    own, other = stack.single(own), stack.single(other)
    _check(net, own, "the buyer's network")
    _check(other_net, other, "the other network")
    make_case = partial(_case, net, spec, own, other_net, other, max_class_loss=max_class_loss, seed=seed)
    quote, audit = images.quote, images.audit
    case = make_case(quote)
    entries = _offered(net, spec)
    on_quote = _cross_fitted(entries, make_case, quote, seed)
    services = [entry.make(case) for entry in entries.values()]
    on_audit = torch.stack([service.answers(audit.x) for service in services])
    changes = _changes(on_audit, audit.y)
    quote_changes = _changes(on_quote, quote.y)
    return Ways(
        way=tuple(entries),
        gain_points=interval(changes, "examples"),
        gain_nats=interval(_saved_nats(on_audit, audit.y, train.fit_temperatures(on_quote, quote.y)), "examples"),
        own_class_change=interval(changes[case.own_classes[audit.y]], "examples"),
        quote_gain_points=interval(quote_changes, "examples"),
        quote_own_class_change=quote_changes[case.own_classes[quote.y]].mean(dim=0).numpy(),
        models=tuple(service.models for service in services),
        megabytes=tuple(service.megabytes for service in services),
        multiplications=tuple(_multiplications(service, audit.x[:1]) for service in services),
        labels=tuple(service.labels for service in services),
        leaks=tuple(entry.leaks for entry in entries.values()),
    )


def recommend(ways: Ways, max_class_loss: float = 1.0) -> str:
    """The name of the way with the largest gain in points on quote, of those that do help there and do no harm.

    Help: the interval of the gain lies above 0; where no way helps, "nothing". Harm: it costs more than max_class_loss
    accuracy points on the buyer's own classes. Of ways with as many right answers the one with the fewest networks in
    service, of these the first.
    Audit is not looked at: what the chosen way gains there is right on average, though it is the best of many.
    """
    helps = ways.quote_gain_points.low > 0
    harmless = ways.quote_own_class_change >= -max_class_loss - 1e-9  # exactly so many points are allowed
    offered = helps & harmless
    offered[0] = True  # nothing
    gains = np.where(offered, ways.quote_gain_points.mean, -np.inf)
    best = np.flatnonzero(gains >= gains.max() - 1e-9)  # what differs by less than one example differs by rounding
    chosen = min(best, key=lambda k: ways.models[k])
    return ways.way[chosen]


def _check(net: nn.Module, params: Params, what: str) -> None:
    stack.check(net, stack.join([params]), f"{what} and its net")
    for name, tensor in params.items():
        if not tensor.isfinite().all():
            raise WeightsError(f"{what}: {name!r} holds values that are NaN or infinite.")


def _case(
    net: nn.Module,
    spec: PermutationSpec | None,
    own: Params,
    other_net: nn.Module,
    other: Params,
    quote: Split,
    *,
    max_class_loss: float,
    seed: int,
) -> Case:
    own_classes = _better_half(_answers(net, own, quote.x), quote.y)
    case = Case(net, spec, own, other_net, other, None, quote, own_classes, max_class_loss, seed)
    return case if spec is None else case._replace(matched=_best_order(case))


def _best_order(case: Case) -> Params:
    """The other in the order in which its average with the own is better on quote; by weights, if both are as good."""
    orders = [_by_weights(case), _by_activations(case)]
    averages = [stack.take(merge.path(case.own, other, 3), 1) for other in orders]
    losses = _calibrated_losses(train.logits(case.net, stack.join(averages), case.quote.x), case.quote.y)
    return orders[_first_least(losses.mean(dim=1))]


def _by_weights(case: Case) -> Params:
    return align.reorder(case.spec, case.own, case.other)


def _by_activations(case: Case) -> Params:
    look = {"matcher": align.activation_matching, "net": case.net, "x": case.quote.x}
    return align.reorder(case.spec, case.own, case.other, **look)


def _better_half(answers: Float[Tensor, "n classes"], y: Int[Tensor, " n"]) -> Bool[Tensor, " classes"]:
    """The half of the classes on which answers are right most often; of equal ones the first."""
    accuracy = train.score_logits(answers.unsqueeze(0), y).class_accuracy[0].nan_to_num(nan=-1.0)
    order = accuracy.argsort(descending=True, stable=True)
    chosen = torch.zeros(len(accuracy), dtype=torch.bool)
    chosen[order[: len(order) // 2]] = True
    return chosen


# What is measured


def _folds(y: Int[Tensor, " n"], seed: int, purpose: str) -> list[Int[Tensor, " part"]]:
    """FOLDS disjoint parts of the examples, each class dealt out evenly."""
    order = torch.randperm(len(y), generator=stream(seed, "folds", purpose))
    by_class = order[y[order].argsort(stable=True)]
    return [by_class[k::FOLDS].sort().values for k in range(FOLDS)]


def _without(split: Split, part: Int[Tensor, " part"]) -> Split:
    kept = torch.ones(len(split), dtype=torch.bool)
    kept[part] = False
    return Split(split.x[kept], split.y[kept])


def _cross_fitted(
    entries: dict[str, _Entry], make_case: Callable[[Split], Case], quote: Split, seed: int
) -> Float[Tensor, "ways n classes"]:
    """What every way answers on quote, each part of it by a service that was tuned on the other parts."""
    folds = _folds(quote.y, seed, "quote")
    parts = []
    for part in folds:
        case = make_case(_without(quote, part))
        x = quote.x[part]
        parts.append(torch.stack([entry.make(case).answers(x) for entry in entries.values()]))
    back = torch.cat(folds).argsort()
    return torch.cat(parts, dim=1)[:, back]


def _changes(answers: Float[Tensor, "ways n classes"], y: Int[Tensor, " n"]) -> Float[Tensor, "n ways"]:
    """What a way changes on every example: 100 points if it is right and the buyer's own network, the first, is not."""
    right = (answers.argmax(dim=-1) == y.cpu()).double()
    return 100 * (right - right[0]).T


def _saved_nats(
    answers: Float[Tensor, "ways n classes"], y: Int[Tensor, " n"], temperatures: Float[Tensor, " ways"]
) -> Float[Tensor, "n ways"]:
    losses = _losses(answers / temperatures.view(-1, 1, 1), y).double()
    return (losses[0] - losses).T


def _losses(answers: Float[Tensor, "ways n classes"], y: Int[Tensor, " n"]) -> Float[Tensor, "ways n"]:
    return cross_entropy(answers.mT, y.cpu().expand(len(answers), -1), reduction="none")


def _multiplications(service: Service, example: Float[Tensor, "1 ..."]) -> int:
    """How many multiplications an example takes in matrix products and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        service.answers(example)
    return counter.get_total_flops() // 2  # it counts each together with its addition


# What ways have in common


def _answers(net: nn.Module, params: Params, x: Tensor) -> Float[Tensor, "n classes"]:
    return train.logits(net, stack.join([params]), x)[0].float().cpu()


def _megabytes(*models: Params) -> float:
    """A megabyte is a million bytes."""
    return sum(tensor.numel() * tensor.element_size() for params in models for tensor in params.values()) / 1e6


def _single(case: Case, params: Params, labels: int) -> Service:
    """One network of the buyer's architecture, in the place of the old one."""
    return Service(partial(_answers, case.net, params), 1, _megabytes(params), labels)


def _best(case: Case, answers: Float[Tensor, "C n classes"], y: Int[Tensor, " n"]) -> int:
    """The candidate with the lowest calibrated loss among those that do not harm; the first is no purchase.

    It stays so unless what is saved is clear of chance: a little of anybody's doubt, noise too, lowers a loss a little.
    """
    losses = _calibrated_losses(answers, y)
    counted = case.own_classes[y.cpu()]
    lost = -_changes(answers.cpu(), y)[counted].sum(dim=0)
    means = losses.mean(dim=1)
    means[lost > case.max_class_loss * counted.sum()] = torch.inf
    chosen = _first_least(means)
    saved = interval(losses[0] - losses[chosen], "examples")
    return chosen if saved.low > 0 else 0


def _calibrated_losses(answers: Float[Tensor, "C n classes"], y: Int[Tensor, " n"]) -> Float[Tensor, "C n"]:
    answers = answers.float().cpu()
    return _losses(answers / train.fit_temperatures(answers, y).view(-1, 1, 1), y)


def _first_least(losses: Float[Tensor, " C"]) -> int:
    """The first of those with the lowest loss; a difference of less than a millionth is rounding."""
    return int((losses <= losses.min() + 1e-6).int().argmax())


def _best_model(case: Case, candidates: Stack) -> Service:
    chosen = _best(case, train.logits(case.net, candidates, case.quote.x), case.quote.y)
    return _single(case, stack.take(candidates, chosen), len(case.quote))


def _log_chances(case: Case, x: Tensor) -> Float[Tensor, "2 n classes"]:
    """What both networks answer, as logarithms of probabilities."""
    own, other = _answers(case.net, case.own, x), _answers(case.other_net, case.other, x)
    return torch.stack([own, other]).log_softmax(dim=-1)


def _blended(log_chances: Float[Tensor, "2 n classes"], shares: Float[Tensor, " C"]) -> Float[Tensor, "C n classes"]:
    """Logarithms of (1 - share) times the own probabilities plus share times the other's."""
    own, other = log_chances
    shares = shares.view(-1, 1, 1)
    return torch.logaddexp((1 - shares).log() + own, shares.log() + other)


def _best_share(case: Case) -> Tensor:
    """The share [1] of the other's probabilities that serves best on quote."""
    shares = torch.linspace(0, 1, POINTS)
    chosen = _best(case, _blended(_log_chances(case, case.quote.x), shares), case.quote.y)
    return shares[chosen : chosen + 1]


# The ways, one a function


def _nothing(case: Case) -> Service:
    return _single(case, case.own, labels=0)


def _other(case: Case) -> Service:
    return Service(partial(_answers, case.other_net, case.other), 1, _megabytes(case.other), labels=0)


def _matched_by_weights(case: Case) -> Service:
    return _best_model(case, merge.path(case.own, _by_weights(case), POINTS))


def _matched_by_activations(case: Case) -> Service:
    return _best_model(case, merge.path(case.own, _by_activations(case), POINTS))


def _repaired(case: Case) -> Service:
    path = merge.repaired_path(case.net, case.spec, case.own, case.matched, case.quote.x, points=POINTS)
    return _best_model(case, path)


def _by_layers(case: Case) -> Service:
    """A share of the other network in all layers, or in one layer alone."""
    shares = torch.linspace(0, 1, POINTS)[1:].tolist()
    weights = market.purchase_weights(shares, len(stack.layers(case.own)), parts="layers")
    lineup = stack.join([stack.join([case.own, case.matched])])
    return _best_model(case, stack.flat(market.mix_layers(lineup, weights.unsqueeze(0))))


def _merged(case: Case, method: MergeMethod) -> Service:
    pair = stack.join([case.own, case.matched])
    merged = method(case.net, case.spec, pair, case.quote, stream(case.seed, "merge"))
    return _single(case, merged, len(case.quote))


def _ensemble(case: Case) -> Service:
    """The mean of both networks' probabilities, with the share that serves best on quote."""
    share = _best_share(case)

    def answers(x: Tensor) -> Tensor:
        return _blended(_log_chances(case, x), share)[0]

    return Service(answers, 2, _megabytes(case.own, case.other), len(case.quote))


def _routed_by_answers(case: Case) -> Service:
    """A gate weighs both networks, example by example, by what they answer: it need not see their weights."""
    log_chances = _log_chances(case, case.quote.x)
    classes = log_chances.shape[-1]
    reader = stack.mlp(2 * classes, [], classes)  # its two experts hand on one network's answers each
    halves = torch.eye(2 * classes).split(classes)
    experts = [{"1.weight": half.unsqueeze(0), "1.bias": torch.zeros(1, classes)} for half in halves]
    router = specialists.OutputRouter(reader, 2)
    fitted = _fit_router(case, router, experts, Split(_beside(log_chances), case.quote.y))

    def answers(x: Tensor) -> Tensor:
        return _answers(router, fitted, _beside(_log_chances(case, x)))

    return Service(answers, 2, _megabytes(case.own, case.other), len(case.quote))


def _beside(log_chances: Float[Tensor, "2 n classes"]) -> Float[Tensor, "n answers"]:
    return torch.cat([log_chances[0], log_chances[1]], dim=-1)


def _routed_by_layers(case: Case) -> Service:
    """In every layer a gate mixes what both networks say there (`specialists.Router`)."""
    router = specialists.Router(case.net, 2)
    experts = [stack.join([case.own]), stack.join([case.matched])]
    fitted = _fit_router(case, router, experts, case.quote)
    return Service(partial(_answers, router, fitted), 2, _megabytes(fitted), len(case.quote))


def _fit_router(
    case: Case, router: specialists.Router | specialists.OutputRouter, experts: list[Stack], split: Split
) -> Params:
    order = [stream(case.seed, "router")]
    return stack.take(specialists.fit_router(router, experts, split, steps=STEPS, generators=order).stack, 0)


def _distilled(case: Case) -> Service:
    """The own network trained on to say what the ensemble says (Hinton et al. 2015); labels only tune the ensemble."""
    share = _best_share(case)
    if share == 0:  # it has nothing to learn
        return _single(case, case.own, len(case.quote))
    lesson = Split(case.quote.x, _blended(_log_chances(case, case.quote.x), share)[0].exp())
    order = [stream(case.seed, "distil")]
    fit = train.fit(case.net, stack.join([case.own]), lesson, steps=STEPS, lr=LEARNING_RATE, generators=order)
    return _single(case, stack.take(fit.stack, 0), len(case.quote))


def _trained_on_labels(case: Case) -> Service:
    """The own network trained on with the labels of quote; for how long, is chosen by cross-validation there."""
    quote = case.quote
    folds = _folds(quote.y, case.seed, "labels")
    stages = _train_on(case, [_without(quote, part) for part in folds])
    parts = []
    for k, part in enumerate(folds):
        candidates = stack.join([stack.take(stage, k) for stage in stages])
        parts.append(train.logits(case.net, candidates, quote.x[part]))
    chosen = _best(case, torch.cat(parts, dim=1), quote.y[torch.cat(folds)])
    return _single(case, stack.take(_train_on(case, [quote])[chosen], 0), len(quote))


def _train_on(case: Case, splits: list[Split]) -> list[Stack]:
    """The own network, trained on each of the splits, after each number of EPOCHS."""
    batch = 64
    per_epoch = math.ceil(max(len(split) for split in splits) / batch)
    steps = [epochs * per_epoch for epochs in EPOCHS]
    fit = train.fit(
        case.net,
        stack.join([case.own] * len(splits)),
        splits,
        steps=steps[-1],
        batch=batch,
        lr=LEARNING_RATE,
        schedule="constant",  # so that each stage is where shorter training would have ended
        generators=[stream(case.seed, "labels", k) for k in range(len(splits))],
        keep=steps,
    )
    return [fit.kept[step] for step in steps]


def _offered(net: nn.Module, spec: PermutationSpec | None) -> dict[str, _Entry]:
    """The ways that two such networks allow, in the order of the table."""
    entries = {
        "nothing": _Entry(_nothing, "answers", "nothing"),
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
        "trained on quote's labels": _Entry(_trained_on_labels, "answers", "nothing"),
    }
    possible: set[Needs] = {"answers"}
    if spec is not None:
        possible.add("one architecture")
        if stack.is_dense(net):
            possible.add("one MLP")
    return {name: entry for name, entry in entries.items() if entry.needs in possible}
