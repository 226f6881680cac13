"""Act two, why that stops and two cures: the checks of notebooks 03 to 05."""

import math
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, layer_norm

from paramarket import cka, stack
from paramarket.smat import HardConcrete, route
from paramarket.stack import Params
from paramarket.teach.checking import fresh_generator, tell_learner


def check_cka(answer: Callable[[Tensor, Tensor], float]) -> None:
    """Notebook 03: linear CKA, biased, of two tensors [n, p] and [n, q]."""

    def find_fault() -> str:
        generator = fresh_generator()
        means = torch.tensor([3.0, 9.0, -6.0, 3.0, 0.0, 6.0])  # one number cannot centre them all
        # What is turned has means near 0: if both had large ones, they alone would make the two alike.
        x = torch.randn(200, 6, generator=generator) + means
        rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
        moved = float(answer(x.clone(), 2 * (x - means) @ rotation - 0.5))
        if not abs(moved - 1) <= 1e-3:
            unshifted = float(answer(x, 2 * x @ rotation))
            hint = " Did you centre every feature?" if abs(unshifted - 1) < 1e-3 else ""
            return f"turned, doubled and shifted, x should be like itself: 1, not {moved:.3f}.{hint}"
        for images in (20, 30, 40, 50):  # few enough that debiasing shows
            x, noise = torch.randn(2, images, 9, generator=generator)
            y = x @ torch.randn(9, 9, generator=generator) / 3 + noise
            found, expected = float(answer(x.clone(), y.clone())), cka.linear_cka(x, y)
            if not abs(found - expected) <= 1e-3:
                debiased = cka.linear_cka(x, y, debiased=True)
                hint = " That is the debiased one." if abs(found - debiased) < 1e-3 else ""
                return f"for a random pair it says {found:.3f}, expected {expected:.3f}.{hint}"
        return ""

    tell_learner("my_cka", find_fault)


def check_turning_step(answer: Callable[[pd.DataFrame], int]) -> None:
    """Notebook 03: the step of the best mean accuracy over pairs, the earliest of equal ones, from a table."""

    def find_fault() -> str:
        generator = fresh_generator()
        steps = [0, 10, 20, 40, 80]
        equal = torch.full((5, 4), 0.5)
        places = torch.randperm(3, generator=generator).tolist()  # the best is never the first step, nor the last
        accuracy, best = _draw_accuracies(1 + places[0], generator)
        lucky, best_of_lucky = _draw_accuracies(1 + places[1], generator)
        lucky[-1] = torch.tensor([1.0, 0.1, 0.1, 0.1])
        mostly, best_of_mostly = _draw_accuracies(1 + places[2], generator)
        mostly[0] = torch.tensor([0.9, 0.1, 0.9, 0.9])
        cases = [
            (accuracy, steps[best], "the mean over the pairs is best there"),
            (lucky, steps[best_of_lucky], "one lucky pair is no reason: take the mean over the pairs first"),
            (mostly, steps[best_of_mostly], "most pairs are no reason: take the mean over all of them"),
            (equal, 0, "all are equally good: take the earliest"),
        ]
        for values, expected, why in cases:
            table = stack.table(stack.grid(step=steps), {"pair": range(4)}, accuracy=values)
            found = answer(table.iloc[torch.randperm(20, generator=generator).numpy()])
            if found != expected:
                return f"expected step {expected}, got {found}: {why}."
        return ""

    tell_learner("turning_step", find_fault)


