import math

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy, layer_norm, nll_loss

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


def router(keys, support, length=None, squash=torch.sigmoid, summed=1.0):
    e = support.mean(dim=0)
    scaled = e / e.norm() * len(e) ** 0.5 if length is None else length(e)
    scores = squash(keys @ scaled)
    return scores / scores.sum() * summed if summed else scores


def first_of_the_support(keys, support):
    return router(keys, support[:1])


def unsummed(keys, support):
    return router(keys, support, summed=None)


LAW = HardConcrete()


def interpolate(pretrained, delta, gates, alpha, z=LAW.median):
    masks = {name: torch.tensordot(alpha, z(gate), dims=1) for name, gate in gates.items()}
    return {name: weight + masks[name] * delta[name] for name, weight in pretrained.items()}


def gates_by(z):
    return lambda *of: interpolate(*of, z=z)


def unclipped(log_alpha):
    return 1.2 * (1.5 * log_alpha).sigmoid() - 0.1


def without_pretrained(pretrained, delta, gates, alpha):
    return interpolate({name: torch.zeros_like(weight) for name, weight in pretrained.items()}, delta, gates, alpha)


def unmasked(pretrained, delta, gates, alpha):
    return {name: weight + delta[name] for name, weight in pretrained.items()}


def soup_step(
    net, base, experts, router, h, x, y, rate, *, copy=True, with_base=True, as_own=False, still=(), factor=1.0
):
    parts = []
    for part in (base, experts, router):
        parts.append({name: (t.clone() if copy else t).requires_grad_() for name, t in part.items()})
    base, experts, router = parts
    hidden = (router["1.weight"] @ h + router["1.bias"]).relu()
    alpha = router["3.weight"] @ hidden + router["3.bias"]
    theta = {n: with_base * t + torch.tensordot(alpha, experts[n], dims=1) for n, t in base.items()}
    cross_entropy(functional_call(net, theta, (x,)), y).backward()
    with torch.no_grad():
        for k, part in enumerate(parts):
            for name, tensor in part.items():
                slope = base[name].grad.expand_as(tensor) if as_own and k == 1 else tensor.grad
                tensor -= 0 if k in still else factor * rate * slope
    return parts


def step_with(**mistake):
    return lambda *of: soup_step(*of, **mistake)


def half_a_soup(*of):
    return soup_step(*of)[:2]


def first_expert_alone(*of):
    base, experts, router = soup_step(*of)
    return base, {name: tensor[0] for name, tensor in experts.items()}, router


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
        (teach.check_route, router, "✓ router holds"),
        (teach.check_route, lambda *of: router(*of, squash=torch.exp), "that is a softmax"),
        (teach.check_route, lambda *of: router(*of, length=lambda e: e, squash=torch.exp), "that is a softmax"),
        (teach.check_route, lambda *of: router(*of, length=lambda e: e), "the length sqrt(features)"),
        (teach.check_route, lambda *of: router(*of, length=lambda e: e / e.norm()), "the length sqrt(features)"),
        (teach.check_route, unsummed, "not to 1: divide by the sum"),
        (teach.check_route, first_of_the_support, "in another order give another answer"),
        (teach.check_route, lambda *of: router(*of)[:2], "expected one number an expert, shape (4,), got (2,)"),
        (teach.check_route, lambda keys, _: torch.full((4,), 0.25), "got [0.25, 0.25, 0.25, 0.25]"),
        (teach.check_interpolate, interpolate, "✓ interpolate holds"),
        (teach.check_interpolate, gates_by(lambda gate: gate), "log alpha is no gate yet"),
        (teach.check_interpolate, gates_by(torch.sigmoid), "log alpha is no gate yet"),
        (teach.check_interpolate, gates_by(unclipped), "the gates are not clipped"),
        (teach.check_interpolate, gates_by(LAW.nonzero), "that takes P(z ≠ 0)"),
        (teach.check_interpolate, gates_by(lambda gate: LAW.median(gate, 1.0)), "at temperature 1"),
        (teach.check_interpolate, gates_by(lambda gate: gate > 0), "it raised RuntimeError"),
        (teach.check_interpolate, gates_by(lambda gate: 0 * gate), "it is off by up to"),
        (teach.check_interpolate, unmasked, "it has to pass through the gates"),
        (teach.check_interpolate, without_pretrained, "the pretrained weights are missing"),
        (teach.check_interpolate, lambda *of: interpolate(*of[:3], torch.ones(5)), "added without alpha"),
        (teach.check_interpolate, lambda *of: interpolate(*of[:3], torch.full((5,), 0.2)), "all masks count alike"),
        (teach.check_interpolate, lambda *of: {"1.weight": of[0]["1.weight"]}, "'1.weight': it is off by"),
        (teach.check_interpolate, lambda *of: {}, "expected '1.weight' of shape (4, 3)"),
        (teach.check_soup_step, soup_step, "✓ soup_step holds"),
        (teach.check_soup_step, step_with(copy=False), "it changes the base that it was given"),
        (teach.check_soup_step, step_with(factor=-1.0), "a step uphill"),
        (teach.check_soup_step, step_with(with_base=False), "S is missing in Theta(h)"),
        (teach.check_soup_step, step_with(as_own=True), "every expert got G: expert i gets alpha_i G"),
        (teach.check_soup_step, step_with(still=[0]), "the base did not move"),
        (teach.check_soup_step, step_with(still=[1]), "the experts did not move"),
        (teach.check_soup_step, step_with(still=[2]), "the router did not move"),
        (teach.check_soup_step, step_with(factor=0.5), "the base is off by up to 0."),
        (teach.check_soup_step, half_a_soup, "expected three dicts"),
        (teach.check_soup_step, first_expert_alone, "expected '1.weight' of shape (3, 5, 6) in the new experts"),
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
