"""Before and beside meta-tuning: pretraining on tasks, and tuning for one task, all weights or a low rank (LoRA)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from paramarket.base import stream, watched
from paramarket.errors import ParameterError
from paramarket.smat.tasks import Pool, Tasks, answers, draw, prototype_logits
from paramarket.stack import Stack, chain, flat, init, run


def pretrain(
    net: nn.Module, pool: Pool, classes: Sequence[int], *, seeds: Sequence[int], steps: int, lr: float = 1e-3
) -> Stack:
    """A pretrained net for each seed: Adam on tasks of six ways and three shots, six queries each, one task a step."""
    models = chain([init(net, 1, seed) for seed in seeds])
    opt = torch.optim.Adam([tensor.requires_grad_() for tensor in models.values()], lr)
    streams, y = [stream(seed, "pretraining") for seed in seeds], answers(6, 6)
    for _ in tqdm(range(steps), "pretraining", leave=False, delay=1, disable=not watched()):
        drawn = [draw(pool, 1, classes, 6, 3, 6, own) for own in streams]
        x = torch.cat([torch.cat([task.support, task.query], dim=1) for task in drawn])
        said = run(net, models, x, shared=False, training=True)
        logits = prototype_logits(said[:, :18], said[:, 18:], 6)
        opt.zero_grad()
        (cross_entropy(logits.flatten(0, 1), y.repeat(len(seeds))) * len(seeds)).backward()
        opt.step()
    return {name: tensor.detach() for name, tensor in models.items()}


def tuned_accuracy(
    net: nn.Module, models: Stack, tasks: Tasks, ways: int, *, steps: int, lr: float, rank: int | None = None
) -> Float[Tensor, " K"]:
    """Accuracy of K runs on T tasks each, after `steps` of Adam on every task's own support, all tasks at once.

    models: the one that each task starts from, [K, T], see `episodes.spread`
    rank: None tunes all weights; otherwise every matrix W [out, in] becomes W + B A (Hu et al. 2022), with A [rank, in]
    drawn small and B [out, rank] starting at 0, and nothing else moves. Prototypes are of the support all the while.
    """
    if steps < 1 or (rank is not None and rank < 1):
        raise ParameterError(f"steps = {steps}, rank = {rank}: expected 1 or more.")
    count = len(tasks.support)
    start = flat(models)
    support, query = tasks.support.flatten(0, 1), tasks.query.flatten(0, 1)
    learnt = {name: torch.zeros_like(t) for name, t in start.items()} if rank is None else _factors(start, rank)
    opt = torch.optim.Adam([tensor.requires_grad_() for tensor in learnt.values()], lr)
    y = answers(ways, support.shape[1] // ways).to(support.device)
    for _ in range(steps):
        said = run(net, _changed(start, learnt, rank), support, shared=False, training=True)
        logits = prototype_logits(said, said, ways)
        loss = cross_entropy(logits.flatten(0, 1), y.repeat(len(logits)), reduction="sum") / len(y)
        opt.zero_grad()
        loss.backward()
        opt.step()
    with torch.no_grad():
        models = _changed(start, learnt, rank)
        said, asked = (run(net, models, x, shared=False, training=True) for x in (support, query))
        right = prototype_logits(said, asked, ways).argmax(dim=-1) == answers(ways, query.shape[1] // ways).to(y)
    return right.float().view(count, -1).mean(dim=1)


def _factors(start: Stack, rank: int) -> dict[str, Tensor]:
    """A and B of every matrix; A is the same for all, drawn from a generator of its own."""
    own, made = stream(0, "LoRA"), {}
    for name, tensor in start.items():
        if tensor.ndim == 3:
            a = torch.randn(rank, tensor.shape[2], generator=own).to(tensor) / tensor.shape[2] ** 0.5
            made[f"A {name}"] = a.repeat(len(tensor), 1, 1)
            made[f"B {name}"] = tensor.new_zeros(len(tensor), tensor.shape[1], rank)
    return made


def _changed(start: Stack, learnt: dict[str, Tensor], rank: int | None) -> Stack:
    if rank is None:
        return {name: tensor + learnt[name] for name, tensor in start.items()}
    low = {name: learnt[f"B {name}"] @ learnt[f"A {name}"] for name in start if f"A {name}" in learnt}
    return {name: tensor + low[name] if name in low else tensor for name, tensor in start.items()}
