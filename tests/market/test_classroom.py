import math
import pickle
import re

import numpy as np
import pytest
import torch
from orders import equal

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


NAMES = ["x + y", "x", "y", "Ann Lee", "O'Neil", 'say "hi"', "50 %"]


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
    assert rows.traded.all()  # so everyone bought in each of six rounds, and sold as often as it was asked
    table = league(NET, entries, done, splits, value=30.0)
    assert table.bought.tolist() == [6] * 7
    assert table.sold.tolist() == [6 * sellers] * 7
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
