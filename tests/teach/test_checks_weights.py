import pytest
import torch
from scipy.optimize import linear_sum_assignment

from paramarket import align, merge, stack, teach


def same(a, b, truth):
    both = (a != truth) & (b != truth)
    return (a == b)[both].float().mean().item()


def average(a, b):
    return stack.map(lambda one, other: (one + other) / 2, a, b)


def overwrite(a, b):
    for name in a:
        a[name] += b[name]
    return a


def swap(params, i, j):
    order = torch.arange(len(params["1.bias"]))
    order[[i, j]] = order[[j, i]]
    swapped = {name: params[name][order] for name in ("1.weight", "1.bias")}
    return {**params, **swapped, "3.weight": params["3.weight"][:, order]}


def reverse(params, i, j):
    order = torch.arange(len(params["1.bias"])).flip(0)
    turned = {name: params[name][order] for name in ("1.weight", "1.bias")}
    return {**params, **turned, "3.weight": params["3.weight"][:, order]}


def half_a_swap(params, i, j):
    return {**swap(params, i, j), "3.weight": params["3.weight"]}


def matched(a, b):
    return torch.from_numpy(linear_sum_assignment(a @ b.T, maximize=True)[1])


def two_layers(a, b, sweeps=50):
    first, second = torch.arange(len(a["1.bias"])), torch.arange(len(a["3.bias"]))
    for _ in range(sweeps):
        before = first, second
        biases = a["1.bias"].outer(b["1.bias"])
        first = best_order(a["1.weight"] @ b["1.weight"].T + biases + a["3.weight"].T @ b["3.weight"][second])
        biases = a["3.bias"].outer(b["3.bias"])
        second = best_order(a["3.weight"] @ b["3.weight"][:, first].T + biases + a["5.weight"].T @ b["5.weight"])
        if torch.equal(first, before[0]) and torch.equal(second, before[1]):
            break
    return first, second


def best_order(products):
    return torch.from_numpy(linear_sum_assignment(products, maximize=True)[1])


def by_the_library(a, b):
    found = align.weight_matching(align.permutation_spec(stack.mlp(3, [16, 12], 4), torch.zeros(1, 3)), a, b)
    return found["1"], found["3"]


def one_by_one(a, b):
    return best_order(a["1.weight"] @ b["1.weight"].T), best_order(a["3.weight"] @ b["3.weight"].T)


def rescaled(net, spec, models, split, generator):
    merged = stack.map(lambda tensor: tensor.mean(dim=0), models)
    for name in merged:
        if name.endswith("weight"):
            length = models[name].norm(dim=2).mean(dim=0)
            merged[name] = merged[name] * (length / merged[name].norm(dim=1)).unsqueeze(1)
    return merged


def in_place(net, spec, models, split, generator):
    for tensor in models.values():
        tensor.mul_(0.5)
    return stack.take(models, 0)


def shrunk(net, spec, models, split, generator):
    return stack.map(lambda tensor: tensor[0] / 2, models)


def unwritten(*_):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("check", "answer", "says"),
    [
        (teach.check_same_mistake, same, "✓ same_mistake holds"),
        (teach.check_same_mistake, lambda a, b, _: (a == b).float().mean().item(), "look only at the"),
        (teach.check_same_mistake, unwritten, "… same_mistake is not written yet"),
        (teach.check_average, average, "✓ average holds"),
        (teach.check_average, lambda a, b: a, "is not half-way"),
        (teach.check_average, lambda a, b: {}, "expected ['0.bias', '0.weight']"),
        (teach.check_average, overwrite, "it changes the first model"),
        (teach.check_average, lambda a: a, "it raised TypeError"),
        (teach.check_swap_units, swap, "✓ swap_units holds"),
        (teach.check_swap_units, reverse, "it moved other rows"),
        (teach.check_swap_units, half_a_swap, "computes something else now"),
        (teach.check_swap_units, lambda params, i, j: params, "nothing was swapped"),
        (teach.check_swap_units, unwritten, "… swap_units is not written yet"),
        (teach.check_match_layer, matched, "✓ match_layer holds"),
        (teach.check_match_layer, lambda a, b: matched(a, b).argsort(), "You have it the wrong way round"),
        (teach.check_match_layer, lambda a, b: (a @ b.T).argmax(dim=1) * 0, "is no order of 12 units"),
        (teach.check_match_layer, lambda a, b: torch.arange(12), "is possible"),
        (teach.check_match_two_layers, two_layers, "✓ match_two_layers holds"),
        (teach.check_match_two_layers, by_the_library, "✓ match_two_layers holds"),
        (teach.check_match_two_layers, lambda a, b: two_layers(a, b, sweeps=1), "can still be improved"),
        (teach.check_match_two_layers, one_by_one, "can still be improved"),
        (teach.check_match_two_layers, lambda a, b: (torch.zeros(16), torch.zeros(12)), "every number once"),
        (teach.check_merge_method, rescaled, "✓ merge_method holds"),
        (teach.check_merge_method, merge.average, "it is the plain mean"),
        (teach.check_merge_method, lambda net, spec, models, *_: stack.take(models, 0), "gives back the first model"),
        (teach.check_merge_method, in_place, "it changes the models it is given"),
        (teach.check_merge_method, shrunk, "two equal models should merge into that model"),
        (teach.check_merge_method, lambda net, spec, models, *_: models, "should be one finite tensor of shape"),
    ],
)
def test_checks_tell_right_from_wrong(capsys, check, answer, says):
    before = torch.get_rng_state()
    check(answer)
    assert says in capsys.readouterr().out
    assert torch.equal(before, torch.get_rng_state())
