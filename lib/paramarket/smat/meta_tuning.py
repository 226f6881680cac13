"""Meta-tuning of sparse interpolated experts (SMAT, Chen et al. 2024): on few-shot tasks, K runs at once.

Undone in one step: with a delta of 0, or alpha of 0, a task's net is the pretrained one, bit for bit.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from paramarket import stack
from paramarket.base import is_watched, stream, whole_number
from paramarket.errors import ParameterError, ShapeError
from paramarket.smat.experts import (
    LAW,
    SparseExperts,
    check_seeds,
    interpolate,
    mix_masks,
    route,
    sparsity,
)
from paramarket.smat.gates import check_sparsity, dual_ascent_step
from paramarket.smat.tasks import (
    Accuracies,
    TaskPool,
    Tasks,
    by_domain,
    draw_by_seed,
    place_tasks,
    prototype_logits,
    run_features,
    task_accuracies,
    task_logits,
    task_losses,
)
from paramarket.stack import Stack
from paramarket.train import AdamW, AdamWithoutMomentum

CLAMP = 4.605  # log 100: how far a gate may go either way, as in the authors' code
TEACHER_LR = 0.05  # of the dense teacher's one step
AT_ONCE = 2_000_000  # weights of tasks' models that are judged together: 8 MB


class Aims(NamedTuple):
    """What each of K runs is after: settings, to be kept on the CPU wherever the models are.

    sparsity: tau, at least that share of gates closed in every expert
    pretrained_teacher, dense_teacher: weight of distillation from the pretrained net; from a dense copy of the task's
        own net, one step ahead on the very queries
    learn_gates: whether gates are trained
    """

    sparsity: Float[Tensor, " K"]
    pretrained_teacher: Float[Tensor, " K"]
    dense_teacher: Float[Tensor, " K"]
    learn_gates: Bool[Tensor, " K"]


class Tuned(NamedTuple):
    """experts, and history: one row a recorded step, run and expert.

    Columns: step, run, expert, loss (query cross-entropy, nats), alpha (mean over the step's tasks), sparsity (share of
    gates that are 0), expected (by their law), multiplier (lambda), merged (share that is 0 in all experts)
    """

    experts: SparseExperts
    history: pd.DataFrame

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The history, one row a run, recorded step and expert: the columns of a grid say which run.

        Behind them: `step` (how many are done), `expert` (from 0 on), and the history's other columns.
        """
        steps = self.history.step.unique()
        experts = self.history.expert.unique()
        by_run = self.history.sort_values(["run", "step", "expert"]).drop(columns=["run", "step", "expert"])
        measured = {name: by_run[name].to_numpy().reshape(-1, len(steps), len(experts)) for name in by_run}
        return stack.table(rows, {"step": steps, "expert": experts}, **measured)


