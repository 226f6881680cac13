import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from orders import equal
from torch import nn

from paramarket import align, market, stack, train
from paramarket.data import Split
from paramarket.market import (
    RULES,
    Agent,
    Books,
    Ledger,
    Market,
    Splits,
    Terms,
    meetings,
    opened,
    plants,
    revert,
    trade,
)
from paramarket.stack import chain, take

NET = stack.mlp(64, [32], 10)
LEAKY = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.LeakyReLU(0.1), nn.Linear(32, 10))  # no unit is ever silent
TRIED = [rule for rule in RULES if rule != "word"]
every_rule = pytest.mark.parametrize("rule", RULES)
every_tried_rule = pytest.mark.parametrize("rule", TRIED)


@pytest.fixture(scope="module")
def agents(digits):
    """Three, each of whom rarely sees another half of the classes."""
    return plants(digits.train, 10, 3, 0.03, 100.0, seed=0)


@pytest.fixture(scope="module")
def grown(agents, digits):
    """Of one school, then each by itself: what they can is worth something to the others."""
    school = train.fit(NET, stack.init(NET, 1, seed=0), digits.train, steps=40, lr=1e-2).stack
    return train.fit(NET, take(school, [0, 0, 0]), [agent.split for agent in agents], steps=40, lr=5e-3).stack


@pytest.fixture(scope="module")
def splits(digits):
    return Splits(digits.quote, digits.audit, digits.test)


def empty(markets, agents, euros=10_000.0):
    reports = torch.zeros(markets, agents, dtype=torch.float64)
    return Books(opened(markets, agents, euros), reports, Ledger(pd.DataFrame(), {}))


def turn(models, agents, splits, books=None, number=0, net=NET, **terms):
    """One turn of one market."""
    spec, market = align.permutation_spec(net, splits.quote.x[:1]), Market(agents, Terms(**terms), 0)
    books = books or empty(1, len(agents))
    return trade(net, spec, models, books, [market], [0], splits, number)


def spoilt(splits, models, k=0):
    """An audit that takes what model k says for the truth: to that buyer every change is a harm."""
    said = stack.forward(NET, take(models, [k]), splits.audit.x)[0].argmax(dim=1)
    return splits._replace(audit=Split(splits.audit.x, said))


def one_buyer(agents):
    """The first of two buys, the second only sells."""
    return [agents[0], agents[1]._replace(buys=False)]


# Who meets whom


def crowd(count, **terms):
    return Market([Agent(str(k), None) for k in range(count)], Terms(**terms), 0)


@given(st.integers(2, 9), st.integers(1, 3), st.integers(0, 50))
def test_nobody_asks_itself_or_anyone_twice(count, sellers, number):
    met = meetings([crowd(count, sellers=sellers)] * 2, [1, 0], number)
    asked = min(sellers, count - 1)
    assert met.sellers.shape == (2 * count, asked)
    assert met.market.tolist() == [1] * count + [0] * count
    assert met.buyer.tolist() == [*range(count)] * 2
    for buyer, others in zip(met.buyer.tolist(), met.sellers.tolist(), strict=True):
        assert len({buyer, *others}) == 1 + asked
        assert set(others) <= set(range(count))
    assert torch.equal(met.sellers[:count], met.sellers[count:])  # markets alike, meetings alike


@given(st.integers(2, 9), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))
def test_in_as_many_openings_as_there_are_others_everyone_meets_everyone_once(count, first, every, rest):
    """However seldom the market opens."""
    market, met = crowd(count, first=first, every=every), set()
    for opening in range(count - 1):
        found = meetings([market], [0], first - 1 + every * (rest + opening))
        met |= set(zip(found.buyer.tolist(), found.sellers[:, 0].tolist(), strict=True))
    assert met == set(itertools.permutations(range(count), 2))


@given(st.integers(2, 6), st.lists(st.booleans(), min_size=6, max_size=6))
def test_only_those_ask_who_buy(count, buys):
    agents = [Agent(str(k), None, buys=buys[k]) for k in range(count)]
    met = meetings([Market(agents, Terms(), 0)], [0], 0)
    assert met.buyer.tolist() == [k for k in range(count) if buys[k]]


def test_where_nobody_buys_nothing_happens(agents, grown, splits):
    books = empty(1, 3)
    after, same = turn(grown, [agent._replace(buys=False) for agent in agents], splits, books)
    assert equal(after, grown)
    assert same is books


