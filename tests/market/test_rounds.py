import itertools
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

import numpy as np
import pandas as pd
import pytest
import torch
from devices import second_device
from hypothesis import given
from hypothesis import strategies as st
from orders import equal
from torch import nn

from paramarket import align, market, stack, train
from paramarket.base import Interval, stream
from paramarket.data import Split
from paramarket.errors import ParameterError, ShapeError
from paramarket.market import (
    AUTHORS,
    RULES,
    Agent,
    Market,
    Meetings,
    Quote,
    Splits,
    Terms,
    meetings,
    open_accounts,
    open_books,
    plants,
    revert,
    trade,
)
from paramarket.market.rounds import Appraisal, _order, _settle, _with_payments
from paramarket.stack import chain, take

SMALL = stack.mlp(64, [16], 10)
HOW = {"steps": 12, "lr": 5e-3, "batch": 32}
QUOTE = Terms(rule="quote", by="loss", cost=0.0)
ALONE = Terms(form="alone")
AVERAGE = Terms(form="average")
NET = stack.mlp(64, [32], 10)
LEAKY = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.LeakyReLU(0.1), nn.Linear(32, 10))  # no unit is ever silent
TRIED = [rule for rule in RULES if rule != "word"]
MONEY = ["paid", "received", "buyer_surplus", "seller_surplus"]
every_rule = pytest.mark.parametrize("rule", RULES)
every_tried_rule = pytest.mark.parametrize("rule", TRIED)


@pytest.fixture(scope="module")
def splits(digits):
    return Splits(digits.quote, digits.audit, digits.test)


@pytest.fixture(scope="module")
def members(digits):
    """Three of unequal size: the second keeps a third of what it holds."""
    first, second, third = plants(digits.train, 10, count=3, share=0.05, bid=100.0, seed=0)
    some = second.split
    return [first, second._replace(split=Split(some.x[::3], some.y[::3])), third]


def run(splits, *markets, rounds=2, **more):
    return market.run(SMALL, markets, splits, rounds=rounds, **(HOW | more))


def fitted(models, members, seed, turn=0, state=None, weight_decay=0.0):
    """A round of training by hand: agent k takes the order of its seed, its number and the round."""
    orders = [stream(seed, "market", "order", k, turn) for k in range(len(members))]
    data = [agent.split for agent in members]
    more = {"generators": orders, "state": state, "weight_decay": weight_decay, "schedule": "constant"}
    return train.fit(SMALL, models, data, **HOW, **more)


def close(one, other, atol=1e-5):
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=atol) for name in one)


# Money


def test_the_money_of_every_market_is_what_it_was_in_every_round(members, splits):
    arms = [Terms(rule=rule, fee=0.1, sellers=2, parts="layers", shares=(0.3, 0.6)) for rule in RULES]
    done = run(splits, *(Market(members, terms, 0) for terms in [*arms, QUOTE, ALONE, AVERAGE]), rounds=3)
    assert done.ledger.rows.traded.any()
    assert done.euros.shape == (8, 3, 4)
    assert torch.allclose(done.euros.sum(dim=2), torch.full((8, 3), 30_000.0).to(done.euros), atol=1e-6)
    assert (done.euros[-2:, :, :3] == 10_000).all()
    sold = done.ledger.rows
    for m in range(8):
        kept = (sold.paid - sold.received)[sold.market == m].sum()
        assert done.euros[m, -1, -1].item() == pytest.approx(kept, abs=1e-6)


def test_not_a_cent_of_ten_millions_is_lost(members, splits):
    done = run(splits, Market(members, QUOTE, 0), money=10_000_000.01)
    assert done.ledger.rows.traded.any()
    cents = 100 * done.euros.double()
    assert torch.allclose(cents, cents.round(), atol=1e-6)
    assert cents[0, -1].sum().round().item() == 3 * 1_000_000_001


def test_who_starts_with_nothing_buys_nothing(members, splits):
    done = run(splits, Market(members, Terms(rule="word"), 0), Market(members, ALONE, 0), money=0.0)
    assert set(done.ledger.rows.why) == {"no money"}
    assert not done.euros.any()
    assert close(take(done.models, slice(3)), take(done.models, slice(3, 6)))


# What depends on what


