import numpy as np
import pytest
import torch
from orders import equal

from paramarket import market, stack, train
from paramarket.data import Split
from paramarket.errors import ParameterError, ShapeError
from paramarket.market import AUTHORS, RULES, Agent, Market, Splits, Terms, plants, revert
from paramarket.stack import take

NET = stack.mlp(64, [16], 10)
HOW = {"steps": 12, "lr": 5e-3, "batch": 32}
QUOTE = Terms(rule="quote", by="loss", cost=0.0)
ALONE = Terms(form="alone")
AVERAGE = Terms(form="average")


@pytest.fixture(scope="module")
def splits(digits):
    return Splits(digits.quote, digits.audit, digits.test)


@pytest.fixture(scope="module")
def agents(digits):
    """Three of unequal size: the second keeps a third of what it holds."""
    made = plants(digits.train, 10, 3, 0.05, 100.0, seed=0)
    some = made[1].split
    return [made[0], made[1]._replace(split=Split(some.x[::3], some.y[::3])), made[2]]


def run(splits, *markets, rounds=2, **more):
    return market.run(NET, markets, splits, rounds=rounds, **(HOW | more))


def fitted(models, agents, seed, turn=0, state=None, weight_decay=0.0):
    """A round of training by hand: agent k takes the order of its seed, its number and the round."""
    orders = [1_000_000 * seed + 1_000 * k + turn for k in range(len(agents))]
    data = [agent.split for agent in agents]
    more = {"seed": orders, "state": state, "weight_decay": weight_decay, "schedule": "constant"}
    return train.fit(NET, models, data, **HOW, **more)


def close(one, other, atol=1e-5):
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=atol) for name in one)


# Money


def test_the_money_of_every_market_is_what_it_was_in_every_round(agents, splits):
    arms = [Terms(rule=rule, fee=0.1, sellers=2, parts="layers") for rule in RULES]
    done = run(splits, *(Market(agents, terms, 0) for terms in [*arms, QUOTE, ALONE, AVERAGE]), rounds=3)
    assert done.ledger.rows.traded.any()
    assert done.euros.shape == (8, 3, 4)
    assert torch.allclose(done.euros.sum(dim=2), torch.full((8, 3), 30_000.0).to(done.euros), atol=1e-6)
    assert (done.euros[-2:, :, :3] == 10_000).all()
    sold = done.ledger.rows
    for m in range(8):
        kept = (sold.paid - sold.received)[sold.market == m].sum()
        assert done.euros[m, -1, -1].item() == pytest.approx(kept, abs=1e-6)


def test_not_a_cent_of_ten_millions_is_lost(agents, splits):
    done = run(splits, Market(agents, QUOTE, 0), money=10_000_000.01)
    assert done.ledger.rows.traded.any()
    cents = 100 * done.euros.double()
    assert torch.allclose(cents, cents.round(), atol=1e-6)
    assert cents[0, -1].sum().round().item() == 3 * 1_000_000_001


def test_who_starts_with_nothing_buys_nothing(agents, splits):
    done = run(splits, Market(agents, Terms(rule="word"), 0), Market(agents, ALONE, 0), money=0.0)
    assert set(done.ledger.rows.why) == {"no money"}
    assert not done.euros.any()
    assert close(take(done.models, slice(3)), take(done.models, slice(3, 6)))


# What depends on what


def test_the_same_arguments_give_the_same_outcome_bit_for_bit(agents, splits):
    one, other = (run(splits, Market(agents, QUOTE, 3), Market(agents, AVERAGE, 4)) for _ in range(2))
    assert equal(one.models, other.models)
    assert torch.equal(one.accuracy, other.accuracy)
    assert torch.equal(one.euros, other.euros)
    assert one.ledger.rows.equals(other.ledger.rows)
    assert one.ledger.before.keys() == other.ledger.before.keys()