# A turn


@every_rule
def test_a_purchase_mixes_the_models_as_they_were_before_the_turn(rule, agents, grown, splits):
    after, books = turn(grown, agents, splits, rule=rule, match="none", cost=0.0)
    rows, number = books.ledger.rows, {agent.name: k for k, agent in enumerate(agents)}
    assert rows.traded.any()
    for row in rows.itertuples():
        buyer, seller = number[row.buyer], number[row.seller]
        w = row.share if row.traded else 0.0
        for name in grown:
            mixed = (1 - w) * grown[name][buyer] + w * grown[name][seller]
            assert torch.allclose(after[name][buyer], mixed, atol=1e-6)
            assert row.traded or torch.equal(after[name][buyer], grown[name][buyer])


@pytest.mark.parametrize("match", ["none", "activations"])
@pytest.mark.parametrize("count", [2, 3])
def test_nobody_comes_first(count, match, agents, grown, splits):
    """All ask all others; in the reverse order of agents everyone ends where it did."""
    how, whole = {"sellers": count - 1, "rule": "quote", "match": match, "net": LEAKY}, slice(0, count)
    back = list(range(count))[::-1]
    there, books = turn(take(grown, whole), agents[:count], splits, **how)
    other, reversed_books = turn(take(grown, back), agents[:count][::-1], splits, **how)
    assert books.ledger.rows.traded.all()
    assert all(torch.allclose(there[name], other[name][back], atol=1e-4) for name in there)
    assert books.accounts[0, back].tolist() == reversed_books.accounts[0, :count].tolist()


def test_the_models_given_stay_as_they_are(agents, grown, splits):
    before = {name: tensor.clone() for name, tensor in grown.items()}
    books = empty(1, 3)
    after, _ = turn(grown, agents, splits, books, rule="quote")
    assert equal(grown, before)
    assert not equal(after, before)
    assert torch.equal(books.accounts, opened(1, 3, 10_000.0))
    assert books.ledger.rows.empty


def test_other_markets_stay_as_they_are(agents, grown, splits):
    market, spec = Market(agents, Terms(rule="quote"), 0), align.permutation_spec(NET, splits.quote.x[:1])
    both, books = trade(NET, spec, chain([grown, grown]), empty(2, 3), [market] * 2, [1], splits, 0)
    alone, own = turn(grown, agents, splits, rule="quote")
    assert equal(take(both, slice(3)), grown)
    assert all(torch.allclose(both[name][3:], alone[name], atol=1e-6) for name in alone)
    assert books.accounts[0].tolist() == [1_000_000] * 3 + [0]
    assert torch.equal(books.accounts[1], own.accounts[0])
    assert set(books.ledger.rows.market) == {1}


# What hinders a trade


@every_tried_rule
@pytest.mark.parametrize("by", ["accuracy", "loss"])
@pytest.mark.parametrize("match", market.MATCHES)
def test_what_gains_nothing_is_never_sold(match, by, rule, agents, grown, splits):
    models = take(grown, [0, 0, 0])
    after, books = turn(models, agents, splits, rule=rule, by=by, match=match)
    assert not books.ledger.rows.traded.any()
    assert equal(after, models)
    assert torch.equal(books.accounts, opened(1, 3, 10_000.0))
    if by == "accuracy":
        assert set(books.ledger.rows.why) == {"no gain"}


@every_tried_rule
def test_where_only_no_purchase_is_on_offer_nothing_is_sold_even_for_nothing(rule, agents, grown, splits):
    """A share of nothing: the gain is exactly 0, whatever it is measured by."""
    for by in ("accuracy", "loss"):
        after, books = turn(grown, agents, splits, rule=rule, by=by, shares=(0.0,), cost=0.0)
        assert not books.ledger.rows.traded.any()
        assert set(books.ledger.rows.why) == {"no gain"}
        assert equal(after, grown)


def test_a_word_sells_even_what_is_of_no_use(agents, grown, splits):
    models = take(grown, [0, 0, 0])
    _, books = turn(models, agents, splits, rule="word", claim=3.0, cost=2.0)
    rows = books.ledger.rows
    assert rows.traded.all()
    assert rows.promised.tolist() == [3.0] * 3
    assert rows.paid.tolist() == [(300 + 2) / 2] * 3
    assert rows.share.tolist() == [0.5] * 3
    assert rows.audited.abs().max() < 1


