import inspect

import pandas as pd
import pytest
import torch
from devices import second_device
from hypothesis import given
from hypothesis import strategies as st
from orders import equal

from paramarket import smat, stack
from paramarket.base import stream
from paramarket.errors import ParameterError, ShapeError

NET = stack.mlp(6, [5], 4)
PRETRAINED = stack.init(NET, 2, seed=0)
seeds = st.integers(0, 10**6)


def drawn(experts=3, seed=0):
    """Experts somewhere on their way."""
    start = smat.experts_of(PRETRAINED, experts=experts, features=4, seeds=[seed, seed + 1])
    noise = stream(seed, "delta")
    delta = stack.map(lambda tensor: torch.randn(tensor.shape, generator=noise), PRETRAINED)
    return start._replace(delta=delta, gates=stack.map(lambda gate: 2 * gate, start.gates))


def alphas(experts, seed=0):
    scores = torch.rand(2, 4, experts, generator=stream(seed, "alpha"))
    return scores / scores.sum(dim=2, keepdim=True)


def with_gates(experts, value):
    return experts._replace(gates=stack.map(lambda gate: torch.full_like(gate, value), experts.gates))


def four_times(models):
    return stack.map(lambda tensor: torch.stack([tensor] * 4, dim=1), models)


def test_at_the_start_every_task_gets_the_pretrained_net_bit_for_bit():
    start = smat.experts_of(PRETRAINED, experts=3, features=4, seeds=[0, 1])
    assert equal(smat.interpolate(PRETRAINED, start, alphas(3)), four_times(PRETRAINED))
    assert start.keys.shape == (2, 3, 4)
    assert start.gates["1.weight"].shape == (2, 3, 5, 6)


def test_one_expert_alone_is_asked_whatever_the_router_says():
    found = drawn(experts=3)
    one = found.only(1)
    assert one.keys.shape[1] == 1
    assert (smat.route(one.keys, torch.randn(len(one.keys), 2, 5, one.keys.shape[2])) - 1).abs().max() < 1e-6
    for name, gate in one.gates.items():
        assert torch.equal(gate, found.gates[name][:, [1]])
        assert torch.equal(one.delta[name], found.delta[name])


def test_what_was_learnt_is_undone_in_one_step():
    """The router bypassed, its weights 0: the pretrained net, bit for bit."""
    assert equal(smat.interpolate(PRETRAINED, drawn(), torch.zeros(2, 4, 3)), four_times(PRETRAINED))
    closed = with_gates(drawn(), -9.0)
    assert equal(smat.interpolate(PRETRAINED, closed, alphas(3)), four_times(PRETRAINED))


def test_another_number_of_pretrained_nets_is_refused_not_stretched():
    with pytest.raises(ShapeError, match="1 pretrained nets and 2 runs of experts"):
        smat.interpolate(stack.take(PRETRAINED, [0]), drawn(), alphas(3))
    with pytest.raises(ShapeError, match="2 pretrained nets and 1 runs of experts"):
        smat.interpolate(PRETRAINED, drawn().take([0]), alphas(3)[:1])


@given(seeds)
def test_with_all_gates_open_alpha_does_not_matter(seed):
    """Because alpha sums to 1: theta = theta_pre + delta, dense tuning."""
    dense = with_gates(drawn(seed=seed), 9.0)
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
    start = drawn()
    pre, delta, gates = (stack.map(torch.Tensor.double, part) for part in (PRETRAINED, start.delta, start.gates))
    experts = smat.SparseExperts(delta, gates, start.keys.double())
    alpha = alphas(3).double().requires_grad_()
    for tensor in experts.delta.values():
        tensor.requires_grad_()
    models = smat.interpolate(pre, experts, alpha)
    slopes = {
        name: torch.randn(tensor.shape, generator=stream(0, name), dtype=torch.float64)
        for name, tensor in models.items()
    }
    sum((models[name] * slopes[name]).sum() for name in models).backward()
    masks = stack.map(smat.HardConcrete().median, experts.gates)
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
    keys = drawn(seed=seed).keys
    features = torch.randn(2, 4, 10, 4, generator=stream(seed, "features"))
    alpha = smat.route(keys, features)
    assert (alpha >= 0).all()
    assert torch.allclose(alpha.sum(dim=2), torch.ones(2, 4), atol=1e-5)
    shuffled = features[:, :, torch.randperm(10, generator=stream(seed, "order"))]
    assert torch.allclose(smat.route(keys, shuffled), alpha, atol=1e-5)
    assert torch.allclose(smat.route(keys, 3 * features), alpha, atol=1e-5)


