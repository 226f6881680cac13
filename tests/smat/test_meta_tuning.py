import inspect
import math

import numpy as np
import pytest
import torch
from devices import second_device
from orders import equal
from torch.func import functional_call
from torch.nn.functional import cross_entropy, kl_div

from paramarket import data, smat, stack
from paramarket.base import stream
from paramarket.errors import ParameterError, ShapeError
from paramarket.smat import meta_tuning

NET = stack.mlp(64, [12], 8)
HOW = {"steps": 15, "tasks": 2, "ways": 3, "shots": 2, "queries": 3}
NAMES = ["upright", "invert", "edges"]


@pytest.fixture(scope="module")
def pool(digits):
    return smat.task_pool(digits.quote, {name: data.DOMAINS[name] for name in NAMES}, seed=0)


@pytest.fixture(scope="module")
def pretrained():
    return stack.init(NET, 3, seed=0)


def aims(sparsity=(0.0, 0.5, 0.9), pretrained=0.0, dense=0.0, learn=True):
    row = torch.ones(len(sparsity))
    return smat.Aims(
        sparsity=torch.tensor(sparsity),
        pretrained_teacher=pretrained * row,
        dense_teacher=dense * row,
        learn_gates=learn * row > 0,
    )


def begun(pretrained, seeds=(0, 0, 0), experts=2):
    return smat.experts_of(pretrained, experts=experts, features=8, seeds=list(seeds))


def tuned(pretrained, pool, aims, seeds=(0, 0, 0), **how):
    return smat.meta_tune(NET, pretrained, begun(pretrained, seeds), aims, pool, range(6), seeds=seeds, **HOW | how)


@pytest.fixture(scope="module")
def long(pretrained, pool):
    return tuned(pretrained, pool, aims(), steps=350)


def test_it_learns_and_closes_the_gates_it_was_told_to_close(long):
    first, last = (long.history[long.history.step == step] for step in (1, 350))
    assert (last.loss.to_numpy() < first.loss.to_numpy()).all()
    found = smat.sparsity(long.experts.gates)
    assert found.closed[0].max() < 0.3
    assert (found.closed[1] > 0.45).all()
    assert (found.closed[2] > 0.85).all()
    assert (found.merged <= found.closed.amin(dim=1)).all()


def test_the_history_tells_every_expert_of_every_run_at_every_recorded_step(long):
    columns = ["step", "run", "expert", "loss", "alpha", "sparsity", "expected", "multiplier", "merged"]
    assert list(long.history.columns) == columns
    assert sorted(long.history.step.unique()) == [*range(1, 350, 20), 350]
    last = long.history[long.history.step == 350]
    assert list(zip(last.run, last.expert, strict=True)) == [(run, expert) for run in range(3) for expert in range(2)]
    closed, expected, merged = smat.sparsity(long.experts.gates)
    assert last.sparsity.to_numpy() == pytest.approx(closed.flatten().numpy(), abs=1e-6)
    assert last.expected.to_numpy() == pytest.approx(expected.flatten().numpy(), abs=1e-6)
    assert last.merged.to_numpy() == pytest.approx(merged.repeat_interleave(2).numpy(), abs=1e-6)
    assert long.history.groupby(["step", "run"]).alpha.sum().to_numpy() == pytest.approx(1, abs=1e-5)
    free = long.history[long.history.run == 0]
    assert (free.multiplier == 0).all()  # a sparsity of 0 is always met


def test_the_pretrained_nets_and_the_start_stay_as_they_are(pretrained, pool):
    kept, start = stack.copy(pretrained), begun(pretrained)
    smat.meta_tune(NET, pretrained, start, aims(), pool, range(6), seeds=[0, 0, 0], **HOW)
    assert equal(pretrained, kept)
    assert equal(start.gates, begun(pretrained).gates)
    assert all((tensor == 0).all() for tensor in start.delta.values())


def test_the_same_seeds_give_the_same_experts_bit_for_bit(pretrained, pool):
    one, other = (tuned(pretrained, pool, aims()) for _ in range(2))
    assert equal(one.experts.delta, other.experts.delta)
    assert torch.equal(one.experts.keys, other.experts.keys)
    assert one.history.equals(other.history)


