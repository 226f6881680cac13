import math
import os
import pickle
import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from orders import equal
from safetensors.torch import save_file

from paramarket import data, market, stack, train
from paramarket.base import stream
from paramarket.errors import DataError, ParameterError, WeightsError
from paramarket.market import ENTRY_FILE, Splits, Terms, hand_in, league, read_entries, trading_day
from paramarket.stack import take

NET = stack.mlp(64, [16], 10)
SEEN = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def splits(digits):
    return Splits(digits.quote, digits.audit, digits.test)


@pytest.fixture(scope="module")
def card(digits):
    return stack.card(NET, digits)


@pytest.fixture(scope="module")
def room(digits, card, tmp_path_factory):
    """Twelve who learnt from a thirtieth each, rarely seeing half of the classes; and two who hand in noise.

    The bid of one is nothing, so it never buys; the other does.
    """
    folder, start = tmp_path_factory.mktemp("class"), stack.init(NET, 1, seed=0)
    rare = [[(k + j) % 10 for j in range(5)] for k in range(12)]
    shares = [data.holding(digits.train, rare[k], 0.2, stream(0, "class"), student=k + 1) for k in range(12)]
    school = train.fit(NET, start, digits.train, steps=30, lr=1e-2).stack
    models = train.fit(NET, take(school, [0] * 12), shares, steps=40, lr=5e-3, batch=16).stack
    for k in range(12):
        hand_in(folder / f"s{k:02}", take(models, k), card, bid=50.0 + k)
    for name, bid in (("noise", 0.0), ("buys", 20.0)):
        hand_in(folder / name, take(stack.init(NET, 1, seed=1), 0), card, bid)
    return folder


@pytest.fixture(scope="module")
def day(room, card, splits):
    entries = read_entries(room, NET, card, SEEN)
    return entries, trading_day(NET, entries, splits, Terms(rule="audit"))


def few(folder, card, count=3):
    models = stack.init(NET, count, seed=0)
    for k in range(count):
        hand_in(folder / "abc"[k], take(models, k), card, bid=10.0 * k)
    return models


# Handing in


def test_what_was_handed_in_is_read_bit_for_bit(tmp_path, card):
    models = few(tmp_path, card)
    entries = read_entries(tmp_path, NET, card, SEEN)
    assert equal(entries.models, models)
    assert (entries.names, entries.bids, entries.refused) == (["a", "b", "c"], [0.0, 10.0, 20.0], {})


@pytest.mark.parametrize("bid", [0.0, 0.1, 1 / 3, 1e-300, 123456.789])
def test_a_bid_is_read_as_it_was_written(bid, tmp_path, card):
    few(tmp_path, card)
    path = hand_in(tmp_path / "a", take(stack.init(NET, 1, seed=7), 0), card, bid)
    assert path == tmp_path / "a" / ENTRY_FILE
    assert read_entries(tmp_path, NET, card, SEEN).bids[0] == bid
    assert equal(
        take(read_entries(tmp_path, NET, card, SEEN).models, 0), take(stack.init(NET, 1, seed=7), 0)
    )  # handed in anew


@pytest.mark.parametrize("bid", [-0.01, math.nan, math.inf, -math.inf, 1e11])
def test_a_bid_that_is_none_is_refused_before_anything_is_written(bid, tmp_path, card):
    with pytest.raises(ParameterError, match=rf"bid = {re.escape(str(bid))}, expected 0 euros or more"):
        hand_in(tmp_path / "a", take(stack.init(NET, 1, seed=0), 0), card, bid)
    assert not list(tmp_path.iterdir())


