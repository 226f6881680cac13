import inspect

import pytest
import torch
from devices import second_device
from orders import equal

from paramarket import data, smat, stack
from paramarket.errors import ParameterError

NET = stack.mlp(64, [16], 8)


@pytest.fixture(scope="module")
def pool(digits):
    return smat.task_pool(digits.quote, {name: data.DOMAINS[name] for name in ("upright", "invert")}, seed=0)


@pytest.fixture(scope="module")
def pretrained(pool):
    return smat.pretrain_foundation(NET, pool, range(10), seeds=[3, 4], steps=150, lr=5e-3)


@pytest.fixture(scope="module")
def tasks(pool):
    return smat.fresh_tasks(pool, range(10), seeds=[0, 0], tasks=8)


def accuracy(models, tasks):
    """By hand: one run after another, its model once for each of its tasks."""
    hits = []
    for run in range(2):
        own = stack.take(models, [run] * 8)
        support = stack.apply(NET, own, tasks.support[run], shared=False, training=True)
        query = stack.apply(NET, own, tasks.query[run], shared=False, training=True)
        hits.append(smat.prototype_logits(support, query, 4).argmax(dim=-1) == smat.way_labels(4, 10))
    return torch.stack(hits).float().mean(dim=2)


def test_pretraining_makes_a_net_that_sorts_new_tasks(pretrained, tasks):
    start = stack.chain([stack.init(NET, 1, seed) for seed in (3, 4)])
    gained = accuracy(pretrained, tasks) - accuracy(start, tasks)
    assert (gained.mean(dim=1) > 0.05).all()


def test_each_pretrained_net_depends_on_its_own_seed_alone(pretrained, pool):
    alone = smat.pretrain_foundation(NET, pool, range(10), seeds=[4], steps=150, lr=5e-3)
    assert all(torch.allclose(alone[name][0], pretrained[name][1], atol=1e-3) for name in alone)
    assert not torch.equal(pretrained["1.weight"][0], pretrained["1.weight"][1])


def test_pretraining_on_another_device_gives_the_same_net_there(pool):
    settings = {"seeds": [3, 4], "steps": 3}
    here = smat.pretrain_foundation(NET, pool, range(10), **settings)
    with second_device() as device:
        there = smat.pretrain_foundation(NET, pool, range(10), **settings, device=device)
        assert stack.device(there) == device
        back = stack.map(lambda tensor: tensor.cpu(), there)
    assert equal(here, back)


@pytest.mark.parametrize("rank", [None, 2])
def test_tuning_a_task_leaves_the_net_it_starts_from_and_helps_or_does_nothing_at_rate_0(tasks, rank):
    start = stack.init(NET, 2, seed=0)
    kept = stack.copy(start)
    before = accuracy(start, tasks)
    still = smat.tuned_accuracy(NET, smat.one_per_task(start, tasks), tasks, ways=4, steps=2, lr=0.0, rank=rank)
    assert torch.allclose(still.tuned, before)
    assert torch.equal(still.domain, tasks.domain)
    better = smat.tuned_accuracy(NET, smat.one_per_task(start, tasks), tasks, ways=4, steps=20, lr=1e-2, rank=rank)
    assert torch.allclose(better.pretrained, before)
    assert (better.tuned.mean(dim=1) > before.mean(dim=1)).all()
    assert equal(start, kept)


@pytest.mark.parametrize("rank", [None, 2])
def test_tuning_models_on_another_device_tells_the_same_accuracy_on_the_cpu(tasks, rank):
    models = smat.one_per_task(stack.init(NET, 2, seed=0), tasks)
    settings = {"ways": 4, "steps": 3, "lr": 1e-2, "rank": rank}
    here = smat.tuned_accuracy(NET, models, tasks, **settings)
    with second_device() as device:
        there = smat.tuned_accuracy(NET, stack.map(lambda tensor: tensor.to(device), models), tasks, **settings)
        assert {part.device.type for part in there} == {"cpu"}
    assert all(map(torch.equal, here, there))


def test_steps_and_rank_start_at_one(pretrained, pool, tasks):
    for settings, name in (({"steps": 0}, "steps"), ({"steps": 1, "rank": 0}, "rank")):
        with pytest.raises(ParameterError, match=f"{name} = 0, expected a whole number ≥ 1"):
            smat.tuned_accuracy(NET, smat.one_per_task(pretrained, tasks), tasks, ways=4, lr=1e-3, **settings)
    with pytest.raises(ParameterError, match="steps = 0, expected a whole number ≥ 1"):
        smat.pretrain_foundation(NET, pool, range(10), seeds=[0], steps=0)


def test_one_seed_or_one_class_where_a_list_is_expected_is_refused_by_name(pool):
    pretrain = inspect.unwrap(smat.pretrain_foundation)  # as without the type checker of the tests
    with pytest.raises(ParameterError, match="seeds = 3, expected a list"):
        pretrain(NET, pool, range(10), seeds=3, steps=1)
    with pytest.raises(ParameterError, match="seeds = 3, expected a list"):
        inspect.unwrap(smat.fresh_tasks)(pool, range(10), seeds=3)