def test_a_run_does_not_depend_on_those_beside_it(pretrained, pool):
    together = tuned(pretrained, pool, aims(), seeds=(4, 7, 4))
    alone = smat.meta_tune(
        NET,
        stack.take(pretrained, [1]),
        begun(stack.take(pretrained, [1]), (7,)),
        aims(sparsity=(0.5,)),
        pool,
        range(6),
        seeds=[7],
        **HOW,
    )
    for name, tensor in alone.experts.delta.items():
        assert torch.allclose(tensor[0], together.experts.delta[name][1], atol=2e-4)


def by_hand(pretrained, begun, tasks, sparsity, distil):
    """SMAT for one run in plain PyTorch, one step a task: (delta, gates, keys, query loss of the last step)."""
    delta = {name: tensor[0].clone().requires_grad_() for name, tensor in begun.delta.items()}
    gates = {name: tensor[0].clone().requires_grad_() for name, tensor in begun.gates.items()}
    keys = begun.keys[0].clone().requires_grad_()
    optimizers = [
        torch.optim.Adam(delta.values(), lr=2e-3),
        torch.optim.Adam(gates.values(), lr=0.05, betas=(0.0, 0.999)),
        torch.optim.Adam([keys], lr=0.01),
    ]
    multiplier = keys.new_zeros(len(keys))
    for support, query in tasks:

        def logits(weights, support=support, query=query):
            of_support = functional_call(NET, weights, (support,))
            of_query = functional_call(NET, weights, (query,))
            return smat.prototype_logits(of_support, of_query, ways=3)

        e = functional_call(NET, pretrained, (support,)).mean(dim=0)
        scores = torch.sigmoid(keys @ (e / e.norm() * len(e) ** 0.5))
        alpha = scores / scores.sum()
        z = {name: (1.2 * torch.sigmoid(1.5 * log_alpha) - 0.1).clamp(0, 1) for name, log_alpha in gates.items()}
        models = {name: pretrained[name] + torch.tensordot(alpha, z[name], 1) * delta[name] for name in delta}
        answers = logits(models)
        loss = cross_entropy(answers, smat.way_labels(ways=3, each=3))
        slopes = torch.autograd.grad(loss, list(models.values()), retain_graph=True)
        ahead = {name: models[name].detach() - 0.05 * slope for name, slope in zip(models, slopes, strict=True)}
        student = (answers / 2).log_softmax(dim=1)
        distance = 0
        for teacher in (logits(pretrained), logits(ahead)):
            target = (teacher / 2).log_softmax(dim=1)
            distance = distance + 0.5 * 4 * kl_div(student, target, reduction="batchmean", log_target=True)
        row = torch.cat([log_alpha.flatten(1) for log_alpha in gates.values()], dim=1)
        chances = torch.sigmoid(row + 2 / 3 * math.log(11))
        constraint = multiplier @ (sparsity - 1 + chances.mean(dim=1))
        for optimizer in optimizers:
            optimizer.zero_grad()
        ((1 - distil) * loss + distil * distance + constraint).backward()
        for optimizer in optimizers:
            optimizer.step()
        row = torch.cat([log_alpha.flatten(1) for log_alpha in gates.values()], dim=1)
        closed = (row <= -2 / 3 * math.log(11)).to(row).mean(dim=1)
        multiplier = torch.where(closed < sparsity, multiplier + 0.2 * (sparsity - closed), 0)
    return delta, gates, keys, loss


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_steps_are_those_of_plain_pytorch(pretrained, pool, moved, steps):
    """On the task that whoever knows the seed can draw, too."""
    one = stack.map(torch.Tensor.double, stack.take(pretrained, [0]))
    start = begun(one, seeds=(7,), experts=3)
    if moved:  # with a delta of 0, no gate and no key has a gradient of the task in the first step
        noise = stream(0, "delta")
        delta = stack.map(lambda tensor: 0.1 * torch.randn(tensor.shape, generator=noise).to(tensor), one)
        start = start._replace(delta=delta)
    plan = aims((0.9,), pretrained=0.5, dense=0.5)
    sizes = {"tasks": 1, "ways": 3, "shots": 2, "queries": 3}
    found = smat.meta_tune(
        NET, one, start, plan, pool, range(6), seeds=[7], steps=steps, record_every=1, distil=0.4, **sizes
    )
    luck = stream(7, "meta-tuning")
    drawn = [smat.draw_tasks(pool, range(6), luck, **sizes) for _ in range(steps)]
    tasks = [(task.support[0].double(), task.query[0].double()) for task in drawn]
    delta, gates, keys, loss = by_hand(stack.take(one, 0), start, tasks, 0.9, 0.4)
    assert found.history.loss.iloc[-1] == pytest.approx(loss.item(), abs=1e-5)
    assert torch.allclose(found.experts.keys[0], keys, atol=1e-5)
    for name in delta:
        assert torch.allclose(found.experts.delta[name][0], delta[name], atol=1e-5)
        assert torch.allclose(found.experts.gates[name][0], gates[name], atol=1e-5)
    if steps == 1:
        still = all(torch.equal(found.experts.gates[name], start.gates[name]) for name in delta)
        assert still != moved