def meta_tune(
    net: nn.Module,
    pretrained: Stack,
    start: SparseExperts,
    aims: Aims,
    pool: TaskPool,
    classes: Sequence[int],
    *,
    seeds: Sequence[int],
    steps: int = 300,
    tasks: int = 2,
    ways: int = 5,
    shots: int = 5,
    queries: int = 10,
    lr: float | Float[Tensor, " K"] = 2e-3,
    gate_lr: float = 0.05,
    key_lr: float = 0.01,
    dual_lr: float = 0.2,
    distil: float = 0.25,
    record_every: int = 20,
) -> Tuned:
    """Train delta, gates and keys of K runs on tasks of the pool, all at once; the pretrained nets stay as they are.

    Loss of a run: (1 - distil) cross-entropy of the queries + distil (the aims' distances) + sum_m lambda_m (tau - 1 +
    expected share of open gates), where lambda rises with tau - closed share, and restarts at 0 once that is met. The
    first factor is 1 where nothing is distilled. Adam throughout, for the gates without momentum: with it they would go
    on closing long after the constraint is met. lambda is not weighed by alpha.
    lr: of delta, one for all or one a run · gate_lr, key_lr: of gates and keys · dual_lr: how fast lambda rises
    Raises ParameterError for aims or seeds that are not one a run, for a sparsity outside [0, 1), and for what
    `smat.draw_tasks` refuses.
    """
    runs = stack.check(net, pretrained)
    _check_aims(aims, runs)
    check_seeds(seeds, runs)
    seeds = [whole_number("seed", seed, least=0) for seed in seeds]  # a tensor's entries are no keys
    whole_number("steps", steps, least=1)
    whole_number("record_every", record_every, least=1)
    rates = _run_rates(lr, pretrained)

    # All weights of a net in one row: what is done to every gate passes over memory once, not once a parameter.
    like = stack.take(pretrained, 0)
    learn = aims.learn_gates.to(stack.device(pretrained))
    before = stack.vectors(pretrained)
    first_delta = stack.vectors(start.delta).detach()
    all_gates = stack.vectors(start.gates, axes=2).detach()
    masks = LAW.median(all_gates)
    gates = all_gates[learn]  # of the runs that learn theirs; all others stay, and so do their masks
    opened = masks[learn]
    keys = start.keys.detach().clone().requires_grad_()
    walked = torch.zeros_like(first_delta)  # by Adam at a rate of 1, of which each run takes its own share
    delta = first_delta
    delta_optimizer = AdamW([walked])
    gate_optimizer = AdamWithoutMomentum([gates])
    key_optimizer = AdamW([keys])

    generators = {seed: stream(seed, "meta-tuning") for seed in seeds}
    multiplier = keys.new_zeros(keys.shape[:2])
    history = []
    for step in tqdm(range(steps), f"meta-tuning {runs} runs", leave=False, delay=1, disable=not is_watched()):
        drawn = draw_by_seed(pool, classes, generators, seeds, tasks=tasks, ways=ways, shots=shots, queries=queries)
        drawn = place_tasks(drawn, pretrained)
        seen = run_features(net, pretrained, drawn.support)
        alpha = route(keys, seen)
        mixed = alpha.detach() @ masks
        models = (before.unsqueeze(1) + mixed * delta.unsqueeze(1)).requires_grad_()
        losses = _losses(net, pretrained, seen, stack.from_vectors(models, like), aims, drawn, ways, distil)

        # The chain rule, for models = before + mixed * delta, and mixed = alpha @ masks.
        (slope,) = torch.autograd.grad(losses.total.sum(), models)
        mixed_slope = slope * delta.unsqueeze(1)
        (key_slope,) = torch.autograd.grad(alpha, keys, mixed_slope @ masks.mT)
        delta_optimizer.step([(slope * mixed).sum(dim=1)], 1.0)
        delta = first_delta + rates * walked
        key_optimizer.step([key_slope], key_lr)
        if learn.any():
            mask_slope = alpha.detach()[learn].mT @ mixed_slope[learn]
            gate_slope = _gate_slope(mask_slope, opened, gates, multiplier[learn])
            gate_optimizer.step([gate_slope], gate_lr)
            gates.clamp_(-CLAMP, CLAMP)
            opened = LAW.median(gates)
            masks[learn] = opened
            closed = 1 - opened.sign().mean(dim=2)
            multiplier[learn] = dual_ascent_step(multiplier[learn], closed, aims.sparsity[aims.learn_gates], dual_lr)
        if step % record_every == 0 or step + 1 == steps:
            all_gates[learn] = gates
            recorded = stack.from_vectors(all_gates, like)
            history.append(_history_rows(step + 1, losses.queries, alpha.detach().mean(dim=1), multiplier, recorded))
    experts = SparseExperts(stack.from_vectors(delta, like), stack.from_vectors(all_gates, like), keys)
    return Tuned(experts.copy(), pd.concat(history, ignore_index=True))


def _run_rates(lr: float | Float[Tensor, " K"], models: Stack) -> Float[Tensor, "K 1"]:
    """The learning rate of every run, as a column."""
    runs = stack.count(models)
    if isinstance(lr, Tensor) and lr.shape != (runs,):
        raise ParameterError(f"lr is {tuple(lr.shape)}: expected one number, or a tensor of {runs}, one a run.")
    return stack.place(torch.as_tensor(lr).expand(runs).unsqueeze(1), models)


def _gate_slope(
    mask_slope: Float[Tensor, "L M weights"],
    masks: Float[Tensor, "L M weights"],
    gates: Float[Tensor, "L M weights"],
    multiplier: Float[Tensor, "L M"],
) -> Float[Tensor, "L M weights"]:
    """The gradient for log alpha: that of the task losses through the masks, and lambda q (1 - q) / weights.

    The latter is that of the constraint, lambda (tau - 1 + mean q), where q is the chance that a gate is open.
    """
    slope = LAW.slope(masks).mul_(mask_slope)
    if multiplier.any():
        q = LAW.nonzero(gates)
        pressure = (multiplier / gates.shape[-1]).unsqueeze(-1)
        slope.addcmul_(q - q * q, pressure)
    return slope