def test_one_expert_is_always_asked():
    experts = drawn(experts=1)
    assert torch.allclose(smat.route(experts.keys, torch.randn(2, 4, 10, 4)), torch.ones(2, 4, 1), atol=1e-6)


def test_sparsity_is_counted_over_the_whole_net_expert_by_expert():
    experts = drawn()
    gates = with_gates(experts, 9.0).gates
    total = sum(tensor[0].numel() for tensor in PRETRAINED.values())
    gates["1.weight"][0, 0] = -9.0  # 30 weights, in one expert of the first run
    gates["1.bias"][0, :] = -9.0  # 5 weights, in all its experts
    found = smat.sparsity(gates)
    assert found.closed[0].tolist() == pytest.approx([35 / total, 5 / total, 5 / total])
    assert found.closed[1].tolist() == [0, 0, 0]
    assert found.merged.tolist() == pytest.approx([5 / total, 0])
    assert torch.allclose(found.expected, found.closed, atol=2e-3)


def test_runs_of_one_seed_start_alike_and_others_do_not():
    start = smat.experts_of(PRETRAINED, experts=2, features=4, seeds=[5, 5])
    assert all(torch.equal(gate[0], gate[1]) for gate in start.gates.values())
    other = smat.experts_of(PRETRAINED, experts=2, features=4, seeds=[5, 6])
    assert torch.equal(other.keys[0], start.keys[0])
    assert not torch.equal(other.keys[1], start.keys[1])


def test_no_expert_and_a_missing_seed_are_refused_each_by_its_name():
    with pytest.raises(ParameterError, match="experts = 0"):
        smat.experts_of(PRETRAINED, experts=0, features=4, seeds=[0, 1])
    with pytest.raises(ParameterError, match="features = 0"):
        smat.experts_of(PRETRAINED, experts=2, features=0, seeds=[0, 1])
    with pytest.raises(ParameterError, match="seeds: 1 given, expected one for each of the 2 runs"):
        smat.experts_of(PRETRAINED, experts=2, features=4, seeds=[0])


def masked(kinds, density, seeds):
    """Untrained experts of a net wide enough to count on, their gates set by hand."""
    wide = stack.init(stack.mlp(60, [100], 20), len(kinds), seed=0)
    start = smat.experts_of(wide, experts=3, features=20, seeds=seeds)
    return start, smat.fixed_masks(start, kinds, density=density, seeds=seeds)


def test_masks_by_hand_have_the_density_they_were_asked_for():
    start, found = masked(["learnt", "open", "random", "last layer"], 0.1, seeds=[0, 1, 2, 3])
    closed = smat.sparsity(found.gates).closed
    assert equal(stack.take(found.gates, 0), stack.take(start.gates, 0))
    assert (closed[1] == 0).all()
    assert torch.allclose(closed[2:], torch.full((2, 3), 0.9), atol=0.02)
    assert (found.gates["1.weight"][3] < 0).all()
    assert not torch.equal(found.gates["3.weight"][3, 0], found.gates["3.weight"][3, 1])


def test_random_masks_hang_on_the_seed_of_a_run_not_on_its_place():
    _, found = masked(["random"] * 3, 0.1, seeds=[7, 8, 7])
    _, other = masked(["random"] * 2, 0.1, seeds=[8, 9])
    assert equal(stack.take(found.gates, 0), stack.take(found.gates, 2))
    assert equal(stack.take(found.gates, 1), stack.take(other.gates, 0))
    assert not equal(stack.take(found.gates, 0), stack.take(found.gates, 1))
    assert not equal(stack.take(other.gates, 0), stack.take(other.gates, 1))