def test_every_run_may_have_a_rate_of_its_own(pretrained, pool):
    rates = torch.tensor([0.0, 1e-3, 4e-3])
    together = tuned(pretrained, pool, aims(), lr=rates).experts
    for run, rate in enumerate(rates.tolist()):
        alike = tuned(pretrained, pool, aims(), lr=rate).experts
        assert equal(stack.take(together.delta, run), stack.take(alike.delta, run))
        assert equal(stack.take(together.gates, run), stack.take(alike.gates, run))
    with pytest.raises(ParameterError, match=r"lr is \(2,\): expected one number, or a tensor of 3, one a run"):
        tuned(pretrained, pool, aims(), lr=rates[:2])


def test_gates_that_do_not_learn_stay_and_open_ones_are_dense_tuning(pretrained, pool):
    start = begun(pretrained)
    start = start._replace(gates=stack.map(lambda gate: torch.full_like(gate, 9.0), start.gates))
    dense = smat.meta_tune(NET, pretrained, start, aims(learn=False), pool, range(6), seeds=[0, 0, 0], **HOW)
    assert equal(dense.experts.gates, start.gates)
    assert (dense.history.multiplier == 0).all()
    models = smat.interpolate(pretrained, dense.experts, torch.tensor([[0.3, 0.7]]).expand(3, 1, 2))
    for name, tensor in models.items():
        assert torch.allclose(tensor[:, 0], pretrained[name] + dense.experts.delta[name], atol=1e-6)
    assert any((tensor != 0).any() for tensor in dense.experts.delta.values())


def test_distilling_from_the_pretrained_net_holds_a_run_near_it(pretrained, pool):
    free, near = (tuned(pretrained, pool, aims((0.0,) * 3, pretrained=w), steps=60, distil=0.9) for w in (0.0, 1.0))
    moved = [sum(t.square().sum() for t in each.experts.delta.values()).item() for each in (free, near)]
    assert moved[1] < moved[0]


def some(pretrained, pool):
    """Two tasks, and the first pretrained net for each."""
    generator = torch.Generator().manual_seed(0)
    drawn = smat.draw_tasks(pool, range(6), generator, tasks=2, ways=3, shots=2, queries=3)
    tasks = smat.Tasks(drawn.support[None], drawn.query[None], drawn.domain[None])
    return tasks, smat.one_per_task(stack.take(pretrained, [0]), tasks)


def test_a_net_is_no_distance_from_itself(pretrained, pool):
    drawn, models = some(pretrained, pool)
    logits = smat.task_logits(NET, models, drawn, ways=3)
    assert meta_tuning._divergence(logits, logits).item() == pytest.approx(0, abs=1e-6)
    assert meta_tuning._divergence(logits, logits.flip(-1)).item() > 0


