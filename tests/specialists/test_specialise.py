import pytest
import torch
from orders import equal

from paramarket import cka, data, merge, specialists, stack, train
from paramarket.base import stream
from paramarket.errors import ParameterError, ShapeError

NET = stack.residual_mlp(64, 8, 2, 10)
HOW = {"batch": 32, "lr": 5e-3, "schedule": "constant"}
HOLD = pytest.mark.parametrize("knob", specialists.HOLDS)


@pytest.fixture(scope="module")
def grown(digits):
    base = stack.init(NET, 3, seed=0)
    left, right = ([data.turned(digits.quote, angle)] * 3 for angle in (-20.0, 20.0))
    return base, left, right, specialists.specialise(NET, base, left, right, keep=[0, 5, 10], **HOW)


def test_all_steps_stand_one_behind_the_other_and_the_first_is_the_base(grown):
    base, _, _, (a, b) = grown
    assert stack.check(NET, a) == stack.check(NET, b) == 9
    for side in (a, b):
        assert equal(stack.take(side, slice(3)), base)
    late = [stack.take(side, slice(6, None)) for side in (a, b)]
    assert not any(torch.equal(late[0][name], late[1][name]) for name in base)


def test_each_specialist_is_the_base_trained_on_its_own_images(grown):
    """The k-th of the left takes the order 2 k, the k-th of the right 2 k + 1."""
    base, left, right, (a, b) = grown
    for side, splits, odd in ((a, left, 0), (b, right, 1)):
        alone = train.fit(NET, base, splits, steps=10, seed=[2 * k + odd for k in range(3)], **HOW).stack
        late = stack.take(side, slice(6, None))
        assert all(torch.allclose(late[name], alone[name], atol=1e-5) for name in alone)


def test_a_pull_holds_both_copies(grown):
    base, left, right, _ = grown
    pull = specialists.frozen(base, 1, stream(0, "none"))
    a, b = specialists.specialise(NET, base, left, right, keep=[5], pull=pull, **HOW)
    for side in (a, b):
        assert torch.equal(side["1.weight"], base["1.weight"])
        assert not torch.equal(side["3.linear.weight"], base["3.linear.weight"])


def test_couples_are_judged_at_home_and_together(grown, digits):
    _, _, _, (a, b) = grown
    angles = [10.0, 20.0, 20.0] * 3
    home, merged = specialists.judge(NET, a, b, digits.audit, angles)
    for k in (0, 4, 8):
        there = [data.turned(digits.audit, sign * angles[k]) for sign in (-1, 1)]
        pair = [stack.take(side, [k]) for side in (a, b)]
        own = [train.evaluate(NET, one, split).loss.item() for one, split in zip(pair, there, strict=True)]
        assert home[k].item() == pytest.approx(sum(own) / 2, rel=1e-5)
        both = train.evaluate(NET, merge.halfway(*pair), digits.audit).loss.item()
        assert merged[k].item() == pytest.approx(both, rel=1e-5)


def test_likeness_is_the_cka_of_every_layer_and_one_for_twins(grown, digits):
    base, _, _, (a, b) = grown
    found = specialists.likeness(NET, a, b, digits.quote.x)
    assert found.shape == (4, 9)  # the first layer, two blocks, the last layer
    assert torch.allclose(found[:, :3], torch.ones(4, 3))
    said = [stack.features(NET, side, digits.quote.x)["3"][8] for side in (a, b)]
    assert found[1, 8].item() == pytest.approx(cka.linear_cka(*said, debiased=True), abs=1e-5)
    assert list(specialists.said(NET, base, digits.quote.x)) == ["2", "3", "4", "5"]


PLAIN = stack.mlp(64, [12], 10)


def families(count=4):
    """Two families of so many models, a stack [2, count]."""
    return {name: tensor.unflatten(0, (2, count)) for name, tensor in stack.init(PLAIN, 2 * count, seed=0).items()}


@pytest.mark.parametrize("count", [4, 26])
def test_a_model_is_its_own_nearest_kin(digits, count):
    for found, own in zip(specialists.kinship(PLAIN, families(count), digits.quote.x), (1.0, 0.0), strict=True):
        assert found.shape == (2, count, count)
        assert torch.allclose(found, found.mT, atol=1e-6)
        assert torch.allclose(found.diagonal(dim1=1, dim2=2), torch.tensor(own), atol=1e-6)
        assert ((found - own).abs() > 0.05).sum() == 2 * count * (count - 1)


def test_kinship_is_the_cka_of_the_last_hidden_layer_and_the_distance_of_the_weights(digits):
    for net in (PLAIN, NET):
        models = {name: tensor.unflatten(0, (2, 3)) for name, tensor in stack.init(net, 6, seed=0).items()}
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
    _, apart = specialists.kinship(net, models, torch.linspace(0, 1, 9).unsqueeze(1))
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


@HOLD
def test_every_hold_is_a_share_for_every_weight(knob):
    models = stack.init(NET, 2, seed=0)
    pull = specialists.HOLDS[knob](models, 0.5, stream(0, "hold"))
    assert {name: tensor.shape for name, tensor in pull.items()} == {n: t.shape for n, t in models.items()}
    assert all(((share >= 0) & (share <= 1)).all() for share in pull.values())


def test_holds_hold_what_they_say():
    models, chance = stack.init(NET, 4, seed=0), stream(0, "hold")
    assert not any(share.any() for share in specialists.free(models, 1.0, chance).values())
    assert all((share == 0.25).all() for share in specialists.pulled(models, 0.25, chance).values())
    first = specialists.frozen(models, 2, chance)
    held = {name for name, share in first.items() if share.all()}
    assert held == {"1.weight", "1.bias", "3.linear.weight", "3.linear.bias"}
    assert not any(share.any() for name, share in first.items() if name not in held)
    loose = torch.cat([1 - share.flatten() for share in specialists.sparse(models, 0.1, chance).values()])
    assert loose.unique().tolist() == [0, 1]
    assert loose.mean().item() == pytest.approx(0.1, abs=0.02)


def test_a_split_is_needed_for_every_model(grown):
    base, left, right, _ = grown
    with pytest.raises(ShapeError, match="2 splits on the left, 3 on the right, for 3 models"):
        specialists.specialise(NET, base, left[:2], right, keep=[1], **HOW)


def test_one_pull_may_serve_all_and_steps_need_no_order(grown):
    base, left, right, _ = grown
    whole = {name: torch.ones(1, *[1] * (tensor.ndim - 1)) for name, tensor in base.items()}
    held, _ = specialists.specialise(NET, base, left, right, keep=[3, 2], pull=whole, **HOW)
    assert equal(held, stack.chain([base, base]))
    with pytest.raises(ParameterError, match="keep is empty"):
        specialists.specialise(NET, base, left, right, keep=[], **HOW)
