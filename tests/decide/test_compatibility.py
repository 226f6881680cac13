import pytest
import torch
from devices import second_device
from hypothesis import example, given
from hypothesis import strategies as st
from orders import shuffle

from paramarket import align, cka, data, decide, merge, stack, train
from paramarket.errors import ParameterError, ShapeError, WeightsError

COMBINATIONS = {
    "averaged weights": "merge",
    "reordered, averaged": "reorder, then merge",
    "averaged outputs": "keep both",
}


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


def calibrated(answers, split):
    """Losses of candidates, each with the temperature that suits it."""
    return train.score_logits(answers / train.fit_temperatures(answers, split.y).view(-1, 1, 1), split.y).loss


def test_the_numbers_are_those_of_the_rooms_they_come_from(trained, digits):
    net, models = trained
    a, b = stack.take(models, 0), stack.take(models, 1)
    found = decide.compatibility(net, a, b, digits.quote, points=5)
    answers = train.logits(net, merge.path(a, b, 5), digits.quote.x)
    walked = calibrated(answers, digits.quote)
    assert found.naive_barrier == pytest.approx(merge.barrier(walked).item())
    assert found.losses["averaged weights"] == pytest.approx(walked[2].item())
    both = train.logits(net, models, digits.quote.x)
    chances = (both / train.fit_temperatures(both, digits.quote.y).view(-1, 1, 1)).softmax(dim=-1).mean(dim=0)
    expected = calibrated(chances.log().unsqueeze(0), digits.quote).item()
    assert found.losses["averaged outputs"] == pytest.approx(expected, abs=1e-5)
    hits = chances.argmax(dim=-1) == digits.quote.y
    assert found.accuracies["averaged outputs"] == pytest.approx(hits.float().mean().item())
    rates = train.evaluate(net, merge.path(a, b, 5), digits.quote).accuracy
    assert [found.accuracies[name] for name in ("a", "averaged weights", "b")] == pytest.approx(
        rates[[0, 2, 4]].tolist()
    )
    said = stack.features(net, models, digits.quote.x)["2"]
    assert found.cka["2"] == pytest.approx(cka.linear_cka(said[0], said[1], debiased=True))
    assert f"{found.losses['averaged outputs']:.3f}" in found.reason or found.verdict != "keep both"


def louder(params, factor):
    """The same answers, said with another certainty."""
    return params | {name: factor * params[name] for name in list(params)[-2:]}


@given(st.floats(0.5, 2.0))
def test_how_sure_networks_are_of_themselves_changes_no_verdict(trained, digits, factor):
    net, models = trained
    a, b = stack.take(models, 0), stack.take(models, 1)
    expected = decide.compatibility(net, a, b, digits.quote, points=5)
    found = decide.compatibility(net, louder(a, factor), louder(b, factor), digits.quote, points=5)
    assert found.verdict == expected.verdict
    for name in ("a", "b", "averaged weights", "averaged outputs"):  # an order may hang on the size of weights
        assert found.losses[name] == pytest.approx(expected.losses[name], abs=1e-3)
        assert found.accuracies[name] == pytest.approx(expected.accuracies[name], abs=1e-6)
    assert found.naive_barrier == pytest.approx(expected.naive_barrier, abs=2e-3)


def test_two_transformers_are_compared_part_by_part(digits):
    net = stack.vit(1, 8, 10, patch=4, units=8, blocks=1, heads=2)
    models = stack.init(net, 2, seed=0)
    found = decide.compatibility(net, stack.take(models, 0), stack.take(models, 1), digits.quote, points=3)
    assert len(found.cka) >= 2
    assert all(-1 <= value <= 1.001 for value in found.cka.values())
    a = stack.take(models, 0)
    spec = align.permutation_spec(net, digits.quote.x[:1])
    twin = decide.compatibility(net, a, align.permute(spec, shuffle(spec, a, 1), a), digits.quote, points=3)
    assert twin.aligned_barrier == pytest.approx(0, abs=1e-4)


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


def worn(models, model, wear):
    """A model with noise on its weights: less often right, the more the noise."""
    luck = torch.Generator().manual_seed(model)
    params = stack.take(models, model)
    return stack.map(lambda tensor: tensor + wear * tensor.std() * torch.randn(tensor.shape, generator=luck), params)


def test_a_merge_that_would_be_worse_than_one_of_them_is_not_advised(trained, digits):
    net, models = trained
    a = stack.take(models, 0)
    found = decide.compatibility(net, a, worn(models, 0, 1.5), digits.quote)
    assert found.naive_barrier <= decide.NEGLIGIBLE_BARRIER
    assert found.losses["averaged weights"] > found.losses["a"] + 1e-3
    assert found.verdict == "keep the better one"
    assert "a alone is better than any combination" in found.reason


some_model = st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.3, 0.6, 1.0]))


@given(some_model, some_model, some_model)
@example((0, 0.6), (0, 1.0), (0, 0.0))  # the base wins
@example((0, 0.0), (0, 0.3), (0, 1.0))  # it does not
def test_the_base_wins_where_it_is_better_and_no_advice_is_worse_than_it(trained, digits, one, other, origin):
    net, models = trained
    a, b, base = (worn(models, *each) for each in (one, other, origin))
    found = decide.compatibility(net, a, b, digits.quote, base=base, points=3)
    losses = found.losses
    others = min(loss for name, loss in losses.items() if name != "base")
    if losses["base"] < others - decide.NEGLIGIBLE_LOSS:
        assert found.verdict == "keep the base"
    if found.verdict == "keep the base":
        assert losses["base"] < min(losses["a"], losses["b"])
    for way, verdict in COMBINATIONS.items():  # and no advice is worse than the base
        assert found.verdict != verdict or losses[way] <= losses["base"] + decide.NEGLIGIBLE_LOSS


