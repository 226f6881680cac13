import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from orders import equal

from paramarket import smat, stack
from paramarket.base import stream
from paramarket.errors import ParameterError

NET = stack.mlp(6, [5], 4)
PRETRAINED = stack.init(NET, 2, seed=0)
seeds = st.integers(0, 10**6)


def drawn(experts=3, seed=0):
    """Experts somewhere on their way."""
    start = smat.experts_of(PRETRAINED, experts, 4, [seed, seed + 1])
    noise = stream(seed, "delta")
    delta = {name: torch.randn(tensor.shape, generator=noise) for name, tensor in PRETRAINED.items()}
    return start._replace(delta=delta, gates={name: 2 * gate for name, gate in start.gates.items()})


def alphas(experts, seed=0):
    scores = torch.rand(2, 4, experts, generator=stream(seed, "alpha"))
    return scores / scores.sum(dim=2, keepdim=True)


def held(experts, value):
    return experts._replace(gates={name: torch.full_like(gate, value) for name, gate in experts.gates.items()})


def spread(models):
    return {name: tensor.unsqueeze(1).expand(-1, 4, *tensor.shape[1:]) for name, tensor in models.items()}


def test_at_the_start_every_task_gets_the_pretrained_net_bit_for_bit():
    start = smat.experts_of(PRETRAINED, 3, 4, [0, 1])
    assert equal(smat.interpolate(PRETRAINED, start, alphas(3)), spread(PRETRAINED))
    assert start.keys.shape == (2, 3, 4)
    assert start.gates["1.weight"].shape == (2, 3, 5, 6)


def test_what_was_learnt_is_undone_in_one_step():
    """The router bypassed, its weights 0: the pretrained net, bit for bit."""
    assert equal(smat.interpolate(PRETRAINED, drawn(), torch.zeros(2, 4, 3)), spread(PRETRAINED))
    assert equal(smat.interpolate(PRETRAINED, held(drawn(), -9.0), alphas(3)), spread(PRETRAINED))  # all gates closed


@given(seeds)
def test_with_all_gates_open_alpha_does_not_matter(seed):
    """Because alpha sums to 1: theta = theta_pre + delta, dense tuning."""
    dense = held(drawn(seed=seed), 9.0)
    models = smat.interpolate(PRETRAINED, dense, alphas(3, seed))
    for name, tensor in models.items():
        assert torch.allclose(tensor, (PRETRAINED[name] + dense.delta[name]).unsqueeze(1), atol=1e-5)


@given(seeds)
def test_a_model_is_the_formula(seed):
    experts, alpha = drawn(seed=seed), alphas(3, seed)
    models = smat.interpolate(PRETRAINED, experts, alpha)
    law = smat.HardConcrete()
    for name in PRETRAINED:
        masks = law.median(experts.gates[name])
        for k in range(2):
            by_hand = PRETRAINED[name][k] + sum(alpha[k, 3, m] * masks[k, m] * experts.delta[name][k] for m in range(3))
            assert torch.allclose(models[name][k, 3], by_hand, atol=1e-5)


def test_gradients_are_those_of_the_formula():
    """With G = dl / dtheta: dl / ddelta = (sum_m alpha_m z_m) * G, dl / dalpha_m = <z_m * delta, G>."""
    pre = {name: tensor.double() for name, tensor in PRETRAINED.items()}
    experts = smat.SparseExperts(
        *({k: v.double() for k, v in part.items()} for part in drawn()[:2]), drawn().keys.double()
    )
    alpha = alphas(3).double().requires_grad_()
    for tensor in experts.delta.values():
        tensor.requires_grad_()
    models = smat.interpolate(pre, experts, alpha)
    slopes = {
        name: torch.randn(tensor.shape, generator=stream(0, name), dtype=torch.float64)
        for name, tensor in models.items()
    }
    sum((models[name] * slopes[name]).sum() for name in models).backward()
    masks = {name: smat.HardConcrete().median(gate) for name, gate in experts.gates.items()}
    by_alpha = sum(
        torch.einsum(
            "km...,k...,kt...->ktm", masks[n].flatten(2), experts.delta[n].detach().flatten(1), slopes[n].flatten(2)
        )
        for n in masks
    )
    assert torch.allclose(alpha.grad, by_alpha)
    for name, tensor in experts.delta.items():
        blend = stack.mix(alpha.detach(), {name: masks[name]})[name]
        assert torch.allclose(tensor.grad, (blend * slopes[name]).sum(dim=1))