def test_masks_that_cannot_be_set_are_refused():
    start = smat.experts_of(PRETRAINED, experts=2, features=4, seeds=[0, 1])
    for kinds, density, seeds, wrong in (
        (["open"], 0.1, [0, 1], "kinds: 1 given, expected one for each of the 2 runs"),
        (["open", "opne"], 0.1, [0, 1], "unknown kind of mask 'opne'. Did you mean 'open'"),
        (["open", "open"], 1.1, [0, 1], "density = 1.1"),
        (["open", "open"], 0.1, [0], "seeds: 1 given"),
    ):
        with pytest.raises(ParameterError, match=wrong):
            smat.fixed_masks(start, kinds, density=density, seeds=seeds)
    with pytest.raises(ParameterError, match="kinds = 'open', expected a list"):  # four letters, no four runs
        inspect.unwrap(smat.fixed_masks)(start, "open", density=0.1, seeds=[0, 1])


def test_some_of_the_runs_can_be_taken_with_all_their_parts():
    experts = drawn()
    for index in ([1], slice(1, 2), torch.tensor([False, True])):
        second = experts.take(index)
        assert equal(second.delta, stack.take(experts.delta, [1]))
        assert equal(second.gates, stack.take(experts.gates, [1]))
        assert torch.equal(second.keys, experts.keys[1:])


def test_a_mask_overlaps_with_itself_and_by_chance_with_another():
    wide = stack.init(stack.mlp(60, [200], 20), 2, seed=0)
    start = smat.experts_of(wide, experts=2, features=20, seeds=[0, 1])
    gates = smat.fixed_masks(start, ["random", "random"], density=0.2, seeds=[0, 1]).gates
    found = smat.overlap(gates, gates)
    assert found.shape == (2, 2, 2)
    assert found.diagonal(dim1=1, dim2=2).tolist() == [[1, 1]] * 2
    assert found[:, 0, 1].tolist() == pytest.approx([0.2 / 1.8] * 2, abs=0.01)
    assert torch.equal(found, found.mT)
    none = stack.map(lambda gate: torch.full_like(gate[:, :1], -9.0), gates)
    assert smat.overlap(gates, none).tolist() == [[[0], [0]]] * 2


@given(seeds, st.sampled_from(["rows", "columns"]))
def test_shuffled_gates_stay_within_their_row_or_column(seed, axis):
    gates = drawn(seed=seed).gates
    kept = stack.copy(gates)
    found = smat.shuffle_within(gates, axis, stream(seed, "shuffle"))
    assert equal(gates, kept)
    for name, gate in found.items():
        along = 2 if axis == "columns" and name.endswith("weight") else -1
        assert torch.equal(gate.sort(dim=along).values, gates[name].sort(dim=along).values)
        assert not torch.equal(gate, gates[name])
    assert equal(found, smat.shuffle_within(gates, axis, stream(seed, "shuffle")))
    assert torch.allclose(smat.sparsity(found).closed, smat.sparsity(gates).closed)


def test_shuffled_masks_overlap_as_independent_rows_of_their_densities_do():
    """Rows of densities p overlap by sum p² of sum (2 p - p²); a mask that ignores rows would find less."""
    shares = torch.tensor([0.05, 0.6]).repeat(100)
    luck = stream(0, "masks")
    opened = torch.rand(1, 2, 200, 300, generator=luck) < shares[:, None]
    gates = {"1.weight": torch.where(opened, 9.0, -9.0)}
    twice = smat.shuffle_within(gates, "rows", luck)
    expected = shares.square().sum() / (2 * shares - shares.square()).sum()
    overlaps = smat.overlap(gates, twice)
    assert torch.allclose(overlaps, expected.expand(1, 2, 2), atol=0.02)
    density = shares.mean()
    anywhere = smat.overlap(gates, smat.shuffle_within(gates, "columns", luck))
    assert torch.allclose(anywhere, (density / (2 - density)).expand(1, 2, 2), atol=0.02)
    assert (overlaps > anywhere + 0.05).all()


def test_experts_are_shuffled_each_by_itself():
    row = torch.where(torch.arange(64) < 32, 9.0, -9.0)
    found = smat.shuffle_within({"1.bias": row.expand(2, 2, 64)}, "rows", stream(0, "shuffle"))["1.bias"]
    assert len(found.flatten(0, 1).unique(dim=0)) == 4


