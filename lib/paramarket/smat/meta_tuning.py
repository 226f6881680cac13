"""Meta-tuning of sparse interpolated experts (SMAT, Chen et al. 2024): on few-shot tasks, K runs at once.

Undone in one step: with a delta of 0, or alpha of 0, a task's net is the pretrained one, bit for bit.
"""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from paramarket.base import stream, watched
from paramarket.errors import ParameterError
from paramarket.smat.experts import SparseExperts, experts_of, held, interpolate, overlap, route, sparsity, stored
from paramarket.smat.gates import HardConcrete, raised
from paramarket.smat.tasks import Pool, Tasks, answers, draw, said, solve, spread, task_losses
from paramarket.stack import Stack, check

__all__ = ["Aims", "HardConcrete", "SparseExperts", "Tuned", "experts_of", "interpolate", "judge", "meta_tune", "route"]
__all__ += ["asked", "fresh_tasks", "held", "overlap", "sparsity", "stored", "task_models"]

CLAMP = 4.605  # log 100: how far a gate may go either way, as in the authors' code
TEACHER_LR = 0.05  # of the dense teacher's one step


class Aims(NamedTuple):
    """What each of K runs is after. sparsity: at least that share of gates closed, in every expert (tau) · pretrained,
    teacher: weight of distillation from the pretrained net, from the dense teacher · learn: whether gates are trained
    support: learning rate of a task's own step on its support before its queries are answered, 0 for none
    """

    sparsity: Float[Tensor, " K"]
    pretrained: Float[Tensor, " K"]
    teacher: Float[Tensor, " K"]
    learn: Bool[Tensor, " K"]
    support: Float[Tensor, " K"]


class Tuned(NamedTuple):
    """experts, and history: one row a look, run and expert: step, run, expert, loss (query cross-entropy, nats), alpha
    (mean over the step's tasks), sparsity (share of gates that are 0), expected (by its law), multiplier, merged (share
    that is 0 in all experts)
    """

    experts: SparseExperts
    history: pd.DataFrame


def _alpha(net: nn.Module, before: Stack, experts: SparseExperts, tasks: Tasks) -> Float[Tensor, "K T M"]:
    """What the router makes of the examples, seen through the pretrained nets, which take no gradient."""
    with torch.no_grad():
        seen = said(net, before, tasks.support)
    return route(experts.keys, seen)


def _drawn(pool: Pool, streams: dict[int, torch.Generator], seeds: Sequence[int], *how: object) -> Tasks:
    """Tasks [K, T, ...]; runs of one seed get the same ones."""
    own = {seed: draw(pool, *how, generator) for seed, generator in streams.items()}
    return Tasks(*(torch.stack([own[seed][k] for seed in seeds]) for k in range(3)))


def _distance(teacher: Tensor, logits: Tensor) -> Float[Tensor, " K"]:
    """T² KL(teacher || student) at temperature 2, mean over tasks and queries (Hinton et al. 2015)."""
    told, said = ((each / 2).log_softmax(dim=-1) for each in (teacher, logits))
    return 4 * (told.exp() * (told - said)).sum(dim=-1).flatten(1).mean(dim=1)


def _descended(net: nn.Module, models: Stack, tasks: Tasks, ways: int, rate: Tensor) -> Stack:
    """Each task's model after one step of gradient descent on its queries, all weights free, at its run's rate.

    First-order: gradients pass to `models` as if the step did not depend on them.
    """
    free = {name: tensor.detach().requires_grad_() for name, tensor in models.items()}
    slopes = torch.autograd.grad(task_losses(solve(net, free, tasks, ways)).sum(), list(free.values()))
    return {
        n: models[n] - rate.view(-1, *[1] * (slope.ndim - 1)) * slope for n, slope in zip(free, slopes, strict=True)
    }


