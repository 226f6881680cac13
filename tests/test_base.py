import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramarket import base, errors

NAMES = st.lists(st.one_of(st.text(max_size=8), st.integers(0, 99)), max_size=3)


def draws(*purpose, seed=0):
    return torch.rand(4, generator=base.stream(seed, *purpose))


@given(st.integers(0, 2**40), NAMES)
def test_a_stream_depends_on_its_names_alone(seed, names):
    assert torch.equal(draws(*names, seed=seed), draws(*names, seed=seed))


@given(NAMES, NAMES)
def test_other_names_give_independent_streams(one, other):
    assert (one == other) == torch.equal(draws(*one), draws(*other))


def test_streams_are_the_same_on_every_machine():
    assert base.stream(0, "init", 0).initial_seed() == 3155923014275474472


def test_a_number_and_its_text_are_different_names():
    assert not torch.equal(draws(1), draws("1"))


def test_streams_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    draws("anything")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("seed", [-1, 0.5, True, "0", None])
def test_what_is_no_whole_number_is_no_seed(seed):
    with pytest.raises(errors.ParameterError, match=re.escape(f"seed = {seed!r}, expected a whole number ≥ 0")):
        base.stream.__wrapped__(seed)
    if seed not in (-1, "0"):
        with pytest.raises(errors.ParameterError, match=re.escape(f"purpose = {seed!r}")):
            base.stream.__wrapped__(0, seed)


@given(st.integers(0, 99), st.sampled_from([np.int64, np.int32, np.uint8, torch.tensor]))
def test_a_whole_number_of_any_make_names_the_same_stream(number, make):
    assert torch.equal(draws("order", number, seed=number), draws("order", make(number), seed=make(number)))


def test_interval_over_seeds_is_students():
    # t(.975, 4) = 2.776445; the standard error of 1..5 is sqrt(2.5 / 5)
    mean, low, high = base.interval([1, 2, 3, 4, 5])
    assert mean == 3
    assert (low, high) == pytest.approx((3 - 2.776445 * 0.5**0.5, 3 + 2.776445 * 0.5**0.5), abs=1e-6)


def test_interval_over_examples_covers_as_often_as_it_says():
    samples = np.random.default_rng(1).exponential(size=(400, 60))
    found = base.interval(samples.T, "examples")
    covered = ((found.low <= 1) & (found.high >= 1)).mean()
    assert 0.88 < covered < 0.97


counts = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 200)).filter(lambda each: sum(each) > 1)


def answers(better, worse, same):
    """As many examples on which only the first of two models is right, only the second, and both or neither."""
    return np.repeat([1, -1, 0], [better, worse, same])


@given(counts)
def test_the_ends_for_differences_are_where_the_score_says_so(each):
    """The score needs the likeliest share of what only the second gets right, given the difference: found by trying."""
    better, worse, same = each
    n = sum(each)
    mean, *ends = base.interval(answers(*each), "differences")
    assert mean == pytest.approx((better - worse) / n)
    for end, score in zip(ends, (1.96, -1.96), strict=True):
        rare = np.linspace(max(0, -end), (1 - end) / 2, 200_001)[1:-1]
        likelihood = better * np.log(rare + end) + worse * np.log(rare) + same * np.log(1 - 2 * rare - end)
        rare = rare[likelihood.argmax()]
        error = (n * (2 * rare + end - end**2)) ** 0.5
        assert (better - worse - n * end) / error == pytest.approx(score, abs=0.01)


def test_a_published_interval_for_differences():
    # airway reactivity in 21 children, (a, b, c, d) = (1, 1, 7, 12) (Fagerland et al. 2014): -.517 to -.026
    assert base.interval(answers(1, 7, 13), "differences") == pytest.approx((-6 / 21, -0.517, -0.026), abs=5e-4)


@given(counts)
def test_differences_the_other_way_round_have_the_mirrored_interval(each):
    better, worse, same = each
    mean, low, high = base.interval(answers(better, worse, same), "differences")
    assert -1 <= low <= mean <= high <= 1
    assert base.interval(answers(worse, better, same), "differences") == pytest.approx((-mean, -high, -low), abs=1e-9)