@pytest.mark.parametrize("claim", [0.0, -5.0])
def test_who_promises_nothing_sells_nothing(claim, agents, grown, splits):
    _, books = turn(grown, agents, splits, rule="word", claim=claim)
    assert set(books.ledger.rows.why) == {"no gain"}


@every_rule
def test_who_does_not_buy_never_buys_and_sells_all_the_same(rule, agents, grown, splits):
    cheats = [agents[0], agents[1]._replace(buys=False), agents[2]]
    after, books = turn(grown, cheats, splits, rule=rule)
    assert books.ledger.rows.buyer.tolist() == ["A", "C"]
    assert equal(take(after, 1), take(grown, 1))
    assert books.ledger.rows.query("seller == 'B'").traded.all()
    assert books.accounts[0, 1] > 1_000_000


@every_rule
def test_who_has_no_money_buys_nothing(rule, agents, grown, splits):
    after, books = turn(grown, agents, splits, empty(1, 3, 0.0), rule=rule)
    assert not books.ledger.rows.traded.any()
    assert "no money" in set(books.ledger.rows.why)
    assert equal(after, grown)
    assert not books.accounts.any()


@pytest.mark.parametrize("short", [0, 1])
def test_the_last_cent_buys_and_one_cent_less_does_not(short, agents, grown, splits):
    price = round(100 * turn(grown, agents, splits, rule="word")[1].ledger.rows.paid[0])
    _, books = turn(grown, agents, splits, empty(1, 3, (price - short) / 100), rule="word")
    assert books.ledger.rows.traded.tolist() == [not short] * 3


@every_rule
def test_what_costs_more_than_it_is_worth_is_not_sold(rule, agents, grown, splits):
    _, books = turn(grown, agents, splits, rule=rule, cost=9_999.0)
    assert not books.ledger.rows.traded.any()
    assert "no price suits both" in set(books.ledger.rows.why)


# Rules


@every_rule
@pytest.mark.parametrize("by", ["accuracy", "loss"])
def test_a_sale_leaves_nobody_worse_off_by_what_it_believes(by, rule, agents, grown, splits):
    """Cost ≤ received ≤ paid ≤ value, the value being the bid times what was promised; all in whole cents.

    The cost is that of every seller of whom something was bought: of a word, of all who were asked.
    """
    for power, fee, sellers in [(0.5, 0.0, 1), (0.9, 0.1, 2), (0.1, 0.02, 1)]:
        bids = [agent._replace(bid=bid) for agent, bid in zip(agents, (10.0, 20.0, 33.3), strict=True)]
        how = {"rule": rule, "by": by, "power": power, "fee": fee, "sellers": sellers, "cost": 1.5}
        rows = turn(grown, bids, splits, **how)[1].ledger.rows
        sold, bid = rows[rows.traded], rows.buyer.map({agent.name: agent.bid for agent in bids})[rows.traded]
        assert len(sold)
        cost = sold.received - sold.seller_surplus
        assert set((cost / 1.5).round(9)) <= ({sellers} if rule == "word" else {*range(1, sellers + 1)})
        assert (sold.received >= cost).all()
        assert (sold.paid >= sold.received).all()
        assert (sold.promised * bid >= sold.paid).all()
        assert np.allclose(100 * sold[["paid", "received"]], (100 * sold[["paid", "received"]]).round(), atol=1e-6)
        assert np.allclose(sold.buyer_surplus, sold.promised * bid - sold.paid)
        assert np.allclose(sold.paid, cost + power * (sold.promised * bid - cost), atol=0.0051)  # Nash
        assert (rows[~rows.traded][["paid", "received"]] == 0).all(axis=None)


def test_all_power_to_the_seller_takes_the_whole_value(agents, grown, splits):
    """And to the buyer, only the cost: an end of the range is a price, not a trade less."""
    usual = turn(grown, agents, splits, rule="quote")[1].ledger.rows
    assert usual.traded.all()
    for power in (0.0, 1.0):
        rows = turn(grown, agents, splits, rule="quote", power=power)[1].ledger.rows
        assert rows.traded.all()
        assert np.allclose(rows.paid, rows.promised * 100 if power else 1.0, atol=0.011)