def test_a_dense_teacher_is_one_step_of_descent_ahead(pretrained, pool):
    drawn, models = some(pretrained, pool)
    models = stack.map(lambda tensor: tensor.clone().requires_grad_(), models)
    losses = smat.task_losses(smat.task_logits(NET, models, drawn, ways=3))
    slopes = torch.autograd.grad(losses.sum(), list(models.values()), retain_graph=True)
    ahead = meta_tuning._gradient_step(models, losses)
    for (name, tensor), slope in zip(models.items(), slopes, strict=True):
        assert torch.allclose(ahead[name], tensor - 0.05 * slope, atol=1e-6)
        assert not ahead[name].requires_grad  # a teacher takes no gradient
    assert (smat.task_losses(smat.task_logits(NET, ahead, drawn, ways=3)) < losses).all()


def test_a_dense_teacher_can_be_learnt_from(pretrained, pool):
    plain, taught = (tuned(pretrained, pool, aims(dense=weight)) for weight in (0.0, 1.0))
    assert not equal(plain.experts.delta, taught.experts.delta)
    assert all(tensor.isfinite().all() for tensor in taught.experts.delta.values())


def test_before_any_tuning_accuracies_are_those_of_the_pretrained_nets(pretrained, pool):
    drawn = smat.fresh_tasks(pool, [6, 7, 8, 9], seeds=[1, 1, 2], tasks=6)
    found = smat.accuracies(NET, pretrained, begun(pretrained), drawn)
    assert torch.equal(found.tuned, found.pretrained)
    assert (found.tuned.mean(dim=1) > 0.3).all()  # four ways: better than guessing, even at random weights


@pytest.mark.parametrize("sparsity", [(-0.1, 0.5, 0.5), (0.5, 1.0, 0.5)])
def test_a_sparsity_outside_its_range_is_refused(pretrained, pool, sparsity):
    with pytest.raises(ParameterError, match=r"expected numbers in \[0, 1\)"):
        tuned(pretrained, pool, aims(sparsity))


@pytest.mark.parametrize("name", smat.Aims._fields)
@pytest.mark.parametrize("given", [[0.5, 0.5, 0.5], 0.5, torch.tensor([0.5, 0.5]), torch.tensor(0.5)])
def test_aims_that_are_not_one_number_a_run_are_refused_by_name(pretrained, pool, name, given):
    with pytest.raises(ParameterError, match=f"aims.{name} is .* expected a tensor of 3 numbers, one a run"):
        tuned(pretrained, pool, aims()._replace(**{name: given}))


def test_whether_gates_learn_is_said_by_true_or_false(pretrained, pool):
    with pytest.raises(ParameterError, match=r"aims.learn_gates is of torch.float32: expected true or false"):
        tuned(pretrained, pool, aims()._replace(learn_gates=torch.ones(3)))


def test_a_wrong_number_of_seeds_is_not_blamed_on_the_aims(pretrained, pool):
    with pytest.raises(ParameterError, match="seeds: 2 given, expected one for each of the 3 runs"):
        smat.meta_tune(NET, pretrained, begun(pretrained), aims(), pool, range(6), seeds=[0, 0], **HOW)


@pytest.mark.parametrize("name", ["steps", "record_every", "tasks"])
def test_a_count_of_nothing_is_refused(pretrained, pool, name):
    with pytest.raises(ParameterError, match=f"{name} = 0, expected a whole number ≥ 1"):
        tuned(pretrained, pool, aims(), **{name: 0})


