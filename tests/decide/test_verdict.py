"""Pairs whose right answer is known."""

import json
import math
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from paramarket import align, base, data, decide, stack, train
from paramarket.__main__ import cli
from paramarket.errors import DataError, ParameterError

DIGITS = data.load("digits")
WIDE = data.Dataset(  # more to tune on, and to measure on
    "digits", DIGITS.train, DIGITS.quote, data.concat(DIGITS.audit, DIGITS.test), DIGITS.test,
    DIGITS.classes, DIGITS.mean, DIGITS.std,
)  # fmt: skip
NET = stack.mlp(64, [16], 10)
BUSINESS = decide.Business()
FEW = ("the other's network", "averaged, matched by weights", "output ensemble")
SPEC = align.permutation_spec(NET, DIGITS.quote.x[:1])


def trained(net, rare, seed, steps=300):
    """A network that rarely saw some kinds."""
    held = data.holding(DIGITS.train, rare, 0.05, base.stream(seed, "held"))
    return stack.take(
        train.fit(net, stack.init(net, 1, seed), held, steps=steps, batch=32, lr=3e-3, seed=seed).stack, 0
    )


@pytest.fixture(scope="module")
def plants():
    return trained(NET, [5, 6, 7, 8, 9], 0), trained(NET, [0, 1, 2, 3, 4], 1)


def examine(a, b, *, net_b=None, net=NET, spec=SPEC, reason="", **settings):
    pair = decide.Pair(net, a, net_b or net, b, spec, reason)
    given = {"seed": 0, "max_class_loss": 3.0, "only": (*FEW, decide.LABELS)} | settings
    return decide.examine(pair, WIDE, BUSINESS, **given)


def test_complementary_plants_trade_and_every_number_fits_the_others(plants):
    found = examine(*plants)
    assert found.recommendation in ("trade weights", "share predictions")
    assert found.gain_points.low > 0
    assert found.forecast.low <= found.forecast.mean <= found.forecast.high
    assert found.band.low <= found.band.price <= found.band.high
    assert found.roi.items["price"] == -found.band.price
    assert found.roi.net.mean > 0
    row = found.ways.query("buyer == 'A' and way == @found.best_way").iloc[0]
    assert found.gain_points.mean == row.gain_points == pytest.approx(100 * (found.better - found.worse))
    assert found.gain_money.mean == pytest.approx(50_000 * found.gain_to_come.mean)
    assert found.pilot_examples == decide.pilot_examples(found.better, found.worse, 0.02)
    assert found.audited == len(WIDE.audit)
    assert set(found.ways.buyer) == {"A", "B"}
    assert found.compatible.verdict == decide.compatibility(NET, *plants, WIDE.quote).verdict


@pytest.mark.parametrize("how", ["the same", "another order"])
def test_a_network_has_nothing_to_learn_from_its_copy(plants, how):
    a = plants[0]
    order = align.random_permutations(SPEC, a, base.stream(0, "order"))
    found = examine(a, a if how == "the same" else align.permute(SPEC, order, a), only=(*FEW, decide.LABELS))
    assert found.best_way in ("nothing", decide.LABELS)
    assert found.recommendation in ("do not trade", "label instead")
    assert found.compatible.aligned_barrier == pytest.approx(0, abs=1e-4)
    gains = found.ways.query("way in @FEW").gain_points
    assert gains.abs().max() < 0.5
    assert not found.exchange.a_learns


def test_a_noise_seller_is_refused(plants):
    blank = stack.take(stack.init(NET, 1, seed=5), 0)
    found = examine(plants[0], blank)
    assert found.best_way not in FEW
    assert found.recommendation in ("do not trade", "label instead")
    assert not found.band.deal


def test_the_guard_bites_a_seller_who_is_better_and_harms_what_the_buyer_does_best(plants):
    """The seller is better on all examples together, and worse on the buyer's own kinds."""
    a, b = trained(NET, [3, 4, 5, 6, 7, 8, 9], 2, steps=100), plants[1]
    free = examine(a, b, only=("the other's network",), max_class_loss=100.0)
    other = free.ways.query("buyer == 'A' and way == \"the other's network\"").iloc[0]
    assert other.gain_points > 5
    assert other.own_class_change < -5
    assert free.best_way == "the other's network"
    guarded = examine(a, b, only=("the other's network",), max_class_loss=1.0)
    assert guarded.best_way != "the other's network"


def test_two_architectures_can_share_predictions_only_and_it_says_why(plants):
    net_b = stack.mlp(64, [24, 24], 10)
    found = examine(
        plants[0], trained(net_b, [0, 1, 2, 3, 4], 1), net_b=net_b, spec=None, reason="two architectures: predictions"
    )
    assert found.compatible is None
    assert set(found.ways.query("leaks == 'weights'").way) == {"the other's network"}
    assert found.best_way == "output ensemble"
    assert found.recommendation == "share predictions"
    assert "two architectures" in found.reason


def test_two_transformers_are_examined():
    net = stack.vit(1, 8, 10, patch=4, units=16, blocks=1, heads=2)
    spec = align.permutation_spec(net, DIGITS.quote.x[:1])
    a, b = (trained(net, rare, seed, steps=60) for rare, seed in (([5, 6, 7, 8, 9], 0), ([0, 1, 2, 3, 4], 1)))
    found = examine(a, b, net=net, spec=spec, only=("output ensemble", decide.LABELS))
    assert found.compatible == decide.compatibility(net, a, b, WIDE.quote)
    assert found.compatible.naive_barrier > 0
    (way,) = found.ways.query("buyer == 'A' and way == 'output ensemble'").gain_points
    chances = [train.logits(net, stack.join([params]), WIDE.audit.x)[0] for params in (a, b)]
    assert way != 0
    assert not torch.equal(*chances)