def test_the_same_arguments_give_the_same_outcome_bit_for_bit(members, splits):
    one, other = (run(splits, Market(members, QUOTE, 3), Market(members, AVERAGE, 4)) for _ in range(2))
    assert equal(one.models, other.models)
    assert torch.equal(one.accuracy, other.accuracy)
    assert torch.equal(one.euros, other.euros)
    assert one.ledger.rows.equals(other.ledger.rows)
    assert one.ledger.before.keys() == other.ledger.before.keys()


def test_what_is_given_stays_as_it_is_and_so_does_chance(members, splits):
    own = stack.init(SMALL, 1, seed=5)
    mine = members[0]._replace(weights=take({name: tensor.clone() for name, tensor in own.items()}, 0))
    before = torch.random.get_rng_state()
    run(splits, Market([mine, *members[1:]], QUOTE, 0), rounds=1)
    assert equal(mine.weights, take(own, 0))
    assert torch.equal(before, torch.random.get_rng_state())


def test_markets_do_not_touch_one_another(members, splits):
    all_of_them = [Market(members, QUOTE, 0), Market(members[::-1], Terms(rule="audit", match="weights"), 1)]
    all_of_them += [Market(members, ALONE, 0), Market(members, AVERAGE, 2), Market(members, QUOTE, 7)]
    together = run(splits, *all_of_them)
    for m, one in enumerate(all_of_them):
        alone, here = run(splits, one), slice(3 * m, 3 * m + 3)
        assert close(take(together.models, here), alone.models, atol=1e-4)
        assert torch.allclose(together.accuracy[m], alone.accuracy[0], atol=0.003)
        assert torch.equal(together.euros[m], alone.euros[0])
        rows = together.ledger.rows
        rows = rows[rows.market == m] if len(rows) else rows
        for column in ("buyer", "seller", "round", "traded", "why", "paid"):
            assert rows[column].tolist() == ([] if alone.ledger.rows.empty else alone.ledger.rows[column].tolist())


def test_arms_of_one_seed_start_and_shuffle_alike_and_other_seeds_do_not(members, splits):
    later = Terms(rule="word", first=3)
    done = run(splits, Market(members, ALONE, 0), Market(members, later, 0), Market(members, ALONE, 1), rounds=3)
    accuracy = done.accuracy
    assert torch.equal(accuracy[0, :2], accuracy[1, :2])
    assert not torch.equal(accuracy[0, 2], accuracy[1, 2])  # now they trade
    assert not torch.equal(accuracy[0, :2], accuracy[2, :2])
    row = done.ledger.rows.iloc[0]
    assert (row.market, row.buyer, row["round"]) == (1, "A", 3)
    assert close(revert(done.ledger, 0), take(done.models, 0))  # before its first trade as if alone


# Training


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_alone_is_plain_training(weight_decay, members, splits):
    done = run(splits, Market(members, ALONE, 5), rounds=1, weight_decay=weight_decay)
    plain = fitted(stack.init(SMALL, 3, seed=5), members, 5, weight_decay=weight_decay).stack
    assert equal(done.models, plain)
    assert torch.equal(done.accuracy[0, 0], train.evaluate(SMALL, plain, splits.test).accuracy)
    assert done.ledger.rows.empty
    assert (done.euros[0, 0] == torch.tensor([10_000.0] * 3 + [0.0])).all()


@pytest.mark.parametrize("reset", [True, False])
def test_the_optimiser_goes_on_or_begins_anew(reset, members, splits):
    done = run(splits, Market(members, ALONE, 0), rounds=2, reset=reset)
    first = fitted(stack.init(SMALL, 3, seed=0), members, 0)
    ways = {kept: fitted(first.stack, members, 0, 1, None if kept else first.state).stack for kept in (True, False)}
    assert equal(done.models, ways[reset])
    assert not equal(done.models, ways[not reset])


