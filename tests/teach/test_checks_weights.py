import pytest
import torch
from scipy.optimize import linear_sum_assignment

from paramarket import align, merge, stack, teach, train


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


def copy_barriers(net, spec, params, p, split):
    copy = align.permute(spec, p, params)
    losses = [train.evaluate(net, merge.path(params, other, 11), split).loss for other in (copy, params)]
    return tuple(merge.barrier(each).item() for each in losses)


def unmatched(net, spec, params, p, split):
    return (copy_barriers(net, spec, params, p, split)[0],) * 2


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
        (teach.check_copy_barriers, copy_barriers, "✓ copy_barriers holds"),
        (teach.check_copy_barriers, unmatched, "the barrier after matching is"),
        (teach.check_copy_barriers, lambda *_: (0.0, 0.0), "on a path of 11 points"),
        (teach.check_merge_method, merge.average, "✓ merge_method holds"),
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