def test_a_file_is_there_in_whole_or_as_it_was(tmp_path, card, monkeypatch):
    few(tmp_path, card)
    before = (tmp_path / "a" / ENTRY_FILE).read_bytes()

    def torn(tensors, path, **_):
        path.write_bytes(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr("paramarket.stack.files.save_file", torn)
    with pytest.raises(OSError, match="disk full"):
        hand_in(tmp_path / "a", take(stack.init(NET, 1, seed=7), 0), card, 1.0)
    assert (tmp_path / "a" / ENTRY_FILE).read_bytes() == before
    assert [path.name for path in (tmp_path / "a").iterdir()] == [ENTRY_FILE]


def test_noise_that_is_no_number_is_refused(tmp_path, card):
    params = take(stack.init(NET, 1, seed=0), 0)
    with pytest.raises(WeightsError, match=r"'3\.bias' holds values that are NaN or infinite"):
        hand_in(tmp_path / "a", {**params, "3.bias": params["3.bias"] / 0}, card, 1.0)


# Turned away


def broken(path, card):
    path.write_bytes(path.read_bytes()[:-100])


def pickled(path, card):
    path.write_bytes(pickle.dumps({"never": "read"}))


def zipped(path, card):
    torch.save({"a": torch.zeros(1)}, path)


def another_net(path, card):
    net = stack.mlp(64, [15], 10)
    hand_in(path.parent, take(stack.init(net, 1, seed=0), 0), {**card, "architecture": "another"}, 1.0)


def another_shape(path, card):
    """The card says what it should; the weights do not fit."""
    hand_in(path.parent, take(stack.init(stack.mlp(64, [15], 10), 1, seed=0), 0), card, 1.0)


def huge(path, card):
    params = {name: tensor * 1e30 for name, tensor in take(stack.init(NET, 1, seed=0), 0).items()}
    hand_in(path.parent, params, card, bid=1.0)


def no_bid(path, card):
    stack.save(path, stack.load(path), card)


def bid(text):
    def write(path, card):
        stack.save(path, stack.load(path), {**card, "bid": text})

    return write


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (broken, r"b.me\.safetensors is no readable safetensors file"),
        (pickled, r"b.me\.safetensors is a pickle, and reading one can run code: refused"),
        (zipped, r"b.me\.safetensors is a pickle"),
        (another_net, r"b.me\.safetensors has another interface: architecture is another"),
        (another_shape, r"b.me\.safetensors and the net do not fit: '1\.weight' has shape \(15, 64\)"),
        (huge, r"b.me\.safetensors: its answers are not finite"),
        (bid("1e300"), r"its bid is '1e300', expected 0 euros or more"),
        (no_bid, r"b.me\.safetensors: its bid is '', expected 0 euros or more: write the file with hand_in"),
        *[(bid(text), rf"its bid is '{text}', expected 0 euros or more") for text in ("-1", "nan", "inf", "much")],
    ],
    ids=["broken", "pickle", "zip", "architecture", "shape", "huge", "riches", "none", "-1", "nan", "inf", "words"],
)
def test_a_file_that_cannot_be_used_is_named_and_the_others_trade(harm, said, tmp_path, card, splits):
    models = few(tmp_path, card)
    harm(tmp_path / "b" / ENTRY_FILE, card)
    entries = read_entries(tmp_path, NET, card, SEEN)
    assert list(entries.refused) == ["b"]
    with pytest.raises(WeightsError, match=said):
        raise WeightsError(entries.refused["b"])
    assert (entries.names, entries.bids) == (["a", "c"], [0.0, 20.0])
    assert equal(entries.models, take(models, [0, 2]))
    done = trading_day(NET, entries, splits, Terms(rule="word"))
    assert done.ledger.rows.buyer.tolist() == ["a", "c"]


def test_a_changed_file_is_found_by_its_hash(tmp_path, card):
    few(tmp_path, card)
    path = tmp_path / "b" / ENTRY_FILE
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert "damaged" in read_entries(tmp_path, NET, card, SEEN).refused["b"]


def test_a_class_of_one_is_no_market(tmp_path, card):
    few(tmp_path, card, 2)
    pickled(tmp_path / "b" / ENTRY_FILE, card)
    with pytest.raises(
        DataError, match=rf"{tmp_path}: 1 usable files .*, expected two or more.*b.{ENTRY_FILE} is a pickle"
    ):
        read_entries(tmp_path, NET, card, SEEN)