def test_gates_that_cannot_be_shuffled_are_refused():
    with pytest.raises(ParameterError, match=r"unknown axis 'row'. Did you mean 'rows'"):
        smat.shuffle_within(drawn().gates, "row", stream(0))
    with pytest.raises(ShapeError, match="expected those of matrices or vectors"):
        smat.shuffle_within({"1.weight": torch.zeros(1, 1, 2, 2, 2)}, "rows", stream(0))


def test_on_another_device_experts_start_alike_and_what_is_shown_is_on_the_cpu():
    kinds = {"density": 0.3, "seeds": [0, 1]}
    settings = {"experts": 3, "features": 4, "seeds": [0, 1]}
    here = smat.fixed_masks(smat.experts_of(PRETRAINED, **settings), ["learnt", "random"], **kinds)
    shown = [*smat.sparsity(here.gates), smat.overlap(here.gates, here.gates)]
    models = smat.interpolate(PRETRAINED, drawn(), alphas(3))
    with second_device() as device:
        away = stack.map(lambda tensor: tensor.to(device), PRETRAINED)
        there = smat.fixed_masks(smat.experts_of(away, **settings), ["learnt", "random"], **kinds)
        assert {stack.device(there.delta), stack.device(there.gates), there.keys.device} == {device}
        assert equal(here.gates, stack.map(lambda tensor: tensor.cpu(), there.gates))
        moved = smat.shuffle_within(there.gates, "columns", stream(0))
        assert equal(
            smat.shuffle_within(here.gates, "columns", stream(0)), stack.map(lambda tensor: tensor.cpu(), moved)
        )
        shown_there = [*smat.sparsity(there.gates), smat.overlap(there.gates, here.gates)]
        pd.testing.assert_frame_equal(smat.storage(there.gates), smat.storage(here.gates))
        way = there._replace(delta=stack.map(lambda tensor: tensor.to(device), drawn().delta))
        way = way._replace(gates=stack.map(lambda tensor: tensor.to(device), drawn().gates))
        mixed = smat.interpolate(away, way, alphas(3))  # alpha is on the CPU
        assert stack.device(mixed) == device
        assert equal(models, stack.map(lambda tensor: tensor.cpu(), mixed))
    for one, other in zip(shown, shown_there, strict=True):
        assert other.device.type == "cpu"
        assert torch.equal(one, other)


def test_what_is_stored_can_be_counted_by_hand():
    gates = {"1.weight": torch.full((2, 2, 1, 16), -9.0)}
    gates["1.weight"][:, 0, 0, :3] = 9.0
    gates["1.weight"][:, 1, 0, 2:4] = 9.0
    table = smat.storage(gates)
    assert table.index.tolist() == ["one expert", "all experts", "their mixture"]
    assert table.numbers.tolist() == [2.5, 4 + 5, 4]
    assert table.kB.tolist() == pytest.approx(
        [(4 * 2.5 + 16 / 8) / 1000, (4 * 9 + 2 * 16 / 8) / 1000, (4 * 4 + 16 / 8) / 1000]
    )


def test_the_table_of_a_sparsity_has_a_row_a_run_and_expert():
    found = smat.sparsity(drawn(experts=3).gates)
    table = found.table(stack.grid(seed=[7, 8]))
    assert list(table) == ["seed", "expert", "closed", "expected", "merged"]
    assert len(table) == 2 * 3
    for row in table.itertuples():
        run = [7, 8].index(row.seed)
        assert row.closed == found.closed[run, row.expert].item()
        assert row.expected == found.expected[run, row.expert].item()
        assert row.merged == found.merged[run].item()
    with pytest.raises(ShapeError, match=r"'closed' has shape \(2, 3\), expected \(1, 3\)"):
        found.table(stack.grid(seed=[7]))


def test_the_index_of_some_rows_of_a_grid_takes_their_experts():
    rows = stack.grid(kind=["dense", "sparse"])
    taken = drawn().take(rows.query("kind == 'sparse'").index)
    assert torch.equal(taken.keys, drawn().keys[1:])
    assert equal(taken.gates, stack.take(drawn().gates, [1]))