def test_a_round_is_an_epoch_of_the_largest_unless_told(members, splits):
    largest = max(len(agent.split) for agent in members)
    steps = -(-largest // 32)
    one, other = (run(splits, Market(members, ALONE, 0), rounds=1, steps=each) for each in (None, steps))
    assert equal(one.models, other.models)


def test_no_steps_are_no_training(members, splits):
    done = run(splits, Market(members, ALONE, 0), steps=0)
    assert equal(done.models, stack.init(SMALL, 3, seed=0))


@pytest.mark.parametrize("terms", [ALONE, QUOTE])
def test_who_learns_no_more_keeps_its_weights_bit_for_bit(terms, members, splits):
    fixed = [members[0], members[1]._replace(split=None, buys=False), members[2]]
    done = run(splits, Market(fixed, terms, 0))
    assert equal(take(done.models, 1), take(stack.init(SMALL, 3, seed=0), 1))
    if terms.form == "alone":  # and the others learn as if all did
        plain = run(splits, Market(members, terms, 0))
        assert close(take(done.models, [0, 2]), take(plain.models, [0, 2]))


def test_nobody_need_learn(members, splits):
    done = run(splits, Market([agent._replace(split=None) for agent in members], ALONE, 2), steps=None)
    assert equal(done.models, stack.init(SMALL, 3, seed=2))


def test_who_brings_weights_starts_from_them(members, splits):
    brought = stack.init(SMALL, 2, seed=9)
    some = [members[0]._replace(weights=take(brought, 0)), members[1], members[2]._replace(weights=take(brought, 1))]
    done = run(splits, Market(some, ALONE, 0), steps=0)
    own = take(stack.init(SMALL, 3, seed=0), 1)
    assert equal(done.models, stack.join([take(brought, 0), own, take(brought, 1)]))


# Orders of training


def test_no_two_agents_seeds_or_rounds_share_an_order():
    """At 1,000 and 10,000 rounds too, where sums of numbers would meet: each purpose is a name of its own."""
    turns = [*range(50), 999, 1000, 1001, 1999, 2000, 9999, 10_000]
    purposes = list(itertools.product((0, 1, 2), range(4), turns))
    assert len({_order(*purpose).initial_seed() for purpose in purposes}) == len(purposes)


@given(st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 25), st.integers(0, 10_000)), unique=True, max_size=30))
def test_orders_are_named_by_seed_agent_and_round(purposes):
    assert len({_order(*purpose).initial_seed() for purpose in purposes}) == len(purposes)


# A second device


@pytest.mark.parametrize("terms", [QUOTE, AVERAGE, Terms(rule="word", match="none"), Terms(rule="warranty", sellers=2)])
def test_a_market_on_another_device_is_the_same_and_shows_its_results_on_the_cpu(terms, members, splits):
    brought = take(stack.init(SMALL, 1, seed=9), 0)
    some = [members[0]._replace(weights=brought), members[1], members[2]._replace(split=members[1].split)]
    plain = run(splits, Market(some, terms, 0), steps=3)
    with second_device() as other:
        done = run(splits, Market(some, terms, 0), steps=3, device=other)
        assert stack.device(done.models).type == other.type
        assert done.accuracy.device.type == done.euros.device.type == "cpu"
        back = stack.map(lambda tensor: tensor.cpu(), done.models)
        ledger = done.ledger
        for number in ledger.before:
            assert stack.device(revert(ledger, number)).type == other.type
    assert close(back, plain.models)
    assert torch.allclose(done.accuracy, plain.accuracy, atol=1e-6)
    assert torch.equal(done.euros, plain.euros)
    pd.testing.assert_frame_equal(ledger.rows, plain.ledger.rows, atol=1e-4)


# Averages


def test_an_average_is_the_mean_weighed_by_examples(members, splits):
    done = run(splits, Market(members, AVERAGE, 0), rounds=1)
    counts = torch.tensor([len(agent.split) for agent in members])
    assert len(set(counts.tolist())) > 1
    plain = fitted(stack.init(SMALL, 3, seed=0), members, 0).stack
    for name, tensor in plain.items():
        mean = torch.tensordot(counts / counts.sum(), tensor, dims=1)
        assert torch.allclose(done.models[name], mean.expand_as(tensor), atol=1e-6)


def test_all_are_equal_after_every_average(members, splits):
    done = run(splits, Market(members, AVERAGE, 0), Market(members, ALONE, 0), rounds=3)
    assert (done.accuracy[0] == done.accuracy[0, :, :1]).all()
    assert all(torch.equal(tensor[0], tensor[k]) for tensor in done.models.values() for k in (1, 2))
    assert not torch.equal(done.models["1.weight"][3], done.models["1.weight"][4])