def test_an_empty_folder_is_no_market(tmp_path, card):
    with pytest.raises(DataError, match=rf"{tmp_path}: 0 usable files .*none was there"):
        read_entries(tmp_path, NET, card, SEEN)


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
    bought = rows.query("traded and buyer == 'buys'")
    assert len(bought)
    assert not rows[(rows.seller == "buys") & (rows["round"] <= bought["round"].min())].traded.any()
    assert not rows[(rows.seller == "noise") | (rows.buyer == "noise")].traded.any()
    assert rows[rows.buyer.str.startswith("s") & rows.seller.str.startswith("s")].traded.sum() > 12


def test_nobody_is_worse_after_the_day_by_more_than_noise(day, splits):
    """A test of 359 images is itself sure to two points or so."""
    entries, done = day
    gain = 100 * (done.accuracy[0, -1] - train.evaluate(NET, entries.models, splits.test).accuracy)
    assert (gain > -2).all()
    assert gain[entries.names.index("noise")] == 0
    assert gain[entries.names.index("buys")] > 20
    assert gain.mean() > 5


def test_what_is_bought_by_audit_is_a_gain_on_test_as_well_on_average(day):
    sold = day[1].ledger.rows.query("traded")
    assert (sold.audited_low > 0).all()
    assert sold.tested.mean() > 1


def test_the_league_is_sorted_by_what_was_won_and_its_money_is_the_brokers_loss(day, splits):
    entries, done = day
    table = league(NET, entries, done, splits, value=30.0)
    assert table.won.is_monotonic_decreasing
    assert sorted(table.name) == sorted(entries.names)
    assert table.money.sum() == pytest.approx(0, abs=1e-6)
    sold, before = done.ledger.rows.query("traded"), train.evaluate(NET, entries.models, splits.test).accuracy
    for row in table.itertuples():
        k = entries.names.index(row.name)
        mine, theirs = sold[sold.buyer == row.name], sold[sold.seller == row.name]
        assert (row.bid, row.bought, row.sold) == (entries.bids[k], len(mine), len(theirs))
        assert row.money == pytest.approx(theirs.received.sum() - mine.paid.sum(), abs=1e-3)
        assert (row.before, row.after) == pytest.approx((before[k].item(), done.accuracy[0, -1, k].item()), abs=1e-3)
        assert row.won == pytest.approx(row.money + 30 * 100 * (done.accuracy[0, -1, k] - before[k]).item(), abs=2e-3)


def test_with_a_fee_the_class_pays_the_broker_and_every_seller_of_a_mixture_is_counted(tmp_path, card, splits):
    few(tmp_path, card)
    entries = read_entries(tmp_path, NET, card, SEEN)
    done = trading_day(NET, entries, splits, Terms(rule="word", sellers=2, fee=0.1, claim=2.0, cost=0.5), money=500.0)
    table = league(NET, entries, done, splits, value=30.0, money=500.0)
    assert table.money.sum() == pytest.approx(-done.euros[0, -1, -1].item())
    assert done.euros[0, -1, -1] > 0
    sold = done.ledger.rows.query("traded")
    assert table.sold.sum() == 2 * len(sold) == 2 * table.bought.sum()
    assert set(sold.seller) == {"c + a", "a + b"}  # who bids nothing buys nothing


NAMES = ["x + y", "x", "y", "Ann O'Neil", 'say "hi", 50 %']


