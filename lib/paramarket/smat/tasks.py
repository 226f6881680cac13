"""Few-shot tasks: some classes of one domain, a few labelled examples of each to learn from, others to be judged on.

Tasks are drawn on the CPU. Whatever runs models on them moves them to where the models are.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, SupportsIndex

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, normalize, one_hot

from paramarket import stack
from paramarket.base import check_list, stream, whole_number
from paramarket.data import Domain, Split, in_domains
from paramarket.errors import DataError, ParameterError, ShapeError
from paramarket.stack import Stack


class TaskPool(NamedTuple):
    """One split seen through several domains: the same images in each, so that only the domain differs.

    x [domains, n, ...] · places [classes, each]: where the examples of a class stand in every domain · names: domains
    """

    x: Float[Tensor, "domains n ..."]
    places: Int[Tensor, "classes each"]
    names: list[str]


class Tasks(NamedTuple):
    """Few-shot tasks, [tasks] in a row or [K, T] for K runs of T tasks each.

    support [..., ways · shots, ...]: examples to learn from, way by way · query [..., ways · queries, ...]: those to be
    judged on, way by way · domain [...]: which domain of the pool a task is seen through
    """

    support: Float[Tensor, "tasks support ..."]
    query: Float[Tensor, "tasks query ..."]
    domain: Int[Tensor, " tasks"]


def side_by_side(split: Split, each: int, *, seed: SupportsIndex) -> Split:
    """Images two by two, [C² · each, channels, height, 2 · width]: every ordered pair of C classes is a new class.

    Each has `each` pairs and the label first · C + second; either half is drawn at random, with replacement.
    Raises ShapeError for what is no images, DataError for a class without any and for labels that are probabilities.

    >>> import torch
    >>> from paramarket import data, smat
    >>> pairs = smat.side_by_side(data.Split(torch.randn(6, 1, 4, 4), torch.tensor([0, 0, 0, 1, 1, 2])), 5, seed=0)
    >>> tuple(pairs.x.shape), int(pairs.y.max())
    ((45, 1, 4, 8), 8)
    """
    whole_number("each", each, least=1)
    if split.x.ndim != 4:
        raise ShapeError(f"pairs need images [n, channels, height, width], got shape {tuple(split.x.shape)}.")
    if split.y.is_floating_point():
        raise DataError("pairs need labels, got probabilities.")
    counts = split.y.bincount()
    if (counts == 0).any():
        raise DataError(f"pairs need images of every class: {counts.tolist()} given, from class 0 on.")
    classes = len(counts)
    kind = torch.arange(classes**2).repeat_interleave(each)
    by_class = split.y.argsort(stable=True)
    starts = counts.cumsum(dim=0) - counts
    generator = stream(seed, "side by side")

    def drawn(label: Int[Tensor, " n"]) -> Float[Tensor, "n ..."]:
        share = torch.rand(len(label), generator=generator, dtype=torch.float64)
        place = (share * counts[label]).long()
        return split.x[by_class[starts[label] + place]]

    left = drawn(kind // classes)
    right = drawn(kind % classes)
    return Split(torch.cat([left, right], dim=-1), kind)


def task_pool(split: Split, domains: Mapping[str, Domain], *, seed: int) -> TaskPool:
    """The images of a split in every domain (see `data.in_domains`); of every class as many as the smallest has."""
    labels = [(split.y == label).nonzero().flatten() for label in range(int(split.y.max()) + 1)]
    each = min(map(len, labels))
    if not domains or each == 0:
        raise DataError(f"{len(domains)} domains, {each} examples of the rarest class: expected one or more of each.")
    images = torch.stack([view.x for view in in_domains(split, domains, seed=seed)])
    places = torch.stack([label[:each] for label in labels])
    return TaskPool(images, places, list(domains))


def draw_tasks(
    pool: TaskPool,
    classes: Sequence[int],
    generator: Generator,
    *,
    tasks: int,
    ways: int,
    shots: int,
    queries: int,
    by_domain: bool = False,
) -> Tasks:
    """Tasks at random: a domain, `ways` of the classes, of each `shots` examples to learn from and `queries` others.

    by_domain: so many tasks of every domain, [domains · tasks], one domain after another
    Raises ParameterError for classes that the pool does not have, and for more ways or examples than there are.
    """
    classes = _known_classes(pool, classes)
    whole_number("tasks", tasks, least=1)
    each = pool.places.shape[1]
    if not 2 <= ways <= len(classes):
        raise ParameterError(f"ways = {ways} of the classes {classes}: expected 2 or more, and no more than these.")
    if shots < 1 or queries < 1 or shots + queries > each:
        raise ParameterError(f"shots = {shots}, queries = {queries}: expected 1 or more, {each} in all.")
    if by_domain:
        domain = torch.arange(len(pool.x)).repeat_interleave(tasks)
    else:
        domain = torch.randint(len(pool.x), (tasks,), generator=generator)
    chosen = torch.rand(len(domain), len(classes), generator=generator).argsort(dim=1)[:, :ways]
    order = torch.rand(len(domain), ways, each, generator=generator).argsort(dim=2)[..., : shots + queries]
    own_classes = torch.as_tensor(classes)[chosen]  # [tasks, ways]
    places = pool.places[own_classes].gather(2, order)  # [tasks, ways, shots + queries]
    x = pool.x[domain[:, None, None], places]
    return Tasks(x[:, :, :shots].flatten(1, 2), x[:, :, shots:].flatten(1, 2), domain)


def _known_classes(pool: TaskPool, classes: Iterable[SupportsIndex]) -> list[int]:
    check_list("classes", classes)
    labels = [whole_number("classes", label) for label in classes]
    known = range(len(pool.places))
    if not set(labels) <= set(known) or len(set(labels)) < len(labels):
        raise ParameterError(f"classes = {labels}: expected some of {list(known)}, each once.")
    return labels


def draw_by_seed(
    pool: TaskPool, classes: Sequence[int], generators: Mapping[int, Generator], seeds: Sequence[int], **sizes: int
) -> Tasks:
    """Tasks [K, T, ...] of K runs, from the generator of each run's seed; runs of one seed get the same ones.

    sizes: as `draw_tasks` takes them
    """
    by_seed = {seed: draw_tasks(pool, classes, generator, **sizes) for seed, generator in generators.items()}
    runs = [by_seed[seed] for seed in seeds]
    support = torch.stack([run.support for run in runs])
    query = torch.stack([run.query for run in runs])
    domain = torch.stack([run.domain for run in runs])
    return Tasks(support, query, domain)


def fresh_tasks(
    pool: TaskPool,
    classes: Sequence[int],
    *,
    seeds: Sequence[int],
    tasks: int = 60,
    ways: int = 4,
    shots: int = 5,
    queries: int = 10,
    by_domain: bool = False,
) -> Tasks:
    """Tasks to judge by, [K, T, ...], the same for runs of one seed.

    by_domain: so many tasks of every domain, one domain after another, T = domains · tasks
    """
    check_list("seeds", seeds)
    seeds = [whole_number("seed", seed, least=0) for seed in seeds]  # a tensor's entries are no keys
    generators = {seed: stream(seed, "judge") for seed in seeds}
    sizes = {"tasks": tasks, "ways": ways, "shots": shots, "queries": queries, "by_domain": by_domain}
    return draw_by_seed(pool, classes, generators, seeds, **sizes)


def place_tasks(tasks: Tasks, models: Stack) -> Tasks:
    """The same tasks on the models' device; whoever uses them more than once moves them once."""
    return Tasks(
        stack.place(tasks.support, models), stack.place(tasks.query, models), tasks.domain.to(stack.device(models))
    )


