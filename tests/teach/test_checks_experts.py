import math

import pytest
import torch
from torch.nn.functional import layer_norm, nll_loss

from paramarket import cka, teach
from paramarket.smat import HardConcrete


def uncentred(x, y):
    return ((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())).item()


def turning_step(on_quote):
    return on_quote.groupby("step").accuracy.mean().idxmax()


def luckiest_step(on_quote):
    return on_quote.loc[on_quote.accuracy.idxmax()].step


def latest_of_equals(on_quote):
    means = on_quote.groupby("step").accuracy.mean()
    return means.index[means == means.max()][-1]


def output_router_step(logs, y, gate, rate, in_place=False):
    leaf = (gate if in_place else gate.clone()).requires_grad_()
    normed = layer_norm(logs.flatten(1), (logs[0].numel(),))
    shares = (normed @ leaf.T).log_softmax(dim=-1)
    loss = nll_loss((shares.unsqueeze(-1) + logs).logsumexp(dim=1), y)
    (slope,) = torch.autograd.grad(loss, leaf)
    leaf = leaf.detach()
    return leaf.sub_(rate * slope)


def mixed_alpha(keys, a, b, share, scaled=True):
    e = share * a + (1 - share) * b
    scores = (keys @ (e / e.norm() * len(e) ** 0.5 if scaled else e)).sigmoid()
    return scores / scores.sum()


def specialist(base, experts, alpha):
    return {name: tensor + torch.tensordot(alpha, experts[name], 1) for name, tensor in base.items()}


def without_base(base, experts, alpha):
    return {name: torch.tensordot(alpha, experts[name], 1) for name in base}


def without_biases(*of):
    return {"1.weight": specialist(*of)["1.weight"]}


def as_a_stack(*of):
    return {name: tensor.unsqueeze(0) for name, tensor in specialist(*of).items()}


def first_alone(base, experts, alpha):
    return {name: tensor + alpha[0] * experts[name][0] for name, tensor in base.items()}


def pays_after(once, each, instead, rounded=math.ceil):
    return math.inf if each >= instead else rounded(once / (instead - each))


@pytest.mark.parametrize(
    ("check", "answer", "says"),
    [
        (teach.check_cka, cka.linear_cka, "✓ my_cka holds"),
        (teach.check_cka, uncentred, "Did you centre every feature?"),
        (teach.check_cka, lambda x, y: 1.0, "for a random pair it says 1.000"),
        (teach.check_cka, lambda x, y: 0.5, "should be like itself: 1, not 0.500."),
        (teach.check_turning_step, turning_step, "✓ turning_step holds"),
        (teach.check_turning_step, luckiest_step, "one lucky pair is no reason"),
        (teach.check_turning_step, latest_of_equals, "expected step 0, got 80: all are equally good"),
        (teach.check_turning_step, lambda _: 20, "expected step "),
        (teach.check_output_router_step, output_router_step, "✓ output_router_step holds"),
        (teach.check_output_router_step, lambda *of: output_router_step(*of[:3], -of[3]), "a step uphill"),
        (teach.check_output_router_step, lambda *of: output_router_step(*of, in_place=True), "it changes the gate"),
        (teach.check_output_router_step, lambda logs, y, gate, rate: gate[0], "of shape (3, 15), got (15,)"),
        (teach.check_output_router_step, lambda logs, y, gate, rate: gate, "the gate is off by up to 0."),
        (teach.check_open_chance, HardConcrete().nonzero, "✓ open_chance holds"),
        (teach.check_open_chance, HardConcrete().one, "that is the chance of z = 1"),
        (teach.check_open_chance, torch.sigmoid, "it is off by up to 0.3"),
        (teach.check_open_chance, lambda x: x.mean(), "expected one chance a gate"),
        (teach.check_mixed_alpha, mixed_alpha, "✓ mixed_alpha holds"),
        (teach.check_mixed_alpha, lambda *of: mixed_alpha(*of, scaled=False), "✗ mixed_alpha: expected"),
        (teach.check_mixed_alpha, lambda keys, *_: torch.ones(len(keys)), "expected 4 numbers that sum to 1"),
        (teach.check_specialist, specialist, "✓ specialist holds"),
        (teach.check_specialist, without_base, "'1.weight' is the sum of the experts without S."),
        (teach.check_specialist, without_biases, "expected '1.bias' of shape (4,) among its tensors"),
        (teach.check_specialist, as_a_stack, "expected '1.weight' of shape (4, 3) among its tensors"),
        (teach.check_specialist, first_alone, "'1.weight' is not S + sum alpha E."),
        (teach.check_specialist, lambda base, *_: base, "'1.weight' is not S + sum alpha E."),
        (teach.check_pays_after, pays_after, "✓ pays_after holds"),
        (teach.check_pays_after, lambda *of: pays_after(*of, rounded=math.floor), "it does not pay yet"),
        (teach.check_pays_after, lambda *of: pays_after(*of) + 1, "it pays before"),
        (teach.check_pays_after, lambda *of: pays_after(*of, rounded=math.floor) + 1, "it pays before customer"),
        (teach.check_pays_after, lambda *of: pays_after(*of, rounded=float), "expected a whole number of customers"),
        (teach.check_pays_after, lambda *_: math.inf, "expected a whole number of customers, got inf"),
        (teach.check_pays_after, lambda once, each, instead: math.ceil(once / (instead - each)), "it never pays: math"),
    ],
)
def test_checks_tell_right_from_wrong(capsys, check, answer, says):
    before = torch.get_rng_state()
    check(answer)
    assert says in capsys.readouterr().out
    assert torch.equal(before, torch.get_rng_state())
