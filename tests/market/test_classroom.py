import inspect
import itertools
import math
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from orders import equal
from safetensors.torch import save_file

from paramarket import align, data, market, stack, train
from paramarket.base import stream
from paramarket.errors import DataError, ParameterError, WeightsError
from paramarket.market import ENTRY_FILE, Splits, Terms, hand_in, league, read_entries, trading_day
from paramarket.stack import take

NET = stack.mlp(64, [16], 10)
SEEN = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
STARTS = stack.init(NET, 14, seed=0)  # of a class of fourteen
VALUE = 30.0
SPEC = align.permutation_spec(NET, SEEN[:1])
DEAD = torch.arange(64) < 12  # inputs that may be made to be always the same


@pytest.fixture(scope="module")
def splits(digits):
    return Splits(digits.quote, digits.audit, digits.test)


@pytest.fixture(scope="module")
def card(digits):
    return stack.card(NET, digits)


@pytest.fixture(scope="module")
def trained(digits):
    """Of twelve who learnt from a fourteenth each, rarely seeing half of the kinds."""
    rare = [[(k + j) % 10 for j in range(5)] for k in range(12)]
    shares = [
        data.holding(digits.train, rare[k], 0.2, stream(0, "class"), student=k + 1, students=14) for k in range(12)
    ]
    return train.fit(NET, take(STARTS, slice(12)), shares, steps=150, lr=1e-2, batch=16).stack


@pytest.fixture(scope="module")
def room(trained, card, tmp_path_factory):
    """Twelve who learnt, and two who hand in noise, their starts."""
    folder = tmp_path_factory.mktemp("class")
    for k in range(12):
        hand_in(folder / f"s{k:02}", take(trained, k), card, student=k + 1)
    for k, name in ((12, "noise"), (13, "more")):
        hand_in(folder / name, take(STARTS, k), card, student=k + 1)
    return folder


@pytest.fixture(scope="module")
def day(room, card, splits):
    entries = read_entries(room, NET, card, SEEN, STARTS)
    return entries, trading_day(NET, entries, splits, Terms(rule="audit"), value=VALUE)


@pytest.fixture(scope="module")
def reference(splits):
    """No student can move it, so any numbers will do."""
    return torch.linspace(0.5, 0.9, 14)


def few(folder, card, count=3):
    models = take(STARTS, slice(count))
    for k in range(count):
        hand_in(folder / "abc"[k], take(models, k), card, student=k + 1)
    return models


def grown(student, seed=0):
    """A network that began at this student's start, and went a little way from there."""
    start = take(STARTS, student - 1)
    return stack.map(
        lambda tensor, step: tensor + 0.3 * step, start, take(stack.init(NET, 1, seed=seed, purpose="a step"), 0)
    )


# Handing in


def test_what_was_handed_in_is_read_bit_for_bit(tmp_path, card):
    models = few(tmp_path, card)
    entries = read_entries(tmp_path, NET, card, SEEN, STARTS)
    assert equal(entries.models, models)
    assert (entries.names, entries.students, entries.refused) == (["a", "b", "c"], [1, 2, 3], {})


def test_who_hands_in_anew_replaces_what_was_there(tmp_path, card):
    few(tmp_path, card)
    path = hand_in(tmp_path / "a", grown(1), card, student=1)
    assert path == tmp_path / "a" / ENTRY_FILE
    entries = read_entries(tmp_path, NET, card, SEEN, STARTS)
    assert entries.students == [1, 2, 3]
    assert equal(take(entries.models, 0), grown(1))


@pytest.mark.parametrize("student", [np.int64(3), torch.tensor(3), 3])
def test_a_number_may_be_of_any_make(student, tmp_path, card):
    few(tmp_path, card, 2)
    hand_in(tmp_path / "c", grown(3), card, student=student)
    assert read_entries(tmp_path, NET, card, SEEN, STARTS).students == [1, 2, 3]


@pytest.mark.parametrize("student", [0, -1, 1.0, True, None, "3", math.nan], ids=repr)
def test_a_number_that_is_none_is_refused_before_anything_is_written(student, tmp_path, card):
    with pytest.raises(ParameterError, match=rf"student = {student!r}, expected a whole number ≥ 1"):
        inspect.unwrap(hand_in)(tmp_path / "a", grown(1), card, student=student)
    assert not list(tmp_path.iterdir())


