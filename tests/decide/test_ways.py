from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis.strategies import integers
from orders import shuffle, spec_of

from paramarket import align, base, data, decide, market, stack, train
from paramarket.decide import ways as file
from paramarket.errors import DataError, ParameterError, ShapeError, WeightsError

ANSWERS_ONLY = ("nothing", "the other's network", "output ensemble", "routed by answers", "distilled ensemble")
LABELS = "trained on quote's labels"
FROZEN = ("nothing", "the other's network", "output ensemble")  # what does not change a network
MATCHED = ("averaged, matched by weights", "averaged, matched by activations", "averaged and repaired")
MATCHED += ("averaged by layers", "task arithmetic", "ties", "routed by layers")
NET = stack.mlp(64, [24], 10)


@pytest.fixture(scope="module", autouse=True)
def short():
    """Ways that train do so for a shorter time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file, "STEPS", 20)
        patch.setattr(file, "EPOCHS", (0, 4))
        yield


@pytest.fixture(scope="module")
def plants(digits):
    """One knows the first five kinds, the other the last five; each has seen little of the rest."""
    holdings = []
    for plant, rare in enumerate([range(5, 10), range(5)]):
        holdings.append(data.holding(digits.train, list(rare), 0.05, base.stream(0, "holding", plant)))
    start = stack.init(NET, 2, seed=0)
    models = train.fit(NET, start, holdings, epochs=20, lr=1e-2).stack
    return stack.take(models, 0), stack.take(models, 1)


@pytest.fixture(scope="module")
def plants_ways(plants, digits):
    return tuned(*plants, digits, spec=spec_of(NET, digits.quote.x[:1]), max_class_loss=5)


def tuned(own, other, images, spec=None, **settings):
    """Every way to use the other for one pair, tuned on quote and measured on audit."""
    settings = {"seed": 0} | settings
    offers = decide.tune_ways(NET, spec, stack.join([own]), stack.join([other]), images.quote, **settings)
    return decide.measure_ways(offers, images.audit)


def rows(ways):
    return ways.table(stack.grid(pair=[0])).set_index("way")


def advised(ways, **settings):
    (way,) = decide.recommend(ways.offers, **settings)
    return way


def synthetic(quote_gains, lows=None, own_changes=None, models=None):
    """What `tune_ways` would give for such gains [P, ways]: the first way is nothing."""
    gains = np.atleast_2d(np.array(quote_gains, dtype=float))
    pairs, number = gains.shape
    low = gains if lows is None else np.atleast_2d(np.array(lows, dtype=float))
    one = (1,) * number
    return decide.Offers(
        way=("nothing", *(f"way {k}" for k in range(1, number))),
        services=(),
        own_classes=torch.ones(pairs, 2, dtype=torch.bool),
        temperatures=torch.ones(pairs, number),
        quote_gain_points=base.Interval(gains, low, gains),
        quote_own_class_change=np.zeros_like(gains) if own_changes is None else np.atleast_2d(own_changes),
        models=one if models is None else tuple(models),
        megabytes=(1.0,) * number,
        multiplications=one,
        labels=one,
        leaks=("nothing",) * number,
    )


# What the ways are worth


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_a_copy_gives_nothing_whatever_the_order_of_its_units(plants, digits, seed):
    own = plants[0]
    spec = spec_of(NET, digits.quote.x[:1])
    copy = own if seed is None else align.permute(spec, shuffle(spec, own, seed), own)
    found = rows(tuned(own, copy, digits, spec))
    for way in (*FROZEN, *MATCHED, "distilled ensemble", "regmean"):
        for column in ("gain_points", "own_class_change", "quote_gain_points"):
            assert found[column][way] == 0, (way, column)
        assert found.gain_points_low[way] == -found.gain_points_high[way], way
        assert found.gain_nats[way] == pytest.approx(0, abs=1e-4)


def test_plants_that_know_different_kinds_gain(plants_ways):
    found = rows(plants_ways)
    best = advised(plants_ways, max_class_loss=5)
    assert best != "nothing"
    assert found.gain_points_low[best] > 0
    assert found.gain_nats_low[best] > 0
    assert found.gain_points_low["output ensemble"] > 0


def test_nobody_is_advised_to_use_noise(plants, digits):
    noise = stack.take(stack.init(NET, 1, seed=7), 0)
    found = tuned(plants[0], noise, digits, spec_of(NET, digits.quote.x[:1]))
    assert advised(found) in ("nothing", LABELS)
    table = rows(found)
    assert table.gain_points_high["the other's network"] < 0
    for way in ("averaged, matched by activations", "averaged by layers", "output ensemble", "distilled ensemble"):
        assert table.quote_own_class_change[way] >= -1


def test_the_guard_refuses_a_network_that_is_better_on_the_whole_and_worse_where_it_matters(digits):
    """The buyer hardly knows the last five kinds. The other knows them well, and the first five not at all."""
    few = data.holding(digits.train, list(range(5, 10)), 0.02, base.stream(0, "few"))
    settings = {"epochs": 20, "lr": 1e-2}
    own = train.fit(NET, stack.init(NET, 1, seed=0), few, **settings).stack
    some = data.holding(digits.train, list(range(5)), 0.1, base.stream(0, "some"))
    other = train.fit(NET, stack.init(NET, 1, seed=1), some, **settings).stack
    own, other = stack.take(own, 0), stack.take(other, 0)
    found = tuned(own, other, digits, max_class_loss=2)
    table = rows(found)
    assert table.gain_points_low["the other's network"] > 0
    assert table.own_class_change_high["the other's network"] < -2
    chosen = advised(found, max_class_loss=2)
    assert chosen != "the other's network"
    assert table.quote_own_class_change[chosen] >= -2
    assert table.quote_gain_points[chosen] <= table.quote_gain_points[advised(found, max_class_loss=100)]


# How they are measured


def test_gains_are_differences_example_by_example_to_the_own_network(plants, plants_ways, digits):
    found = rows(plants_ways)
    quote, audit = digits.quote, digits.audit
    on_quote = train.logits(NET, stack.join(plants), quote.x)
    on_audit = train.logits(NET, stack.join(plants), audit.x)
    right = (on_audit.argmax(dim=-1) == audit.y).double()
    change = right[1] - right[0]
    points = 100 * np.array(base.interval(change, "differences"))
    temperatures = train.fit_temperatures(on_quote, quote.y).view(-1, 1, 1)
    logs = (on_audit / temperatures).log_softmax(dim=-1)
    of_truth = logs[:, torch.arange(len(audit)), audit.y]
    nats = base.interval((of_truth[1] - of_truth[0]).double(), "examples")
    best = train.evaluate(NET, stack.join(plants), quote).class_accuracy[0].argsort(descending=True, stable=True)[:5]
    own = 100 * np.array(base.interval(change[torch.isin(audit.y, best)], "differences"))
    for name, expected in {"gain_points": points, "gain_nats": nats, "own_class_change": own}.items():
        row = found.loc["the other's network", [name, f"{name}_low", f"{name}_high"]].tolist()
        assert row == pytest.approx(list(expected), abs=1e-4)
    before = (on_quote.argmax(dim=-1) == quote.y).double().mean(dim=1)
    assert found.quote_gain_points["the other's network"] == pytest.approx(100 * (before[1] - before[0]).item())


def test_doing_nothing_is_known_to_change_nothing(plants_ways):
    nothing = rows(plants_ways).loc["nothing"]
    for name in ("gain_points", "gain_nats", "own_class_change"):
        assert nothing[[name, f"{name}_low", f"{name}_high"]].tolist() == [0, 0, 0]


def test_what_is_measured_elsewhere_is_measured_of_the_same_services(plants_ways, digits):
    offers = plants_ways.offers
    on_test = decide.measure_ways(offers, digits.test)
    assert not np.array_equal(on_test.gain_points.mean, plants_ways.gain_points.mean)
    answers = offers.service("output ensemble").answers(digits.test.x)[0]
    own = offers.service("nothing").answers(digits.test.x)[0]
    right = [(each.argmax(dim=-1) == digits.test.y).int() for each in (answers, own)]
    place = offers.way.index("output ensemble")
    assert torch.equal(on_test.differences[0, place].int(), right[0] - right[1])
    assert on_test.gain_points.mean[0, place] == pytest.approx(100 * (right[0] - right[1]).double().mean().item())


def test_the_same_seed_gives_the_same_table(plants, digits):
    before = torch.default_generator.get_state()
    found = [rows(tuned(*plants, digits, seed=seed)) for seed in (0, 0, 1)]
    assert found[0].equals(found[1])
    assert not found[0].equals(found[2])
    assert torch.equal(torch.default_generator.get_state(), before)


def test_what_a_way_takes_to_run(plants, plants_ways):
    found = rows(plants_ways)
    numbers = 64 * 24 + 24 + 24 * 10 + 10
    products = 64 * 24 + 24 * 10
    for way in ("nothing", "the other's network", "regmean", "distilled ensemble", LABELS):
        row = found.loc[way]
        assert (row.models, row.megabytes, row.multiplications) == (1, 4 * numbers / 1e6, products)
    ensemble = found.loc["output ensemble"]
    assert (ensemble.models, ensemble.megabytes) == (2, 8 * numbers / 1e6)
    assert ensemble.multiplications == 2 * products
    assert found.multiplications["routed by layers"] == 2 * (products + 64 + 24)  # its gates, besides
    assert found.labels["nothing"] == 0
    assert found.leaks[[*FROZEN, LABELS]].tolist() == ["nothing", "weights", "probabilities", "nothing"]


# Two architectures


def test_of_two_architectures_only_answers_can_be_combined(plants, digits):
    wide = stack.mlp(64, [40, 40], 10)
    other = train.fit(wide, stack.init(wide, 1, seed=0), digits.train, epochs=5, lr=1e-2).stack
    found = tuned(plants[0], stack.take(other, 0), digits, other_net=wide)
    assert found.offers.way == (*ANSWERS_ONLY, LABELS)
    table = rows(found)
    assert table.gain_points_low["the other's network"] > 0
    assert table.megabytes["output ensemble"] == table.megabytes[["nothing", "the other's network"]].sum()


def test_what_does_not_fit_is_refused(plants, digits):
    own, other = plants
    spec = spec_of(NET, digits.quote.x[:1])
    stranger = stack.take(stack.init(stack.mlp(64, [23], 10), 1, seed=0), 0)
    with pytest.raises(ShapeError, match=r"the other network and its net.*'1\.weight'"):
        tuned(own, stranger, digits, spec)
    with pytest.raises(WeightsError, match=r"the other network: '3\.bias' holds values that are NaN.*pair 0"):
        tuned(own, {**other, "3.bias": other["3.bias"] / 0}, digits)
    with pytest.raises(ParameterError, match=r"'averaged by layers'"):
        tuned(own, other, digits, only=["averaged by layers"])  # without a spec
    with pytest.raises(ShapeError, match="2 other networks for 1 buyers"):
        decide.tune_ways(NET, None, stack.join([own]), stack.join([other, own]), digits.quote, seed=0)
    unequal = [digits.quote, digits.audit, data.Split(digits.quote.x[:100], digits.quote.y[:100])]
    three = stack.join([own] * 3)
    with pytest.raises(ShapeError, match=r"\(100, 1, 8, 8\)"):
        decide.tune_ways(NET, None, three, three, unequal, seed=0)
    with pytest.raises(ShapeError, match="2 splits for 3 pairs"):
        decide.tune_ways(NET, None, three, three, unequal[:2], seed=0)
    with pytest.raises(DataError, match="label 10"):
        decide.tune_ways(NET, None, three, three, data.Split(digits.quote.x, digits.quote.y + 1), seed=0)


# The choice


def test_the_largest_harmless_gain_on_quote_is_recommended():
    gains = [0, 2, 5, 4]
    assert decide.recommend(synthetic(gains)) == ["way 2"]
    assert decide.recommend(synthetic(gains, own_changes=[0, 0, -1.5, -1]), max_class_loss=1) == ["way 3"]
    assert decide.recommend(synthetic(gains, own_changes=[0, -3, -3, -3]), max_class_loss=1) == ["nothing"]


def test_of_equal_gains_the_one_that_takes_least_to_run_is_recommended():
    assert decide.recommend(synthetic([0, 3, 3], models=[1, 2, 1])) == ["way 2"]
    assert decide.recommend(synthetic([0, 3, 3], models=[1, 1, 1])) == ["way 1"]
    assert decide.recommend(synthetic([0, 0, 0], models=[1, 1, 1])) == ["nothing"]
    assert decide.recommend(synthetic([0, -1, -2])) == ["nothing"]


def test_a_gain_on_quote_that_may_be_luck_is_no_reason_to_do_anything():
    assert decide.recommend(synthetic([0, 2, 5], lows=[0, -1, 0])) == ["nothing"]
    assert decide.recommend(synthetic([0, 2, 5], lows=[0, 1, -1])) == ["way 1"]


def test_the_recommended_gain_is_right_on_average_though_it_is_the_best_of_many():
    """Eight ways that change one answer in five, for better as often as for worse."""
    generator = base.stream(0, "luck")
    on_quote, on_audit = [], []
    for _ in range(400):
        draws = torch.rand(2, 50, 9, generator=generator)
        changes = 100 * ((draws < 0.1).double() - (draws > 0.9).double())
        changes[:, :, 0] = 0  # nothing
        quote, audit = (base.interval(each, "examples") for each in changes)
        found = synthetic(quote.mean, lows=quote.low)
        (way,) = decide.recommend(found)
        on_quote.append(quote.mean[found.way.index(way)])
        on_audit.append(audit.mean[found.way.index(way)])
    error = np.std(on_audit) / len(on_audit) ** 0.5
    assert abs(np.mean(on_audit)) < 3 * error
    assert np.mean(on_quote) > 10 * error


def test_each_pair_has_its_own_choice():
    assert decide.recommend(synthetic([[0, 2, 5], [0, 4, 3], [0, -1, -1]])) == ["way 2", "way 1", "nothing"]


def test_who_learns_quote_by_heart_gains_nothing(plants, digits, monkeypatch):
    """A way that knows the label of every example it was tuned on, and no more than the own network of any other."""
    entries = {"nothing": file._offered(NET, None)["nothing"], "by heart": file._Entry(_by_heart, "answers", "nothing")}
    monkeypatch.setattr(file, "_offered", lambda net, spec: entries)
    found = rows(tuned(*plants, digits))
    assert found.gain_points["by heart"] == 0
    assert found.gain_nats["by heart"] == 0
    assert found.quote_gain_points["by heart"] == 0
    assert found.quote_own_class_change["by heart"] == 0


def _by_heart(cases):
    models = cases.repeat(cases.own)
    known = {"kept": cases.kept.flatten(0, 1)}
    return decide.Service(partial(_answer_by_heart, cases.x, cases.y), (models, known), 1, 0.0, cases.y.shape[1])


def _answer_by_heart(quote_x, quote_y, networks, x):
    models, known = networks
    logits = stack.forward(NET, models, x).clone()
    for k, kept in enumerate(known["kept"]):
        own_x = x if x.ndim == 4 else x[k]
        same = (own_x.flatten(1).unsqueeze(1) == quote_x.flatten(1)).all(dim=-1) & kept  # [n, examples of quote]
        found = same.any(dim=1)
        labels = quote_y[0, same.int().argmax(dim=1)[found]]
        logits[k, found] = 50 * torch.nn.functional.one_hot(labels, logits.shape[-1]).float()
    return logits


# Many pairs


@pytest.fixture(scope="module")
def crowd(digits):
    """Three buyers, three others, and a quote and an audit of each pair's own."""
    few = [data.holding(digits.train, [k, 9 - k], 0.1, base.stream(0, "crowd", k)) for k in range(6)]
    models = train.fit(NET, stack.init(NET, 6, seed=0), few, steps=60, lr=1e-2).stack
    pool = base.stream(0, "pool")
    quotes, audits = [], []
    for _ in range(3):
        order = torch.randperm(len(digits.test), generator=pool)
        quotes.append(data.Split(digits.test.x[order[:122]], digits.test.y[order[:122]]))
        audits.append(data.Split(digits.test.x[order[122:]], digits.test.y[order[122:]]))
    return stack.take(models, slice(3)), stack.take(models, slice(3, 6)), quotes, audits