# When


@pytest.mark.parametrize(
    ("first", "every", "open_in"),
    [(1, 1, [1, 2, 3, 4, 5]), (3, 1, [3, 4, 5]), (2, 3, [2, 5]), (1, 2, [1, 3, 5]), (6, 1, [])],
)
def test_a_market_opens_when_its_terms_say(first, every, open_in, members, splits):
    terms = Terms(rule="word", first=first, every=every)
    rows = run(splits, Market(members, terms, 0), rounds=5, steps=1).ledger.rows
    assert (rows["round"].unique().tolist() if open_in else rows.columns.tolist()) == open_in
    assert len(rows) == 3 * len(open_in)
    assert rows.empty or rows.groupby("round").buyer.agg(list).tolist() == [["A", "B", "C"]] * len(open_in)


def test_a_market_that_opens_every_other_round_lets_all_meet(members, splits):
    rows = run(splits, Market(members, Terms(rule="word", every=2), 0), rounds=3, steps=1).ledger.rows
    assert set(zip(rows.buyer, rows.seller, strict=True)) == {(a, b) for a in "ABC" for b in "ABC" if a != b}


# The market as a whole


def test_every_purchase_can_be_undone_and_the_ledger_tells_what_came_of_it(members, splits):
    done = run(splits, Market(members, QUOTE, 0), Market(members, ALONE, 0))
    rows = done.ledger.rows
    assert rows.index.tolist() == list(range(6))
    assert sorted(done.ledger.before) == rows.index[rows.traded].tolist()
    last = rows[(rows["round"] == 2) & rows.traded]
    assert len(last)
    for row in last.itertuples():
        k = "ABC".index(row.buyer)
        assert row.hash == stack.content_hash(take(done.models, k))
        was = train.evaluate(SMALL, stack.join([revert(done.ledger, row.Index)]), splits.test).accuracy.item()
        assert row.tested == pytest.approx(100 * (done.accuracy[0, -1, k].item() - was), abs=1e-3)


def test_the_authors_setting_runs(generator):
    net = stack.mlp(20, AUTHORS["hidden"], 4)
    centres = torch.randn(4, 20, generator=generator)

    def drawn(n):
        y = torch.randint(0, 4, (n,), generator=generator)
        return Split(centres[y] + torch.randn(n, 20, generator=generator), y)

    members = plants(drawn(600), 4, count=2, share=AUTHORS["kept_share"], bid=100.0, seed=0)
    arms = [Market(members, AUTHORS["terms"], 0), Market(members, ALONE, 0)]
    done = market.run(net, arms, Splits(drawn(200), drawn(210), drawn(220)), **(AUTHORS["settings"] | {"rounds": 2}))
    rows = done.ledger.rows
    assert done.accuracy.shape == (2, 2, 2)
    assert rows["round"].tolist() == [1, 1, 2, 2]
    assert set(rows.why) <= {"", "no gain"}  # they buy whatever gains something
    assert (rows.traded == (rows.promised > 0)).all()
    assert {round(share, 2) for share in rows.share.tolist()} <= {0.0, *AUTHORS["terms"].shares}


@pytest.mark.parametrize("learn", [True, False])
def test_classes_that_are_not_tested_do_no_harm(learn, members, splits):
    members = [agent if learn else agent._replace(split=None) for agent in members]
    kept = splits.test.y < 8
    few = splits._replace(test=Split(splits.test.x[kept], splits.test.y[kept]))
    rows, usual = (run(each, Market(members, QUOTE, 0), rounds=1).ledger.rows for each in (few, splits))
    assert rows.traded.tolist() == usual.traded.tolist()
    assert np.isfinite(rows.tested).all()


# What is refused


@pytest.mark.parametrize("rounds", [0, -1])
def test_a_market_needs_a_round(rounds, members, splits):
    with pytest.raises(ParameterError, match=rf"^rounds = {rounds}, expected a round or more\.$"):
        run(splits, Market(members, QUOTE, 0), rounds=rounds)


@pytest.mark.parametrize("sizes", [[], [1], [0], [3, 2]])
def test_markets_are_of_equal_size_and_two_or_more(sizes, members, splits):
    found = str(sorted(sizes)).replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(ParameterError, match=rf"^markets of {found} agents: .*equal size, of two or more agents each"):
        run(splits, *(Market(members[:size], QUOTE, 0) for size in sizes))