def test_a_file_is_there_in_whole_or_as_it_was(tmp_path, card, monkeypatch):
    few(tmp_path, card)
    before = (tmp_path / "a" / ENTRY_FILE).read_bytes()

    def torn(tensors, path, **_):
        path.write_bytes(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr("paramarket.stack.files.save_file", torn)
    with pytest.raises(OSError, match="disk full"):
        hand_in(tmp_path / "a", grown(1), card, student=1)
    assert (tmp_path / "a" / ENTRY_FILE).read_bytes() == before
    assert [path.name for path in (tmp_path / "a").iterdir()] == [ENTRY_FILE]


def test_noise_that_is_no_number_is_refused(tmp_path, card):
    params = take(stack.init(NET, 1, seed=0), 0)
    with pytest.raises(WeightsError, match=r"'3\.bias' holds values that are NaN or infinite"):
        hand_in(tmp_path / "a", {**params, "3.bias": params["3.bias"] / 0}, card, student=1)


# Turned away


def broken(path, card):
    path.write_bytes(path.read_bytes()[:-100])


def pickled(path, card):
    path.write_bytes(pickle.dumps({"never": "read"}))


def zipped(path, card):
    torch.save({"a": torch.zeros(1)}, path)


def another_net(path, card):
    net = stack.mlp(64, [15], 10)
    hand_in(path.parent, take(stack.init(net, 1, seed=0), 0), {**card, "architecture": "another"}, student=2)


def another_shape(path, card):
    """The card says what it should; the weights do not fit."""
    hand_in(path.parent, take(stack.init(stack.mlp(64, [15], 10), 1, seed=0), 0), card, student=2)


def huge(path, card):
    params = {name: tensor * 1e30 for name, tensor in take(stack.init(NET, 1, seed=0), 0).items()}
    hand_in(path.parent, params, card, student=2)


def no_number(path, card):
    stack.save(path, stack.load(path), card)


def number(text):
    def write(path, card):
        stack.save(path, stack.load(path), {**card, "student": text})

    return write


NO_NUMBERS = ["-1", "0", "15", "2.0", "nan", "²", "٢", "two", " 2", "9" * 5000]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (broken, r"b.me\.safetensors is no readable safetensors file"),
        (pickled, r"b.me\.safetensors is a pickle, and reading one can run code: refused"),
        (zipped, r"b.me\.safetensors is a pickle"),
        (another_net, r"b.me\.safetensors has another interface: architecture is another"),
        (another_shape, r"b.me\.safetensors and the net do not fit: '1\.weight' has shape \(15, 64\)"),
        (huge, r"b.me\.safetensors: its answers are not finite"),
        (
            no_number,
            r"b.me\.safetensors: its student is '', expected a number from 1 to 14: write the file with hand_in",
        ),
        *[(number(text), rf"its student is '{text[:40]}', expected a number from 1 to 14") for text in NO_NUMBERS],
    ],
    ids=["broken", "pickle", "zip", "architecture", "shape", "huge", "none", *[text[:9] for text in NO_NUMBERS]],
)
def test_a_file_that_cannot_be_used_is_named_and_the_others_trade(harm, said, tmp_path, card, splits):
    models = few(tmp_path, card)
    harm(tmp_path / "b" / ENTRY_FILE, card)
    entries = read_entries(tmp_path, NET, card, SEEN, STARTS)
    assert list(entries.refused) == ["b"]
    with pytest.raises(WeightsError, match=said):
        raise WeightsError(entries.refused["b"])
    assert (entries.names, entries.students) == (["a", "c"], [1, 3])
    assert equal(entries.models, take(models, [0, 2]))
    done = trading_day(NET, entries, splits, Terms(rule="word"), value=VALUE)
    assert done.ledger.rows.buyer.tolist() == ["a", "c"]


def test_a_changed_file_is_found_by_its_hash(tmp_path, card):
    few(tmp_path, card)
    path = tmp_path / "b" / ENTRY_FILE
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert "damaged" in read_entries(tmp_path, NET, card, SEEN, STARTS).refused["b"]


def test_a_class_of_one_is_no_market(tmp_path, card):
    few(tmp_path, card, 2)
    pickled(tmp_path / "b" / ENTRY_FILE, card)
    with pytest.raises(
        DataError, match=rf"{tmp_path}: 1 usable files .*, expected two or more.*b.{ENTRY_FILE} is a pickle"
    ):
        read_entries(tmp_path, NET, card, SEEN, STARTS)


def test_an_empty_folder_is_no_market(tmp_path, card):
    with pytest.raises(DataError, match=rf"{tmp_path}: 0 usable files .*none was there"):
        read_entries(tmp_path, NET, card, SEEN, STARTS)


# The door


BAR = market.least_likeness(NET, STARTS, SEEN)
HIGHER_BAR = market.least_likeness(NET, STARTS, SEEN, any_order=True)


def likeness(params, **how):
    """To every start, in every layer."""
    return market.origins(NET, stack.join([params]), STARTS, SEEN, **how)[0]


def test_honest_networks_are_like_their_own_start_and_no_other(trained):
    found = market.origins(NET, trained, STARTS, SEEN)
    own = torch.eye(12, 14, dtype=torch.bool)
    assert (found[own] > 1.3 * BAR).all()
    assert (found[~own].abs() < BAR).all()


