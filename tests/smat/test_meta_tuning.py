import pytest
import torch
from orders import equal

from paramarket import data, smat, stack
from paramarket.errors import ParameterError

NET = stack.mlp(64, [12], 8)
HOW = {"steps": 15, "tasks": 2, "ways": 3, "shots": 2, "queries": 3}
NAMES = ["upright", "invert", "edges"]


@pytest.fixture(scope="module")
def pool(digits):
    return smat.pool(digits.quote, {name: data.DOMAINS[name] for name in NAMES}, seed=0)


@pytest.fixture(scope="module")
def pretrained():
    return stack.init(NET, 3, seed=0)


def aims(sparsity=(0.0, 0.5, 0.9), pretrained=0.0, teacher=0.0, learn=True, support=0.0):
    row = torch.ones(len(sparsity))
    return smat.Aims(torch.tensor(sparsity), pretrained * row, teacher * row, learn * row > 0, support * row)


def begun(pretrained, seeds=(0, 0, 0), experts=2):
    return smat.experts_of(pretrained, experts, 8, list(seeds))


def tuned(pretrained, pool, aims, seeds=(0, 0, 0), **how):
    return smat.meta_tune(NET, pretrained, begun(pretrained, seeds), aims, pool, range(6), seeds=seeds, **HOW | how)


@pytest.fixture(scope="module")
def long(pretrained, pool):
    return tuned(pretrained, pool, aims(), steps=350, gate_lr=0.05, dual_lr=0.05)


def test_it_learns_and_closes_the_gates_it_was_told_to_close(long):
    first, last = (long.history[long.history.step == step] for step in (1, 350))
    assert (last.loss.to_numpy() < first.loss.to_numpy()).all()
    closed, _, merged = smat.sparsity(long.experts.gates)
    assert closed[0].max() < 0.3
    assert (closed[1] > 0.45).all()
    assert (closed[2] > 0.85).all()
    assert (merged <= closed.amin(dim=1)).all()


def test_the_history_tells_every_expert_of_every_run_at_every_look(long):
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
    kept, start = {k: v.clone() for k, v in pretrained.items()}, begun(pretrained)
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


def test_gates_that_do_not_learn_stay_and_open_ones_are_dense_tuning(pretrained, pool):
    start = begun(pretrained)
    start = start._replace(gates={name: torch.full_like(gate, 9.0) for name, gate in start.gates.items()})
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
    drawn = smat.Tasks(*(x[None] for x in smat.draw(pool, 2, range(6), 3, 2, 3, torch.Generator().manual_seed(0))))
    return drawn, {name: tensor[:1].unsqueeze(1).expand(1, 2, *tensor.shape[1:]) for name, tensor in pretrained.items()}


def test_a_net_is_no_distance_from_itself(pretrained, pool):
    drawn, models = some(pretrained, pool)
    logits = smat.solve(NET, models, drawn, 3)
    assert smat.meta_tuning._distance(logits, logits).item() == pytest.approx(0, abs=1e-6)
    assert smat.meta_tuning._distance(logits, logits.flip(-1)).item() > 0


def test_a_step_of_descent_is_the_formula_and_lets_gradients_pass_as_they_are(pretrained, pool):
    drawn, models = some(pretrained, pool)
    models = {name: tensor.clone().requires_grad_() for name, tensor in models.items()}
    loss = smat.task_losses(smat.solve(NET, models, drawn, 3)).sum()
    slopes = torch.autograd.grad(loss, list(models.values()))
    stepped = smat.meta_tuning._descended(NET, models, drawn, 3, torch.tensor([0.5]))
    for (name, tensor), slope in zip(models.items(), slopes, strict=True):
        assert torch.allclose(stepped[name], tensor - 0.5 * slope, atol=1e-6)
    assert equal(smat.meta_tuning._descended(NET, models, drawn, 3, torch.tensor([0.0])), models)
    passed = torch.autograd.grad(sum(tensor.sum() for tensor in stepped.values()), list(models.values()))
    assert all((each == 1).all() for each in passed)
    assert (smat.task_losses(smat.solve(NET, stepped, drawn, 3)).sum() < loss).all()