@pytest.mark.parametrize(("one", "other"), [("quote", "audit"), ("quote", "test"), ("audit", "test")])
def test_no_set_serves_twice(one, other, members, splits):
    again = getattr(splits, one)
    twice = splits._replace(**{other: Split(again.x.clone(), again.y)})
    with pytest.raises(ParameterError, match=rf"{one} and {other} are the same examples"):
        run(twice, Market(members, QUOTE, 0))


def test_debts_are_refused(members, splits):
    with pytest.raises(ParameterError, match=r"money = -1\.0, expected 0 euros or more"):
        run(splits, Market(members, QUOTE, 0), money=-1.0)


def test_an_average_needs_the_number_of_everyones_examples(members, splits):
    with pytest.raises(ParameterError, match="every agent in such a market needs a split"):
        run(splits, Market([members[0], Agent("B", None)], AVERAGE, 0))


def test_weights_of_another_net_are_refused_by_the_name_of_who_brings_them(members, splits):
    other = take(stack.init(stack.mlp(64, [15], 10), 1, seed=0), 0)
    with pytest.raises(ShapeError, match=r"the weights of agent B and the net do not fit: '1\.weight'"):
        run(splits, Market([members[0], members[1]._replace(weights=other)], QUOTE, 0))


def test_all_matches_trade(members, splits):
    arms = [Market(members, Terms(match=match, rule="word"), 0) for match in market.MATCHES]
    done = run(splits, *arms, rounds=1)
    assert done.ledger.rows.match.tolist() == [match for match in market.MATCHES for _ in range(3)]
    assert done.ledger.rows.traded.all()
    shares = done.ledger.rows.share.tolist()
    assert shares == [0.5] * 9


# One round of trade


@pytest.fixture(scope="module")
def agents(digits):
    """Three, each of whom rarely sees another half of the classes."""
    return plants(digits.train, 10, count=3, share=0.03, bid=100.0, seed=0)


@pytest.fixture(scope="module")
def grown(agents, digits):
    """Of one school, then each by itself: what they can is worth something to the others."""
    school = train.fit(NET, stack.init(NET, 1, seed=0), digits.train, steps=40, lr=1e-2).stack
    return train.fit(NET, take(school, [0, 0, 0]), [agent.split for agent in agents], steps=40, lr=5e-3).stack


def turn(models, agents, splits, books=None, number=0, net=NET, **terms):
    """One turn of one market."""
    spec, market = align.permutation_spec(net, splits.quote.x[:1]), Market(agents, Terms(**terms), 0)
    books = books or open_books(1, len(agents), 10_000.0)
    return trade(net, spec, models, splits, books=books, markets=[market], due=[0], turn=number)


def cents(euros):
    """A column of the ledger in cents: whole, exactly as a hundredth of a whole number is written."""
    whole = (100 * euros).round()
    assert (whole / 100 == euros).all()
    return whole


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
    books = open_books(1, 3, 10_000.0)
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
    books = open_books(1, 3, 10_000.0)
    after, _ = turn(grown, agents, splits, books, rule="quote")
    assert equal(grown, before)
    assert not equal(after, before)
    assert torch.equal(books.accounts, open_accounts(1, 3, 10_000.0))
    assert books.ledger.rows.empty


def test_other_markets_stay_as_they_are(agents, grown, splits):
    market, spec = Market(agents, Terms(rule="quote"), 0), align.permutation_spec(NET, splits.quote.x[:1])
    start = open_books(2, 3, 10_000.0)
    both, books = trade(NET, spec, chain([grown, grown]), splits, books=start, markets=[market] * 2, due=[1], turn=0)
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
    assert torch.equal(books.accounts, open_accounts(1, 3, 10_000.0))
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
    after, books = turn(grown, agents, splits, open_books(1, 3, 0.0), rule=rule)
    assert not books.ledger.rows.traded.any()
    assert "no money" in set(books.ledger.rows.why)
    assert equal(after, grown)
    assert not books.accounts.any()


