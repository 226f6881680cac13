"""Before and beside meta-tuning: pretraining on tasks, and tuning for one task, all weights or a low rank (LoRA)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from paramarket import stack
from paramarket.base import check_list, is_watched, stream, whole_number
from paramarket.smat.tasks import (
    Accuracies,
    TaskPool,
    Tasks,
    draw_by_seed,
    place_tasks,
    prototype_logits,
    task_accuracies,
    task_logits,
    way_labels,
)
from paramarket.stack import Stack
from paramarket.train import AdamW


def pretrain_foundation(
    net: nn.Module,
    pool: TaskPool,
    classes: Sequence[int],
    *,
    seeds: Sequence[int],
    steps: int,
    lr: float = 1e-3,
    device: torch.device | str = "cpu",
) -> Stack:
    """A pretrained net for each seed: Adam on tasks of six ways and three shots, six queries each, one task a step."""
    check_list("seeds", seeds)
    seeds = [whole_number("seed", seed, least=0) for seed in seeds]  # a tensor's entries are no keys
    whole_number("steps", steps, least=1)
    ways, shots, queries = 6, 3, 6
    models = stack.chain([stack.init(net, 1, seed, device) for seed in seeds])
    for tensor in models.values():
        tensor.requires_grad_()
    learnt = list(models.values())
    optimizer = AdamW(learnt)
    generators = {seed: stream(seed, "pretraining") for seed in seeds}
    labels = way_labels(ways, queries).to(device).repeat(len(seeds))
    for _ in tqdm(range(steps), "pretraining", leave=False, delay=1, disable=not is_watched()):
        drawn = draw_by_seed(pool, classes, generators, seeds, tasks=1, ways=ways, shots=shots, queries=queries)
        examples = torch.cat([drawn.support[:, 0], drawn.query[:, 0]], dim=1)
        features = stack.apply(net, models, stack.place(examples, models), shared=False, training=True)
        logits = prototype_logits(features[:, : ways * shots], features[:, ways * shots :], ways)
        loss = cross_entropy(logits.flatten(0, 1), labels) * len(seeds)  # the sum over runs of each run's mean
        optimizer.step(torch.autograd.grad(loss, learnt), lr)
    return stack.map(Tensor.detach, models)


class _LowRank(NamedTuple):
    """What is added to the matrices of a stack, W + B A, W [models, out, in].

    a: A [models, rank, in] · b: B [models, out, rank]
    """

    a: Stack
    b: Stack


def tuned_accuracy(
    net: nn.Module, models: Stack, tasks: Tasks, *, ways: int, steps: int, lr: float, rank: int | None = None
) -> Accuracies:
    """Accuracies of K runs on T tasks each, after `steps` of Adam on every task's own support, all tasks at once.

    Those before are of the models that the tasks start from.

    models: the one that each task starts from, [K, T], see `smat.one_per_task`
    rank: None tunes all weights; otherwise every matrix W [out, in] becomes W + B A (Hu et al. 2022), with A [rank, in]
    drawn small and B [out, rank] starting at 0, and nothing else moves. Prototypes are of the support all the while.
    """
    whole_number("steps", steps, least=1)
    tasks = place_tasks(tasks, models)
    start = stack.flat(models)
    support = tasks.support.flatten(0, 1)
    change = stack.map(torch.zeros_like, start) if rank is None else _low_rank(start, rank)
    learnt = list(change.values()) if rank is None else [*change.a.values(), *change.b.values()]
    for tensor in learnt:
        tensor.requires_grad_()
    optimizer = AdamW(learnt)
    shots = support.shape[1] // ways
    labels = way_labels(ways, shots).to(support.device).repeat(len(support))
    for _ in range(steps):
        features = stack.apply(net, _changed(start, change), support, shared=False, training=True)
        logits = prototype_logits(features, features, ways)
        loss = cross_entropy(logits.flatten(0, 1), labels, reduction="sum") / (ways * shots)
        optimizer.step(torch.autograd.grad(loss, learnt), lr)
    with torch.no_grad():
        tuned = stack.unflat(_changed(start, change), tasks.domain.shape)
        before = task_accuracies(task_logits(net, models, tasks, ways=ways))
        after = task_accuracies(task_logits(net, tuned, tasks, ways=ways))
    return Accuracies(after, before, tasks.domain.cpu())


def _low_rank(start: Stack, rank: int) -> _LowRank:
    """A and B of every matrix of a stack; A is the same for all its models, drawn from a stream of its own."""
    whole_number("rank", rank, least=1)
    generator = stream(0, "LoRA")

    def drawn(matrix: Tensor) -> Tensor:
        inputs = matrix.shape[2]
        a = torch.randn(rank, inputs, generator=generator).to(matrix) / inputs**0.5
        return a.repeat(len(matrix), 1, 1)

    matrices = _matrices(start)
    zeros = stack.map(lambda matrix: matrix.new_zeros(len(matrix), matrix.shape[1], rank), matrices)
    return _LowRank(a=stack.map(drawn, matrices), b=zeros)


def _matrices(models: Stack) -> Stack:
    return {name: tensor for name, tensor in models.items() if tensor.ndim == 3}


def _changed(start: Stack, change: Stack | _LowRank) -> Stack:
    if isinstance(change, _LowRank):
        products = stack.map(torch.matmul, change.b, change.a)
        return start | stack.map(torch.add, _matrices(start), products)
    return stack.map(torch.add, start, change)
