import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.strategies import integers
from orders import shuffle, spec_of

from paramarket import align, decide, stack
from paramarket.decide import PairMeasurements
from paramarket.errors import ParameterError, ShapeError

NET = stack.mlp(6, [5], 3)
NAMES = PairMeasurements._fields


def images(seed=0, n=40):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))


def drawn(pairs, seed=0):
    """Pairs with arbitrary measurements, and gains that hang on two of them; the larger, the less sure."""
    generator = np.random.default_rng(seed)
    measured = PairMeasurements(*torch.from_numpy(generator.uniform(size=(len(NAMES), pairs))))
    expected = 4 + 20 * measured.other_surer.numpy() + 6 * measured.own_evenness.numpy()
    gains = expected + generator.exponential(size=pairs) * np.sqrt(1 + expected)
    return measured, gains


# What is measured


def test_what_is_measured_is_what_its_name_says():
    own, other = stack.init(NET, 3, seed=0), stack.init(NET, 3, seed=1)
    x = images()
    measured = decide.pair_measurements(NET, own, other, x)
    for k in range(3):
        of_own = stack.forward(NET, own, x)[k].softmax(dim=-1)
        of_other = stack.forward(NET, other, x)[k].softmax(dim=-1)
        differ = of_own.argmax(dim=1) != of_other.argmax(dim=1)
        surer = of_other.amax(dim=1) > of_own.amax(dim=1)
        mean = of_other.mean(dim=0)
        entropy = -(mean * mean.log()).sum() / np.log(3)
        assert measured.own_confidence[k] == pytest.approx(of_own.amax(dim=1).mean().item(), abs=1e-5)
        assert measured.other_confidence[k] == pytest.approx(of_other.amax(dim=1).mean().item(), abs=1e-5)
        assert measured.other_surer[k] == pytest.approx((differ & surer).float().mean().item())
        assert measured.other_evenness[k] == pytest.approx(entropy.item(), abs=1e-5)


@given(integers(0, 100))
def test_measurements_know_answers_only_and_every_pair_by_itself(seed):
    own, other = stack.init(NET, 2, seed=seed), stack.init(NET, 2, seed=seed, purpose="other")
    shared = decide.pair_measurements(NET, own, other, images(seed))
    spec = spec_of(NET, images(seed)[:1])
    turned = [align.permute(spec, shuffle(spec, stack.take(other, k), seed), stack.take(other, k)) for k in range(2)]
    each = images(seed).expand(2, -1, -1)
    for again in (
        decide.pair_measurements(NET, own, stack.join(turned), images(seed)),
        decide.pair_measurements(NET, own, other, each),
    ):
        for one, two in zip(shared, again, strict=True):
            assert torch.allclose(one, two, atol=1e-5)
    alone = decide.pair_measurements(NET, stack.take(own, slice(1, 2)), stack.take(other, slice(1, 2)), images(seed))
    assert all(torch.allclose(one[1:], two, atol=1e-5) for one, two in zip(shared, alone, strict=True))


def test_the_other_may_have_another_architecture_but_not_other_kinds():
    own = stack.init(NET, 2, seed=0)
    wide = stack.mlp(6, [9], 3)
    measured = decide.pair_measurements(NET, own, stack.init(wide, 2, seed=1), images(), other_net=wide)
    assert all(0 <= value <= 1 for each in measured for value in each.tolist())
    more = stack.mlp(6, [5], 4)
    with pytest.raises(ShapeError, match="the buyers tell 3 kinds apart, the sellers 4"):
        decide.pair_measurements(NET, own, stack.init(more, 2, seed=1), images(), other_net=more)
    with pytest.raises(ShapeError, match="3 sellers for 2 buyers"):
        decide.pair_measurements(NET, own, stack.init(NET, 3, seed=1), images())


def test_measurements_stand_in_a_table_behind_what_tells_pairs_apart():
    measured, _ = drawn(4)
    table = measured.table(stack.grid(pair=range(4)))
    assert list(table) == ["pair", *NAMES]
    assert table.other_surer.tolist() == measured.other_surer.tolist()


# What is forecast


def test_what_hangs_on_measurements_in_a_straight_line_is_forecast_exactly():
    measured, _ = drawn(100)
    gains = 5 + 30 * measured.other_surer.numpy()
    fitted = decide.fit_forecast(measured, gains, seed=0)
    fresh, _ = drawn(20, seed=1)
    found = decide.forecast(fresh, fitted)
    assert found.mean == pytest.approx(5 + 30 * fresh.other_surer.numpy())
    assert found.high - found.low == pytest.approx(0, abs=1e-6)


def test_on_fresh_pairs_the_interval_covers_as_often_as_it_says():
    fitted = decide.fit_forecast(*drawn(4000), seed=0)
    measured, gains = drawn(4000, seed=1)
    _, low, high = decide.forecast(measured, fitted)
    assert ((low <= gains) & (gains <= high)).mean() == pytest.approx(0.95, abs=0.02)


@given(integers(0, 100))
def test_no_forecast_promises_less_than_doing_nothing_or_more_than_everything(seed):
    fitted = decide.fit_forecast(*drawn(60, seed), seed=0)
    fitted = fitted._replace(intercept=fitted.intercept - 20, width=5 * fitted.width)
    mean, low, high = decide.forecast(drawn(50, seed + 1)[0], fitted)
    assert (low >= 0).all()
    assert (low <= mean).all()
    assert (mean <= high).all()
    assert (high <= 100).all()


def test_with_few_pairs_there_is_no_interval():
    measured, gains = drawn(39)
    with pytest.raises(ParameterError, match="39 pairs to fit a forecast on: expected 40 or more"):
        decide.fit_forecast(measured, gains, seed=0)
    measured, gains = drawn(40)
    assert np.isfinite(decide.fit_forecast(measured, gains, seed=0).width)


# The fit that comes with the library


def test_the_committed_forecast_is_whole():
    from paramarket.decide.forecast import FORECAST

    content = json.loads(FORECAST.read_text())
    assert set(content) == set(decide.Forecast._fields)
    assert tuple(content["weights"]) == NAMES
    assert all(np.isfinite([content["intercept"], content["width"], *content["weights"].values()]))
    assert content["width"] > 0
    assert content["pairs"] >= 1000
    assert decide.read_forecast() == decide.Forecast(**content)


def test_a_fit_that_is_written_is_the_one_that_is_read(tmp_path, monkeypatch):
    from importlib import import_module

    file = import_module("paramarket.decide.forecast")  # on the face its name is the function's
    monkeypatch.setattr(file, "FORECAST", tmp_path / "forecast.json")
    fitted = decide.fit_forecast(*drawn(60), seed=3)
    decide.write_forecast(fitted)
    assert decide.read_forecast() == fitted


def test_who_has_nothing_to_learn_is_not_told_to_trade():
    """A pair that is sure, alike and even: the forecast's interval starts at nothing."""
    one, none = torch.ones(1), torch.zeros(1)
    _, low, _ = decide.forecast(PairMeasurements(one, one, none, one, one))
    assert low.tolist() == [0]