def test_models_on_another_device_learn_the_same_there_and_are_judged_on_the_cpu(pretrained, pool):
    """Tasks, aims and random numbers are the CPU's; every branch is taken: both teachers, masks."""
    settings = {"seeds": [0, 1, 2], **HOW, "steps": 3, "record_every": 1}
    plan = aims(pretrained=0.5, dense=0.5)._replace(learn_gates=torch.tensor([True, True, False]))
    tasks = smat.fresh_tasks(pool, range(10), seeds=[0, 1, 2], tasks=2, by_domain=True)

    def everything(pretrained):
        start = begun(pretrained, seeds=(0, 1, 2))
        found = smat.meta_tune(NET, pretrained, start, plan, pool, range(6), **settings)
        models = smat.task_models(NET, pretrained, found.experts, tasks)
        logits = smat.task_logits(NET, models, tasks, ways=4)
        shown = [
            *smat.accuracies(NET, pretrained, found.experts, tasks),
            smat.mean_alpha_by_domain(NET, pretrained, found.experts, tasks, domains=len(NAMES)),
        ]
        return found, logits, shown

    found, logits, shown = everything(pretrained)
    with second_device() as device:
        found_there, logits_there, shown_there = everything(stack.map(lambda tensor: tensor.to(device), pretrained))
        experts = found_there.experts
        assert {stack.device(experts.delta), stack.device(experts.gates), experts.keys.device} == {device}
        assert logits_there.device == device
        assert equal(found.experts.delta, stack.map(lambda tensor: tensor.cpu(), experts.delta))
        assert equal(found.experts.gates, stack.map(lambda tensor: tensor.cpu(), experts.gates))
        assert torch.equal(logits, logits_there.cpu())
    assert found.history.equals(found_there.history)
    for one, other in zip(shown, shown_there, strict=True):
        assert other.device.type == "cpu"
        assert torch.equal(one, other)


def test_more_ways_than_classes_are_refused(pretrained, pool):
    with pytest.raises(ParameterError, match="ways = 7"):
        tuned(pretrained, pool, aims(), ways=7)


def test_an_array_or_a_tensor_is_a_list_of_seeds_and_of_classes(pretrained, pool):
    sizes = {"tasks": 4, "ways": 3, "shots": 2, "queries": 2}
    by_seed = smat.fresh_tasks(pool, range(10), seeds=[5, 5, 6], **sizes)
    drawn = smat.draw_tasks(pool, [3, 1, 2, 0], stream(0), **sizes)
    fresh_tasks, draw_tasks = map(inspect.unwrap, (smat.fresh_tasks, smat.draw_tasks))
    for make in (np.array, torch.tensor):
        assert all(map(torch.equal, by_seed, fresh_tasks(pool, range(10), seeds=make([5, 5, 6]), **sizes)))
        assert all(map(torch.equal, drawn, draw_tasks(pool, make([3, 1, 2, 0]), stream(0), **sizes)))


def test_mean_alpha_by_domain_sums_to_one(pretrained, pool):
    drawn = smat.fresh_tasks(pool, range(10), seeds=[0, 1, 2], tasks=30)
    table = smat.mean_alpha_by_domain(NET, pretrained, begun(pretrained, experts=3), drawn, domains=len(NAMES))
    assert table.shape == (3, len(NAMES), 3)
    assert torch.allclose(table.sum(dim=2), torch.ones(3, len(NAMES)), atol=1e-4)


def test_a_domain_without_a_task_has_no_mean_alpha(pretrained, pool):
    drawn = smat.fresh_tasks(pool, range(10), seeds=[0, 1, 2], tasks=1)
    table = smat.mean_alpha_by_domain(NET, pretrained, begun(pretrained), drawn, domains=len(NAMES))
    known = table.isfinite().all(dim=2)
    assert known.nonzero()[:, 1].tolist() == drawn.domain[:, 0].tolist()


def test_accuracies_are_those_of_the_task_models_and_with_no_delta_these_are_the_pretrained_net(pretrained, pool, long):
    tasks = smat.fresh_tasks(pool, range(6, 10), seeds=[0, 0, 0], tasks=5)
    models = smat.task_models(NET, pretrained, long.experts, tasks)
    right = (smat.task_logits(NET, models, tasks, ways=4).argmax(dim=-1) == smat.way_labels(4, 10)).float()
    assert torch.equal(right.mean(dim=2), smat.accuracies(NET, pretrained, long.experts, tasks).tuned)
    assert equal(smat.task_models(NET, pretrained, begun(pretrained), tasks), smat.one_per_task(pretrained, tasks))