def test_what_is_given_stays_as_it_is_and_so_does_chance(agents, splits):
    own = stack.init(NET, 1, seed=5)
    mine = agents[0]._replace(weights=take({name: tensor.clone() for name, tensor in own.items()}, 0))
    before = torch.random.get_rng_state()
    run(splits, Market([mine, *agents[1:]], QUOTE, 0), rounds=1)
    assert equal(mine.weights, take(own, 0))
    assert torch.equal(before, torch.random.get_rng_state())


def test_markets_do_not_touch_one_another(agents, splits):
    all_of_them = [Market(agents, QUOTE, 0), Market(agents[::-1], Terms(rule="audit", match="weights"), 1)]
    all_of_them += [Market(agents, ALONE, 0), Market(agents, AVERAGE, 2), Market(agents, QUOTE, 7)]
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


def test_arms_of_one_seed_start_and_shuffle_alike_and_other_seeds_do_not(agents, splits):
    later = Terms(rule="word", first=3)
    done = run(splits, Market(agents, ALONE, 0), Market(agents, later, 0), Market(agents, ALONE, 1), rounds=3)
    accuracy = done.accuracy
    assert torch.equal(accuracy[0, :2], accuracy[1, :2])
    assert not torch.equal(accuracy[0, 2], accuracy[1, 2])  # now they trade
    assert not torch.equal(accuracy[0, :2], accuracy[2, :2])
    row = done.ledger.rows.iloc[0]
    assert (row.market, row.buyer, row["round"]) == (1, "A", 3)
    assert close(revert(done.ledger, 0), take(done.models, 0))  # before its first trade as if alone


# Training


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_alone_is_plain_training(weight_decay, agents, splits):
    done = run(splits, Market(agents, ALONE, 5), rounds=1, weight_decay=weight_decay)
    plain = fitted(stack.init(NET, 3, seed=5), agents, 5, weight_decay=weight_decay).stack
    assert equal(done.models, plain)
    assert torch.equal(done.accuracy[0, 0], train.evaluate(NET, plain, splits.test).accuracy)
    assert done.ledger.rows.empty
    assert (done.euros[0, 0] == torch.tensor([10_000.0] * 3 + [0.0])).all()


@pytest.mark.parametrize("reset", [True, False])
def test_the_optimiser_goes_on_or_begins_anew(reset, agents, splits):
    done = run(splits, Market(agents, ALONE, 0), rounds=2, reset=reset)
    first = fitted(stack.init(NET, 3, seed=0), agents, 0)
    ways = {kept: fitted(first.stack, agents, 0, 1, None if kept else first.state).stack for kept in (True, False)}
    assert equal(done.models, ways[reset])
    assert not equal(done.models, ways[not reset])