def _check_aims(aims: Aims, runs: int) -> None:
    for name, numbers in aims._asdict().items():
        if not isinstance(numbers, Tensor) or numbers.shape != (runs,):
            given = tuple(numbers.shape) if isinstance(numbers, Tensor) else repr(numbers)
            raise ParameterError(f"aims.{name} is {given}: expected a tensor of {runs} numbers, one a run.")
    if aims.learn_gates.dtype != torch.bool:
        raise ParameterError(f"aims.learn_gates is of {aims.learn_gates.dtype}: expected true or false.")
    check_sparsity("aims.sparsity", aims.sparsity)


class _Losses(NamedTuple):
    """One step of K runs: the loss without its constraint, and the queries' cross-entropy in it."""

    total: Float[Tensor, " K"]
    queries: Float[Tensor, " K"]


def _losses(
    net: nn.Module, pretrained: Stack, seen: Tensor, models: Stack, aims: Aims, tasks: Tasks, ways: int, distil: float
) -> _Losses:
    """What a step costs: each task's net answers its queries, and is held beside its teachers.

    seen [K, T, support, features]: what the pretrained nets say of the examples to learn from
    """
    logits = task_logits(net, models, tasks, ways=ways)
    losses = task_losses(logits)
    queries = losses.mean(dim=1)
    taught = aims.pretrained_teacher + aims.dense_teacher > 0
    if not taught.any():
        return _Losses(queries, queries.detach())
    distance = torch.zeros_like(queries)
    if aims.pretrained_teacher.any():
        unchanged = prototype_logits(seen, run_features(net, pretrained, tasks.query), ways)
        distance = distance + stack.place(aims.pretrained_teacher, models) * _divergence(unchanged, logits)
    if aims.dense_teacher.any():
        dense = _gradient_step(models, losses)
        with torch.no_grad():  # a teacher takes no gradient
            answers = task_logits(net, dense, tasks, ways=ways)
        distance = distance + stack.place(aims.dense_teacher, models) * _divergence(answers, logits)
    share = stack.place(distil * taught.float(), pretrained)
    return _Losses((1 - share) * queries + distil * distance, queries.detach())


def _divergence(teacher: Float[Tensor, "K T q ways"], student: Float[Tensor, "K T q ways"]) -> Float[Tensor, " K"]:
    """T² KL(teacher || student) at temperature T = 2, mean over tasks and queries (Hinton et al. 2015)."""
    of_teacher = (teacher / 2).log_softmax(dim=-1)
    of_student = (student / 2).log_softmax(dim=-1)
    divergence = (of_teacher.exp() * (of_teacher - of_student)).sum(dim=-1)
    return 4 * divergence.flatten(1).mean(dim=1)


def _gradient_step(models: Stack, losses: Float[Tensor, "K T"]) -> Stack:
    """Each task's dense teacher: its own model after one step of gradient descent on its loss, all weights free."""
    slopes = torch.autograd.grad(losses.sum(), list(models.values()), retain_graph=True)
    by_name = dict(zip(models, slopes, strict=True))
    return stack.map(lambda tensor, slope: tensor.detach() - TEACHER_LR * slope, models, by_name)


def _history_rows(
    step: int, queries: Float[Tensor, " K"], alpha: Float[Tensor, "K M"], multiplier: Float[Tensor, "K M"], gates: Stack
) -> pd.DataFrame:
    """What there is to tell of a step: one row a run and expert, the runs' own numbers beside each of their experts."""
    runs, experts = multiplier.shape
    shares = sparsity(gates)
    return pd.DataFrame(
        {
            "step": step,
            "run": np.repeat(np.arange(runs), experts),
            "expert": np.tile(np.arange(experts), runs),
            "loss": queries.cpu().repeat_interleave(experts),
            "alpha": alpha.cpu().flatten(),
            "sparsity": shares.closed.flatten(),
            "expected": shares.expected.flatten(),
            "multiplier": multiplier.cpu().flatten(),
            "merged": shares.merged.repeat_interleave(experts),
        }
    )


