"""Optimisers on a stack, element by element: one on a stack is K independent ones. And what holds weights back.

`train.fit` steers them. They call PyTorch's own fused kernels, one pass over memory, as `torch.optim.AdamW(fused=True)`
does; `torch.optim` itself would import PyTorch's compiler at its first step, seconds in every process that trains.
"""

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from paramarket.errors import ParameterError, ShapeError, unknown
from paramarket.stack import Packed, Stack, count, pack
from paramarket.stack import map as map_stack


class Optimizer:
    """Moves tensors of weights, in place, against their gradients: see `AdamW` and `SGD`.

    slots: what it remembers: {name: a tensor like each of the weights} · steps: how many each of them has taken
    """

    SLOTS: tuple[str, ...] = ()

    def __init__(
        self,
        weights: Sequence[Tensor],
        *,
        weight_decay: float = 0.0,
        slots: Mapping[str, list[Tensor]] | None = None,
        steps: Tensor | None = None,
    ) -> None:
        """slots, steps: another's, to go on from; without them it begins anew."""
        self.weights = list(weights)
        if not all(tensor.is_contiguous() for tensor in self.weights):  # the kernels would move the wrong numbers
            raise ShapeError("an optimiser needs weights that are contiguous in memory: see Tensor.contiguous.")
        self.weight_decay = weight_decay
        self.slots = slots or {slot: [torch.zeros_like(tensor) for tensor in weights] for slot in self.SLOTS}
        self.steps = torch.zeros(len(self.weights), device=self.weights[0].device) if steps is None else steps

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
    BETA1 = 0.9  # momentum

    def _move(self, gradients: list[Tensor], lr: float) -> None:
        torch._fused_adamw_(
            self.weights,
            gradients,
            self.slots["exp_avg"],
            self.slots["exp_avg_sq"],
            [],
            list(self.steps.unbind()),
            lr=lr,
            beta1=self.BETA1,
            beta2=0.999,
            weight_decay=self.weight_decay,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )


class AdamWithoutMomentum(AdamW):
    """Adam with beta1 = 0: nothing goes on moving once it is no longer pushed."""

    BETA1 = 0.0


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


class StackOptimizer:
    """An optimiser of K models: all their weights in one tensor, moved in one pass over memory.

    Adam corrects for the steps taken so far: models that go on from states of unlike age are moved one by one, each
    with its own count.
    """

    def __init__(
        self, name: str, weights: Packed, *, weight_decay: float = 0.0, state: Mapping[str, Tensor] | None = None
    ) -> None:
        """name: "adamw", or "sgd" with momentum .9 · state: another's, see `state`, to go on from.

        Raises ParameterError for an unknown name, ShapeError for a state that is not of such models.
        """
        if name not in OPTIMIZERS:
            raise ParameterError(unknown("optimizer", name, OPTIMIZERS))
        kind = OPTIMIZERS[name]
        self.copies = count(weights.models)
        if state is None:
            state = _fresh_state(weights.models, kind.SLOTS, self.copies)
        _check_state(state, weights.models, kind.SLOTS, self.copies)
        ages = state["step"].to(weights.numbers.device)
        self.apart = bool((ages != ages[0]).any())
        self.memory = {}
        for slot in kind.SLOTS:
            before = {parameter: state[f"{slot}/{parameter}"] for parameter in weights.models}
            self.memory[slot] = pack(map_stack(lambda tensor: tensor.to(weights.numbers), before))
        slots = {slot: self._pieces(packed) for slot, packed in self.memory.items()}
        steps = ages.repeat(len(weights.models)) if self.apart else ages[:1].clone()
        self.optimizer = kind(self._pieces(weights), weight_decay=weight_decay, slots=slots, steps=steps)

    def _pieces(self, packed: Packed) -> list[Tensor]:
        """All in one, or each parameter's models one by one."""
        if not self.apart:
            return [packed.numbers]
        return [model for tensor in packed.models.values() for model in tensor.unbind()]

    def step(self, gradients: Packed, lr: float) -> None:
        """One step of all models at this learning rate."""
        self.optimizer.step(self._pieces(gradients), lr)

    def state(self) -> dict[str, Tensor]:
        """All that is remembered, to be taken apart like a stack: {"step": [K], slot/parameter: [K, ...]}; no copy."""
        steps = self.optimizer.steps[: self.copies] if self.apart else self.optimizer.steps.expand(self.copies)
        state = {"step": steps.clone()}
        for slot, packed in self.memory.items():
            for parameter, tensor in packed.models.items():
                state[f"{slot}/{parameter}"] = tensor
        return state


def _fresh_state(models: Stack, slots: Sequence[str], copies: int) -> dict[str, Tensor]:
    """The state before the first step."""
    state = {"step": torch.zeros(copies)}
    for slot in slots:
        for parameter, tensor in models.items():
            state[f"{slot}/{parameter}"] = tensor.new_zeros(()).expand_as(tensor)  # `pack` gives it memory
    return state


def _check_state(state: Mapping[str, Tensor], models: Stack, slots: Sequence[str], copies: int) -> None:
    """ShapeError unless the state is one of such models; the fused kernels would take any shape."""
    wanted = {"step": (copies,)}
    for slot in slots:
        for parameter, tensor in models.items():
            wanted[f"{slot}/{parameter}"] = tuple(tensor.shape)
    for key, expected in wanted.items():
        found = tuple(state[key].shape) if key in state else "nothing"
        if found != expected:
            raise ShapeError(
                f"the state does not fit this stack and optimizer: {key!r} is {found}, expected {expected}."
            )


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