def test_a_round_is_an_epoch_of_the_largest_unless_told(agents, splits):
    largest = max(len(agent.split) for agent in agents)
    steps = -(-largest // 32)
    one, other = (run(splits, Market(agents, ALONE, 0), rounds=1, steps=each) for each in (None, steps))
    assert equal(one.models, other.models)


def test_no_steps_are_no_training(agents, splits):
    done = run(splits, Market(agents, ALONE, 0), steps=0)
    assert equal(done.models, stack.init(NET, 3, seed=0))


@pytest.mark.parametrize("terms", [ALONE, QUOTE])
def test_who_learns_no_more_keeps_its_weights_bit_for_bit(terms, agents, splits):
    fixed = [agents[0], agents[1]._replace(split=None, buys=False), agents[2]]
    done = run(splits, Market(fixed, terms, 0))
    assert equal(take(done.models, 1), take(stack.init(NET, 3, seed=0), 1))
    if terms.form == "alone":  # and the others learn as if all did
        plain = run(splits, Market(agents, terms, 0))
        assert close(take(done.models, [0, 2]), take(plain.models, [0, 2]))


def test_nobody_need_learn(agents, splits):
    done = run(splits, Market([agent._replace(split=None) for agent in agents], ALONE, 2), steps=None)
    assert equal(done.models, stack.init(NET, 3, seed=2))


def test_who_brings_weights_starts_from_them(agents, splits):
    brought = stack.init(NET, 2, seed=9)
    some = [agents[0]._replace(weights=take(brought, 0)), agents[1], agents[2]._replace(weights=take(brought, 1))]
    done = run(splits, Market(some, ALONE, 0), steps=0)
    own = take(stack.init(NET, 3, seed=0), 1)
    assert equal(done.models, stack.join([take(brought, 0), own, take(brought, 1)]))


# Averages


def test_an_average_is_the_mean_weighed_by_examples(agents, splits):
    done = run(splits, Market(agents, AVERAGE, 0), rounds=1)
    counts = torch.tensor([len(agent.split) for agent in agents])
    assert len(set(counts.tolist())) > 1
    plain = fitted(stack.init(NET, 3, seed=0), agents, 0).stack
    for name, tensor in plain.items():
        mean = torch.tensordot(counts / counts.sum(), tensor, dims=1)
        assert torch.allclose(done.models[name], mean.expand_as(tensor), atol=1e-6)


def test_all_are_equal_after_every_average(agents, splits):
    done = run(splits, Market(agents, AVERAGE, 0), Market(agents, ALONE, 0), rounds=3)
    assert (done.accuracy[0] == done.accuracy[0, :, :1]).all()
    assert all(torch.equal(tensor[0], tensor[k]) for tensor in done.models.values() for k in (1, 2))
    assert not torch.equal(done.models["1.weight"][3], done.models["1.weight"][4])


# When


@pytest.mark.parametrize(
    ("first", "every", "open_in"),
    [(1, 1, [1, 2, 3, 4, 5]), (3, 1, [3, 4, 5]), (2, 3, [2, 5]), (1, 2, [1, 3, 5]), (6, 1, [])],
)
def test_a_market_opens_when_its_terms_say(first, every, open_in, agents, splits):
    terms = Terms(rule="word", first=first, every=every)
    rows = run(splits, Market(agents, terms, 0), rounds=5, steps=1).ledger.rows
    assert (rows["round"].unique().tolist() if open_in else rows.columns.tolist()) == open_in
    assert len(rows) == 3 * len(open_in)
    assert rows.empty or rows.groupby("round").buyer.agg(list).tolist() == [["A", "B", "C"]] * len(open_in)


def test_a_market_that_opens_every_other_round_lets_all_meet(agents, splits):
    rows = run(splits, Market(agents, Terms(rule="word", every=2), 0), rounds=3, steps=1).ledger.rows
    assert set(zip(rows.buyer, rows.seller, strict=True)) == {(a, b) for a in "ABC" for b in "ABC" if a != b}


# The market as a whole


def test_every_purchase_can_be_undone_and_the_ledger_tells_what_came_of_it(agents, splits):
    done = run(splits, Market(agents, QUOTE, 0), Market(agents, ALONE, 0))
    rows = done.ledger.rows
    assert rows.index.tolist() == list(range(6))
    assert sorted(done.ledger.before) == rows.index[rows.traded].tolist()
    last = rows[(rows["round"] == 2) & rows.traded]
    assert len(last)
    for row in last.itertuples():
        k = "ABC".index(row.buyer)
        assert row.hash == stack.content_hash(take(done.models, k))
        was = train.evaluate(NET, stack.join([revert(done.ledger, row.Index)]), splits.test).accuracy.item()
        assert row.tested == pytest.approx(100 * (done.accuracy[0, -1, k].item() - was), abs=1e-3)


def test_the_authors_setting_runs(generator):
    net = stack.mlp(20, AUTHORS["hidden"], 4)
    centres = torch.randn(4, 20, generator=generator)

    def drawn(n):
        y = torch.randint(0, 4, (n,), generator=generator)
        return Split(centres[y] + torch.randn(n, 20, generator=generator), y)

    members = plants(drawn(600), 4, 2, AUTHORS["kept_share"], 100.0, seed=0)
    arms = [Market(members, AUTHORS["terms"], 0), Market(members, ALONE, 0)]
    done = market.run(net, arms, Splits(drawn(200), drawn(210), drawn(220)), **(AUTHORS["how"] | {"rounds": 2}))
    rows = done.ledger.rows
    assert done.accuracy.shape == (2, 2, 2)
    assert rows["round"].tolist() == [1, 1, 2, 2]
    assert set(rows.why) <= {"", "no gain"}  # they buy whatever gains something
    assert (rows.traded == (rows.promised > 0)).all()
    assert {round(share, 2) for share in rows.share.tolist()} <= {0.0, *AUTHORS["terms"].shares}


@pytest.mark.parametrize("learn", [True, False])
def test_classes_that_are_not_tested_do_no_harm(learn, agents, splits):
    agents = [agent if learn else agent._replace(split=None) for agent in agents]
    kept = splits.test.y < 8
    few = splits._replace(test=Split(splits.test.x[kept], splits.test.y[kept]))
    rows, usual = (run(each, Market(agents, QUOTE, 0), rounds=1).ledger.rows for each in (few, splits))
    assert rows.traded.tolist() == usual.traded.tolist()
    assert np.isfinite(rows.tested).all()


# What is refused


@pytest.mark.parametrize("rounds", [0, -1])
def test_a_market_needs_a_round(rounds, agents, splits):
    with pytest.raises(
        ParameterError, match=rf"markets of \[3\] agents, rounds = {rounds}: expected .*a round or more"
    ):
        run(splits, Market(agents, QUOTE, 0), rounds=rounds)


@pytest.mark.parametrize("sizes", [[], [1], [0], [3, 2]])
def test_markets_are_of_equal_size_and_two_or_more(sizes, agents, splits):
    found = str(sorted(sizes)).replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(ParameterError, match=rf"markets of {found} agents, .*equal size, two or more agents each"):
        run(splits, *(Market(agents[:size], QUOTE, 0) for size in sizes))


@pytest.mark.parametrize(("one", "other"), [("quote", "audit"), ("quote", "test"), ("audit", "test")])
def test_no_set_serves_twice(one, other, agents, splits):
    again = getattr(splits, one)
    twice = splits._replace(**{other: Split(again.x.clone(), again.y)})
    with pytest.raises(ParameterError, match=rf"{one} and {other} are the same examples"):
        run(twice, Market(agents, QUOTE, 0))


def test_debts_are_refused(agents, splits):
    with pytest.raises(ParameterError, match=r"money = -1\.0, expected 0 euros or more"):
        run(splits, Market(agents, QUOTE, 0), money=-1.0)


def test_an_average_needs_the_number_of_everyones_examples(agents, splits):
    with pytest.raises(ParameterError, match="every agent in such a market needs a split"):
        run(splits, Market([agents[0], Agent("B", None)], AVERAGE, 0))


def test_weights_of_another_net_are_refused_by_the_name_of_who_brings_them(agents, splits):
    other = take(stack.init(stack.mlp(64, [15], 10), 1, seed=0), 0)
    with pytest.raises(ShapeError, match=r"the weights of agent B and the net do not fit: '1\.weight'"):
        run(splits, Market([agents[0], agents[1]._replace(weights=other)], QUOTE, 0))


def test_all_matches_trade(agents, splits):
    arms = [Market(agents, Terms(match=match, rule="word"), 0) for match in market.MATCHES]
    done = run(splits, *arms, rounds=1)
    assert done.ledger.rows.match.tolist() == [match for match in market.MATCHES for _ in range(3)]
    assert done.ledger.rows.traded.all()
    shares = done.ledger.rows.share.tolist()
    assert shares == [0.5] * 9
