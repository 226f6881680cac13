"""Optimisers on a stack, element by element: one on a stack is K independent ones. And what holds weights back.

`train.fit` steers them.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from paramarket.errors import ParameterError, ShapeError, unknown
from paramarket.stack import Stack, count

_SLOTS = {"adamw": ("step", "exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}


def make_optimizer(
    learnt: Stack, name: str, lr: float, weight_decay: float, state: Mapping[str, Tensor] | None
) -> torch.optim.Optimizer:
    """ "adamw", or "sgd" with momentum .9, going on from another's `state` if there is one (see `optimizer_state`)."""
    kinds = {"adamw": (torch.optim.AdamW, {}), "sgd": (torch.optim.SGD, {"momentum": 0.9})}
    if name not in kinds:
        raise ParameterError(unknown("optimizer", name, kinds))
    kind, extra = kinds[name]
    opt = kind(learnt.values(), lr=lr, weight_decay=weight_decay, fused=True, **extra)
    if state is not None:
        _resume(opt, learnt, state, _SLOTS[name])
    return opt


def _resume(opt: torch.optim.Optimizer, learnt: Stack, state: Mapping[str, Tensor], slots: Sequence[str]) -> None:
    """Put another fit's state into a fresh optimiser; the fused kernels would take any shape, so look first.

    Adam corrects for the steps taken so far, and PyTorch's counts them once for all models: states of models that took
    different numbers of steps are refused, since with one count for all of them every later step would be wrong.
    """
    copies = count(learnt)
    for parameter, tensor in learnt.items():
        for slot in slots:
            key = f"{slot}/{parameter}"
            expected = (copies,) if slot == "step" else tuple(tensor.shape)
            found = tuple(state[key].shape) if key in state else "nothing"
            if found != expected:
                raise ShapeError(
                    f"the state does not fit this stack and optimizer: {key!r} is {found}, expected {expected}."
                )
            resumed = _one_count(state[key]) if slot == "step" else state[key].clone()
            opt.state[tensor][slot] = resumed.to(tensor.device)


def _one_count(steps: Float[Tensor, " models"]) -> Float[Tensor, ""]:
    """The number of steps that all models have taken; ParameterError if they differ."""
    if (steps != steps[0]).any():
        taken = ", ".join(f"{step:g}" for step in steps.unique().tolist())
        raise ParameterError(f"the state's models have taken {taken} steps: go on with those of one number at a time.")
    return steps[0].clone()


def optimizer_state(opt: torch.optim.Optimizer, learnt: Stack, copies: int) -> dict[str, Tensor]:
    """All that the optimiser remembers, as {slot/parameter: tensor [copies, ...]}: to be taken apart like a stack."""
    slots = {f"{slot}/{name}": tensor for name, p in learnt.items() for slot, tensor in opt.state[p].items()}
    return {key: tensor.expand(copies) if tensor.ndim == 0 else tensor for key, tensor in slots.items()}


def make_schedule(opt: torch.optim.Optimizer, name: str, lr: float, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate over `steps`: "one-cycle" with its peak at `lr`, or "constant"."""
    if name == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=steps + 1, cycle_momentum=False)
    if name == "constant":
        return torch.optim.lr_scheduler.ConstantLR(opt, factor=1, total_iters=0)
    raise ParameterError(unknown("schedule", name, ["one-cycle", "constant"]))


def prepare_pull(start: Stack, pull: Mapping[str, Tensor], learnt: Collection[str]) -> dict[str, Tensor]:
    """`pull` as `pull_back` needs it, on the weights' own device; ShapeError or ParameterError for what does not fit.

    pull: {parameter: [K, ...] or what stretches to it}, shares from 0 to 1; parameters that are not named are free.
    What is not learnt, as BatchNorm's statistics, is not pulled.
    """
    for name, share in pull.items():
        if name not in start:
            raise ShapeError(f"pull: {unknown('parameter', name, start)}")
        shape = tuple(start[name].shape)
        if share.ndim != len(shape) or any(size not in (1, own) for size, own in zip(share.shape, shape, strict=True)):
            raise ShapeError(f"pull has shape {tuple(share.shape)} for {name!r}, expected {shape}, or 1 on an axis.")
        if not ((share >= 0) & (share <= 1)).all():
            raise ParameterError(f"pull on {name!r} is no share from 0 (free) to 1 (frozen).")
    return {name: share.to(start[name]) for name, share in pull.items() if name in learnt}


@torch.no_grad()
def pull_back(learnt: Stack, start: Stack, pull: Mapping[str, Tensor]) -> None:
    """Every weight that share of its way back to where it started: at 1 it never left, at 0 nothing happens, exactly.

    theta <- theta_0 + (1 - pull) (theta - theta_0): between 0 and 1 a step on lambda / 2 |theta - theta_0|² with
    pull = lr * lambda, decoupled as in AdamW (L2-SP, Li et al. 2018).
    """
    for name, share in pull.items():
        learnt[name].lerp_(start[name], share)
