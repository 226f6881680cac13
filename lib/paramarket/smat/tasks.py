"""Few-shot tasks: some classes of one domain, a few labelled examples of each to learn from, others to be judged on."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from paramarket.data import Split, seen
from paramarket.errors import DataError, ParameterError
from paramarket.stack import Stack, flat, run


class Pool(NamedTuple):
    """One split seen through several domains: the same images in each, so that only the domain differs.

    x [domains, n, ...] · places [classes, each]: where the examples of a class stand in every domain · names: domains
    """

    x: Float[Tensor, "domains n ..."]
    places: Int[Tensor, "classes each"]
    names: list[str]


class Tasks(NamedTuple):
    """support [tasks, ways · shots, ...], query [tasks, ways · queries, ...], way by way; domain [tasks]: which."""

    support: Float[Tensor, "tasks support ..."]
    query: Float[Tensor, "tasks query ..."]
    domain: Int[Tensor, " tasks"]


def pool(split: Split, domains: Mapping[str, Callable[[Tensor, Generator], Tensor]], seed: int) -> Pool:
    """The images of a split in every domain (see `data.seen`); of every class as many as the smallest has."""
    labels = [(split.y == label).nonzero().flatten() for label in range(int(split.y.max()) + 1)]
    each = min(map(len, labels))
    if not domains or each == 0:
        raise DataError(f"{len(domains)} domains, {each} examples of the rarest class: expected one or more of each.")
    images = torch.stack([view.x for view in seen(split, domains, seed)])
    return Pool(images, torch.stack([places[:each] for places in labels]), list(domains))


def draw(
    pool: Pool, tasks: int, classes: Sequence[int], ways: int, shots: int, queries: int, generator: Generator
) -> Tasks:
    """Tasks at random: a domain, `ways` of the classes, of each `shots` examples to learn from and `queries` others."""
    each = pool.places.shape[1]
    if not 2 <= ways <= len(classes) or not set(classes) <= set(range(len(pool.places))):
        raise ParameterError(
            f"ways = {ways} of the classes {list(classes)}: expected 2 or more, and no more than these."
        )
    if shots < 1 or queries < 1 or shots + queries > each:
        raise ParameterError(f"shots = {shots}, queries = {queries}: expected 1 or more, {each} in all.")
    domain = torch.randint(len(pool.x), (tasks,), generator=generator)
    chosen = torch.rand(tasks, len(classes), generator=generator).argsort(dim=1)[:, :ways]
    own = torch.as_tensor(classes)[chosen]  # [tasks, ways]
    order = torch.rand(tasks, ways, each, generator=generator).argsort(dim=2)[..., : shots + queries]
    x = pool.x[domain[:, None, None], pool.places[own].gather(2, order)]  # [tasks, ways, shots + queries, ...]
    return Tasks(x[:, :, :shots].flatten(1, 2), x[:, :, shots:].flatten(1, 2), domain)


def answers(ways: int, each: int) -> Int[Tensor, " n"]:
    """The ways of the examples of a task, which stand way by way."""
    return torch.arange(ways).repeat_interleave(each)


def prototype_logits(
    support: Float[Tensor, "*tasks s features"], query: Float[Tensor, "*tasks q features"], ways: int
) -> Float[Tensor, "*tasks q ways"]:
    """Ten times the cosine of each query's features with the mean of each way's (prototypes, Snell et al. 2017)."""
    if support.shape[-2] == 0 or support.shape[-2] % ways:
        raise ParameterError(f"{support.shape[-2]} examples to learn from, for {ways} ways: expected as many of each.")
    means = support.unflatten(-2, (ways, -1)).mean(dim=-2)
    return 10 * normalize(query, dim=-1, eps=1e-8) @ normalize(means, dim=-1, eps=1e-8).mT


def spread(models: Stack, tasks: Tasks) -> Stack:
    """The model of every run for each of its tasks, [K] -> [K, T]."""
    count = tasks.support.shape[1]
    return {name: tensor.unsqueeze(1).expand(-1, count, *tensor.shape[1:]) for name, tensor in models.items()}


def said(net: nn.Module, models: Stack, x: Float[Tensor, "K T n ..."]) -> Float[Tensor, "K T n features"]:
    """What the model of every task of every run, a stack [K, T], says of its own examples."""
    return run(net, flat(models), x.flatten(0, 1), shared=False, training=True).unflatten(0, x.shape[:2])


def solve(net: nn.Module, models: Stack, tasks: Tasks, ways: int) -> Float[Tensor, "K T q ways"]:
    """The logits of every task's queries by its own model [K, T], from the prototypes of its support."""
    seen, shots = said(net, models, torch.cat([tasks.support, tasks.query], dim=2)), tasks.support.shape[2]
    return prototype_logits(seen[:, :, :shots], seen[:, :, shots:], ways)


def task_losses(logits: Float[Tensor, "K T q ways"]) -> Float[Tensor, "K T"]:
    """Cross-entropy of every task, mean over its queries, which stand way by way; nats."""
    count, ways = logits.shape[2:]
    y = answers(ways, count // ways).to(logits.device).repeat(logits.shape[:2].numel())
    return cross_entropy(logits.flatten(0, 2), y, reduction="none").view(logits.shape[:3]).mean(dim=-1)