@pytest.mark.parametrize("short", [0, 1])
def test_the_last_cent_buys_and_one_cent_less_does_not(short, agents, grown, splits):
    price = round(100 * turn(grown, agents, splits, rule="word")[1].ledger.rows.paid[0])
    _, books = turn(grown, agents, splits, open_books(1, 3, (price - short) / 100), rule="word")
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
        paid, received, won, kept = (cents(sold[name]) for name in MONEY)
        cost = received - kept
        assert set(cost / 150) <= ({sellers} if rule == "word" else {*range(1, sellers + 1)})
        assert (received >= cost).all()
        assert (paid >= received).all()
        value = paid + won
        exact = 100 * sold.promised * bid
        assert (value <= exact + 1e-6).all()
        assert (value > exact - 1).all()
        assert (won >= 0).all()
        nash = cost + power * (value - cost)
        assert ((paid - nash).abs() <= 0.5 + 1e-9).all()
        assert ((paid - received - fee * paid).abs() <= 0.5 + 1e-9).all()
        assert (rows[~rows.traded][["paid", "received"]] == 0).all(axis=None)


def test_all_power_to_the_seller_takes_the_whole_value(agents, grown, splits):
    """And to the buyer, only the cost: an end of the range is a price, not a trade less."""
    usual = turn(grown, agents, splits, rule="quote")[1].ledger.rows
    assert usual.traded.all()
    for power in (0.0, 1.0):
        rows = turn(grown, agents, splits, rule="quote", power=power)[1].ledger.rows
        assert rows.traded.all()
        assert (cents(rows.paid) == (np.floor(10_000 * rows.promised + 1e-6) if power else 100)).all()


@pytest.mark.parametrize("fee", [0.0, 0.1, 0.5])
def test_the_fee_is_the_brokers(fee, agents, grown, splits):
    _, books = turn(grown, agents, splits, rule="quote", fee=fee)
    sold = books.ledger.rows.query("traded")
    assert len(sold)
    assert books.accounts[0, -1].item() == round(100 * (sold.paid - sold.received).sum())
    assert ((cents(sold.paid) - cents(sold.received) - fee * cents(sold.paid)).abs() <= 0.5 + 1e-9).all()
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
    assert torch.equal(books.accounts, open_accounts(1, 2, 10_000.0))
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


# Whole cents, from quote to ledger


def appraised(shares, points):
    """One buyer who is offered a mixture of as many sellers, on top of what the quote and the audit found: points."""
    weights = torch.tensor([[[1 - sum(shares), *shares]]])
    gain = torch.tensor([float(points)])
    offer = Quote(torch.tensor([1]), weights, gain, gain, gain / 100, torch.zeros(1, 2), {})
    found = Interval(*[np.array([float(points)])] * 3)
    audit = market.Audit(found, found, Interval(*[part / 100 for part in found]), torch.zeros(1, 2), torch.zeros(1, 2))
    return Appraisal(offer, audit, audit, torch.ones(1, 2, dtype=torch.bool))


def settled(bid, claim=1.0, shares=(0.5,), euros=10_000.0, **terms):
    """The deal of one buyer and so many sellers, by word: worth bid times claim; and the books after it."""
    sellers = len(shares)
    books, appraisal = open_books(1, 1 + sellers, euros), appraised(shares, claim)
    met = Meetings(torch.tensor([0]), torch.tensor([0]), torch.arange(1, 1 + sellers).unsqueeze(0))
    found = _settle(Terms(rule="word", claim=claim, **terms), [Agent("A", None, bid)], met, appraisal, books)
    return found, _with_payments(books, met, appraisal, found.deal, books.ledger)


def whole(amount, rounding):
    return int((100 * amount).to_integral(rounding))


some_money = st.decimals(0, 60, places=2)
some_sellers = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.3]), min_size=1, max_size=3).filter(any)