def way_labels(ways: int, each: int) -> Int[Tensor, " n"]:
    """The ways of a task's examples, which stand way by way, `each` of every one.

    >>> from paramarket import smat
    >>> smat.way_labels(ways=3, each=2)
    tensor([0, 0, 1, 1, 2, 2])
    """
    return torch.arange(ways).repeat_interleave(each)


def prototype_logits(
    support: Float[Tensor, "*tasks s features"], query: Float[Tensor, "*tasks q features"], ways: int
) -> Float[Tensor, "*tasks q ways"]:
    """Ten times the cosine of each query's features with the mean of each way's (prototypes, Snell et al. 2017).

    Raises ParameterError for a support that has not as many examples of every way.

    >>> import torch
    >>> from paramarket import smat
    >>> support = torch.tensor([[3.0, 0.0], [5.0, 0.0], [0.0, 1.0], [0.0, 7.0]])  # two examples of each of two ways
    >>> smat.prototype_logits(support, query=torch.tensor([[2.0, 0.0], [3.0, 4.0]]), ways=2)
    tensor([[10.,  0.],
            [ 6.,  8.]])
    """
    if support.shape[-2] == 0 or support.shape[-2] % ways:
        raise ParameterError(f"{support.shape[-2]} examples to learn from, for {ways} ways: expected as many of each.")
    prototypes = support.unflatten(-2, (ways, -1)).mean(dim=-2)
    return 10 * normalize(query, dim=-1, eps=1e-8) @ normalize(prototypes, dim=-1, eps=1e-8).mT