def test_the_gain_to_come_weighs_the_kinds_as_they_will_come():
    differences = torch.tensor([1, 1, 0, 0, -1, 0, 0, 0])
    own = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1], dtype=torch.bool)
    even = decide.gain_to_come(differences, own, 0.5)
    assert even == decide.gain_to_come(differences, own, None)
    for prior in (0.1, 0.3, 0.9):
        found = decide.gain_to_come(differences, own, prior)
        assert found.mean == pytest.approx(prior * -25 + (1 - prior) * 50)
        assert found.low <= found.mean <= found.high
    with pytest.raises(ParameterError, match=r"prior = 1\.5"):
        examine(stack.take(stack.init(NET, 1, 0), 0), stack.take(stack.init(NET, 1, 1), 0), prior=1.5)


def test_the_same_pair_gets_the_same_decision_and_a_sheet_that_keeps_the_schema(plants, tmp_path):
    one, other = examine(*plants, prior=0.3, contract_cost=1.0), examine(*plants, prior=0.3, contract_cost=1.0)
    parties = {"buyer": decide.Party("A", "a", "0" * 64), "seller": decide.Party("B", "b", "1" * 64)}
    sheet = decide.draw_up(one, BUSINESS, **parties)
    assert sheet == decide.draw_up(other, BUSINESS, **parties)
    decide.write_term_sheet(tmp_path, sheet)
    terms = json.loads((tmp_path / "term_sheet.json").read_text())["terms"]
    assert terms["gain_points"]["value"] == one.gain_points.mean
    assert terms["price"]["low"] == one.band.low
    assert all(term["source"] for term in terms.values())
    assert f"→ {one.best_way}" in decide.ways_in_words(one)


@pytest.fixture
def files(plants, tmp_path):
    """Two files, and images that neither network has seen."""
    for name, params in zip("ab", plants, strict=True):
        stack.save(tmp_path / f"{name}.safetensors", params, stack.card(NET, DIGITS))
    fresh = data.concat(DIGITS.quote, DIGITS.audit, DIGITS.test)
    raw = fresh.x * DIGITS.std + DIGITS.mean
    np.savez(tmp_path / "own.npz", x=raw.numpy(), y=fresh.y.numpy(), classes=np.array(DIGITS.classes))
    return tmp_path


def command(*words):
    return CliRunner().invoke(cli, ["decide", *map(str, words)])


def test_the_command_writes_a_term_sheet_for_own_data(files):
    done = command(
        files / "a.safetensors", files / "b.safetensors", "--data", files / "own.npz", "--out", files / "out", "--quick"
    )
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (files / "out").iterdir()) == ["term_sheet.html", "term_sheet.json"]
    sheet = json.loads((files / "out/term_sheet.json").read_text())
    assert any(answer in done.output for answer in decide.ANSWERS.values())
    assert sheet["recommendation"] in decide.ANSWERS.values()
    assert math.isfinite(sheet["terms"]["gain_points"]["value"])
    assert re.search(r"→ ", done.output)


def test_what_is_wrong_is_one_line_and_nothing_is_written(files):
    a, b = files / "a.safetensors", files / "b.safetensors"
    b.write_bytes(b"PK\x03\x04 a pickle")
    for words, told in {
        (a, b, "--data", "digits"): "is a pickle",
        (a, files / "none.safetensors", "--data", "digits"): "is missing",
        (a, a, "--data", "no-such-set"): "no-such-set",
        (a, a, "--data", "digits", "--hour-rate", "-5"): "hour_rate = -5.0, expected a finite number",
        (a, a, "--data", "mnist-5k"): "another interface",
    }.items():
        done = command(*words, "--out", files / "out")
        assert done.exit_code == 1, words
        assert told in done.output
        assert done.output.count("\n") <= 2
        assert not (files / "out").exists()


def test_too_few_examples_for_a_verdict_say_how_many_are_needed(plants):
    few = data.Split(DIGITS.audit.x[:12], DIGITS.audit.y[:12])
    pair = decide.Pair(NET, plants[0], NET, plants[1], SPEC, "")
    with pytest.raises(DataError, match=r"12 examples .* too few .* labelled examples in all"):
        decide.examine(
            pair,
            data.Dataset("few", DIGITS.train, DIGITS.quote, few, DIGITS.test, DIGITS.classes, DIGITS.mean, DIGITS.std),
            BUSINESS,
            seed=0,
        )


def test_what_is_not_bought_or_may_gain_nothing_is_worth_nothing(plants):
    found = examine(*plants)
    table = found.ways.query("buyer == 'A'").set_index("way")
    clear, unclear = base.Interval(3.0, 1.0, 5.0), base.Interval(3.0, 0.0, 6.0)
    beside = {"alone_points": 0.0, "audited": 100}
    for way, gain in (("nothing", clear), (decide.LABELS, clear), ("output ensemble", unclear)):
        assert decide.worth_of(table, way, gain, BUSINESS, **beside) == 0
    worth = decide.worth_of(table, "output ensemble", clear, BUSINESS, **beside)
    paid = decide.returns_of(table, "output ensemble", clear, BUSINESS, price=worth / (1 + BUSINESS.fee), **beside)
    assert paid.net.mean == pytest.approx(0, abs=1e-6)
    assert worth > decide.worth_of(table, "output ensemble", clear, BUSINESS, alone_points=2.0, audited=100)
    sheet = decide.draw_up(
        found, BUSINESS, buyer=decide.Party("A", "a", "0" * 64), seller=decide.Party("B", "b", "1" * 64)
    )
    assert sheet["terms"]["go_points"]["value"] == pytest.approx(found.roi.break_even_points)
