"""Act two, why that stops and two cures: the checks of notebooks 03 to 05."""

import math
from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from paramarket import cka, stack
from paramarket.smat import HardConcrete, route
from paramarket.stack import Params
from paramarket.teach.checking import fresh_generator, tell_learner


def check_cka(answer: Callable[[Tensor, Tensor], float]) -> None:
    """Notebook 03: linear CKA, biased, of two tensors [n, p] and [n, q]."""

    def find_fault() -> str:
        generator = fresh_generator()
        x = torch.randn(200, 6, generator=generator) + 3
        noise = torch.randn(200, 9, generator=generator)
        rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
        moved = float(answer(x.clone(), 2 * x @ rotation - 5))
        if abs(moved - 1) > 1e-3:
            unshifted = float(answer(x, 2 * x @ rotation))
            hint = " Did you centre every feature?" if abs(unshifted - 1) < 1e-3 else ""
            return f"turned, doubled and shifted, x should be like itself: 1, not {moved:.3f}.{hint}"
        y = torch.cat([x, noise[:, :3]], dim=1) @ torch.randn(9, 9, generator=generator) + noise
        found, expected = float(answer(x, y)), cka.linear_cka(x, y)
        if abs(found - expected) > 1e-3:
            return f"for a random pair it says {found:.3f}, expected {expected:.3f}."
        return ""

    tell_learner("my_cka", find_fault)


def check_turning_step(answer: Callable[[pd.DataFrame], int]) -> None:
    """Notebook 03: the step of the best mean accuracy over pairs, the earliest of equal ones, from a table."""

    def find_fault() -> str:
        generator = fresh_generator()
        steps = [0, 10, 20, 40, 80]
        level = torch.tensor([0.5, 0.7, 0.8, 0.75, 0.6])[torch.randperm(5, generator=generator)]
        accuracy = level.view(-1, 1) + 0.01 * torch.rand(5, 4, generator=generator)
        lucky = accuracy.clone()
        lucky[-1] = torch.tensor([1.0, 0.1, 0.1, 0.1])
        equal = torch.full((5, 4), 0.5)
        best, best_but_last = steps[level.argmax()], steps[level[:-1].argmax()]
        cases = [
            (accuracy, best, "the mean over the pairs is best there"),
            (lucky, best_but_last, "one lucky pair is no reason: take the mean over the pairs first"),
            (equal, 0, "all are equally good: take the earliest"),
        ]
        for values, expected, why in cases:
            table = stack.table(stack.grid(step=steps), {"pair": range(4)}, accuracy=values)
            found = answer(table.iloc[torch.randperm(20, generator=generator).numpy()])
            if found != expected:
                return f"expected step {expected}, got {found}: {why}."
        return ""

    tell_learner("turning_step", find_fault)