@given(some_model, some_model, some_model)
def test_without_a_base_nothing_changes(trained, digits, one, other, origin):
    net, models = trained
    a, b, base = (worn(models, *each) for each in (one, other, origin))
    alone = decide.compatibility(net, a, b, digits.quote, points=3)
    found = decide.compatibility(net, a, b, digits.quote, base=base, points=3)
    assert "base" not in alone.losses
    assert "base" not in alone.accuracies
    assert " base " not in alone.reason
    assert found.losses == alone.losses | {"base": found.losses["base"]}
    assert found.accuracies == alone.accuracies | {"base": found.accuracies["base"]}
    assert found[0] == alone[0]
    assert found.naive_barrier == alone.naive_barrier
    assert found.aligned_barrier == alone.aligned_barrier
    if found.verdict == "keep the better one":
        assert alone.verdict == "keep the better one" or "their base" in found.reason


def test_the_base_is_judged_on_the_same_images_and_named_with_loss_and_accuracy(trained, digits):
    net, models = trained
    base = stack.take(models, 0)
    found = decide.compatibility(net, worn(models, 0, 0.9), worn(models, 1, 1.0), digits.quote, base=base)
    answers = train.logits(net, models, digits.quote.x)
    assert found.losses["base"] == pytest.approx(calibrated(answers, digits.quote)[0].item())
    assert found.accuracies["base"] == pytest.approx(train.score_logits(answers, digits.quote.y).accuracy[0].item())
    assert found.verdict == "keep the base"
    assert "their base is better than any combination" in found.reason
    best = min(COMBINATIONS, key=found.losses.get)
    for name in (best, "base"):
        assert f"{found.losses[name]:.3f} nats (accuracy {found.accuracies[name]:.1%})" in found.reason


def test_where_the_base_beats_the_average_and_the_outputs_do_not_lose_to_it_both_are_kept(digits):
    """From one start, each with one half of the examples; the base with all of them."""
    net = stack.mlp(64, [48], 10)
    order = torch.randperm(len(digits.train), generator=torch.Generator().manual_seed(1))
    halves = [data.Split(digits.train.x[half], digits.train.y[half]) for half in order.chunk(2)]
    start = stack.take(stack.init(net, 1, seed=1), [0, 0, 0])
    models = train.fit(net, start, [*halves, digits.train], epochs=3, lr=1e-2, seed=1).stack
    a, b, base = (stack.take(models, k) for k in range(3))
    found = decide.compatibility(net, a, b, digits.quote, base=base)
    losses = found.losses
    assert found.naive_barrier <= decide.NEGLIGIBLE_BARRIER
    assert losses["averaged outputs"] <= losses["base"] + decide.NEGLIGIBLE_LOSS < losses["averaged weights"]
    assert found.verdict == "keep both"
    assert "the averaged weights are worse than their base, and the averaged outputs are not" in found.reason


def test_a_base_that_is_hardly_better_counts_as_no_better(trained, digits):
    net, models = trained
    heir = worn(models, 0, 0.02)
    found = decide.compatibility(net, heir, heir, digits.quote, base=stack.take(models, 0))
    assert abs(found.losses["averaged weights"] - found.losses["base"]) < decide.NEGLIGIBLE_LOSS
    assert found.verdict == "merge"
    assert "but" not in found.reason


def test_a_base_of_another_net_or_with_broken_weights_is_refused(trained, digits):
    net, models = trained
    a, b = stack.take(models, 0), stack.take(models, 1)
    other = stack.take(stack.init(stack.mlp(64, [47], 10), 1, seed=0), 0)
    with pytest.raises(ShapeError, match=r"the base and the net do not fit: '1\.weight' has shape \(47, 64\)"):
        decide.compatibility(net, a, b, digits.quote, base=other)
    with pytest.raises(ShapeError, match=r"expected has '3\.bias' alone"):
        decide.compatibility(net, a, b, digits.quote, base={name: a[name] for name in a if name != "3.bias"})
    with pytest.raises(ShapeError, match=r"'1\.weight' has shape \(2, 48, 64\)"):
        decide.compatibility(net, a, b, digits.quote, base=models)
    with pytest.raises(WeightsError, match=r"the base's '1\.bias' holds values that are NaN or infinite"):
        decide.compatibility(net, a, b, digits.quote, base={**a, "1.bias": a["1.bias"] / 0})


def test_models_on_a_second_device_are_judged_by_the_same_numbers(trained, digits):
    net, models = trained
    expected = decide.compatibility(net, stack.take(models, 0), stack.take(models, 1), digits.quote)
    with second_device() as other:
        away = stack.map(lambda tensor: tensor.to(other), models)
        found = decide.compatibility(net, stack.take(away, 0), stack.take(away, 1), digits.quote)
    assert found.verdict == expected.verdict
    assert found.reason == expected.reason
    assert found.losses == pytest.approx(expected.losses, abs=1e-5)
    assert found.accuracies == pytest.approx(expected.accuracies, abs=1e-5)
    assert found.cka == pytest.approx(expected.cka, abs=1e-5)
    assert found.naive_barrier == pytest.approx(expected.naive_barrier, abs=1e-5)
    assert found.aligned_barrier == pytest.approx(expected.aligned_barrier, abs=1e-5)
    assert {type(value) for value in [*found.losses.values(), *found.cka.values()]} == {float}