def test_a_pair_gets_in_company_what_it_gets_alone(crowd, digits):
    own, other, quotes, audits = crowd
    spec = spec_of(NET, digits.quote.x[:1])
    together = decide.tune_ways(NET, spec, own, other, quotes, seed=0)
    measured = decide.measure_ways(together, audits).table(stack.grid(pair=range(3)))
    for k in range(3):
        pair = slice(k, k + 1)
        alone = decide.tune_ways(NET, spec, stack.take(own, pair), stack.take(other, pair), quotes[pair], seed=0)
        assert decide.recommend(alone) == decide.recommend(together)[pair]
        expected = decide.measure_ways(alone, audits[pair]).table(stack.grid(pair=[k]))
        found = measured.query("pair == @k").reset_index(drop=True)
        pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-3)


def test_pairs_that_come_in_chunks_are_the_same_pairs(crowd, monkeypatch):
    own, other, quotes, audits = crowd
    tables = []
    for at_once in (1, 2**30):
        monkeypatch.setattr(file, "AT_ONCE", at_once)
        offers = decide.tune_ways(NET, None, own, other, quotes, seed=0)
        tables.append(decide.measure_ways(offers, audits).table(stack.grid(pair=range(3))))
    pd.testing.assert_frame_equal(*tables, rtol=1e-4, atol=1e-3)