@pytest.mark.parametrize("fee", [0.0, 0.1, 0.5])
def test_the_fee_is_the_brokers(fee, agents, grown, splits):
    _, books = turn(grown, agents, splits, rule="quote", fee=fee)
    sold = books.ledger.rows.query("traded")
    assert len(sold)
    assert books.accounts[0, -1].item() == round(100 * (sold.paid - sold.received).sum())
    assert np.allclose(sold.paid - sold.received, fee * sold.paid, atol=0.0101)
    assert books.accounts.sum().item() == 3_000_000


def test_everyone_pays_and_is_paid_what_the_ledger_says(agents, grown, splits):
    _, books = turn(grown, agents, splits, rule="quote", fee=0.1)
    rows = books.ledger.rows
    for k, name in enumerate("ABC"):
        own = rows.received[rows.seller == name].sum() - rows.paid[rows.buyer == name].sum()
        assert books.accounts[0, k].item() == 1_000_000 + round(100 * own)


def test_an_audited_market_sells_only_what_is_surely_a_gain(agents, grown, splits, generator):
    seen = []
    for wrong in (0.0, 0.3, 0.6, 0.8, 1.0):
        y = splits.audit.y.clone()
        y[: round(wrong * len(y))] = torch.randint(0, 10, (round(wrong * len(y)),), generator=generator)
        audit = Split(splits.audit.x, y)
        seen.append(turn(grown, agents, splits._replace(audit=audit), rule="audit")[1].ledger.rows)
    rows = pd.concat(seen)
    assert (rows.audited_low[rows.traded] > 0).all()
    assert (rows.promised == rows.audited_low).all()
    assert set(rows.why[(rows.audited_low <= 0)]) == {"no gain"}
    assert rows.traded.any()
    assert (rows.quoted[rows.audited_low <= 0] > 0).any()  # though the quote was good


def test_who_finds_less_than_warranted_gets_money_and_weights_back(agents, grown, splits):
    before, pair = take(grown, slice(2)), one_buyer(agents)
    after, books = turn(before, pair, spoilt(splits, grown), rule="warranty", warranted=0.0)
    row = books.ledger.rows.iloc[0]
    assert (row.refunded, row.traded, row.why, row.paid, row.received) == (True, False, "refunded", 0, 0)
    assert row.seller_surplus == -1.0  # it bore the transfer for nothing
    assert row.quoted > 0 > row.audited
    assert equal(after, before)
    assert torch.equal(books.accounts, opened(1, 2, 10_000.0))
    assert not books.ledger.before
    assert not books.reports.any()  # of what was not sold nobody reports
    assert turn(before, pair, splits, rule="warranty", warranted=0.0)[1].ledger.rows.traded.all()


@pytest.mark.parametrize("by", ["accuracy", "loss"])
def test_a_warranty_is_kept_where_the_found_reaches_the_warranted_share(by, agents, grown, splits):
    for share in (0.0, 0.5, 0.9, 1.0):
        rows = turn(grown, agents, splits, rule="warranty", warranted=share, by=by)[1].ledger.rows
        if by == "accuracy":
            assert (rows.refunded == (rows.audited < share * rows.quoted)).all()
        assert (rows.traded | rows.refunded).all()


def test_nobody_buys_again_from_a_seller_of_harm(agents, grown, splits):
    before, pair, harm = take(grown, slice(2)), one_buyer(agents), spoilt(splits, grown)
    _, books = turn(before, pair, harm, rule="reputation")
    assert books.ledger.rows.traded.tolist() == [True]
    assert books.reports[0, 1].item() == pytest.approx(books.ledger.rows.audited[0])
    assert books.reports[0, 0].item() == 0
    after, later = turn(before, pair, harm, books, number=1, rule="reputation")
    assert later.ledger.rows.why.tolist() == ["", "seller not trusted"]
    assert equal(after, before)
    assert torch.equal(later.accounts, books.accounts)
    assert turn(before, pair, harm, books, number=1, rule="quote")[1].ledger.rows.traded.all()


def test_of_whom_nothing_was_bought_nothing_is_reported(agents, grown, splits):
    """The first asks both others; the best mixture is half of the third."""
    trio = [agents[0], *(agent._replace(buys=False) for agent in agents[1:])]
    _, books = turn(grown, trio, splits, rule="quote", sellers=2, shares=(0.5,))
    row = books.ledger.rows.iloc[0]
    assert books.accounts[0, 1:3].tolist() == [1_000_000, 1_000_000 + round(100 * row.received)]
    assert books.reports[0].tolist() == pytest.approx([0, 0, row.audited])
    assert row.seller_surplus == pytest.approx(row.received - 1.0)  # one transfer


