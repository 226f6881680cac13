import inspect
import sys

import numpy as np
import pytest
import torch
from devices import second_device
from orders import equal

from paramarket import cka, data, specialists, stack, train
from paramarket.base import stream
from paramarket.errors import ParameterError, ShapeError

NET = stack.residual_mlp(64, 8, 2, 10)
HOW = {"batch": 32, "lr": 5e-3, "schedule": "constant"}


@pytest.fixture(scope="module")
def grown(digits):
    base = stack.init(NET, 3, seed=0)
    left, right = ([data.rotate_split(digits.quote, angle)] * 3 for angle in (-20.0, 20.0))
    return base, left, right, specialists.specialise(NET, base, left, right, keep=[0, 5, 10], **HOW)


def test_all_steps_stand_one_behind_the_other_and_the_first_is_the_base(grown):
    base, _, _, (a, b) = grown
    assert stack.check(NET, a) == stack.check(NET, b) == 9
    for side in (a, b):
        assert equal(stack.take(side, slice(3)), base)
    late = [stack.take(side, slice(6, None)) for side in (a, b)]
    assert not any(torch.equal(late[0][name], late[1][name]) for name in base)


def test_each_specialist_is_the_base_trained_on_its_own_images(grown):
    """The k-th of a side takes its images in an order of its own, named after side and place."""
    base, left, right, couples = grown
    for side, models, splits in (("left", couples.a, left), ("right", couples.b, right)):
        orders = [stream(0, "specialise", side, k) for k in range(3)]
        alone = train.fit(NET, base, splits, steps=10, generators=orders, **HOW).stack
        late = stack.take(models, slice(6, None))
        assert all(torch.allclose(late[name], alone[name], atol=1e-5) for name in alone)


def test_no_two_orders_collide(grown, monkeypatch):
    """With orders numbered 20,000 · seed + 2 · k + side, model 10,000 of seed 0 would be model 0 of seed 1."""
    base, left, _, _ = grown
    one = stack.take(base, [0])
    orders = []

    def note_orders(net, models, splits, *, generators, keep, **settings):
        orders.extend(generators)
        return train.Fit(models, None, {}, dict.fromkeys(keep, models))

    room = sys.modules[specialists.specialise.__module__]
    monkeypatch.setattr(room, "fit", note_orders)
    monkeypatch.setattr(room, "stream", lambda *names: names)  # twenty thousand streams would take seconds
    specialists.specialise(NET, one, left[:1], left[:1], keep=[1], seed=1)
    many = stack.take(one, [0] * 10_001)
    specialists.specialise(NET, many, left[:1] * 10_001, left[:1] * 10_001, keep=[1], seed=0)
    assert len(orders) == len(set(orders)) == 2 + 2 * 10_001
    first_numbers = {stream(*names).initial_seed() for names in orders if names[-1] in (0, 10_000)}
    assert len(first_numbers) == 2 + 4


@pytest.mark.parametrize("make", [np.array, torch.tensor, tuple])
def test_steps_to_keep_may_stand_in_an_array(grown, make):
    base, left, right, (a, _) = grown
    found, _ = specialists.specialise(NET, base, left, right, keep=make([0, 5]), steps=10, **HOW)
    assert equal(found, stack.take(a, slice(6)))


def test_a_pull_holds_both_copies(grown):
    base, left, right, _ = grown
    pull = stack.map(torch.zeros_like, base)
    pull["1.weight"].fill_(1.0)
    a, b = specialists.specialise(NET, base, left, right, keep=[5], pull=pull, **HOW)
    for side in (a, b):
        assert torch.equal(side["1.weight"], base["1.weight"])
        assert not torch.equal(side["3.linear.weight"], base["3.linear.weight"])


PLAIN = stack.mlp(64, [12], 10)


def families(count=4, net=PLAIN):
    """Two families of so many models, a stack [2, count]."""
    return stack.unflat(stack.init(net, 2 * count, seed=0), (2, count))


@pytest.mark.parametrize("count", [4, 26])
def test_a_model_is_its_own_nearest_kin(digits, count):
    for found, own in zip(specialists.kinship(PLAIN, families(count), digits.quote.x), (1.0, 0.0), strict=True):
        assert found.shape == (2, count, count)
        assert torch.allclose(found, found.mT, atol=1e-6)
        assert torch.allclose(found.diagonal(dim1=1, dim2=2), torch.tensor(own), atol=1e-6)
        assert ((found - own).abs() > 0.05).sum() == 2 * count * (count - 1)


def test_kinship_is_the_cka_of_the_last_hidden_layer_and_the_distance_of_the_weights(digits):
    for net in (PLAIN, NET):
        models = families(3, net)
        alike, apart = specialists.kinship(net, models, digits.quote.x)
        said = list(stack.features(net, stack.take(models, 1), digits.quote.x).values())[-2]
        assert alike[1, 0, 2].item() == pytest.approx(cka.linear_cka(said[0], said[2]), abs=1e-5)
        rows = [torch.cat([tensor[1, j].flatten() for tensor in models.values()]) for j in range(3)]
        length = sum(row.norm() for row in rows) / 3
        assert apart[1, 0, 2].item() == pytest.approx(((rows[0] - rows[2]).norm() / length).item(), rel=1e-5)


