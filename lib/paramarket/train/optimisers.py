"""Optimisers on a stack, element by element: one on a stack is K independent ones. And what holds weights back.

`train.fit` steers them. They call PyTorch's own fused kernels, one pass over memory, as `torch.optim.AdamW(fused=True)`
does; `torch.optim` itself would import PyTorch's compiler at its first step, seconds in every process that trains.
"""

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from paramarket.errors import ParameterError, ShapeError, unknown
from paramarket.stack import Params, Stack, copy, from_vectors, vectors


class Optimizer:
    """Moves tensors of weights, in place, against their gradients: see `AdamW` and `SGD`.

    slots: what it remembers: {name: a tensor like each of the weights} · steps: how many each of them has taken
    """

    SLOTS: tuple[str, ...] = ()

    def __init__(self, weights: Sequence[Tensor], *, weight_decay: float = 0.0) -> None:
        self.weights = list(weights)
        self.weight_decay = weight_decay
        self.slots = {slot: [torch.zeros_like(tensor) for tensor in weights] for slot in self.SLOTS}
        self.steps = torch.zeros(len(self.weights), device=self.weights[0].device)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], lr: float) -> None:
        """One step at this learning rate, with a gradient for each of the tensors."""
        self.steps += 1
        laid_out = [gradient.contiguous() for gradient in gradients]  # the kernels read memory, whatever its strides
        self._move(laid_out, lr)

    def _move(self, gradients: list[Tensor], lr: float) -> None:
        raise NotImplementedError


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2); without decay it is plain Adam."""

    SLOTS = ("exp_avg", "exp_avg_sq")

    def _move(self, gradients: list[Tensor], lr: float) -> None:
        torch._fused_adamw_(
            self.weights,
            gradients,
            self.slots["exp_avg"],
            self.slots["exp_avg_sq"],
            [],
            list(self.steps.unbind()),
            lr=lr,
            beta1=0.9,
            beta2=0.999,
            weight_decay=self.weight_decay,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )


class SGD(Optimizer):
    """Stochastic gradient descent with momentum .9; weight decay is an L2 penalty."""

    SLOTS = ("momentum_buffer",)

    def _move(self, gradients: list[Tensor], lr: float) -> None:
        torch._fused_sgd_(
            self.weights,
            gradients,
            self.slots["momentum_buffer"],
            weight_decay=self.weight_decay,
            momentum=0.9,
            lr=lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,  # a buffer of zeros says the same
        )


OPTIMIZERS = {"adamw": AdamW, "sgd": SGD}


def make_optimizer(
    name: str, rows: Float[Tensor, "K weights"], like: Params, weight_decay: float, state: Mapping[str, Tensor] | None
) -> Optimizer:
    """ "adamw", or "sgd" with momentum .9, for K rows of weights; it goes on from another's `state` if there is one.

    like: one model, the names and shapes of what stands in a row · state: see `optimizer_state`
    Adam corrects for the steps taken so far. Models of one age move in one pass; where ages differ, each has its own
    count. Its tensors are `rows.chunk(1)`, or `rows.chunk(K)`.
    """
    if name not in OPTIMIZERS:
        raise ParameterError(unknown("optimizer", name, OPTIMIZERS))
    if state is None:
        return OPTIMIZERS[name](rows.chunk(1), weight_decay=weight_decay)
    copies = len(rows)
    _check_state(state, like, copies, OPTIMIZERS[name].SLOTS)
    ages = state["step"].to(rows.device)
    parts = 1 if (ages == ages[0]).all() else copies
    optimizer = OPTIMIZERS[name](rows.chunk(parts), weight_decay=weight_decay)
    optimizer.steps = ages[:parts].clone()
    for slot in optimizer.slots:
        before = vectors({parameter: state[f"{slot}/{parameter}"] for parameter in like})
        optimizer.slots[slot] = list(before.to(rows).chunk(parts))
    return optimizer


def _check_state(state: Mapping[str, Tensor], like: Params, copies: int, slots: Sequence[str]) -> None:
    """ShapeError unless the state is one of K such models; the fused kernels would take any shape."""
    wanted = {"step": (copies,)}
    for slot in slots:
        for parameter, tensor in like.items():
            wanted[f"{slot}/{parameter}"] = (copies, *tensor.shape)
    for key, expected in wanted.items():
        found = tuple(state[key].shape) if key in state else "nothing"
        if found != expected:
            raise ShapeError(
                f"the state does not fit this stack and optimizer: {key!r} is {found}, expected {expected}."
            )


def optimizer_state(optimizer: Optimizer, like: Params, copies: int) -> dict[str, Tensor]:
    """All that the optimiser remembers, to be taken apart like a stack: {"step": [K], slot/parameter: [K, ...]}."""
    state = {"step": optimizer.steps.expand(copies).clone()}
    for slot, parts in optimizer.slots.items():
        named = copy(from_vectors(torch.cat(parts), like))
        state |= {f"{slot}/{parameter}": tensor for parameter, tensor in named.items()}
    return state


def learning_rates(schedule: str, lr: float, steps: int) -> list[float]:
    """The learning rate at every one of `steps` steps.

    "constant": always `lr` · "linear": from `lr` down to 0 in a line
    "one-cycle": from lr / 25 up to `lr` in the first 30 %, then down to lr / 250,000, along cosines (Smith and Topin
    2018, as in torch.optim.lr_scheduler.OneCycleLR)
    """
    if schedule == "constant":
        return [lr] * steps
    if schedule == "linear":
        return [lr * (1 - step / steps) for step in range(steps)]
    if schedule == "one-cycle":
        return [_one_cycle(lr, step, steps) for step in range(steps)]
    raise ParameterError(unknown("schedule", schedule, ["one-cycle", "linear", "constant"]))


def _one_cycle(lr: float, step: int, steps: int) -> float:
    top = 0.3 * (steps + 1) - 1  # the step at which the rate is highest
    if step <= top:
        return _along_cosine(lr / 25, lr, step / top)
    return _along_cosine(lr, lr / 25 / 1e4, (step - top) / (steps - top))


def _along_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


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
