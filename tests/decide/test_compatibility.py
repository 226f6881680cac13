import pytest
import torch
from devices import second_device
from hypothesis import given
from hypothesis import strategies as st
from orders import shuffle

from paramarket import align, cka, decide, merge, stack, train
from paramarket.errors import ParameterError, ShapeError, WeightsError


@pytest.fixture(scope="module")
def trained(digits):
    net = stack.mlp(64, [48], 10)
    return net, train.fit(net, stack.init(net, 2, seed=0), digits.train, epochs=8, lr=1e-2).stack


def test_a_network_merges_with_itself(trained, digits):
    net, models = trained
    a = stack.take(models, 0)
    found = decide.compatibility(net, a, a, digits.quote)
    assert found.verdict == "merge"
    assert found.naive_barrier == pytest.approx(0, abs=1e-5)
    assert list(found.cka) == ["1", "2", "3"]
    assert list(found.cka.values()) == pytest.approx([1, 1, 1])
    assert list(found.losses.values()) == pytest.approx([found.losses["a"]] * 5, abs=1e-5)


@given(st.integers(0, 100))
def test_a_network_merges_with_its_reordered_copy_once_it_is_put_back(trained, digits, seed):
    net, models = trained
    a = stack.take(models, 0)
    spec = align.permutation_spec(net, digits.quote.x[:1])
    found = decide.compatibility(net, a, align.permute(spec, shuffle(spec, a, seed), a), digits.quote)
    assert found.verdict == "reorder, then merge"
    assert found.aligned_barrier == pytest.approx(0, abs=1e-5)
    assert found.naive_barrier > decide.NEGLIGIBLE_BARRIER
    assert found.cka["2"] < 0.999 or found.cka["2"] == pytest.approx(1)  # CKA does not see an order


def test_the_numbers_are_those_of_the_rooms_they_come_from(trained, digits):
    net, models = trained
    a, b = stack.take(models, 0), stack.take(models, 1)
    found = decide.compatibility(net, a, b, digits.quote, points=5)
    walked = train.evaluate(net, merge.path(a, b, 5), digits.quote).loss
    assert found.naive_barrier == pytest.approx(merge.barrier(walked).item())
    assert found.losses["averaged weights"] == pytest.approx(walked[2].item())
    chances = merge.ensemble(net, models, digits.quote.x)
    expected = -chances[torch.arange(len(digits.quote)), digits.quote.y].log().mean().item()
    assert found.losses["averaged outputs"] == pytest.approx(expected, abs=1e-5)
    said = stack.features(net, models, digits.quote.x)["2"]
    assert found.cka["2"] == pytest.approx(cka.linear_cka(said[0], said[1], debiased=True))
    assert f"{found.losses['averaged outputs']:.3f}" in found.reason or found.verdict != "keep both"


def test_narrow_strangers_are_kept_apart(digits):
    """Few units, learnt from two random starts: there is no order in which they fit."""
    net = stack.mlp(64, [8, 8], 10)
    models = train.fit(net, stack.init(net, 2, seed=0), digits.train, epochs=30, lr=1e-2).stack
    found = decide.compatibility(net, stack.take(models, 0), stack.take(models, 1), digits.quote)
    assert found.verdict == "keep both"
    assert decide.NEGLIGIBLE_BARRIER < found.aligned_barrier <= found.naive_barrier + 1e-6
    assert found.reason.startswith("a barrier stands between the two that no order of units removes")


def test_what_cannot_be_compared_is_refused(trained, digits):
    net, models = trained
    a, b = stack.take(models, 0), stack.take(models, 1)
    other = stack.take(stack.init(stack.mlp(64, [47], 10), 1, seed=0), 0)
    with pytest.raises(ShapeError, match=r"'1\.weight' has shape \(47, 64\), expected \(48, 64\)"):
        decide.compatibility(net, a, other, digits.quote)
    with pytest.raises(WeightsError, match=r"source's '1\.bias'"):
        decide.compatibility(net, a, {**b, "1.bias": b["1.bias"] / 0}, digits.quote)
    for points in (1, 4):
        with pytest.raises(ParameterError, match=f"points = {points}, expected an odd number from 3 on"):
            decide.compatibility(net, a, b, digits.quote, points=points)


def test_a_merge_that_would_be_worse_than_one_of_them_is_not_advised(trained, digits):
    net, models = trained
    a = stack.take(models, 0)
    blank = stack.map(lambda tensor: 0.5 * tensor, a)
    found = decide.compatibility(net, a, blank, digits.quote)
    assert found.naive_barrier <= decide.NEGLIGIBLE_BARRIER
    assert found.losses["averaged weights"] > found.losses["a"] + 1e-3
    assert found.verdict == "keep the better one"
    assert "a alone has" in found.reason


def test_models_on_a_second_device_are_judged_by_the_same_numbers(trained, digits):
    net, models = trained
    expected = decide.compatibility(net, stack.take(models, 0), stack.take(models, 1), digits.quote)
    with second_device() as other:
        away = stack.map(lambda tensor: tensor.to(other), models)
        found = decide.compatibility(net, stack.take(away, 0), stack.take(away, 1), digits.quote)
    assert found.verdict == expected.verdict
    assert found.reason == expected.reason
    assert found.losses == pytest.approx(expected.losses, abs=1e-5)
    assert found.cka == pytest.approx(expected.cka, abs=1e-5)
    assert found.naive_barrier == pytest.approx(expected.naive_barrier, abs=1e-5)
    assert found.aligned_barrier == pytest.approx(expected.aligned_barrier, abs=1e-5)
    assert {type(value) for value in [*found.losses.values(), *found.cka.values()]} == {float}