@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.sampled_from(["draws", "one", "ones", "first layer", "zero"]))
@settings(max_examples=40)
def test_what_has_nothing_to_do_with_a_start_is_like_none(seed, scale, kind):
    """Whatever the numbers are, drawn or not: only the starts are chance."""
    made = take(stack.init(NET, 1, seed=seed, purpose="a stranger"), 0)
    changes = {
        "draws": lambda tensor: scale * tensor,
        "one": lambda tensor: torch.zeros_like(tensor).index_fill(-1, torch.tensor([0]), scale),
        "ones": lambda tensor: torch.full_like(tensor, scale),
        "first layer": lambda tensor: tensor * (scale if tensor.shape[-1] == 64 else 1),
        "zero": torch.zeros_like,
    }
    for by in ("sign", "size"):
        found = likeness(stack.map(changes[kind], made), by=by)
        assert found.isfinite().all()
        assert (found.abs() < BAR).all()


@given(st.integers(0, 10**6), st.floats(1e-6, 1e6))
@settings(max_examples=10)
def test_likeness_by_sign_hangs_on_no_size_of_any_weight(seed, most):
    """So no few that are huge can hide the others, and no unit that is large where what reads it is small."""
    size = stream(seed, "size")
    scaled = stack.map(lambda tensor: tensor * (1e-6 + most * torch.rand(tensor.shape, generator=size)), grown(3))
    assert torch.allclose(likeness(scaled), likeness(grown(3)))
    factor = 1e-6 + most
    alike = stack.map(lambda tensor: factor * tensor, grown(3))
    assert torch.allclose(likeness(alike, by="size"), likeness(grown(3), by="size"), rtol=1e-3)


def test_likeness_is_one_standard_error_of_chance():
    """Over 300 networks that nobody dealt: mean 0, standard deviation 1."""
    for by in ("sign", "size"):
        found = market.origins(NET, stack.init(NET, 300, seed=5, purpose="a stranger"), STARTS, SEEN, by=by)
        assert (found.mean(dim=(0, 1)).abs() < 0.1).all()
        assert ((found.std(dim=(0, 1)) - 1).abs() < 0.1).all()


def test_weights_that_all_starts_share_say_nothing():
    """As the ones of a norm: two networks may well agree in them."""
    starts = stack.map(torch.clone, STARTS)
    starts["3.bias"][:] = 1
    starts["3.weight"][:] = 1
    found = market.origins(NET, starts, starts, SEEN)
    own = torch.eye(14, dtype=torch.bool)
    assert (found[..., 1] == 0).all()
    assert torch.equal(found[..., 0], market.origins(NET, STARTS, STARTS, SEEN)[..., 0])
    assert (found[own][:, 0] > BAR[0]).all()


def test_the_order_of_names_in_a_file_is_nobodys_business():
    backwards = dict(reversed(grown(2).items()))
    assert torch.allclose(likeness(backwards), likeness(grown(2)))


def handed_to_b(tmp_path, card, params, student=2):
    few(tmp_path, card)
    hand_in(tmp_path / "b", params, card, student=student)
    return read_entries(tmp_path, NET, card, SEEN, STARTS)


def half(one, other):
    return stack.map(lambda here, there: (here + there) / 2, one, other)