def check_output_router_step(answer: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """Notebook 03: the gate [experts, experts * classes] of an output router after one step of gradient descent."""

    def find_fault() -> str:
        generator = fresh_generator()
        logs = torch.randn(40, 3, 5, generator=generator).log_softmax(dim=-1)
        y = torch.randint(5, (40,), generator=generator)
        gate = torch.randn(3, 15, generator=generator) / 4
        before = gate.clone()
        found = answer(logs, y, gate, 0.5)
        if not torch.equal(gate, before):
            return "it changes the gate itself: make a copy with gate.clone()."
        if found.shape != gate.shape:
            return f"expected a gate of shape {tuple(gate.shape)}, got {tuple(found.shape)}."
        expected = gate - 0.5 * _gate_slope(logs, y, gate)
        if torch.allclose(found.detach(), gate + 0.5 * _gate_slope(logs, y, gate), atol=1e-5):
            return "that is a step uphill: the loss has grown."
        error = (found.detach() - expected).abs().max().item()
        return f"the gate is off by up to {error:.4f}." if error > 1e-5 else ""

    tell_learner("output_router_step", find_fault)


def _gate_slope(logs: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """By the chain rule: what a share's logarithm takes from the loss is p_e less how much expert e explains of y."""
    answers = layer_norm(logs.flatten(1), (logs[0].numel(),))
    shares = (answers @ gate.T).softmax(dim=-1)
    of_truth = logs.exp()[torch.arange(len(y)), :, y] * shares
    explained = of_truth / of_truth.sum(dim=-1, keepdim=True)
    return (shares - explained).T @ answers / len(y)


def check_open_chance(answer: Callable[[Tensor], Tensor]) -> None:
    """Notebook 04: the chance that a hard-concrete gate is not 0, from its log alpha [n]."""

    def find_fault() -> str:
        log_alpha = 8 * torch.rand(50, generator=fresh_generator()) - 4
        gate = HardConcrete()
        found = torch.as_tensor(answer(log_alpha))
        if found.shape != log_alpha.shape:
            return f"expected one chance a gate, shape {tuple(log_alpha.shape)}, got {tuple(found.shape)}."
        if torch.allclose(found, gate.one(log_alpha), atol=1e-4):
            return "that is the chance of z = 1: mind the sign of the last term."
        error = (found - gate.nonzero(log_alpha)).abs().max().item()
        return f"it is off by up to {error:.3f}." if error > 1e-4 else ""

    tell_learner("open_chance", find_fault)


def check_mixed_alpha(answer: Callable[..., Tensor]) -> None:
    """Notebook 04: alpha for a support of which a share comes from one domain, the rest from another."""

    def find_fault() -> str:
        generator = fresh_generator()
        for share, length in ((0.2, 0.3), (0.5, 1.0), (0.9, 3.0)):  # of one length alone, its scaling might not be seen
            keys = torch.randn(4, 8, generator=generator)
            a = length * torch.randn(8, generator=generator)
            b = length * torch.randn(8, generator=generator)
            of_a = round(10 * share)  # images of the support that come from a
            support = torch.cat([a.expand(of_a, 8), b.expand(10 - of_a, 8)])
            expected = route(keys[None], support[None, None])[0, 0]
            found = torch.as_tensor(answer(keys, a, b, share))
            if found.shape != (4,) or abs(found.sum().item() - 1) > 1e-3:
                return (
                    f"expected 4 numbers that sum to 1, got shape {tuple(found.shape)}, sum {found.sum().item():.2f}."
                )
            if (found - expected).abs().max() > 1e-3:
                return f"expected {expected.tolist()}, got {found.tolist()}."
        return ""

    tell_learner("mixed_alpha", find_fault)


def check_specialist(answer: Callable[..., Params]) -> None:
    """Notebook 05: S + sum_i alpha_i E_i, from a base, experts [n, ...] and alpha [n]."""

    def find_fault() -> str:
        generator = fresh_generator()
        base = {"1.weight": torch.randn(4, 3, generator=generator), "1.bias": torch.randn(4, generator=generator)}
        experts = {
            "1.weight": torch.randn(5, 4, 3, generator=generator),
            "1.bias": torch.randn(5, 4, generator=generator),
        }
        for alpha in (torch.eye(5)[2], torch.randn(5, generator=generator)):
            found = answer(base, experts, alpha)
            shown = [round(share, 2) for share in alpha.tolist()]
            for name, tensor in base.items():
                if name not in found or found[name].shape != tensor.shape:
                    return f"expected {name!r} of shape {tuple(tensor.shape)} among its tensors, as in the base."
                summed = sum(share * expert for share, expert in zip(alpha, experts[name], strict=True))
                if torch.allclose(found[name], summed, atol=1e-4):
                    return f"with alpha = {shown}, {name!r} is the sum of the experts without S."
                if not torch.allclose(found[name], tensor + summed, atol=1e-4):
                    return f"with alpha = {shown}, {name!r} is not S + sum alpha E."
        return ""

    tell_learner("specialist", find_fault)


def check_pays_after(answer: Callable[[float, float, float], float]) -> None:
    """Notebook 05: the smallest number of customers at which paying once is no dearer than paying for each."""

    def find_fault() -> str:
        drawn = 10 * torch.randint(1, 50, (20, 3), generator=fresh_generator()).double()
        for once, each, saved in [*drawn.tolist(), (100.0, 10.0, 50.0)]:
            case = f"once {once:g}, then {each:g} each, not {each + saved:g}"
            customers = answer(once, each, each + saved)
            if not 0 <= customers < math.inf or customers != int(customers):
                return f"{case}: expected a whole number of customers, got {customers:g}."
            if once > customers * saved:
                return f"{case}: with {customers:g} customers it does not pay yet."
            if once <= (customers - 1) * saved:
                return f"{case}: it pays before customer {customers:g}."
        for each in (3.0, 2.0):
            if answer(1.0, each, 2.0) != math.inf:
                return "if each one costs as much as before, or more, it never pays: math.inf."
        return ""

    tell_learner("pays_after", find_fault)