def test_the_table_of_a_tuning_is_its_history_with_the_grids_words_for_a_run(long):
    rows = stack.grid(tau=[0.0, 0.5, 0.9])
    table = long.table(rows)
    told = [name for name in long.history if name != "run"]
    assert set(table) == {"tau", *told}
    assert len(table) == len(long.history)
    for run, tau in enumerate(rows.tau):
        wanted = long.history[long.history.run == run].sort_values(["step", "expert"])
        assert (table[table.tau == tau][told].to_numpy() == wanted[told].to_numpy()).all()
    with pytest.raises(ShapeError, match=r"has shape \(3, 19, 2\), expected \(2, 19, 2\)"):
        long.table(stack.grid(tau=[0.0, 0.5]))
    with pytest.raises(ParameterError, match="two columns would be called 'sparsity'"):
        long.table(stack.grid(sparsity=[0.0, 0.5, 0.9]))


def test_runs_of_one_net_may_share_its_tasks_and_are_judged_alike(pretrained, pool, monkeypatch):
    start = begun(pretrained)
    noise = stream(0, "delta")
    delta = stack.map(lambda tensor: torch.randn(tensor.shape, generator=noise), pretrained)
    experts = start._replace(delta=delta)
    tasks = smat.fresh_tasks(pool, range(10), seeds=[3, 4], tasks=5)
    of = [1, 0, 1]
    monkeypatch.setattr(meta_tuning, "AT_ONCE", 3000)  # two tasks, or one, at a time
    shared = smat.accuracies(NET, stack.take(pretrained, slice(2)), experts, tasks, of=of)
    each_own = smat.Tasks(*(part[of] for part in tasks))
    alone = smat.accuracies(NET, stack.take(pretrained, of), experts, each_own)
    assert shared.tuned.shape == (3, 5)
    assert torch.equal(shared.pretrained[0], shared.pretrained[2])
    assert not torch.equal(shared.tuned[0], shared.tuned[2])
    for one, other in zip(shared, alone, strict=True):
        assert torch.allclose(one, other, atol=0.026)  # a query of forty, by rounding
    assert (shared.tuned == alone.tuned).float().mean() > 0.8


@pytest.mark.parametrize("of", [None, [0, 1], [0, 1, 2]])
def test_runs_without_a_net_or_tasks_of_their_own_are_refused(pretrained, pool, of):
    tasks = smat.fresh_tasks(pool, range(10), seeds=[3, 4], tasks=2)
    with pytest.raises(ShapeError, match="2 pretrained nets, tasks for 2 and 3 runs of experts"):
        smat.accuracies(NET, stack.take(pretrained, slice(2)), begun(pretrained), tasks, of=of)


def test_the_table_of_accuracies_has_a_row_a_run_or_a_row_a_run_and_camera():
    found = smat.Accuracies(
        tuned=torch.tensor([[0.75, 0.25, 0.5], [1.0, 0.5, 0.0]]),
        pretrained=torch.tensor([[0.25, 0.25, 0.25], [0.0, 0.5, 1.0]]),
        domain=torch.tensor([[0, 2, 0], [2, 2, 0]]),
    )
    rows = stack.grid(kind=["dense", "sparse"])
    table = found.table(rows)
    assert table.accuracy.tolist() == [0.5, 0.5]
    assert table.pretrained_accuracy.tolist() == [0.25, 0.5]
    assert table.kind.tolist() == ["dense", "sparse"]
    with pytest.raises(ShapeError, match=r"'accuracy' has shape \(2,\), expected \(3,\)"):
        found.table(stack.grid(seed=range(3)))
    table = found.table(rows, ["upright", "blur", "edges"])
    assert list(table) == ["kind", "camera", "accuracy", "pretrained_accuracy"]
    assert table.accuracy.tolist() == pytest.approx([0.625, float("nan"), 0.25, 0.0, float("nan"), 0.75], nan_ok=True)
    assert table.pretrained_accuracy[[0, 5]].tolist() == [0.25, 0.25]
    with pytest.raises(ParameterError, match="a task of domain 2, counted from 0, and 2 domains"):
        found.table(rows, ["upright", "blur"])