def meta_tune(
    net: nn.Module,
    pretrained: Stack,
    start: SparseExperts,
    aims: Aims,
    pool: Pool,
    classes: Sequence[int],
    *,
    seeds: Sequence[int],
    steps: int = 300,
    tasks: int = 2,
    ways: int = 5,
    shots: int = 5,
    queries: int = 10,
    lr: float = 2e-3,
    gate_lr: float = 0.02,
    key_lr: float = 0.01,
    dual_lr: float = 0.02,
    distil: float = 0.25,
    look: int = 20,
) -> Tuned:
    """Train delta, gates and keys of K runs on tasks of the pool, all at once; the pretrained nets stay as they are.

    Loss of a run: (1 - distil) cross-entropy of the queries + distil (the aims' distances) + sum_m lambda_m (tau - 1 +
    expected share of open gates), where lambda rises with tau - closed share, and restarts at 0 once that is met. The
    first factor is 1 where nothing is distilled. Adam throughout; lambda is not weighed by alpha.
    Raises ParameterError for a sparsity outside [0, 1), and for what `episodes.draw` refuses.
    """
    if not ((aims.sparsity >= 0) & (aims.sparsity < 1)).all() or check(net, pretrained) != len(seeds):
        raise ParameterError(f"sparsity = {aims.sparsity.tolist()}, expected numbers in [0, 1), for {len(seeds)} runs.")
    delta, gates = ({name: v.clone().requires_grad_() for name, v in part.items()} for part in start[:2])
    experts = SparseExperts(delta, gates, start.keys.clone().requires_grad_())
    groups = zip((experts.delta.values(), experts.gates.values(), [experts.keys]), (lr, gate_lr, key_lr), strict=True)
    opt = torch.optim.Adam([{"params": list(params), "lr": rate} for params, rate in groups])
    streams, rows = {seed: stream(seed, "meta-tuning") for seed in seeds}, []
    multiplier = torch.zeros_like(experts.keys[..., 0]).detach()
    for step in tqdm(range(steps), f"meta-tuning {len(seeds)} runs", leave=False, delay=1, disable=not watched()):
        drawn = _drawn(pool, streams, seeds, tasks, classes, ways, shots, queries)
        loss, told, alpha = _loss(net, pretrained, experts, aims, drawn, ways, distil)
        _, expected, _ = sparsity(experts.gates)
        opt.zero_grad()
        (loss + (multiplier * (aims.sparsity.unsqueeze(1) - expected)).sum(dim=1)).sum().backward()
        multiplier = _stepped(opt, experts, aims, multiplier, dual_lr)
        if step % look == 0 or step + 1 == steps:
            rows.append(_rows(step, told, alpha, experts, multiplier))
    done = SparseExperts(*({k: v.detach() for k, v in part.items()} for part in experts[:2]), experts.keys.detach())
    return Tuned(done, pd.concat(rows, ignore_index=True))


def _loss(
    net: nn.Module, pretrained: Stack, experts: SparseExperts, aims: Aims, drawn: Tasks, ways: int, distil: float
) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"], Float[Tensor, "K M"]]:
    """Loss of every run without its constraint, the cross-entropy of its queries, its mean alpha."""
    before = spread(pretrained, drawn)
    with torch.no_grad():
        unchanged = solve(net, before, drawn, ways)
    alpha = _alpha(net, before, experts, drawn)
    models = interpolate(pretrained, experts, alpha)
    if aims.support.any():
        models = _descended(net, models, drawn._replace(query=drawn.support), ways, aims.support)
    logits = solve(net, models, drawn, ways)
    told = task_losses(logits).mean(dim=1)
    taught = aims.pretrained * _distance(unchanged, logits)
    if aims.teacher.any():
        dense = _descended(net, models, drawn, ways, torch.full_like(aims.teacher, TEACHER_LR))
        with torch.no_grad():
            answered = solve(net, dense, drawn, ways)
        taught = taught + aims.teacher * _distance(answered, logits)
    share = distil * ((aims.pretrained + aims.teacher) > 0).float()
    return (1 - share) * told + distil * taught, told.detach(), alpha.detach().mean(dim=1)