def test_a_good_report_keeps_a_seller_in_business(agents, grown, splits):
    pair = one_buyer(agents)
    _, books = turn(take(grown, slice(2)), pair, splits, rule="reputation")
    assert books.reports[0, 1] > 0
    _, later = turn(take(grown, slice(2)), pair, splits, books, number=1, rule="reputation")
    assert later.ledger.rows.traded.tolist() == [True, True]
    assert later.reports[0, 1].item() == pytest.approx(2 * books.reports[0, 1].item())


# What is written


def test_the_ledger_says_what_was_measured(agents, grown, splits):
    after, books = turn(grown, agents, splits, rule="quote", match="weights", sellers=2)
    for k, row in enumerate(books.ledger.rows.itertuples()):
        scores = {
            name: [train.evaluate(NET, take(models, [k]), getattr(splits, name)) for models in (grown, after)]
            for name in splits._fields
        }
        gains = {name: 100 * (b.accuracy - a.accuracy).item() for name, (a, b) in scores.items()}
        assert (row.quoted, row.audited, row.tested) == pytest.approx(tuple(gains.values()), abs=1e-3)
        was, becomes = scores["test"]
        assert row.relative == pytest.approx(1 - (becomes.loss / was.loss).item(), abs=1e-5)
        counts = agents[k].split.y.bincount(minlength=10)
        known = 2 * counts >= counts.max()
        assert known.sum() == 5
        own = 100 * (becomes.class_accuracy - was.class_accuracy)[0, known].mean()
        assert row.own_classes == pytest.approx(own.item(), abs=1e-3)
        assert row.hash == stack.content_hash(take(after, k))
        assert (row.round, row.match, row.rule, row.buyer) == (1, "weights", "quote", agents[k].name)
        assert set(row.seller.split(" + ")) <= {agents[(k + step) % 3].name for step in (1, 2)}
        assert equal(revert(books.ledger, row.Index), take(grown, k))


def test_a_purchase_by_layers_is_never_a_worse_quote(agents, grown, splits):
    whole, layers = (turn(grown, agents, splits, rule="quote", by="loss", parts=parts) for parts in market.PARTS)
    assert (layers[1].ledger.rows.promised >= whole[1].ledger.rows.promised - 1e-4).all()


def test_the_guard_bounds_what_a_purchase_costs_on_the_classes_it_knew(agents, grown, splits):
    for bound in (0.0, 2.0):
        after, books = turn(grown, agents, splits, rule="quote", max_class_loss=bound)
        assert books.ledger.rows.traded.any()
        for k, agent in enumerate(agents):
            counts = agent.split.y.bincount(minlength=10)
            known = torch.isin(splits.quote.y, (2 * counts >= counts.max()).nonzero().flatten())
            home = Split(splits.quote.x[known], splits.quote.y[known])
            was, becomes = (train.evaluate(NET, take(models, [k]), home).accuracy.item() for models in (grown, after))
            assert 100 * (was - becomes) <= bound + 1e-3


@pytest.mark.parametrize("k", range(3))
def test_those_with_a_part_in_the_offer_are_named_and_paid_and_nobody_else(agents, grown, splits, k):
    """One buyer, two who are asked: whoever has more money than before is named as a seller."""
    alone = [agent._replace(buys=agent is agents[k]) for agent in agents]
    named = []
    for shares in ((0.1,), (0.5,), (0.9,)):
        start = empty(1, 3)
        _, books = turn(grown, alone, splits, start, rule="quote", by="loss", sellers=2, shares=shares, cost=0.0)
        (row,) = books.ledger.rows.itertuples()
        richer = [
            agent.name for agent, cents in zip(agents, books.accounts[0] - start.accounts[0], strict=False) if cents > 0
        ]
        assert row.traded
        assert sorted(row.seller.split(" + ")) == sorted(richer)
        named.append(len(richer))
    assert set(named) <= {1, 2}
    _, none = turn(grown, alone, splits, rule="quote", by="loss", sellers=2, shares=(0.0,))
    assert none.ledger.rows.seller.str.count("\\+").tolist() == [1]  # nobody gave: all who were asked