@given(
    bid=some_money,
    claim=st.decimals("0.01", 20, places=2),
    cost=st.decimals(0, 300, places=3),
    power=st.sampled_from([0.0, 0.25, 0.5, 1 / 3, 1.0]),
    fee=st.sampled_from([0.0, 0.02, 0.1, 1 / 3]),
    shares=some_sellers,
)
def test_money_is_whole_cents_and_nobody_pays_or_gets_a_fraction_too_much(bid, claim, cost, power, fee, shares):
    """Cost ≤ received ≤ paid ≤ value in cents, the value rounded down, costs up, from the decimals as written."""
    (_, deal, why), books = settled(
        float(bid), float(claim), shares, cost=float(cost), power=power, fee=fee, sellers=len(shares)
    )
    value = whole(bid * claim, ROUND_FLOOR)
    costs = whole(cost, ROUND_CEILING) * sum(share > 0 for share in shares)
    paid = round(Decimal(costs + power * (value - costs)).quantize(Decimal("1e-9")))  # Python's round: halves to even
    received = paid - round(Decimal(fee * paid).quantize(Decimal("1e-9")))
    fits = costs <= received <= paid <= value
    assert bool(deal.traded[0]) is fits
    assert why == ["" if fits else "no price suits both"]
    expected = [paid, received, value - paid, received - costs, paid - received] if fits else [0] * 5
    assert [part.item() for part in deal[2:]] == expected
    won = (books.accounts - open_accounts(1, 1 + len(shares), 10_000.0))[0].tolist()
    assert sum(won) == 0
    assert (won[0], won[-1]) == (-expected[0], expected[0] - expected[1])
    for cents_won, share in zip(won[1:-1], shares, strict=True):
        assert abs(cents_won - expected[1] * share / sum(shares)) < 1
        assert cents_won == 0 or share > 0


@pytest.mark.parametrize("euros", [0.01, 0.28, 0.29, 0.57, 0.58, 1.13, 1.15, 2.01, 4.35, 8.2, 16.4, 1001.1])
def test_what_is_worth_an_amount_sells_for_it_and_what_costs_it_too(euros):
    """100 * .29 is 28.999999999999996 to a computer; value and cost are 29 cents all the same."""
    for terms in ({"cost": euros}, {"cost": 0.0, "power": 1.0}, {"cost": euros, "power": 0.0}):
        (_, deal, why), _ = settled(euros, **terms)
        assert why == [""]
        assert deal.paid.tolist() == deal.received.tolist() == [round(100 * euros)]
    assert settled(euros, cost=euros + 0.01)[0].why == ["no price suits both"]
    assert settled(euros / 3, claim=3.0, cost=euros)[0].why == [""]


@given(bid=some_money, cost=st.decimals(0, 60, places=2), power=st.sampled_from([0.5, 0.25, 1 / 3]))
def test_exactly_the_price_is_enough_and_a_cent_less_is_not(bid, cost, power):
    """Whatever the price was before it became whole cents: a half, a quarter, a third of a cent more or less."""
    terms = {"cost": float(min(bid, cost)), "power": power}
    paid = int(settled(float(bid), **terms)[0].deal.paid[0])
    found, books = settled(float(bid), euros=paid / 100, **terms)
    assert found.why == [""]
    assert books.accounts[0, 0] == 0
    if paid:
        assert settled(float(bid), euros=(paid - 1) / 100, **terms)[0].why == ["no money"]


def test_a_price_of_1_234_is_1_23_and_whoever_has_that_buys():
    found, books = settled(2.46, euros=1.23, cost=0.0, power=1.234 / 2.46)
    assert found.why == [""]
    assert books.accounts[0].tolist() == [0, 246, 0]
    assert settled(2.47, euros=1.23, cost=0.0)[0].why == ["no money"]  # 1.235 is 1.24: halves go to the even cent


def test_sellers_without_a_share_are_not_paid_and_bear_no_cost():
    found, books = settled(6.02, shares=(0.0, 0.25, 0.25), cost=0.0, sellers=3)
    assert found.deal.paid.tolist() == [301]
    assert (books.accounts[0] - open_accounts(1, 4, 10_000.0)[0]).tolist() == [-301, 0, 151, 150, 0]


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
        assert set(row.sellers) <= {agents[(k + step) % 3].name for step in (1, 2)}
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
        start = open_books(1, 3, 10_000.0)
        _, books = turn(grown, alone, splits, start, rule="quote", by="loss", sellers=2, shares=shares, cost=0.0)
        (row,) = books.ledger.rows.itertuples()
        richer = [
            agent.name for agent, cents in zip(agents, books.accounts[0] - start.accounts[0], strict=False) if cents > 0
        ]
        assert row.traded
        assert sorted(row.sellers) == sorted(richer)
        named.append(len(richer))
    assert set(named) <= {1, 2}
    _, none = turn(grown, alone, splits, rule="quote", by="loss", sellers=2, shares=(0.0,))
    assert none.ledger.rows.sellers.map(len).tolist() == [2]  # nobody gave: all who were asked


