"""Meta-tuning of sparse interpolated experts (SMAT, Chen et al. 2024): on few-shot tasks, K runs at once.

Undone in one step: with a delta of 0, or alpha of 0, a task's net is the pretrained one, bit for bit.
"""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from paramarket.base import ParameterError, stream, watched
from paramarket.episodes import Pool, Tasks, answers, draw, prototype_logits
from paramarket.gates import HardConcrete, raised
from paramarket.interpolated import SparseExperts, experts_of, held, interpolate, overlap, route, sparsity
from paramarket.stack import Stack, check, run

__all__ = ["Aims", "HardConcrete", "SparseExperts", "Tuned", "experts_of", "interpolate", "judge", "meta_tune", "route"]
__all__ += ["asked", "fresh_tasks", "held", "overlap", "sparsity"]

CLAMP = 4.605  # log 100: how far a gate may go either way, as in the authors' code
TEACHER_LR = 0.05  # of the dense teacher's one step


class Aims(NamedTuple):
    """What each of K runs is after. sparsity: at least that share of gates closed, in every expert (tau) · pretrained,
    teacher: weight of distillation from the pretrained net, from the dense teacher · learn: whether gates are trained
    """

    sparsity: Float[Tensor, " K"]
    pretrained: Float[Tensor, " K"]
    teacher: Float[Tensor, " K"]
    learn: Bool[Tensor, " K"]


class Tuned(NamedTuple):
    """experts, and history: one row a look and run: step, run, loss (query cross-entropy, nats), sparsity (share of
    gates that are 0, mean of the experts), expected (by its law), merged (0 in all experts), multiplier (mean)
    """

    experts: SparseExperts
    history: pd.DataFrame


def _features(net: nn.Module, models: Stack, x: Float[Tensor, "K T n ..."]) -> Float[Tensor, "K T n features"]:
    flat = {name: tensor.flatten(0, 1) for name, tensor in models.items()}
    return run(net, flat, x.flatten(0, 1), shared=False, training=True).unflatten(0, x.shape[:2])


def _logits(net: nn.Module, models: Stack, tasks: Tasks, ways: int) -> Float[Tensor, "K T q ways"]:
    said = _features(net, models, torch.cat([tasks.support, tasks.query], dim=2))
    shots = tasks.support.shape[2]
    return prototype_logits(said[:, :, :shots], said[:, :, shots:], ways)


def _spread(pretrained: Stack, tasks: Tasks) -> Stack:
    """The pretrained net of every run for each of its tasks, [K, T]."""
    count = tasks.support.shape[1]
    return {name: tensor.unsqueeze(1).expand(-1, count, *tensor.shape[1:]) for name, tensor in pretrained.items()}


def _alpha(net: nn.Module, before: Stack, experts: SparseExperts, tasks: Tasks) -> Float[Tensor, "K T M"]:
    """What the router makes of the examples, seen through the pretrained nets, which take no gradient."""
    with torch.no_grad():
        said = _features(net, before, tasks.support)
    return route(experts.keys, said)


def _drawn(pool: Pool, streams: dict[int, torch.Generator], seeds: Sequence[int], *how: object) -> Tasks:
    """Tasks [K, T, ...]; runs of one seed get the same ones."""
    own = {seed: draw(pool, *how, generator) for seed, generator in streams.items()}
    return Tasks(*(torch.stack([own[seed][k] for seed in seeds]) for k in range(3)))


def _distance(teacher: Tensor, logits: Tensor) -> Float[Tensor, " K"]:
    """T² KL(teacher || student) at temperature 2, mean over tasks and queries (Hinton et al. 2015)."""
    told, said = ((each / 2).log_softmax(dim=-1) for each in (teacher, logits))
    return 4 * (told.exp() * (told - said)).sum(dim=-1).flatten(1).mean(dim=1)


def _teacher(net: nn.Module, models: Stack, tasks: Tasks, ways: int, y: Tensor, lr: float) -> Tensor:
    """The dense teacher: each task's model after one step of gradient descent on its queries, all weights free."""
    free = {name: tensor.detach().requires_grad_() for name, tensor in models.items()}
    loss = _cross_entropy(_logits(net, free, tasks, ways), y).sum()
    slopes = torch.autograd.grad(loss, list(free.values()))
    with torch.no_grad():
        stepped = {name: free[name] - lr * slope for name, slope in zip(free, slopes, strict=True)}
        return _logits(net, stepped, tasks, ways)


