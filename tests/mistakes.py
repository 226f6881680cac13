"""What learners hand in, by check: a constant, the input itself, plausible mistakes; solutions are the notebooks'."""

import math

import numpy as np
import torch
from exercises import NOTEBOOKS, exercises, solution
from scipy.optimize import linear_sum_assignment

from paramarket import cka, price, stack

EXERCISES = {exercise.check: exercise for path in NOTEBOOKS for exercise in exercises(path)}


def constant(value):
    return lambda *given: value


def the_input(*given):
    return given[0]


def altered(check, change):
    """The solution's answer, changed."""
    right = solution(EXERCISES[check])
    return lambda *given: change(right(*given), *given)


def among(a, b, where):
    return (a == b)[where].float().mean().item()


def swapped_rows(params, i, j):
    order = torch.arange(7)
    order[[i, j]] = order[[j, i]]
    return {**params, "1.weight": params["1.weight"][order], "3.weight": params["3.weight"][:, order]}


def always_the_first_two(params, i, j):
    return solution(EXERCISES["check_swap_units"])(params, 0, 1)


def greedy(a, b):
    products = a @ b.T
    order = torch.empty(len(a), dtype=torch.long)
    for _ in range(len(a)):
        row, column = divmod(products.argmax().item(), len(b))
        order[row] = column
        products[row], products[:, column] = -math.inf, -math.inf
    return order


def by_cosine(a, b):
    unit = torch.nn.functional.normalize
    return torch.from_numpy(linear_sum_assignment(unit(a) @ unit(b).T, maximize=True)[1])


def matching(sweeps=50, biases=True, reads=True):
    """Two layers, matched in turn, with one part or another left out."""

    def best(products):
        return torch.from_numpy(linear_sum_assignment(products, maximize=True)[1])

    def match(a, b):
        first, second = torch.arange(len(b["1.bias"])), torch.arange(len(b["3.bias"]))
        for _ in range(sweeps):
            read = a["3.weight"].T @ b["3.weight"][second] if reads else 0
            outer = torch.outer(a["1.bias"], b["1.bias"]) if biases else 0
            first = best(a["1.weight"] @ b["1.weight"].T + outer + read)
            read = a["5.weight"].T @ b["5.weight"] if reads else 0
            outer = torch.outer(a["3.bias"], b["3.bias"]) if biases else 0
            second = best(a["3.weight"] @ b["3.weight"][:, first].T + outer + read)
        return first, second

    return match


def softmax_of_answers(logs, y, gate, rate):
    """An output router's step, the answers not normalised."""
    gate = gate.clone().requires_grad_()
    shares = (logs.flatten(1) @ gate.T).log_softmax(dim=-1)
    loss = torch.nn.functional.nll_loss((shares.unsqueeze(-1) + logs).logsumexp(dim=1), y)
    return (gate - rate * torch.autograd.grad(loss, gate)[0]).detach()


def without_relu(net, S, E, phi, h, x, y, rate):
    parts = [stack.map(lambda tensor: tensor.clone().requires_grad_(), part) for part in (S, E, phi)]
    alpha = parts[2]["3.weight"] @ (parts[2]["1.weight"] @ h + parts[2]["1.bias"]) + parts[2]["3.bias"]
    theta = {name: tensor + torch.tensordot(alpha, parts[1][name], dims=1) for name, tensor in parts[0].items()}
    torch.nn.functional.cross_entropy(torch.func.functional_call(net, theta, x), y).backward()
    return [stack.map(lambda tensor: (tensor - rate * tensor.grad).detach(), part) for part in parts]


def by_median_loss(losses, hits):
    choice = int(losses.median(dim=1).values.argmin())
    return choice, 100 * (hits[choice].mean() - hits[0].mean()).item()


def rest_to(place):
    def split(cents, shares):
        parts = [int(cents * share) for share in shares]
        parts[place(shares)] += cents - sum(parts)
        return parts

    return split


def edited(check, old, new):
    """The solution with one text in it replaced."""
    return solution(EXERCISES[check], old, new)


def chosen(keep, by="gain_points"):
    """The best by a column of the ways that are kept."""

    def choose(table, allowed):
        table = table[keep(table, allowed)]
        return table.way[table[by].idxmax()] if len(table) else "nothing"

    return choose


def fine(table, allowed):
    return (table.gain_points_low > 0) & (table.own_class_change >= -allowed)