def _draw_accuracies(best: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """Accuracies [steps, pairs], the mean over the pairs largest at step number `best`; and that number."""
    level = torch.tensor([0.5, 0.6, 0.7, 0.75])[torch.randperm(4, generator=generator)]
    level = torch.cat([level[:best], torch.tensor([0.8]), level[best:]])
    return level.view(-1, 1) + 0.01 * torch.rand(5, 4, generator=generator), best


def check_output_router_step(answer: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """Notebook 03: the gate [experts, experts * classes] of an output router after one step of gradient descent."""

    def find_fault() -> str:
        generator = fresh_generator()
        logs = torch.randn(40, 3, 5, generator=generator).log_softmax(dim=-1)
        y = torch.randint(5, (40,), generator=generator)
        gate = torch.randn(3, 15, generator=generator) / 4
        before = gate.clone()
        rate = 0.2 + torch.rand(1, generator=generator).item()
        found = answer(logs, y, gate, rate)
        if not torch.equal(gate, before):
            return "it changes the gate itself: make a copy with gate.clone()."
        if found.shape != gate.shape:
            return f"expected a gate of shape {tuple(gate.shape)}, got {tuple(found.shape)}."
        expected = gate - rate * _gate_slope(logs, y, gate)
        if torch.allclose(found.detach(), gate + rate * _gate_slope(logs, y, gate), atol=1e-5):
            return "that is a step uphill: the loss has grown."
        error = (found.detach() - expected).abs().max().item()
        return "" if error <= 1e-5 else f"the gate is off by up to {error:.4f}, for a rate of {rate:.3f}."

    tell_learner("output_router_step", find_fault)


def _gate_slope(logs: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """By the chain rule: what a share's logarithm takes from the loss is p_e less how much expert e explains of y."""
    answers = layer_norm(logs.flatten(1), (logs[0].numel(),))
    shares = (answers @ gate.T).softmax(dim=-1)
    of_truth = logs.exp()[torch.arange(len(y)), :, y] * shares
    explained = of_truth / of_truth.sum(dim=-1, keepdim=True)
    return (shares - explained).T @ answers / len(y)


def check_route(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Notebook 04: alpha [M] of a task, from the keys [M, features] and the features of its support [n, features].

    The mean of the support's features, brought to the length sqrt(features); a sigmoid of its product with every key;
    divided by their sum (see `smat.route`).
    """

    def find_fault() -> str:
        generator = fresh_generator()
        for length in (0.3, 1.0, 3.0):  # of one length alone, its scaling might not be seen
            keys = torch.randn(4, 8, generator=generator)
            support = length * (torch.randn(8, generator=generator) + torch.randn(10, 8, generator=generator) / 4)
            turned = support.roll(int(torch.randint(1, 10, (), generator=generator)), dims=0)  # none stays in its place
            found = torch.as_tensor(answer(keys.clone(), support.clone())).detach()
            if found.shape != (4,):
                return f"expected one number an expert, shape (4,), got {tuple(found.shape)}."
            reordered = torch.as_tensor(answer(keys.clone(), turned)).detach()
            if not torch.allclose(found, reordered, atol=1e-4):
                return "the same examples in another order give another answer: take the mean of their features."
            expected = route(keys[None], support[None, None])[0, 0]
            if torch.allclose(found, expected, atol=1e-4):
                continue
            return _route_fault(found, keys, support.mean(dim=0)) or (
                f"expected {_rounded(expected)}, got {_rounded(found)}."
            )
        return ""

    tell_learner("router", find_fault)


def _route_fault(found: Tensor, keys: Tensor, mean: Tensor) -> str:
    """Which of the likely mistakes a router's answer is, or nothing."""
    unit = mean / mean.norm()
    scaled = unit * len(mean) ** 0.5
    for e in (scaled, unit, mean):
        if torch.allclose(found, (keys @ e).softmax(dim=0), atol=1e-4):
            return "that is a softmax: it takes the sigmoid of each product, and divides by their sum."
        if torch.allclose(found, (keys @ e).sigmoid(), atol=1e-4):
            return f"these sum to {found.sum().item():.2f}, not to 1: divide by the sum."
    for e in (unit, mean):
        scores = (keys @ e).sigmoid()
        if torch.allclose(found, scores / scores.sum(), atol=1e-4):
            return "the mean has to have the length sqrt(features): divide by its norm, then multiply."
    return ""


def _rounded(numbers: Tensor) -> list[float]:
    return [round(number, 3) for number in numbers.flatten().tolist()]


def check_interpolate(answer: Callable[[Params, Params, Params, Tensor], Params]) -> None:
    """Notebook 04: a task's model, pretrained + (sum_m alpha_m z_m) * delta, the gates z at their median.

    answer: takes the pretrained weights and the shared change, {name: tensor [...]}, log alpha of the gates,
    {name: [M, ...]}, and alpha [M]
    """

    def find_fault() -> str:
        generator = fresh_generator()
        shapes = {"1.weight": (4, 3), "1.bias": (4,)}
        pretrained = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        delta = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        gates = {name: 3 * torch.randn(5, *shape, generator=generator) for name, shape in shapes.items()}
        alpha = torch.rand(5, generator=generator)
        alpha = alpha / alpha.sum()
        given = (pretrained, delta, gates)
        found = answer(*(stack.copy(part) for part in given), alpha.clone())
        for name, weight in pretrained.items():
            if name not in found or found[name].shape != weight.shape:
                return f"expected {name!r} of shape {tuple(weight.shape)} among its tensors, as in the pretrained net."
            fault = _interpolation_fault(found[name].detach(), weight, delta[name], gates[name], alpha)
            if fault:
                return f"{name!r}: {fault}"
        return ""

    tell_learner("interpolate", find_fault)


def _interpolation_fault(found: Tensor, weight: Tensor, delta: Tensor, log_alpha: Tensor, alpha: Tensor) -> str:
    """What is wrong with one tensor of a task's model, or nothing."""
    law = HardConcrete()
    z = law.median(log_alpha)
    unclipped = (law.high - law.low) * (log_alpha / law.temperature).sigmoid() + law.low

    def with_gates(gates: Tensor) -> Tensor:
        return weight + torch.tensordot(alpha, gates, dims=1) * delta

    expected = with_gates(z)
    if torch.allclose(found, expected, atol=1e-4):
        return ""
    raw = "log alpha is no gate yet: z = clip(1.2 sigmoid(log alpha / (2/3)) - 0.1, 0, 1)."
    mistakes = [
        (with_gates(log_alpha), raw),
        (with_gates(log_alpha.sigmoid()), raw),
        (with_gates(unclipped), "the gates are not clipped to 0 and 1."),
        (with_gates(law.nonzero(log_alpha)), "that takes P(z ≠ 0), the chance, in place of the gate z."),
        (with_gates(law.median(log_alpha, temperature=1.0)), "the gates are taken at temperature 1, not 2/3."),
        (weight + delta, "the whole change is added: it has to pass through the gates."),
        (expected - weight, "the pretrained weights are missing."),
        (weight + z.sum(dim=0) * delta, "the masks are added without alpha."),
        (weight + z.mean(dim=0) * delta, "all masks count alike: weigh them by alpha."),
    ]
    for mistake, sentence in mistakes:
        if torch.allclose(found, mistake, atol=1e-4):
            return sentence
    return f"it is off by up to {(found - expected).abs().max().item():.3f}."


def check_soup_step(answer: Callable[..., Sequence[Params]]) -> None:
    """Notebook 05: base, experts and router after one step of gradient descent on the loss of Theta(h) on a batch.

    answer: takes net (an MLP), base {name: tensor [...]}, experts {name: [n, ...]}, router {name: [...]} of an MLP
    domains -> n with one hidden layer, h [domains], x [batch, ...], y [batch] and rate
    """

    def find_fault() -> str:
        generator = fresh_generator()
        for _ in range(5):  # of one draw alone, all hidden units of a router might be on, and no ReLU missed
            fault = _one_soup_fault(answer, generator)
            if fault:
                return fault
        return ""

    tell_learner("soup_step", find_fault)


def _one_soup_fault(answer: Callable[..., Sequence[Params]], generator: torch.Generator) -> str:
    """What is wrong with one step of a small random soup on a random batch, or nothing."""
    net = stack.mlp(6, [5], 3)
    one = stack.take(stack.init(net, 1, seed=0), 0)
    phi = stack.take(stack.init(stack.mlp(4, [7], 3), 1, seed=0), 0)

    def drawn(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator) / 2

    base = stack.map(drawn, one)
    experts = stack.map(lambda tensor: torch.randn(3, *tensor.shape, generator=generator) / 2, one)
    router = stack.map(drawn, phi)
    h = torch.rand(4, generator=generator)
    h = h / h.sum()
    x = torch.randn(12, 6, generator=generator)
    y = torch.randint(3, (12,), generator=generator)
    rate = 0.2 + torch.rand(1, generator=generator).item()
    parts = (base, experts, router)
    given = [stack.copy(part) for part in parts]
    found = answer(net, *given, h, x, y, rate)
    names = ("base", "experts", "router")
    for name, part, before in zip(names, given, parts, strict=True):
        if any(not torch.equal(part[key].detach(), tensor) for key, tensor in before.items()):
            return f"it changes the {name} that it was given: begin with copies, tensor.clone()."
    if not isinstance(found, (tuple, list)) or len(found) != 3:
        return "expected three dicts: the new base, experts and router."
    for name, part, before in zip(names, found, parts, strict=True):
        for key, tensor in before.items():
            if key not in part or part[key].shape != tensor.shape:
                return f"expected {key!r} of shape {tuple(tensor.shape)} in the new {name}."
    return _soup_step_fault([stack.copy(part) for part in found], parts, net, h, x, y, rate)


def _soup_step_fault(
    found: Sequence[Params], parts: Sequence[Params], net: nn.Module, h: Tensor, x: Tensor, y: Tensor, rate: float
) -> str:
    """What is wrong with the new parts of a soup, or nothing."""
    names = ("base", "experts", "router")
    slopes = _soup_slopes(net, *parts, h, x, y)
    without_base = _soup_slopes(net, stack.map(torch.zeros_like, parts[0]), *parts[1:], h, x, y)

    def is_step(k: int, slopes: Params, rate: float) -> bool:
        return all(torch.allclose(found[k][n], t - rate * slopes[n], atol=1e-4) for n, t in parts[k].items())

    if all(is_step(k, slopes[k], rate) for k in range(3)):
        return ""
    if all(is_step(k, slopes[k], -rate) for k in range(3)):
        return "that is a step uphill: the loss has grown."
    if is_step(1, without_base[1], rate):
        return "S is missing in Theta(h) = S + sum alpha_i E_i."
    for k, name in enumerate(names):
        if is_step(k, slopes[k], 0.0):
            return f"the {name} did not move: all three parts learn at every step."
    if is_step(1, slopes[0], rate):  # the base's gradient is that of Theta(h), G
        return "every expert got G: expert i gets alpha_i G."
    for k, name in enumerate(names):
        if not is_step(k, slopes[k], rate):
            error = max((found[k][n] - t + rate * slopes[k][n]).abs().max().item() for n, t in parts[k].items())
            return f"the {name} is off by up to {error:.4f}."
    return ""


def _soup_slopes(
    net: nn.Module, base: Params, experts: Params, router: Params, h: Tensor, x: Tensor, y: Tensor
) -> list[Params]:
    """The gradients of base, experts and router, by autograd."""
    parts = [stack.map(lambda tensor: tensor.detach().clone().requires_grad_(), p) for p in (base, experts, router)]
    base, experts, router = parts
    hidden = (router["1.weight"] @ h + router["1.bias"]).relu()
    alpha = router["3.weight"] @ hidden + router["3.bias"]
    theta = stack.map(lambda tensor, bank: tensor + torch.tensordot(alpha, bank, dims=1), base, experts)
    cross_entropy(functional_call(net, theta, (x,)), y).backward()
    return [stack.map(lambda tensor: tensor.grad, part) for part in parts]


def check_pays_after(answer: Callable[[float, float, float], float]) -> None:
    """Notebook 05: the smallest number of customers at which paying once is no dearer than paying for each."""

    def find_fault() -> str:
        for once, each, saved in _draw_costs(fresh_generator()):
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


def _draw_costs(generator: torch.Generator) -> list[tuple[float, float, float]]:
    """(once, each, saved by each): what is paid once is saved by 2 to 20 customers, just so, or by some part of one.

    So rounding down, to the nearest or up beyond the exact number are all found out, and no constant fits.
    """
    cases = []
    for part in (0.0, 0.2, 0.8):
        for fewest in (2, 11):
            customers = int(torch.randint(fewest, fewest + 9, (), generator=generator))
            saved = 10 * int(torch.randint(1, 50, (), generator=generator))
            each = 10 * int(torch.randint(1, 50, (), generator=generator))
            cases.append(((customers + part) * saved, float(each), float(saved)))
    return cases
