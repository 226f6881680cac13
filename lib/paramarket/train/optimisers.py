"""Optimisers on a stack, element by element: one on a stack is K independent ones. And what holds weights back.

`train.fit` steers them.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from paramarket.errors import ParameterError, ShapeError, unknown
from paramarket.stack import Stack

_SLOTS = {"adamw": ("step", "exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}


def optimizer_of(
    learnt: Stack, name: str, lr: float, weight_decay: float, state: Mapping[str, Tensor] | None
) -> torch.optim.Optimizer:
    """ "adamw", or "sgd" with momentum .9, going on from another's `state` if there is one (see `state_of`)."""
    kinds = {"adamw": (torch.optim.AdamW, {}), "sgd": (torch.optim.SGD, {"momentum": 0.9})}
    if name not in kinds:
        raise ParameterError(unknown("optimizer", name, kinds))
    kind, extra = kinds[name]
    opt = kind(learnt.values(), lr=lr, weight_decay=weight_decay, fused=True, **extra)
    if state is not None:
        _resume(opt, learnt, state, _SLOTS[name])
    return opt


def _resume(opt: torch.optim.Optimizer, learnt: Stack, state: Mapping[str, Tensor], slots: Sequence[str]) -> None:
    """Put another fit's state into a fresh optimiser; the fused kernels would take any shape, so look first."""
    copies = len(next(iter(learnt.values())))
    for parameter, tensor in learnt.items():
        for slot in slots:
            key, shape = f"{slot}/{parameter}", (copies,) if slot == "step" else tuple(tensor.shape)
            found = tuple(state[key].shape) if key in state else "nothing"
            if found != shape:
                raise ShapeError(
                    f"the state does not fit this stack and optimizer: {key!r} is {found}, expected {shape}."
                )
            opt.state[tensor][slot] = (state[key][0] if slot == "step" else state[key]).clone().to(tensor.device)


def state_of(opt: torch.optim.Optimizer, learnt: Stack, copies: int) -> dict[str, Tensor]:
    """All that the optimiser remembers, as {slot/parameter: tensor [copies, ...]}: to be taken apart like a stack."""
    slots = {f"{slot}/{name}": tensor for name, p in learnt.items() for slot, tensor in opt.state[p].items()}
    return {key: tensor.expand(copies) if tensor.ndim == 0 else tensor for key, tensor in slots.items()}


def schedule_of(opt: torch.optim.Optimizer, name: str, lr: float, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate over `steps`: "one-cycle" with its peak at `lr`, or "constant"."""
    if name == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=steps + 1, cycle_momentum=False)
    if name == "constant":
        return torch.optim.lr_scheduler.ConstantLR(opt, factor=1, total_iters=0)
    raise ParameterError(unknown("schedule", name, ["one-cycle", "constant"]))


def toward(start: Stack, pull: Mapping[str, Tensor], learnt: Collection[str]) -> dict[str, Tensor]:
    """`pull` as `go_back` needs it, on the weights' own device; ShapeError or ParameterError for what does not fit.

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
def go_back(learnt: Stack, start: Stack, pull: Mapping[str, Tensor]) -> None:
    """Every weight that share of its way back to where it started: at 1 it never left, at 0 nothing happens, exactly.

    theta <- theta_0 + (1 - pull) (theta - theta_0): between 0 and 1 a step on lambda / 2 |theta - theta_0|² with
    pull = lr * lambda, decoupled as in AdamW (L2-SP, Li et al. 2018).
    """
    for name, share in pull.items():
        learnt[name].lerp_(start[name], share)