@torch.no_grad()
def _stepped(
    opt: torch.optim.Optimizer, experts: SparseExperts, aims: Aims, multiplier: Tensor, rate: float
) -> Float[Tensor, "K M"]:
    """One step of the weights, and of the multipliers; gates that do not learn stay where they are."""
    for gate in experts.gates.values():
        gate.grad[~aims.learn] = 0
    opt.step()
    for gate in experts.gates.values():
        gate[aims.learn] = gate[aims.learn].clamp(-CLAMP, CLAMP)
    closed, _, _ = sparsity(experts.gates)
    return raised(multiplier, closed, aims.sparsity.unsqueeze(1), rate) * aims.learn.unsqueeze(1)


@torch.no_grad()
def _rows(step: int, loss: Tensor, alpha: Tensor, experts: SparseExperts, multiplier: Tensor) -> pd.DataFrame:
    """What there is to tell of every run [K] or expert [K, M], one row each."""
    closed, expected, merged = sparsity(experts.gates)
    told = {"loss": loss, "alpha": alpha, "sparsity": closed, "expected": expected, "multiplier": multiplier}
    run, expert = torch.meshgrid(*map(torch.arange, alpha.shape), indexing="ij")
    columns = {"run": run, "expert": expert} | told | {"merged": merged}
    wide = {
        n: (each if each.ndim == 2 else each.unsqueeze(1).expand_as(alpha)).flatten() for n, each in columns.items()
    }
    return pd.DataFrame({"step": step + 1, **{name: each.cpu().numpy() for name, each in wide.items()}})


@torch.no_grad()
def task_models(net: nn.Module, pretrained: Stack, experts: SparseExperts, tasks: Tasks) -> Stack:
    """The model that the router makes for every task of every run, a stack [K, T]."""
    return interpolate(pretrained, experts, _alpha(net, spread(pretrained, tasks), experts, tasks))


@torch.no_grad()
def judge(
    net: nn.Module, pretrained: Stack, experts: SparseExperts, drawn: Tasks, ways: int = 4
) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
    """Accuracy of every run on its tasks (see `fresh_tasks`), and of its pretrained net on the same."""
    before, y = spread(pretrained, drawn), answers(ways, drawn.query.shape[2] // ways).to(experts.keys.device)
    models = task_models(net, pretrained, experts, drawn)
    right = [(solve(net, each, drawn, ways).argmax(dim=-1) == y).float() for each in (models, before)]
    return tuple(each.flatten(1).mean(dim=1) for each in right)


def fresh_tasks(
    pool: Pool,
    classes: Sequence[int],
    *,
    seeds: Sequence[int],
    tasks: int = 60,
    ways: int = 4,
    shots: int = 5,
    queries: int = 10,
    noise: float = 0.0,
) -> Tasks:
    """Tasks to judge by, [K, T, ...], the same for runs of one seed.

    noise: share of the examples to learn from that exchange their labels among themselves
    """
    drawn = _drawn(pool, {s: stream(s, "judge") for s in seeds}, seeds, tasks, classes, ways, shots, queries)
    moved = round(noise * ways * shots)
    for k, seed in enumerate(seeds if moved > 1 else []):
        for t in range(tasks):
            chosen = torch.randperm(ways * shots, generator=stream(seed, "noise", t))[:moved]
            drawn.support[k, t, chosen] = drawn.support[k, t, chosen.roll(1)]
    return drawn


@torch.no_grad()
def asked(
    net: nn.Module, pretrained: Stack, experts: SparseExperts, drawn: Tasks, domains: int
) -> Float[Tensor, "K domains M"]:
    """The mean alpha that the tasks of each domain get (0 for a domain without a task)."""
    alpha = _alpha(net, spread(pretrained, drawn), experts, drawn)
    member = nn.functional.one_hot(drawn.domain, domains).to(alpha)
    return (member.mT @ alpha) / member.sum(dim=1).unsqueeze(-1).clamp_min(1)