def one_per_task(models: Stack, tasks: Tasks) -> Stack:
    """The model of every run for each of its tasks, [K] -> [K, T]."""
    count = tasks.support.shape[1]
    return stack.map(lambda tensor: tensor.unsqueeze(1).expand(-1, count, *tensor.shape[1:]), models)


def task_features(net: nn.Module, models: Stack, x: Float[Tensor, "K T n ..."]) -> Float[Tensor, "K T n features"]:
    """What the model of every task of every run, a stack [K, T], says of its own examples."""
    examples = stack.place(x, models).flatten(0, 1)
    features = stack.apply(net, stack.flat(models), examples, shared=False, training=True)
    return features.unflatten(0, x.shape[:2])


def run_features(net: nn.Module, models: Stack, x: Float[Tensor, "K T n ..."]) -> Float[Tensor, "K T n features"]:
    """What the one model of every run, a stack [K], says of the examples of all its tasks."""
    examples = stack.place(x, models).flatten(1, 2)
    features = stack.apply(net, models, examples, shared=False, training=True)
    return features.unflatten(1, x.shape[1:3])


def task_logits(net: nn.Module, models: Stack, tasks: Tasks, *, ways: int) -> Float[Tensor, "K T q ways"]:
    """The logits of every task's queries by its own model [K, T], from the prototypes of its support."""
    shots = tasks.support.shape[2]
    features = task_features(net, models, torch.cat([tasks.support, tasks.query], dim=2))
    return prototype_logits(features[:, :, :shots], features[:, :, shots:], ways)


def task_losses(logits: Float[Tensor, "K T q ways"]) -> Float[Tensor, "K T"]:
    """Cross-entropy of every task, mean over its queries, which stand way by way; nats."""
    runs, tasks, queries, ways = logits.shape
    labels = way_labels(ways, queries // ways).to(logits.device).repeat(runs * tasks)
    losses = cross_entropy(logits.flatten(0, 2), labels, reduction="none")
    return losses.view(runs, tasks, queries).mean(dim=-1)


def task_accuracies(logits: Float[Tensor, "K T q ways"]) -> Float[Tensor, "K T"]:
    """The share of every task's queries that get their own way, which stand way by way; on the CPU."""
    queries, ways = logits.shape[2:]
    labels = way_labels(ways, queries // ways).to(logits.device)
    return (logits.argmax(dim=-1) == labels).float().mean(dim=2).cpu()


def by_domain(
    values: Float[Tensor, "K T *more"], domain: Int[Tensor, "K T"], domains: int
) -> Float[Tensor, "K domains *more"]:
    """The mean over the tasks of each domain; not a number for a domain without a task.

    domains: how many the pool of the tasks has. Raises ParameterError for a task of another.
    """
    if domain.max() >= domains:
        raise ParameterError(f"a task of domain {int(domain.max())}, counted from 0, and {domains} domains.")
    member = one_hot(domain, domains).to(values).mT
    share = member / member.sum(dim=2, keepdim=True)
    return torch.einsum("kdt,kt...->kd...", share, values)


class Accuracies(NamedTuple):
    """The share of its queries that every task of K runs gets right, after tuning and before; on the CPU.

    domain: which domain of the pool a task is seen through. A run's accuracy is the mean over its tasks.
    """

    tuned: Float[Tensor, "K T"]
    pretrained: Float[Tensor, "K T"]
    domain: Int[Tensor, "K T"]

    def table(self, rows: pd.DataFrame, cameras: Sequence[str] | None = None) -> pd.DataFrame:
        """One row a run: the columns of a grid, `accuracy` and `pretrained_accuracy` (shares of its queries).

        cameras: the names of all the pool's domains, for one row a run and `camera`; of one without a task both
            numbers are missing
        """
        if cameras is None:
            return stack.table(rows, accuracy=self.tuned.mean(dim=1), pretrained_accuracy=self.pretrained.mean(dim=1))
        tuned = by_domain(self.tuned, self.domain, len(cameras))
        pretrained = by_domain(self.pretrained, self.domain, len(cameras))
        return stack.table(rows, {"camera": cameras}, accuracy=tuned, pretrained_accuracy=pretrained)
