import pytest
import torch
from orders import equal

from paramarket import data, smat, stack
from paramarket.errors import ParameterError

NET = stack.mlp(64, [16], 8)


@pytest.fixture(scope="module")
def pool(digits):
    return smat.pool(digits.quote, {name: data.DOMAINS[name] for name in ("upright", "invert")}, seed=0)


@pytest.fixture(scope="module")
def pretrained(pool):
    return smat.pretrain(NET, pool, range(10), seeds=[3, 4], steps=150, lr=5e-3)


@pytest.fixture(scope="module")
def tasks(pool):
    return smat.fresh_tasks(pool, range(10), seeds=[0, 0], tasks=8)


def accuracy(models, tasks):
    said = [
        stack.run(NET, {k: v.repeat_interleave(8, 0) for k, v in models.items()}, x.flatten(0, 1), False, training=True)
        for x in tasks[:2]
    ]
    hits = smat.prototype_logits(*said, 4).argmax(dim=-1) == smat.answers(4, 10)
    return hits.float().view(2, -1).mean(dim=1)


def test_pretraining_makes_a_net_that_sorts_new_tasks(pretrained, tasks):
    start = stack.chain([stack.init(NET, 1, seed) for seed in (3, 4)])
    assert (accuracy(pretrained, tasks) > accuracy(start, tasks) + 0.05).all()


def test_each_pretrained_net_depends_on_its_own_seed_alone(pretrained, pool):
    alone = smat.pretrain(NET, pool, range(10), seeds=[4], steps=150, lr=5e-3)
    assert all(torch.allclose(alone[name][0], pretrained[name][1], atol=1e-3) for name in alone)
    assert not torch.equal(pretrained["1.weight"][0], pretrained["1.weight"][1])


@pytest.mark.parametrize("rank", [None, 2])
def test_tuning_a_task_leaves_the_net_it_starts_from_and_helps_or_does_nothing_at_rate_0(tasks, rank):
    start = stack.init(NET, 2, seed=0)
    kept, before = {name: tensor.clone() for name, tensor in start.items()}, accuracy(start, tasks)
    still = smat.tuned_accuracy(NET, smat.spread(start, tasks), tasks, 4, steps=2, lr=0.0, rank=rank)
    assert torch.allclose(still, before)
    better = smat.tuned_accuracy(NET, smat.spread(start, tasks), tasks, 4, steps=20, lr=1e-2, rank=rank)
    assert (better > before).all()
    assert equal(start, kept)


def test_steps_and_rank_start_at_one(pretrained, tasks):
    for how in ({"steps": 0}, {"steps": 1, "rank": 0}):
        with pytest.raises(ParameterError, match="expected 1 or more"):
            smat.tuned_accuracy(NET, smat.spread(pretrained, tasks), tasks, 4, lr=1e-3, **how)