@pytest.fixture(scope="module")
def two_markets(members, splits):
    """Two markets of two seeds, the first without trade, and the grid that says so."""
    agents = members[:2]
    outcome = run(splits, Market(agents, ALONE, 3), Market(agents, QUOTE, 4), rounds=2)
    return outcome, stack.grid(kind=["alone", "trading"]).assign(seed=[3, 4])


def test_the_table_of_an_outcome_has_a_row_a_market_day_and_agent(two_markets):
    outcome, rows = two_markets
    table = outcome.table(rows, ["A", "B"])
    assert list(table) == ["kind", "seed", "day", "agent", "accuracy"]
    assert len(table) == outcome.accuracy.numel()
    for row in table.itertuples():
        place = [3, 4].index(row.seed), row.day - 1, "AB".index(row.agent)
        assert row.accuracy == outcome.accuracy[place].item()


def test_the_table_of_money_has_a_row_an_account_and_conserves_it(two_markets):
    outcome, rows = two_markets
    table = outcome.money_table(rows, ["A", "B"])
    assert table.account.tolist() == ["A", "B", "broker"] * 4
    assert table.euros.tolist() == outcome.euros.flatten().tolist()
    assert table.groupby(["kind", "day"]).euros.sum().unique().tolist() == [20_000.0]


def test_the_table_of_quotes_is_the_ledger_with_the_grids_words_for_a_market(two_markets):
    outcome, rows = two_markets
    ledger = outcome.ledger.rows
    table = outcome.quote_table(rows)
    gone = ["market", "seed", "match", "rule"]
    assert list(table) == ["kind", "seed", *ledger.drop(columns=gone).rename(columns={"round": "day"})]
    assert table.index.equals(ledger.index)
    assert set(table.kind) == {"trading"}
    assert table.seed.tolist() == ledger.seed.tolist()
    assert table.day.tolist() == ledger["round"].tolist()
    assert table.paid.tolist() == ledger.paid.tolist()
    for trade_number in table.query("traded").index:
        assert revert(outcome.ledger, trade_number).keys() == outcome.models.keys()


def test_quotes_of_several_markets_stand_behind_their_own():
    columns = {"market": [1, 0, 1], "seed": 0, "match": "none", "rule": "quote", "round": [1, 1, 2], "paid": [5, 6, 7]}
    ledger = market.Ledger(pd.DataFrame(columns, index=[0, 1, 2]), {})
    outcome = market.Outcome(ledger, {}, torch.zeros(2, 2, 2), torch.zeros(2, 2, 3))
    table = outcome.quote_table(stack.grid(kept=[0.1, 0.5]))
    assert table.to_dict("list") == {"kept": [0.5, 0.1, 0.5], "day": [1, 1, 2], "paid": [5, 6, 7]}


def test_tables_of_an_outcome_refuse_what_does_not_fit(two_markets, members, splits):
    outcome, rows = two_markets
    with pytest.raises(ShapeError, match=r"'accuracy' has shape \(2, 2, 2\), expected \(1, 2, 2\)"):
        outcome.table(rows[:1], ["A", "B"])
    with pytest.raises(ShapeError, match=r"'accuracy' has shape \(2, 2, 2\), expected \(2, 2, 3\)"):
        outcome.table(rows, ["A", "B", "C"])
    with pytest.raises(ShapeError, match=r"'euros' has shape \(2, 2, 3\), expected \(2, 2, 2\)"):
        outcome.money_table(rows, ["A"])
    with pytest.raises(ShapeError, match="a grid of 1 rows for 2 markets"):
        outcome.quote_table(rows[:1])
    for name in ("share", "day"):
        with pytest.raises(ParameterError, match=f"two columns would be called '{name}'"):
            outcome.quote_table(rows.rename(columns={"kind": name}))
    quiet = run(splits, Market(members[:2], ALONE, 3), rounds=1)
    with pytest.raises(ParameterError, match="nobody has asked for a quote"):
        quiet.quote_table(rows[:1])