def test_one_quote_for_all_is_the_same_as_a_copy_for_each(crowd, digits):
    own, other, _, _ = crowd
    shared = decide.tune_ways(NET, None, own, other, digits.quote, seed=0)
    copies = decide.tune_ways(NET, None, own, other, [digits.quote] * 3, seed=0)
    tables = [decide.measure_ways(each, digits.audit).table(stack.grid(pair=range(3))) for each in (shared, copies)]
    pd.testing.assert_frame_equal(*tables, rtol=1e-4, atol=1e-3)


def test_only_some_ways_are_the_same_ways(plants, plants_ways, digits):
    spec = spec_of(NET, digits.quote.x[:1])
    some = ["averaged by layers", "distilled ensemble"]
    found = rows(tuned(*plants, digits, spec, max_class_loss=5, only=some))
    expected = rows(plants_ways).loc[["nothing", *some]]
    pd.testing.assert_frame_equal(found, expected)


@given(seed=integers(0, 999), n=integers(8, 60), pairs=integers(1, 4))
def test_folds_part_the_examples_and_deal_each_class_out_evenly(seed, n, pairs):
    y = torch.randint(3, (pairs, n), generator=base.stream(seed, "labels"))
    fold = file._folds(y, seed)
    for label in range(3):
        counts = torch.stack([((fold == k) & (y == label)).sum(dim=1) for k in range(file.FOLDS)])
        assert (counts.amax(dim=0) - counts.amin(dim=0) <= 1).all()
    kept = file._kept(fold)
    assert kept[:, 0].all()
    assert ((~kept).sum(dim=1) == 1).all()  # everybody is left out once