TAKEN = {
    "a copy": (lambda: grown(1), "it grew, as a whole or in part, from the start of student 1"),
    "half a copy": (lambda: half(grown(1), grown(2)), "it grew, as a whole or in part, from the start of student 1"),
    "the copy of one who is not there": (lambda: grown(9), "from the start of student 9"),
    "nobody's": (lambda: model(seed=3), "it did not grow from the start of student 2"),
    "nothing": (lambda: stack.map(torch.zeros_like, grown(2)), "it did not grow from the start of student 2"),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_a_network_that_grew_elsewhere_is_turned_away_by_name(tmp_path, card, kind):
    make, says = TAKEN[kind]
    entries = handed_to_b(tmp_path, card, make())
    assert entries.names == ["a", "c"]
    assert says in entries.refused["b"]
    assert str(tmp_path / "b" / ENTRY_FILE) in entries.refused["b"]


def reordered(params, seed=0):
    order = align.random_permutations(SPEC, params, stream(seed, "order"))
    return align.permute(SPEC, order, params)


def laid_onto(target, source):
    return align.reorder(SPEC, target, source)


HIDDEN = {
    "a copy in another order": lambda own, other: reordered(other),
    "half a copy in another order": lambda own, other: half(own, reordered(other)),
    "half a copy, laid onto one's own": lambda own, other: half(own, laid_onto(own, other)),
    "three quarters, laid onto one's own": lambda own, other: half(
        half(own, laid_onto(own, other)), laid_onto(own, other)
    ),
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_a_copy_is_found_whatever_the_order_of_its_units(tmp_path, card, trained, kind):
    entries = handed_to_b(tmp_path, card, HIDDEN[kind](take(trained, 1), take(trained, 0)))
    assert entries.names == ["a", "c"]
    assert "it grew, as a whole or in part, from the start of student 1" in entries.refused["b"]


def hidden_in_dead_inputs(own, other, factor):
    """A copy in another order that says so loudly whose it is not: on inputs that never vary, where nobody hears it."""
    params = reordered(other)
    params["1.weight"][:, DEAD] = factor * own["1.weight"][:, DEAD]
    return params


@pytest.mark.parametrize("factor", [1.0, 100.0, 200.0])
def test_a_copy_is_found_whatever_stands_on_inputs_that_never_vary(tmp_path, card, trained, factor):
    few(tmp_path, card)
    hand_in(tmp_path / "b", hidden_in_dead_inputs(take(STARTS, 1), take(trained, 0), factor), card, student=2)
    seen = SEEN.flatten(1).masked_fill(DEAD, 0.5).view_as(SEEN)
    entries = read_entries(tmp_path, NET, card, seen, STARTS)
    assert entries.names == ["a", "c"]
    assert "from the start of student 1" in entries.refused["b"]


def one_layer(own, other, layer):
    return {name: (other if stack.layer_of(name) == layer else own)[name] for name in own}


@pytest.mark.parametrize("layer", ["1", "3"])
def test_a_copy_of_one_layer_is_a_copy(tmp_path, card, trained, layer):
    entries = handed_to_b(tmp_path, card, one_layer(take(trained, 1), take(trained, 0), layer))
    assert "from the start of student 1" in entries.refused["b"]


@pytest.mark.parametrize("layer", ["1", "3"])
def test_a_network_is_its_owners_only_if_every_layer_is(tmp_path, card, trained, layer):
    entries = handed_to_b(tmp_path, card, one_layer(take(trained, 1), model(seed=3), layer))
    assert "it did not grow from the start of student 2, or not all of it" in entries.refused["b"]


def test_an_input_that_never_varies_counts_for_nothing(trained):
    """Whatever its weights are, by sign and by size, in the order that a network has and in the best."""
    seen = SEEN.flatten(1).masked_fill(DEAD, 0.5)
    changed = stack.copy(trained)
    changed["1.weight"][:, :, DEAD] *= -100
    for how in ({"by": "sign"}, {"by": "size"}, {"any_order": True}):
        before = market.origins(NET, take(trained, [0, 1]), STARTS, seen, **how)
        assert torch.equal(market.origins(NET, take(changed, [0, 1]), STARTS, seen, **how), before)
    assert not torch.allclose(likeness(take(changed, 0)), likeness(take(trained, 0)))


def test_another_measure_of_likeness_is_an_error():
    with pytest.raises(ParameterError, match="by"):
        likeness(grown(1), by="weight")


def test_whose_a_network_is_cannot_be_told_where_the_starts_are_one(tmp_path, card):
    few(tmp_path, card)
    with pytest.raises(DataError, match="whose it is cannot be told"):
        read_entries(tmp_path, NET, card, SEEN, take(STARTS, [0, 0, 0]))


def test_in_the_best_order_chance_finds_more_but_not_as_much_as_the_bar(trained):
    plain = market.origins(NET, trained, STARTS, SEEN)
    any_order = market.origins(NET, trained, STARTS, SEEN, any_order=True)
    own = torch.eye(12, 14, dtype=torch.bool)
    assert (any_order[~own][:, 0] > plain[~own][:, 0]).double().mean() > 0.95
    assert (any_order[~own] < HIGHER_BAR).all()
    assert torch.allclose(any_order[own], plain[own], rtol=0.05)


@given(st.integers(0, 10**6))
@settings(max_examples=10)
def test_likeness_in_the_best_order_does_not_hang_on_the_order(seed):
    """Two orders of one network: the search may end elsewhere, and finds its start from both."""
    for params in (grown(3), reordered(grown(3), seed)):
        found = market.origins(NET, stack.join([params]), STARTS, SEEN, any_order=True)[0, :, 0]
        assert found.argmax() == 2
        assert found[2] > HIGHER_BAR[0]


@given(st.lists(st.integers(1, 100), max_size=4))
@settings(max_examples=20)
def test_the_bar_rises_with_the_orders_that_a_layer_can_stand_in(units):
    net = stack.mlp(5, units, 3)
    starts = stack.init(net, 10, seed=0)
    bar = market.least_likeness(net, starts, torch.zeros(1, 5), any_order=True)
    sides = [1, *units, 1]  # inputs and classes stay where they are
    orders = [math.factorial(one) * math.factorial(other) for one, other in itertools.pairwise(sides)]
    tries = 4 * 10**2 * len(orders)
    assert (bar**2 / 2).tolist() == pytest.approx([math.log(1000 * tries) + math.log(count) for count in orders])


def test_a_start_and_an_early_copy_are_their_owners(tmp_path, card):
    assert handed_to_b(tmp_path, card, take(STARTS, 1)).refused == {}
    assert handed_to_b(tmp_path, card, grown(2)).refused == {}


def test_who_takes_anothers_number_is_found_by_the_start_and_harms_nobody(tmp_path, card):
    entries = handed_to_b(tmp_path, card, grown(2), student=1)
    assert entries.names == ["a", "c"]
    assert "from the start of student 2" in entries.refused["b"]


def test_two_with_one_number_and_one_start_are_both_turned_away(tmp_path, card):
    few(tmp_path, card)
    hand_in(tmp_path / "d", grown(2), card, student=2)
    entries = read_entries(tmp_path, NET, card, SEEN, STARTS)
    assert entries.names == ["a", "c"]
    assert "student 2 has handed in as d, too" in entries.refused["b"]
    assert "student 2 has handed in as b, too" in entries.refused["d"]


@given(st.integers(2, 100))
@settings(max_examples=20)
def test_the_bar_rises_with_the_class_so_that_chance_errs_in_one_class_of_a_thousand(students):
    """Each network meets each start in two layers and in four ways."""
    bar, more = [market.least_likeness(NET, stack.init(NET, n, seed=0), SEEN) for n in (students, students + 1)]
    tries = 4 * 2 * students**2
    assert (tries * torch.exp(-(bar**2) / 2)).tolist() == pytest.approx([1e-3] * 2)
    assert (more > bar).all()


@pytest.mark.parametrize("count", [0, 1])
def test_a_class_of_one_start_has_nothing_to_compare_with(tmp_path, card, count):
    few(tmp_path, card)
    with pytest.raises(ParameterError, match=rf"{count} start\(s\), expected one for each of two students or more"):
        read_entries(tmp_path, NET, card, SEEN, take(STARTS, slice(count)))


# The day


def test_everyone_asks_everyone_once(day):
    entries, done = day
    rows = done.ledger.rows
    assert len(entries.names) == 14
    assert not entries.refused
    assert len(rows) == 14 * 13
    assert len(set(zip(rows.buyer, rows.seller, strict=True))) == 14 * 13
    assert (rows.buyer != rows.seller).all()


def test_noise_does_not_sell_before_it_has_bought(day):
    rows = day[1].ledger.rows
    for name in ("noise", "more"):
        bought = rows[rows.traded & (rows.buyer == name)]
        assert len(bought)
        assert not rows[(rows.seller == name) & (rows["round"] <= bought["round"].min())].traded.any()
    assert rows[rows.buyer.str.startswith("s") & rows.seller.str.startswith("s")].traded.sum() > 12


def test_nobody_is_worse_after_the_day_by_more_than_noise(day, splits):
    """A test of 359 images is itself sure to two points or so."""
    entries, done = day
    gain = 100 * (done.accuracy[0, -1] - train.evaluate(NET, entries.models, splits.test).accuracy)
    assert (gain > -2).all()
    assert gain[entries.names.index("noise")] > 20
    assert gain[:12].mean() > 5


def test_what_is_bought_by_audit_is_a_gain_on_test_as_well_on_average(day):
    sold = day[1].ledger.rows.query("traded")
    assert (sold.audited_low > 0).all()
    assert sold.tested.mean() > 1


def test_the_league_is_sorted_by_what_was_won_and_its_money_is_the_brokers_loss(day, splits, reference):
    entries, done = day
    table = league(NET, entries, done, splits, reference=reference, value=VALUE)
    assert table.won.is_monotonic_decreasing
    assert sorted(table.name) == sorted(entries.names)
    assert table.money.sum() == pytest.approx(0, abs=1e-6)
    assert (table.turned_away == "").all()
    sold, before = done.ledger.rows.query("traded"), train.evaluate(NET, entries.models, splits.test).accuracy
    for row in table.itertuples():
        k = entries.names.index(row.name)
        own = reference[entries.students[k] - 1].item()
        mine, theirs = sold[sold.buyer == row.name], sold[sold.seller == row.name]
        assert (row.bought, row.sold) == (len(mine), len(theirs))
        assert row.money == pytest.approx(theirs.received.sum() - mine.paid.sum(), abs=1e-3)
        told = (row.reference, row.handed_in, row.after)
        assert told == pytest.approx((own, before[k].item(), done.accuracy[0, -1, k].item()), abs=1e-3)
        assert row.won == pytest.approx(row.money + VALUE * 100 * (done.accuracy[0, -1, k].item() - own), abs=2e-3)


def test_nothing_that_is_handed_in_moves_the_reference(room, card, splits, reference, tmp_path):
    """The same day, one student having handed in another network: every reference is where it was."""
    shutil.copytree(room, tmp_path / "class")
    hand_in(tmp_path / "class" / "s03", take(STARTS, 3), card, student=4)
    references = []
    for folder in (room, tmp_path / "class"):
        entries = read_entries(folder, NET, card, SEEN, STARTS)
        outcome = trading_day(NET, entries, splits, Terms(), value=VALUE, rounds=1)
        table = league(NET, entries, outcome, splits, reference=reference, value=VALUE)
        references.append(table.set_index("name").reference.sort_index())
    assert references[0].equals(references[1])


def test_who_was_turned_away_stands_at_the_bottom_with_the_reason_and_nothing_won(tmp_path, card, splits, reference):
    few(tmp_path, card)
    hand_in(tmp_path / "b", grown(1), card, student=2)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ENTRY_FILE).write_bytes(b"not a network")
    entries = read_entries(tmp_path, NET, card, SEEN, STARTS)
    table = league(
        NET, entries, trading_day(NET, entries, splits, Terms(), value=VALUE), splits, reference=reference, value=VALUE
    )
    assert set(table.name[:2]) == {"a", "c"}
    away = table[2:].set_index("name")
    assert away.turned_away.to_dict() == entries.refused
    assert (away[["bought", "sold", "money", "won"]] == 0).all(axis=None)
    assert away[["reference", "handed_in", "after"]].isna().all(axis=None)


def test_a_student_without_a_reference_is_an_error(tmp_path, card, splits):
    few(tmp_path, card)
    entries = read_entries(tmp_path, NET, card, SEEN, STARTS)
    outcome = trading_day(NET, entries, splits, Terms(form="alone"), value=VALUE)
    with pytest.raises(ParameterError, match="2 references, but a student 3"):
        league(NET, entries, outcome, splits, reference=torch.zeros(2), value=VALUE)


def test_with_a_fee_the_class_pays_the_broker_and_every_seller_of_a_mixture_is_counted(
    tmp_path, card, splits, reference
):
    few(tmp_path, card)
    entries = read_entries(tmp_path, NET, card, SEEN, STARTS)
    terms = Terms(rule="word", sellers=2, fee=0.1, claim=2.0, cost=0.5)
    done = trading_day(NET, entries, splits, terms, value=VALUE, money=500.0)
    table = league(NET, entries, done, splits, reference=reference, value=VALUE, money=500.0)
    assert table.money.sum() == pytest.approx(-done.euros[0, -1, -1].item())
    assert done.euros[0, -1, -1] > 0
    sold = done.ledger.rows.query("traded")
    assert table.sold.sum() == 2 * len(sold) == 2 * table.bought.sum()
    assert set(sold.seller) == {"b + c", "c + a", "a + b"}


@pytest.mark.parametrize("rounds", [1, 5, 13, 20])
def test_a_large_class_takes_as_many_rounds_as_it_is_given(day, splits, rounds):
    """In each everybody asks one, and nobody twice before it has asked all."""
    entries, _ = day
    rows = trading_day(NET, entries, splits, Terms(match="none", cost=1e9), value=VALUE, rounds=rounds).ledger.rows
    assert len(rows) == 14 * rounds
    times = rows.groupby(["buyer", "seller"]).size()
    assert times.max() - (0 if len(times) < 14 * 13 else times.min()) <= 1


def test_the_day_prices_with_the_same_value_for_all(tmp_path, card, splits):
    """By word two points are promised, and the price lies half way between their value and the cost."""
    few(tmp_path, card)
    entries = read_entries(tmp_path, NET, card, SEEN, STARTS)
    rows = trading_day(NET, entries, splits, Terms(rule="word", claim=2.0, cost=10.0), value=VALUE).ledger.rows
    assert rows.paid.tolist() == [(2 * VALUE + 10) / 2] * 6


NAMES = ["x + y", "x", "y", "Ann O'Neil", 'say "hi", 50 %']


@pytest.mark.parametrize("sellers", [1, 2, 3])
def test_whatever_a_folder_is_called_what_it_bought_and_sold_is_counted(sellers, tmp_path, card, splits, reference):
    """Names are data: nothing is joined and taken apart again."""
    for k, name in enumerate(NAMES):
        hand_in(tmp_path / name, take(STARTS, k), card, student=k + 1)
    entries = read_entries(tmp_path, NET, card, SEEN, STARTS)
    assert sorted(entries.names) == sorted(NAMES)
    done = trading_day(NET, entries, splits, Terms(rule="word", sellers=sellers, cost=0.5), value=VALUE)
    rows = done.ledger.rows
    assert rows.traded.all()  # so everyone bought in each of four rounds, and sold as often as it was asked
    table = league(NET, entries, done, splits, reference=reference, value=VALUE)
    assert table.bought.tolist() == [4] * 5
    assert table.sold.tolist() == [4 * sellers] * 5
    assert rows.sellers.map(len).tolist() == [sellers] * len(rows)
    assert rows.seller.tolist() == [" + ".join(names) for names in rows.sellers]
    assert {name for names in rows.sellers for name in names} == set(NAMES)


@pytest.mark.parametrize("terms", [Terms(cost=1e9), Terms(form="alone")], ids=["dear", "closed"])
def test_a_day_without_a_sale_has_a_league_too(terms, room, card, splits):
    entries = read_entries(room, NET, card, SEEN, STARTS)
    own = train.evaluate(NET, entries.models, splits.test).accuracy
    by_student = torch.zeros(14).index_put((torch.tensor(entries.students) - 1,), own)
    done = trading_day(NET, entries, splits, terms, value=VALUE)
    table = league(NET, entries, done, splits, reference=by_student, value=VALUE)
    assert not table[["bought", "sold", "money", "won"]].to_numpy().any()
    assert np.array_equal(table.handed_in, table.after)
    assert table.name.tolist() == entries.names


# Whatever one of them hands in


def raw(folder, params, card, student="2"):
    """A file that nobody's hand_in has looked at."""
    folder.mkdir(exist_ok=True)
    told = {**card, "student": student, "content_hash": stack.content_hash(params)}
    save_file({name: tensor.contiguous() for name, tensor in params.items()}, folder / ENTRY_FILE, metadata=told)


def model(seed=None):
    """A copy of the start of student 2, or nobody's."""
    nobody = stack.init(NET, 1, seed=seed or 0, purpose="nobody")
    return stack.copy(take(STARTS, 1) if seed is None else take(nobody, 0))


def times(factor, *names):
    """A model with some of its tensors so many times as large."""
    return {name: tensor * factor if name in names else tensor for name, tensor in model().items()}


def drowned():
    """Infinitely sure that its first unit says nothing: its answers are finite."""
    params = model()
    params["1.bias"][0] = -math.inf
    return params


def in_double(value):
    params = stack.map(torch.Tensor.double, model())
    params["1.bias"][0] = value
    return params


STRANGE = {
    "NaN": lambda: times(math.nan, "3.bias"),
    "minus infinity in a silent unit": drowned,
    "beyond float32 in a silent unit": lambda: in_double(-1e300),
    "huge within, small without": lambda: {**times(1e25, "1.weight", "1.bias"), "3.weight": torch.zeros(10, 16)},
    "a large last layer": lambda: times(1e15, "3.weight", "3.bias"),
    "a large first layer": lambda: times(1e15, "1.weight"),
    "large and small": lambda: {**times(1e12, "1.weight", "1.bias"), "3.weight": 1e-12 * model()["3.weight"]},
    "eight bits": lambda: stack.map(lambda tensor: tensor.to(torch.float8_e4m3fn), model()),
    "complex": lambda: stack.map(lambda tensor: tensor.to(torch.complex64), model()),
    "whole": lambda: stack.map(lambda tensor: tensor.round().long(), model()),
    "truth values": lambda: stack.map(lambda tensor: tensor > 0, model()),
    "a layer missing": lambda: {name: tensor for name, tensor in model().items() if name != "3.bias"},
    "a layer more": lambda: {**model(), "5.bias": torch.zeros(3)},
    "transposed": lambda: {**model(), "1.weight": model()["1.weight"].mT},
    "nothing": lambda: {},
    "no length": lambda: {**model(), "1.weight": torch.zeros(0, 64)},
    "far too large": lambda: {**model(), "more": torch.zeros(2**20)},
}


@pytest.mark.parametrize("kind", STRANGE)
def test_whatever_one_entry_holds_the_others_are_read_and_trade(tmp_path, card, splits, kind):
    few(tmp_path, card)
    raw(tmp_path / "b", STRANGE[kind](), card)
    entries = read_entries(tmp_path, NET, card, SEEN, STARTS)
    assert entries.names == ["a", "c"]
    assert str(tmp_path / "b" / ENTRY_FILE) in entries.refused["b"]
    for terms in (Terms(rule="word"), Terms(rule="quote", match="weights", by="loss")):
        day = trading_day(NET, entries, splits, terms, value=VALUE)
        assert day.euros[0, -1].sum() == 2000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_of_any_precision_are_read_as_the_numbers_that_they_are(tmp_path, card, splits, dtype):
    few(tmp_path, card)
    params = stack.map(lambda tensor: tensor.to(dtype), model())
    hand_in(tmp_path / "b", params, card, student=2)
    entries = read_entries(tmp_path, NET, card, SEEN, STARTS)
    assert entries.names == ["a", "b", "c"]
    assert equal(take(entries.models, 1), stack.map(torch.Tensor.float, params))
    assert trading_day(NET, entries, splits, Terms(), value=VALUE).euros[0, -1].sum() == 3000


def link_to(target):
    def place(path):
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return place


def linked_folder(path):
    outside = path.parent.parent.parent / "outside"
    outside.mkdir()
    path.rename(outside / ENTRY_FILE)
    path.parent.rmdir()
    path.parent.symlink_to(outside)


def another(make):
    def place(path):
        path.unlink()
        make(path)

    return place


PLACES = {
    "a link to nothing": (link_to("nowhere"), "is a link: hand in the file itself"),
    "a link to another's": (link_to(f"../a/{ENTRY_FILE}"), "is a link"),
    "a link out of the folder": (link_to("/etc/passwd"), "is a link"),
    "a link to a device": (link_to("/dev/zero"), "is a link"),
    "a folder that is a link": (linked_folder, "is a link"),
    "a folder": (another(lambda path: path.mkdir()), "is no file"),
    "a pipe": (another(os.mkfifo), "is no file"),
    "empty": (another(lambda path: path.touch()), "no readable safetensors file"),
    "zeros": (another(lambda path: path.write_bytes(bytes(5000))), "no readable safetensors file"),
    "a sparse terabyte": (
        lambda path: os.truncate(path, 2**40),
        "has 1,099,511,627,776 bytes, a model of this net has",
    ),
}


@pytest.mark.parametrize("kind", PLACES)
def test_what_only_bears_the_name_of_a_file_is_refused_by_it(tmp_path, card, kind):
    folder = tmp_path / "class"
    few(folder, card)
    place, says = PLACES[kind]
    place(folder / "b" / ENTRY_FILE)
    entries = read_entries(folder, NET, card, SEEN, STARTS)
    assert entries.names == ["a", "c"]
    assert says in entries.refused["b"]
    assert str(folder / "b" / ENTRY_FILE) in entries.refused["b"]


def test_an_error_that_nobody_thought_of_ends_the_day_for_one_alone(tmp_path, card, monkeypatch):
    few(tmp_path, card)
    load = stack.load

    def stumble(path, card):
        if path.parent.name == "b":
            raise RuntimeError("no kernel for this")
        return load(path, card)

    monkeypatch.setattr(stack, "load", stumble)
    entries = read_entries(tmp_path, NET, card, SEEN, STARTS)
    assert entries.names == ["a", "c"]
    assert "cannot be read (RuntimeError: no kernel for this)" in entries.refused["b"]


def test_a_network_that_bursts_on_the_days_own_examples_is_named(tmp_path, card, splits):
    few(tmp_path, card)
    params = times(1e5, "1.weight")
    params["1.bias"] -= 1e6 - 1  # silent on what is small
    params["3.weight"] *= 1e5
    hand_in(tmp_path / "b", params, card, student=2)
    starts = stack.join([take(STARTS, 0), stack.map(torch.sign, params), take(STARTS, 2)])
    entries = read_entries(tmp_path, NET, card, torch.zeros(2, 1, 8, 8), starts)
    assert entries.names == ["a", "b", "c"]
    with pytest.raises(WeightsError, match=r"b: its weights or answers reach .*the day's own examples as x"):
        trading_day(NET, entries, splits, Terms(), value=VALUE)
    assert list(read_entries(tmp_path, NET, card, splits.quote.x, starts).refused) == ["b"]


@given(st.floats(0, 1e10), st.sampled_from(["accuracy", "loss"]))
@settings(max_examples=10)
def test_whatever_a_point_is_worth_a_day_ends_with_all_the_money(day, splits, value, by):
    entries = day[0]._replace(names=["a", "b", "c"], students=[1, 2, 3], models=take(day[0].models, [0, 1, 13]))
    done = trading_day(NET, entries, splits, Terms(rule="quote", by=by, cost=0.0), value=value)
    assert done.euros[0, -1].sum() == 3000
    assert (done.euros >= 0).all()


def test_one_who_is_never_wrong_and_never_in_doubt_buys_nothing_and_stops_nobody(tmp_path, card, digits):
    """A share of a loss of 0 is no number."""
    net = stack.mlp(64, [], 10)
    trained = train.fit(net, stack.init(net, 1, seed=0), digits.train, steps=200, lr=0.05).stack
    right = train.evaluate(net, trained, digits.quote)
    few_right = stack.forward(net, trained, digits.quote.x)[0].argmax(dim=1) == digits.quote.y
    quote = data.Split(digits.quote.x[few_right], digits.quote.y[few_right])
    assert right.loss.isfinite().all()
    sure = stack.map(lambda tensor: 1000 * tensor, take(trained, 0))
    card = stack.card(net, digits)
    unsure = take(stack.init(net, 1, seed=1), 0)
    starts = stack.join([take(trained, 0), unsure])  # so small a net forgets where it began
    hand_in(tmp_path / "sure", sure, card, student=1)
    hand_in(tmp_path / "unsure", unsure, card, student=2)
    entries = read_entries(tmp_path, net, card, SEEN, starts)
    assert train.evaluate(net, take(entries.models, [0]), quote).loss.item() < 1e-6
    half = len(quote) // 2
    parts = [data.Split(quote.x[part], quote.y[part]) for part in (slice(half), slice(half, None))]
    for rule in ("word", "quote", "audit", "warranty"):
        day = trading_day(net, entries, Splits(*parts, digits.test), Terms(rule=rule, by="loss", cost=0.0), value=VALUE)
        assert day.euros[0, -1].sum() == 2000
        assert np.isfinite(day.ledger.rows.relative).all()