def _alpha(net: nn.Module, pretrained: Stack, experts: SparseExperts, tasks: Tasks) -> Float[Tensor, "K T M"]:
    """What the router makes of the examples, seen through the pretrained nets."""
    return route(experts.keys, run_features(net, pretrained, tasks.support))


@torch.no_grad()
def task_models(net: nn.Module, pretrained: Stack, experts: SparseExperts, tasks: Tasks) -> Stack:
    """The model that the router makes for every task of every run, a stack [K, T]."""
    alpha = _alpha(net, pretrained, experts, tasks)
    return interpolate(pretrained, experts, alpha)


@torch.no_grad()
def accuracies(
    net: nn.Module,
    pretrained: Stack,
    experts: SparseExperts,
    tasks: Tasks,
    *,
    ways: int = 4,
    of: Sequence[int] | None = None,
) -> Accuracies:
    """The share of queries that every run answers right on its tasks [J, T, ...], with its experts and without.

    tasks: see `smat.fresh_tasks` · ways: of the tasks, as they were drawn
    of: which of the J pretrained nets, and so of the rows of tasks, is each run's; None where there are as many
    Raises ShapeError where these do not fit together.
    """
    runs = stack.count(experts.delta)
    of = list(range(runs)) if of is None else [whole_number("of", row, least=0) for row in of]
    nets = stack.count(pretrained)
    if len(of) != runs or len(tasks.domain) != nets or max(of) >= nets:
        given = f"{nets} pretrained nets, tasks for {len(tasks.domain)} and {runs} runs of experts, of {of}"
        raise ShapeError(f"{given}: expected tasks for each of the nets, and one of the nets for each run.")
    of = torch.tensor(of)
    tuned = torch.empty(runs, tasks.domain.shape[1])
    before = torch.empty_like(tuned)
    for row in of.unique().tolist():  # runs of one net share their tasks: no need to hold them all at once
        chosen = of == row
        own_tasks = Tasks(tasks.support[row], tasks.query[row], tasks.domain[row])
        own_net = stack.take(pretrained, slice(row, row + 1))
        tuned[chosen], before[chosen] = _judge(net, own_net, experts.take(chosen), own_tasks, ways)
    return Accuracies(tuned, before, tasks.domain[of].cpu())


def _judge(
    net: nn.Module, pretrained: Stack, experts: SparseExperts, tasks: Tasks, ways: int
) -> tuple[Float[Tensor, "K T"], Float[Tensor, " T"]]:
    """Accuracies on tasks [T, ...] of K runs from one pretrained net, a stack [1], and of that net itself.

    Some tasks at a time: the models of all of them would not fit into a processor's cache, nor perhaps into memory.
    """
    runs = stack.count(experts.delta)
    masks = stack.map(LAW.median, experts.gates)
    weights = sum(tensor.numel() for tensor in pretrained.values())
    at_once = max(1, AT_ONCE // (runs * weights))
    parts = zip(tasks.support.split(at_once), tasks.query.split(at_once), tasks.domain.split(at_once), strict=True)
    tuned = []
    before = []
    for part in parts:
        part = place_tasks(Tasks(*(tensor.unsqueeze(0) for tensor in part)), pretrained)
        seen = run_features(net, pretrained, part.support)
        unchanged = prototype_logits(seen, run_features(net, pretrained, part.query), ways)
        before.append(task_accuracies(unchanged)[0])
        alpha = route(experts.keys, seen.expand(runs, *seen.shape[1:]))
        models = mix_masks(pretrained, masks, experts.delta, alpha)
        every = Tasks(*(tensor.expand(runs, *tensor.shape[1:]) for tensor in part))
        tuned.append(task_accuracies(task_logits(net, models, every, ways=ways)))
    return torch.cat(tuned, dim=1), torch.cat(before)


@torch.no_grad()
def mean_alpha_by_domain(
    net: nn.Module, pretrained: Stack, experts: SparseExperts, tasks: Tasks, *, domains: int
) -> Float[Tensor, "K domains M"]:
    """The mean alpha that the tasks of each domain get (not a number for a domain without a task); on the CPU.

    domains: how many the pool of the tasks has
    """
    alpha = _alpha(net, pretrained, experts, tasks)
    return by_domain(alpha.cpu(), tasks.domain.cpu(), domains)