def test_where_two_models_seldom_differ_the_score_interval_still_covers_and_the_bootstrap_does_not():
    drawn = np.random.default_rng(2).choice([1, -1, 0], p=[0.02, 0.005, 0.975], size=(100, 1000))
    covered = {}
    for kind in ("differences", "examples"):
        _, low, high = base.interval(drawn, kind)
        covered[kind] = ((low <= 0.015) & (high >= 0.015)).mean()
    assert covered["differences"] > 0.94
    assert covered["examples"] < 0.90


def test_shares_have_wilsons_interval():
    # 0 of n: from 0 to z² / (n + z²) · 15 of 148 (Newcombe 1998, table I): .0624 to .1605
    assert base.interval([0] * 96, "shares") == pytest.approx((0, 0, 3.8415 / 99.8415), abs=1e-4)
    _, *ends = base.interval([1] * 15 + [0] * 133, "shares")
    assert ends == pytest.approx([0.0624, 0.1605], abs=1e-4)


@pytest.mark.parametrize(("kind", "value"), [("differences", 2), ("shares", -1), ("shares", 0.5)])
def test_an_interval_of_answers_refuses_other_numbers(kind, value):
    with pytest.raises(errors.ParameterError, match=f"interval of {kind} takes values of .*, got {value:g}"):
        base.interval([0, 1, value], kind)


def test_interval_keeps_the_other_axes():
    found = base.interval(torch.rand(5, 3, 2))
    assert found.mean.shape == found.low.shape == found.high.shape == (3, 2)


@pytest.mark.parametrize("values", [[1.0], 1.0, [1.0, float("nan")]])
def test_interval_refuses_what_has_none(values):
    with pytest.raises(errors.ParameterError, match="two or more finite values"):
        base.interval(torch.tensor(values))


def test_interval_offers_the_nearest_kind():
    with pytest.raises(errors.ParameterError, match="Did you mean 'seeds'"):
        base.interval([1, 2], "seed")


def test_an_interval_makes_three_columns():
    found = base.interval(torch.rand(5, 3))
    assert list(found.columns("gain")) == ["gain", "gain_low", "gain_high"]
    assert all(column is part for column, part in zip(found.columns("gain").values(), found, strict=True))


def markets(values, names=("alone", "open")):
    """A table with a row a market and seed: values [markets, seeds]."""
    rows = [(name, seed, number) for name, row in zip(names, values, strict=True) for seed, number in enumerate(row)]
    return pd.DataFrame(rows, columns=["market", "seed", "accuracy"])


PAIRS = st.lists(st.tuples(st.integers(-99, 99), st.integers(-99, 99)), min_size=1, max_size=6)


@given(PAIRS, st.randoms(use_true_random=False))
def test_pairs_find_each_other_however_the_rows_stand(pairs, random):
    table = markets(zip(*pairs, strict=True))
    order = list(table.index)
    random.shuffle(order)
    found = base.paired(table.loc[order], "accuracy", by="seed", of="open", minus="alone")
    assert found.sort_index().tolist() == [after - before for before, after in pairs]
    assert found.index.name == "seed"
    assert found.name == "accuracy"
    back = base.paired(table.loc[order], "accuracy", by="seed", of="alone", minus="open")
    assert (back.sort_index() == -found.sort_index()).all()


def test_a_pair_may_rest_on_several_columns_and_other_settings_stay_aside():
    table = pd.concat([markets([[1, 2], [5, 7]]).assign(width=8), markets([[10, 20], [11, 22]]).assign(width=64)])
    third = markets([[0, 0]], ["closed"]).assign(width=8)
    found = base.paired(pd.concat([table, third]), "accuracy", by=["width", "seed"], of="open", minus="alone")
    assert found.to_dict() == {(8, 0): 4, (8, 1): 5, (64, 0): 1, (64, 1): 2}