@pytest.mark.parametrize("net", [NET, stack.vit(1, 8, 10, units=8, heads=2, blocks=1)], ids=["mlp", "transformer"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("block", [1, 2**19])
def test_mixtures_answer_as_the_mixed_networks_do(net, shared, block, digits):
    models = stack.init(net, 6, seed=0)
    lineups = stack.unflat(models, (3, 2))
    weights = market.purchase_weights([0.5, 1.0], len(stack.layers(models)), parts="layers")
    x = digits.quote.x[:5] if shared else digits.quote.x[:15].unflatten(0, (3, 5))
    found = file._mixture_answers(net, lineups, weights, x, block=block)
    for k in range(3):
        mixed = market.mix_layers(stack.take(lineups, slice(k, k + 1)), weights.unsqueeze(0))
        expected = stack.forward(net, stack.take(mixed, 0), x if shared else x[k])
        assert torch.allclose(found[k], expected, atol=1e-5)


def test_transformers_are_combined_like_any_other_network(digits):
    net = stack.vit(1, 8, 10, units=8, heads=2, blocks=1)
    own, other = stack.init(net, 1, seed=0), stack.init(net, 1, seed=1)
    spec = align.permutation_spec(net, digits.quote.x[:1])
    offers = decide.tune_ways(net, spec, own, other, digits.quote, seed=0)
    assert set(offers.way) >= {"averaged, matched by weights", "ties", "regmean", "output ensemble", LABELS}
    assert "routed by layers" not in offers.way
    assert offers.leaks[offers.way.index("ties")] == "weights"
    assert len(decide.recommend(offers)) == 1