@given(seeds)
def test_alpha_is_a_share_and_blind_to_the_order_of_examples(seed):
    keys, said = drawn(seed=seed).keys, torch.randn(2, 4, 10, 4, generator=stream(seed, "said"))
    alpha = smat.route(keys, said)
    assert (alpha >= 0).all()
    assert torch.allclose(alpha.sum(dim=2), torch.ones(2, 4), atol=1e-5)
    shuffled = said[:, :, torch.randperm(10, generator=stream(seed, "order"))]
    assert torch.allclose(smat.route(keys, shuffled), alpha, atol=1e-5)
    assert torch.allclose(smat.route(keys, 3 * said), alpha, atol=1e-5)


def test_one_expert_is_always_asked():
    experts = drawn(experts=1)
    assert torch.allclose(smat.route(experts.keys, torch.randn(2, 4, 10, 4)), torch.ones(2, 4, 1), atol=1e-6)


def test_sparsity_is_counted_over_the_whole_net_expert_by_expert():
    experts = drawn()
    gates = {name: gate.clone() for name, gate in held(experts, 9.0).gates.items()}
    total = sum(tensor[0].numel() for tensor in PRETRAINED.values())
    gates["1.weight"][0, 0] = -9.0  # 30 weights, in one expert of the first run
    gates["1.bias"][0, :] = -9.0  # 5 weights, in all its experts
    closed, expected, merged = smat.sparsity(gates)
    assert closed[0].tolist() == pytest.approx([35 / total, 5 / total, 5 / total])
    assert closed[1].tolist() == [0, 0, 0]
    assert merged.tolist() == pytest.approx([5 / total, 0])
    assert torch.allclose(expected, closed, atol=2e-3)


def test_runs_of_one_seed_start_alike_and_others_do_not():
    start = smat.experts_of(PRETRAINED, 2, 4, [5, 5])
    assert all(torch.equal(gate[0], gate[1]) for gate in start.gates.values())
    other = smat.experts_of(PRETRAINED, 2, 4, [5, 6])
    assert torch.equal(other.keys[0], start.keys[0])
    assert not torch.equal(other.keys[1], start.keys[1])


def test_no_expert_and_a_missing_seed_are_refused():
    with pytest.raises(ParameterError, match="experts = 0"):
        smat.experts_of(PRETRAINED, 0, 4, [0, 1])
    with pytest.raises(ParameterError, match="1 seeds"):
        smat.experts_of(PRETRAINED, 2, 4, [0])


def test_masks_by_hand_have_the_density_they_were_asked_for():
    wide = stack.init(stack.mlp(60, [100], 20), 4, seed=0)
    start = smat.experts_of(wide, 3, 20, [0, 1, 2, 3])
    found = smat.held(start, ["learnt", "open", "random", "last layer"], 0.1)
    closed, _, _ = smat.sparsity(found.gates)
    assert all(torch.equal(gate[0], start.gates[name][0]) for name, gate in found.gates.items())
    assert (closed[1] == 0).all()
    assert torch.allclose(closed[2:], torch.full((2, 3), 0.9), atol=0.02)
    assert (found.gates["1.weight"][3] < 0).all()
    assert not torch.equal(found.gates["3.weight"][3, 0], found.gates["3.weight"][3, 1])


def test_a_mask_overlaps_with_itself_and_by_chance_with_another():
    wide = stack.init(stack.mlp(60, [200], 20), 2, seed=0)
    drawn = smat.held(smat.experts_of(wide, 2, 20, [0, 1]), ["random", "random"], 0.2)
    found = smat.overlap(drawn.gates, drawn.gates)
    assert found.shape == (2, 2, 2)
    assert found.diagonal(dim1=1, dim2=2).tolist() == [[1, 1]] * 2
    assert found[:, 0, 1].tolist() == pytest.approx([0.2 / 1.8] * 2, abs=0.01)
    assert torch.equal(found, found.mT)
    none = {name: torch.full_like(gate[:, :1], -9.0) for name, gate in drawn.gates.items()}
    assert smat.overlap(drawn.gates, none).tolist() == [[[0], [0]]] * 2


def test_what_is_stored_can_be_counted_by_hand():
    gates = {"1.weight": torch.full((2, 2, 1, 16), -9.0)}
    gates["1.weight"][:, 0, 0, :3] = 9.0
    gates["1.weight"][:, 1, 0, 2:4] = 9.0
    told = smat.stored(gates)
    assert told["one expert"] == (2.5, pytest.approx((4 * 2.5 + 16 / 8) / 1000))
    assert told["all experts"] == (4 + 5, pytest.approx((4 * 9 + 2 * 16 / 8) / 1000))
    assert told["their mixture"] == (4, pytest.approx((4 * 4 + 16 / 8) / 1000))