@pytest.mark.parametrize("sellers", [1, 2, 3])
def test_whatever_a_folder_is_called_what_it_bought_and_sold_is_counted(sellers, tmp_path, card, splits):
    """Names are data: nothing is joined and taken apart again."""
    models = stack.init(NET, len(NAMES), seed=0)
    for k, name in enumerate(NAMES):
        hand_in(tmp_path / name, take(models, k), card, bid=10.0)
    entries = read_entries(tmp_path, NET, card, SEEN)
    assert sorted(entries.names) == sorted(NAMES)
    done = trading_day(NET, entries, splits, Terms(rule="word", sellers=sellers, cost=0.5))
    rows = done.ledger.rows
    assert rows.traded.all()  # so everyone bought in each of four rounds, and sold as often as it was asked
    table = league(NET, entries, done, splits, value=30.0)
    assert table.bought.tolist() == [4] * 5
    assert table.sold.tolist() == [4 * sellers] * 5
    assert rows.sellers.map(len).tolist() == [sellers] * len(rows)
    assert rows.seller.tolist() == [" + ".join(names) for names in rows.sellers]
    assert {name for names in rows.sellers for name in names} == set(NAMES)


def test_a_day_without_a_sale_has_a_league_too(tmp_path, card, splits):
    few(tmp_path, card)
    entries = read_entries(tmp_path, NET, card, SEEN)
    table = league(NET, entries, trading_day(NET, entries, splits, Terms(cost=1e9)), splits, value=30.0)
    assert not table[["bought", "sold", "money", "won"]].to_numpy().any()
    assert np.array_equal(table.before, table.after)
    assert table.name.tolist() == entries.names
    assert market.ENTRY_FILE == "me.safetensors"


def test_a_market_that_never_opened_has_a_league_too(room, card, splits):
    entries = read_entries(room, NET, card, SEEN)
    quiet = trading_day(NET, entries, splits, Terms(form="alone"))
    table = league(NET, entries, quiet, splits, value=100.0)
    assert (table[["bought", "sold", "money", "won"]] == 0).all(axis=None)
    assert (table.before == table.after).all()


# Whatever one of them hands in


def raw(folder, params, card, bid=5.0):
    """A file that nobody's hand_in has looked at."""
    folder.mkdir(exist_ok=True)
    told = {**card, "bid": bid if isinstance(bid, str) else repr(bid), "content_hash": stack.content_hash(params)}
    save_file({name: tensor.contiguous() for name, tensor in params.items()}, folder / ENTRY_FILE, metadata=told)


def model():
    return take(stack.init(NET, 1, seed=3), 0)


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
    entries = read_entries(tmp_path, NET, card, SEEN)
    assert entries.names == ["a", "c"]
    assert str(tmp_path / "b" / ENTRY_FILE) in entries.refused["b"]
    for terms in (Terms(rule="word"), Terms(rule="quote", match="weights", by="loss")):
        day = trading_day(NET, entries, splits, terms)
        assert day.euros[0, -1].sum() == 2000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_of_any_precision_are_read_as_the_numbers_that_they_are(tmp_path, card, splits, dtype):
    few(tmp_path, card)
    params = stack.map(lambda tensor: tensor.to(dtype), model())
    hand_in(tmp_path / "b", params, card, 5.0)
    entries = read_entries(tmp_path, NET, card, SEEN)
    assert entries.names == ["a", "b", "c"]
    assert equal(take(entries.models, 1), stack.map(torch.Tensor.float, params))
    assert trading_day(NET, entries, splits, Terms()).euros[0, -1].sum() == 3000


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
    entries = read_entries(folder, NET, card, SEEN)
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
    entries = read_entries(tmp_path, NET, card, SEEN)
    assert entries.names == ["a", "c"]
    assert "cannot be read (RuntimeError: no kernel for this)" in entries.refused["b"]


def test_a_network_that_bursts_on_the_days_own_examples_is_named(tmp_path, card, splits):
    few(tmp_path, card)
    params = times(1e5, "1.weight")
    params["1.bias"] -= 1e6 - 1  # silent on what is small
    params["3.weight"] *= 1e5
    hand_in(tmp_path / "b", params, card, 5.0)
    entries = read_entries(tmp_path, NET, card, torch.zeros(2, 1, 8, 8))
    assert entries.names == ["a", "b", "c"]
    with pytest.raises(WeightsError, match=r"b: its weights or answers reach .*the day's own examples as x"):
        trading_day(NET, entries, splits, Terms())
    assert list(read_entries(tmp_path, NET, card, splits.quote.x).refused) == ["b"]