def _cross_entropy(logits: Float[Tensor, "K T q ways"], y: Tensor) -> Float[Tensor, "K T"]:
    losses = cross_entropy(logits.flatten(0, 2), y.repeat(logits[..., 0, 0].numel()), reduction="none")
    return losses.view(logits.shape[:-1]).mean(dim=-1)


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
    first factor is 1 where nothing is distilled. Adam throughout; no support step, and lambda not weighed by alpha.
    Raises ParameterError for a sparsity outside [0, 1), and for what `episodes.draw` refuses.
    """
    if not ((aims.sparsity >= 0) & (aims.sparsity < 1)).all() or check(net, pretrained) != len(seeds):
        raise ParameterError(f"sparsity = {aims.sparsity.tolist()}, expected numbers in [0, 1), for {len(seeds)} runs.")
    delta, gates = ({name: v.clone().requires_grad_() for name, v in part.items()} for part in start[:2])
    experts = SparseExperts(delta, gates, start.keys.clone().requires_grad_())
    groups = zip((experts.delta.values(), experts.gates.values(), [experts.keys]), (lr, gate_lr, key_lr), strict=True)
    opt = torch.optim.Adam([{"params": list(params), "lr": rate} for params, rate in groups])
    streams, rows = {seed: stream(seed, "meta-tuning") for seed in seeds}, []
    multiplier, y = torch.zeros_like(experts.keys[..., 0]).detach(), answers(ways, queries).to(experts.keys.device)
    for step in tqdm(range(steps), f"meta-tuning {len(seeds)} runs", leave=False, delay=1, disable=not watched()):
        drawn = _drawn(pool, streams, seeds, tasks, classes, ways, shots, queries)
        loss, told = _loss(net, pretrained, experts, aims, drawn, ways, y, distil)
        _, expected, _ = sparsity(experts.gates)
        opt.zero_grad()
        (loss + (multiplier * (aims.sparsity.unsqueeze(1) - expected)).sum(dim=1)).sum().backward()
        multiplier = _stepped(opt, experts, aims, multiplier, dual_lr)
        if step % look == 0 or step + 1 == steps:
            rows.append(_row(step, told, experts, multiplier))
    done = SparseExperts(*({k: v.detach() for k, v in part.items()} for part in experts[:2]), experts.keys.detach())
    return Tuned(done, pd.concat(rows, ignore_index=True))


def _loss(
    net: nn.Module,
    pretrained: Stack,
    experts: SparseExperts,
    aims: Aims,
    drawn: Tasks,
    ways: int,
    y: Tensor,
    distil: float,
) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
    """Loss of every run without its constraint, and the cross-entropy of its queries."""
    before = _spread(pretrained, drawn)
    with torch.no_grad():
        unchanged = _logits(net, before, drawn, ways)
    models = interpolate(pretrained, experts, _alpha(net, before, experts, drawn))
    logits = _logits(net, models, drawn, ways)
    told = _cross_entropy(logits, y).mean(dim=1)
    taught = aims.pretrained * _distance(unchanged, logits)
    if aims.teacher.any():
        taught = taught + aims.teacher * _distance(_teacher(net, models, drawn, ways, y, TEACHER_LR), logits)
    share = distil * ((aims.pretrained + aims.teacher) > 0).float()
    return (1 - share) * told + distil * taught, told.detach()


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
def _row(step: int, loss: Tensor, experts: SparseExperts, multiplier: Tensor) -> pd.DataFrame:
    closed, expected, merged = sparsity(experts.gates)
    columns = {"loss": loss, "sparsity": closed.mean(dim=1), "expected": expected.mean(dim=1), "merged": merged}
    columns |= {"multiplier": multiplier.mean(dim=1)}
    numbers = {name: column.cpu().numpy() for name, column in columns.items()}
    return pd.DataFrame({"step": step + 1, "run": range(len(loss)), **numbers})


@torch.no_grad()
def judge(
    net: nn.Module, pretrained: Stack, experts: SparseExperts, drawn: Tasks, ways: int = 4
) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
    """Accuracy of every run on its tasks (see `fresh_tasks`), and of its pretrained net on the same."""
    before, y = _spread(pretrained, drawn), answers(ways, drawn.query.shape[2] // ways).to(experts.keys.device)
    models = interpolate(pretrained, experts, _alpha(net, before, experts, drawn))
    right = [(_logits(net, each, drawn, ways).argmax(dim=-1) == y).float() for each in (models, before)]
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
    alpha = _alpha(net, _spread(pretrained, drawn), experts, drawn)
    member = nn.functional.one_hot(drawn.domain, domains).to(alpha)
    return (member.mT @ alpha) / member.sum(dim=1).unsqueeze(-1).clamp_min(1)