def test_a_support_step_changes_its_own_runs_alone(pretrained, pool):
    plain, some_step = aims(), aims()._replace(support=torch.tensor([0.0, 0.5, 0.0]))
    one, other = (tuned(pretrained, pool, each).experts.delta for each in (plain, some_step))
    for name, tensor in one.items():
        assert torch.equal(tensor[::2], other[name][::2])
    assert not equal(stack.take(one, [1]), stack.take(other, [1]))


def test_a_dense_teacher_can_be_learnt_from(pretrained, pool):
    plain, taught = (tuned(pretrained, pool, aims(teacher=weight)) for weight in (0.0, 1.0))
    assert not equal(plain.experts.delta, taught.experts.delta)
    assert all(tensor.isfinite().all() for tensor in taught.experts.delta.values())


def test_before_any_tuning_the_judge_sees_no_difference(pretrained, pool):
    drawn = smat.fresh_tasks(pool, [6, 7, 8, 9], seeds=[1, 1, 2], tasks=6)
    found, before = smat.judge(NET, pretrained, begun(pretrained), drawn)
    assert torch.equal(found, before)
    assert (found > 0.3).all()  # four ways: better than guessing, even at random weights


@pytest.mark.parametrize("sparsity", [(-0.1, 0.5, 0.5), (0.5, 1.0, 0.5)])
def test_a_sparsity_outside_its_range_is_refused(pretrained, pool, sparsity):
    with pytest.raises(ParameterError, match=r"expected numbers in \[0, 1\)"):
        tuned(pretrained, pool, aims(sparsity))


def test_more_ways_than_classes_are_refused(pretrained, pool):
    with pytest.raises(ParameterError, match="ways = 7"):
        tuned(pretrained, pool, aims(), ways=7)


def test_noise_exchanges_that_share_of_the_examples_to_learn_from(pool):
    how = {"seeds": [1, 1], "tasks": 4}
    clean, noisy = (smat.fresh_tasks(pool, range(10), **how, noise=share) for share in (0.0, 0.3))
    assert torch.equal(clean.query, noisy.query)
    moved = (clean.support != noisy.support).flatten(3).any(dim=3).sum(dim=2)
    assert (moved == 6).all()  # of 20
    assert torch.equal(noisy.support[0], noisy.support[1])
    for before, after in zip(clean.support[0].flatten(2), noisy.support[0].flatten(2), strict=True):
        rows = [{tuple(row.tolist()) for row in each} for each in (before, after)]
        assert rows[0] == rows[1]  # the same images, in other places


def test_who_is_asked_is_told_by_domain_and_sums_to_one(pretrained, pool):
    drawn = smat.fresh_tasks(pool, range(10), seeds=[0, 1, 2], tasks=30)
    table = smat.asked(NET, pretrained, begun(pretrained, experts=3), drawn, len(NAMES))
    assert table.shape == (3, len(NAMES), 3)
    assert torch.allclose(table.sum(dim=2), torch.ones(3, len(NAMES)), atol=1e-4)


def test_task_models_are_what_judge_asks_and_with_no_delta_the_pretrained_net(pretrained, pool, long):
    tasks = smat.fresh_tasks(pool, range(6, 10), seeds=[0, 0, 0], tasks=5)
    models = smat.task_models(NET, pretrained, long.experts, tasks)
    right = (smat.solve(NET, models, tasks, 4).argmax(dim=-1) == smat.answers(4, 10)).float()
    assert torch.equal(right.flatten(1).mean(dim=1), smat.judge(NET, pretrained, long.experts, tasks)[0])
    assert equal(smat.task_models(NET, pretrained, begun(pretrained), tasks), smat.spread(pretrained, tasks))