def test_settings_that_are_numbers_are_not_taken_for_seeds_or_values():
    table = pd.DataFrame({"sellers": [0, 0, 1, 1], "seed": [0, 1, 0, 1], "accuracy": [0, 1, 1, 5]})
    assert base.paired(table, "accuracy", by="seed", of=1, minus=0).tolist() == [1, 4]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"by": "sed"}, "unknown column 'sed'. Did you mean 'seed'"),
        ({"value": "acuracy"}, "unknown column 'acuracy'. Did you mean 'accuracy'"),
        ({"by": []}, "by is empty"),
        ({"of": "alone"}, "of and minus are both 'alone'"),
        ({"of": "closed"}, "'closed' and 'alone' must stand in exactly one column of the table; found: none"),
        ({"table": markets([[1, 2], [5]])}, "no pair for seed = 1: only one of 'open' and 'alone' has it"),
        ({"table": markets([[1], [5, 7]])}, "no pair for seed = 1: only one of 'open' and 'alone' has it"),
        ({"table": pd.concat([markets([[1], [5]])] * 2)}, "'open' has several rows for seed = 0"),
        ({"table": markets([[1], [5]]).assign(rival=["open", "alone"])}, "found: market, rival"),
    ],
)
def test_what_makes_no_pairs_is_refused(change, says):
    how = {"table": markets([[1, 2], [5, 7]]), "value": "accuracy", "by": "seed", "of": "open", "minus": "alone"}
    with pytest.raises(errors.ParameterError, match=re.escape(says)):
        base.paired(**how | change)


def test_device_auto_and_unknown():
    assert base.device("cpu") == torch.device("cpu")
    assert base.device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(errors.ParameterError, match="'abacus' cannot be used here"):
        base.device("abacus")


def test_an_interrupted_write_leaves_nothing_behind(tmp_path):
    (tmp_path / "a.txt").write_text("old")

    def interrupted():
        with base.atomic(tmp_path / "a.txt") as beside:
            beside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8))
def test_an_interval_of_correlations_stays_within_one(values):
    mean, low, high = base.interval(values, "correlations")
    assert -1 <= low <= mean <= high <= 1
    for part, mirrored in zip((mean, high, low), base.interval([-v for v in values], "correlations"), strict=True):
        assert part == pytest.approx(-mirrored, abs=1e-9)


def test_small_correlations_have_the_interval_of_any_numbers():
    values = [0.01, -0.02, 0.03, 0.005]
    assert base.interval(values, "correlations") == pytest.approx(base.interval(values), abs=1e-4)
    assert base.interval(torch.zeros(3, 2), "correlations").mean.shape == (2,)


@pytest.mark.parametrize("value", [[], (1,), range(3), np.arange(3), torch.arange(3)])
def test_any_sequence_is_a_list(value):
    base.check_list("sizes", value)


@pytest.mark.parametrize("value", [5, 0.5, "abc", b"abc", None, np.zeros((2, 2)), {1, 2}])
def test_what_is_no_sequence_is_no_list(value):
    with pytest.raises(errors.ParameterError, match=r"(?s)sizes = .*, expected a list\."):
        base.check_list("sizes", value)


ends = st.tuples(st.floats(-10, 10), st.floats(0, 5), st.floats(0, 5))


@given(ends, ends)
def test_a_difference_the_other_way_round_is_mirrored_and_no_narrower_than_either_side(one, other):
    first, second = (base.Interval(mean, mean - below, mean + above) for mean, below, above in (one, other))
    mean, low, high = base.difference(first, second)
    assert base.difference(second, first) == pytest.approx((-mean, -high, -low), abs=1e-12)
    assert mean - low >= max(one[1], other[2]) - 1e-12
    assert high - mean >= max(one[2], other[1]) - 1e-12


def test_the_difference_of_two_estimates_covers_as_often_as_it_says():
    """Of two shares: for these the two intervals are not symmetric."""
    luck = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        few = base.interval((luck.random(40) < 0.9).astype(float), "shares")
        many = base.interval((luck.random(100) < 0.8).astype(float), "shares")
        _, low, high = base.difference(few, many)
        held += low <= 0.1 <= high
    assert 930 <= held <= 970