def test_a_distance_by_hand():
    net, rows = stack.mlp(1, [1], 1), torch.tensor([[3.0, 0, 4, 0], [3, 4, 0, 0], [5, 0, 0, 0]])  # all are 5 long
    shapes = {"1.weight": (1, 1), "1.bias": (1,), "3.weight": (1, 1), "3.bias": (1,)}
    models = {name: rows[None, :, k].view(1, 3, *shape) for k, (name, shape) in enumerate(shapes.items())}
    apart = specialists.kinship(net, models, torch.linspace(0, 1, 9).unsqueeze(1)).distance
    assert torch.allclose(apart[0], torch.tensor([[0.0, 32, 20], [32, 0, 20], [20, 20, 0]]).sqrt() / 5)


def test_hidden_units_in_another_order_are_as_alike_and_further_apart(digits):
    models, order = families(2), torch.randperm(12, generator=stream(0, "order"))
    turned = {"1.weight": models["1.weight"][:, 1, order], "1.bias": models["1.bias"][:, 1, order]}
    turned |= {"3.weight": models["3.weight"][:, 1, :, order], "3.bias": models["3.bias"][:, 1]}
    moved = {name: torch.cat([tensor, turned[name].unsqueeze(1)], dim=1) for name, tensor in models.items()}
    alike, apart = specialists.kinship(PLAIN, moved, digits.quote.x)
    assert torch.allclose(alike[:, 0, 1], alike[:, 0, 2], atol=1e-5)
    assert torch.allclose(alike[:, 1, 2], torch.ones(2), atol=1e-5)
    assert (apart[:, 1, 2] > 0.5).all()
    assert not torch.allclose(apart[:, 0, 1], apart[:, 0, 2], atol=1e-4)


def test_a_split_is_needed_for_every_model(grown):
    base, left, right, _ = grown
    with pytest.raises(ShapeError, match="2 splits on the left, 3 on the right, for 3 models"):
        specialists.specialise(NET, base, left[:2], right, keep=[1], **HOW)


def test_one_pull_may_serve_all_and_steps_need_no_order(grown):
    base, left, right, _ = grown
    whole = {name: torch.ones(1, *[1] * (tensor.ndim - 1)) for name, tensor in base.items()}
    held, _ = specialists.specialise(NET, base, left, right, keep=[3, 2], pull=whole, **HOW)
    assert equal(held, stack.chain([base, base]))


def test_a_pull_for_another_number_of_models_is_refused(grown):
    base, left, right, _ = grown
    two = stack.map(torch.ones_like, stack.take(base, slice(2)))
    with pytest.raises(ShapeError, match="pull has shape"):
        specialists.specialise(NET, base, left, right, keep=[1], pull=two, **HOW)


def test_steps_that_are_never_reached_are_refused(grown):
    base, left, right, _ = grown
    for keep in (5, "5"):
        with pytest.raises(ParameterError, match=f"keep = {keep!r}, expected a list"):
            inspect.unwrap(specialists.specialise)(NET, base, left, right, keep=keep, **HOW)
    with pytest.raises(ParameterError, match="keep is empty"):
        specialists.specialise(NET, base, left, right, keep=[], **HOW)
    with pytest.raises(ParameterError, match="keep: step 5 lies beyond the last, 2"):
        specialists.specialise(NET, base, left, right, keep=[0, 5], steps=2, **HOW)
    with pytest.raises(ParameterError, match="a step to keep = -1"):
        specialists.specialise(NET, base, left, right, keep=[-1, 5], **HOW)


def test_training_may_go_on_after_the_last_look(grown):
    base, left, right, couples = grown
    longer = specialists.specialise(NET, base, left, right, keep=[0, 5, 10], steps=12, **HOW)
    assert equal(longer.a, couples.a)
    assert equal(longer.b, couples.b)


def test_on_a_second_device_specialists_grow_and_are_judged_as_on_the_cpu(grown, digits):
    base, left, right, _ = grown
    x = digits.quote.x
    kin = specialists.kinship(NET, families(3, NET), x)
    with second_device() as other:
        moved = stack.map(lambda tensor: tensor.to(other), base)
        away = specialists.specialise(NET, moved, left, right, keep=[0, 5, 10], **HOW)
        assert stack.device(away.a) == stack.device(away.b) == other
        shown = specialists.kinship(NET, stack.map(lambda tensor: tensor.to(other), families(3, NET)), x)
        outputs = specialists.block_outputs(NET, away.a, x)
        assert {output.device for output in outputs.values()} == {other}
    for found, expected in zip(shown, kin, strict=True):
        assert found.device.type == "cpu"
        assert torch.allclose(found, expected, atol=1e-4)


def test_the_table_of_kinship_has_a_row_for_every_two_of_a_family():
    cka_of, distance = torch.rand(2, 2, 3, 3, generator=stream(0, "kin"))
    kin = specialists.Kinship(cka_of, distance)
    table = kin.table(stack.grid(seed=range(2)), members=["A", "B", "C"])
    assert list(table) == ["seed", "one", "other", "cka", "distance"]
    assert len(table) == 2 * 3 * 3
    for row in table.itertuples():
        place = row.seed, "ABC".index(row.one), "ABC".index(row.other)
        assert row.cka == cka_of[place].item()
        assert row.distance == distance[place].item()
    with pytest.raises(ShapeError, match=r"expected \(2, 2, 2\)"):
        kin.table(stack.grid(seed=range(2)), members=["A", "B"])
    with pytest.raises(ShapeError, match=r"expected \(1, 3, 3\)"):
        kin.table(stack.grid(seed=range(1)), members=["A", "B", "C"])