# Checks whose cases are drawn alike, but for so many at first; in all others some case finds a mistake for sure.
DRAWN = {
    "check_match_layer": 0,
    "check_match_two_layers": 0,
    "check_price_from_sample": 3,
    "check_soup_step": 0,
    "check_examples_needed": 0,
}

TYPICAL = {
    "check_same_mistake": {
        "constant": constant(1 / 3),
        "input": the_input,
        "of all images": lambda a, b, truth: among(a, b, truth == truth),
        "where either is wrong": lambda a, b, truth: among(a, b, (a != truth) | (b != truth)),
    },
    "check_average": {
        "constant": lambda a, b: stack.map(torch.zeros_like, a),
        "input": the_input,
        "the sum": lambda a, b: stack.map(torch.add, a, b),
    },
    "check_swap_units": {
        "constant": always_the_first_two,
        "input": the_input,
        "the bias forgotten": swapped_rows,
    },
    "check_match_layer": {
        "constant": constant(torch.arange(12)),
        "input": the_input,
        "the nearest of those left": greedy,
        "each its nearest": lambda a, b: (a @ b.T).argmax(dim=1),
        "the other way round": altered("check_match_layer", lambda order, *_: order.argsort()),
        "by angle": by_cosine,
    },
    "check_match_two_layers": {
        "constant": constant((torch.arange(16), torch.arange(12))),
        "input": lambda a, b: (a, b),
        "one sweep": matching(sweeps=1),
        "no biases": matching(biases=False),
        "by what is read alone": matching(reads=False),
    },
    "check_merge_method": {
        "constant": lambda net, spec, models, *_: stack.map(lambda tensor: 0 * tensor[0], models),
        "input": lambda net, spec, models, *_: models,
        "the second model": lambda net, spec, models, *_: stack.take(models, 1),
        "the sum": lambda net, spec, models, *_: stack.map(lambda tensor: tensor.sum(dim=0), models),
    },
    "check_turning_step": {
        "constant": constant(0),
        "input": the_input,
        "by the median": lambda table: table.groupby("step").accuracy.median().idxmax(),
        "the luckiest pair": lambda table: table.step[table.accuracy.idxmax()],
        "the last step": lambda table: table.step.max(),
    },
    "check_cka": {
        "constant": constant(1.0),
        "input": the_input,
        "debiased": lambda x, y: cka.linear_cka(x, y, debiased=True),
        "its root": altered("check_cka", lambda found, *_: found**0.5),
        "one mean for all features": lambda x, y: solved_without_centring(x - x.mean(), y - y.mean()),
    },
    "check_output_router_step": {
        "constant": lambda logs, y, gate, rate: torch.zeros_like(gate),
        "input": lambda logs, y, gate, rate: gate,
        "not normalised": softmax_of_answers,
        "a rate of its own": lambda *given: solution(EXERCISES["check_output_router_step"])(*given[:3], 0.5),
    },
    "check_route": {
        "constant": constant(torch.full((4,), 0.25)),
        "input": the_input,
        "a softmax": lambda keys, support: (keys @ support.mean(dim=0)).softmax(dim=0),
        "not summed": lambda keys, support: (keys @ support.mean(dim=0)).sigmoid(),
    },
    "check_interpolate": {
        "constant": lambda pretrained, *_: stack.map(torch.zeros_like, pretrained),
        "input": the_input,
        "the gates left out": lambda pretrained, delta, *_: stack.map(torch.add, pretrained, delta),
    },
    "check_soup_step": {
        "constant": lambda net, *parts: [stack.map(torch.zeros_like, part) for part in parts[:3]],
        "input": lambda net, *parts: parts[:3],
        "no ReLU": without_relu,
        "a rate of its own": lambda *given: solution(EXERCISES["check_soup_step"])(*given[:-1], 0.5),
    },
    "check_pays_after": {
        "constant": constant(2),
        "input": the_input,
        "rounded": lambda once, each, instead: round(once / (instead - each)) if instead > each else math.inf,
        "up beyond": lambda once, each, instead: int(once / (instead - each)) + 1 if instead > each else math.inf,
        "each forgotten": lambda once, each, instead: math.ceil(once / instead) if instead > each else math.inf,
    },
    "check_quote_and_audit": {
        "constant": constant((1, 2.5)),
        "input": lambda losses, hits: (losses, hits),
        "chosen by hits": lambda losses, hits: (int(hits.mean(dim=1).argmax()), 5.0),
        "by the median": by_median_loss,
        "by the smallest loss": lambda losses, hits: (int(losses.amin(dim=1).argmin()), 5.0),
    },
    "check_price_from_sample": {
        "constant": constant(100.0),
        "input": the_input,
        "the cost forgotten": lambda sample, cost: price.posted_price(sample).price,
        "the lowest above the cost": lambda sample, cost: sample[sample > cost].min(),
        "who pays his value stays away": lambda sample, cost: max(
            sample, key=lambda p: (p - cost) * (sample > p).mean()
        ),
        "the median": lambda sample, cost: np.sort(sample)[len(sample) // 2],
        "the highest": lambda sample, cost: sample.max(),
    },
    "check_best_bid": {
        "constant": constant(0.5),
        "input": the_input,
        "the equilibrium's": lambda value, low, high: 2 * value / 3 + 1 / 12,
        "as if asks began at 0": lambda value, low, high: min(2 * value / 3, high),
    },
    "check_purchase": {
        "constant": lambda net, spec, buyer, *_: (buyer, 100.0),
        "input": lambda net, spec, buyer, *_: (buyer, 0.0),
        "the mean is paid": edited("check_purchase", ").low", ").mean"),
        "chosen on audit": edited("check_purchase", "mixtures, splits.quote", "mixtures, splits.audit"),
        "half of the value": edited("check_purchase", "(value + cost) / 2", "value / 2"),
        "not matched": edited("check_purchase", "align.permute(spec, order, seller)", "seller"),
    },
    "check_split_cents": {
        "constant": lambda cents, shares: [cents // len(shares)] * len(shares),
        "input": lambda cents, shares: shares,
        "rounded": lambda cents, shares: [round(cents * share) for share in shares],
        "rounded down": lambda cents, shares: [int(cents * share) for share in shares],
        "the rest to the last": rest_to(lambda shares: -1),
        "the rest to the largest": rest_to(lambda shares: shares.index(max(shares))),
    },
    "check_best_answer": {
        "constant": constant((1, 1)),
        "input": the_input,
        "as if alone": lambda score, rival: solution(EXERCISES["check_best_answer"])(score, (0, 0)),
        "what the rival takes is gone": lambda score, rival: tuple(int(x > 0) for x in score @ (1 - np.array(rival))),
        "the other's signal": lambda score, rival: solution(EXERCISES["check_best_answer"])(score.T, rival),
    },
    "check_only_training": {
        "constant": constant((0.6, 1.0)),
        "input": lambda alpha: (alpha, alpha),
        "B as bad as can be": lambda alpha: (0.5, 1.0),
        "half-way": lambda alpha: ((0.5 + alpha) / 2, 1.0),
    },
    "check_payment_both_sign": {
        "constant": constant(0.0),
        "input": the_input,
        "always": lambda gain_a, gain_b: (gain_b - gain_a) / 2,
        "never against B": lambda gain_a, gain_b: max((gain_b - gain_a) / 2, 0) if gain_a + gain_b > 0 else None,
        "only if A loses": lambda gain_a, gain_b: (gain_b - gain_a) / 2 if gain_a + gain_b > 0 > gain_a else None,
        "A's loss": lambda gain_a, gain_b: -gain_a if gain_a + gain_b > 0 else None,
    },
    "check_choose_way": {
        "constant": constant("nothing"),
        "input": the_input,
        "the largest gain": chosen(lambda table, allowed: table.gain_points > 0),
        "no guard": chosen(lambda table, allowed: table.gain_points_low > 0),
        "chance forgotten": chosen(lambda table, allowed: table.own_class_change >= -allowed),
        "the surest": chosen(fine, by="gain_points_low"),
        "the kindest": chosen(fine, by="own_class_change"),
        "no harm allowed": chosen(lambda table, allowed: (table.gain_points_low > 0) & (table.own_class_change >= 0)),
        "no change allowed": chosen(lambda table, allowed: fine(table, allowed) & (table.own_class_change <= allowed)),
    },
    "check_examples_needed": {
        "constant": constant(1000),
        "input": the_input,
        "unpaired": lambda better, worse, precision: math.ceil(0.5 * (1.96 / precision) ** 2),
        "rounded down": altered("check_examples_needed", lambda found, *_: found - 1),
        "no square": lambda better, worse, precision: math.ceil((better + worse) * (1.96 / precision) ** 2),
    },
    "check_break_even": {
        "constant": constant(2.0),
        "input": the_input,
        "nothing alone": lambda costs, worth, alone: costs / worth,
        "less what is had alone": lambda costs, worth, alone: costs / worth - alone,
    },
}


def solved_without_centring(x, y):
    return ((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())).item()