# Bids


SAME_BID = [5, 5.0, np.float32(5), np.float64(5), np.int64(5), np.array(5.0), torch.tensor(5.0), torch.tensor(5)]
SAME_BID += [torch.tensor(5.0, dtype=torch.bfloat16), Fraction(5), Decimal(5), np.float16(5)]


@pytest.mark.parametrize("bid", SAME_BID, ids=lambda bid: f"{type(bid).__name__} {getattr(bid, 'dtype', '')}")
def test_a_bid_may_be_a_number_of_any_make(tmp_path, card, bid):
    few(tmp_path, card)
    hand_in(tmp_path / "b", model(), card, bid)
    assert read_entries(tmp_path, NET, card, SEEN).bids[1] == 5.0
    agents = [market.Agent(name, None, bid, model()) for name in "ab"]
    market.terms.check_market(market.Market(agents, Terms(), 0))


NO_BID = ["5", b"5", None, True, np.bool_(True), [5.0], torch.ones(2), np.ones(1), 5j, 10**400, -(10**400), object()]


@pytest.mark.parametrize("bid", NO_BID, ids=lambda bid: type(bid).__name__)
def test_what_is_no_number_is_no_bid(tmp_path, card, bid):
    with pytest.raises(ParameterError, match="expected 0 euros or more"):
        hand_in(tmp_path / "a", model(), card, bid)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ParameterError, match=r"the bid of agent a = .*, expected a number between 0 and"):
        market.terms.check_market(market.Market([market.Agent("a", None, bid, model())], Terms(), 0))


@pytest.mark.parametrize("text", ["1e308", "1e11", "-0.01", "1_0", "0x5", "", "5 euros", "9" * 5000, "NaN", "5\0"])
def test_a_bid_that_somebody_wrote_by_hand_is_read_or_refused(tmp_path, card, text):
    few(tmp_path, card)
    raw(tmp_path / "b", model(), card, text)
    entries = read_entries(tmp_path, NET, card, SEEN)
    assert entries.names == ["a", "c"]
    assert "its bid is" in entries.refused["b"]


@given(st.lists(st.floats(0, 1e10), min_size=3, max_size=3), st.sampled_from(["accuracy", "loss"]))
@settings(max_examples=10)
def test_whatever_they_bid_a_day_ends_with_all_the_money(tmp_path_factory, card, splits, bids, by):
    folder = tmp_path_factory.mktemp("class")
    models = stack.init(NET, 3, seed=0)
    for k, bid in enumerate(bids):
        hand_in(folder / "abc"[k], take(models, k), card, bid)
    entries = read_entries(folder, NET, card, SEEN)
    day = trading_day(NET, entries, splits, Terms(rule="quote", by=by, cost=0.0))
    assert day.euros[0, -1].sum() == 3000
    assert (day.euros >= 0).all()


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
    hand_in(tmp_path / "sure", sure, card, 100.0)
    hand_in(tmp_path / "unsure", take(stack.init(net, 1, seed=1), 0), card, 100.0)
    entries = read_entries(tmp_path, net, card, SEEN)
    assert train.evaluate(net, take(entries.models, [0]), quote).loss.item() < 1e-6
    half = len(quote) // 2
    parts = [data.Split(quote.x[part], quote.y[part]) for part in (slice(half), slice(half, None))]
    for rule in ("word", "quote", "audit", "warranty"):
        day = trading_day(net, entries, Splits(*parts, digits.test), Terms(rule=rule, by="loss", cost=0.0))
        assert day.euros[0, -1].sum() == 2000
        assert np.isfinite(day.ledger.rows.relative).all()
