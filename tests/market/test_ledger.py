import inspect
import math
from fractions import Fraction

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from orders import equal

from paramarket import stack
from paramarket.errors import ParameterError, ShapeError
from paramarket.market import Ledger, open_accounts, open_books, pay, record_quotes, revert, split_cents

NET = stack.mlp(4, [3], 2)
NOTHING = Ledger(pd.DataFrame(), {})
MARKETS, AGENTS = 2, 4


@st.composite
def payments(draw):
    """Up to six payments between agents of two markets, one or more sellers each, at any price in whole cents."""
    count, sellers = draw(st.integers(1, 6)), draw(st.integers(1, AGENTS - 1))

    def whole(low, high, *shape):
        size = torch.Size(shape).numel()
        return torch.tensor(draw(st.lists(st.integers(low, high), min_size=size, max_size=size))).view(shape)

    buyer, paid = whole(0, AGENTS - 1, count), whole(0, 10**10, count)
    shares = whole(0, 1000, count, sellers) / 1000
    shares[shares.sum(dim=1) == 0, -1] = 1.0
    return {
        "market": whole(0, MARKETS - 1, count),
        "buyer": buyer,
        "sellers": torch.stack([(buyer + 1 + s) % AGENTS for s in range(sellers)], dim=1),
        "shares": shares,
        "paid": paid,
        "received": paid * whole(0, 1000, count) // 1000,
    }


@given(payments())
def test_no_payment_makes_or_loses_a_cent(deal):
    before = open_accounts(MARKETS, AGENTS, 123.45)
    after = pay(before, **deal)
    assert torch.equal(before, open_accounts(MARKETS, AGENTS, 123.45))  # not in place
    assert torch.equal(before.sum(dim=1), after.sum(dim=1))
    assert before.sum(dim=1).tolist() == [AGENTS * 12345] * MARKETS
    for m in range(MARKETS):
        kept = (deal["paid"] - deal["received"])[deal["market"] == m].sum()
        assert after[m, -1] == kept


@given(payments())
def test_payments_in_one_go_are_payments_one_by_one(deal):
    accounts = open_accounts(MARKETS, AGENTS, 10.0)
    one_by_one = accounts
    for q in range(len(deal["paid"])):
        one_by_one = pay(one_by_one, **{name: part[q : q + 1] for name, part in deal.items()})
    assert torch.equal(pay(accounts, **deal), one_by_one)


def test_the_broker_gets_what_was_paid_and_not_received():
    one, sellers = torch.tensor([0]), torch.tensor([[1]])
    prices = {"paid": torch.tensor([1234]), "received": torch.tensor([1000])}
    accounts = pay(open_accounts(1, 2, 50.0), market=one, buyer=one, sellers=sellers, shares=torch.ones(1, 1), **prices)
    assert accounts.tolist() == [[5000 - 1234, 5000 + 1000, 234]]


# Odd cents


def parts(cents, shares):
    """What each seller gets of one sum."""
    return split_cents(torch.tensor([cents]), torch.tensor([shares]))[0].tolist()


def by_fractions(cents, shares):
    """The largest remainder in exact fractions."""
    exact = [cents * Fraction(share) / sum(map(Fraction, shares)) for share in shares]
    whole = [math.floor(part) for part in exact]
    by_remainder = sorted(range(len(shares)), key=lambda k: (whole[k] - exact[k], k))
    for k in by_remainder[: cents - sum(whole)]:
        whole[k] += 1
    return whole


sums = st.integers(0, 10**11)
some_shares = st.lists(st.integers(0, 64), min_size=1, max_size=7).filter(any)


@given(sums, some_shares)
def test_a_sum_is_divided_to_the_cent_by_shares_and_the_largest_remainders(cents, shares):
    """Shares in 64ths, which a computer holds exactly: every part is that of exact fractions."""
    found = parts(cents, [share / 64 for share in shares])
    assert sum(found) == cents
    for part, share in zip(found, shares, strict=True):
        exact = Fraction(cents * share, sum(shares))
        assert abs(part - exact) < 1
        assert part == 0 if share == 0 else part >= math.floor(exact)
    assert found == by_fractions(cents, shares)


@given(sums, st.lists(st.floats(0, 1), min_size=1, max_size=7).filter(lambda shares: sum(shares) > 1e-3))
def test_whatever_the_shares_are_no_cent_is_made_lost_or_given_to_who_has_none(cents, shares):
    found = parts(cents, shares)
    total = torch.tensor(shares).double().sum().item()
    assert sum(found) == cents
    assert min(found) >= 0
    for part, share in zip(found, torch.tensor(shares).double().tolist(), strict=True):
        assert abs(part - cents * share / total) < 1 + 1e-3
        assert part == 0 or share > 0


@given(st.lists(st.tuples(sums, st.lists(st.integers(0, 64), min_size=3, max_size=3).filter(any)), min_size=1))
def test_many_sums_at_once_are_each_sum_by_itself(many):
    cents, shares = torch.tensor([each for each, _ in many]), torch.tensor([each for _, each in many]).float()
    assert split_cents(cents, shares).tolist() == [parts(each, list(map(float, row))) for each, row in many]


def test_odd_cents_by_hand():
    assert parts(301, [0.0, 0.25, 0.25]) == [0, 151, 150]  # the first has no share, and gets no cent
    assert parts(10, [0.3, 0.3, 0.3]) == [4, 3, 3]
    assert parts(11, [0.1, 0.1]) == [6, 5]
    assert parts(1, [0.01, 0.02, 0.03]) == [0, 0, 1]
    assert parts(100, [0.25, 0.5, 0.25]) == [25, 50, 25]
    assert parts(5, [0.6, 0.2, 0.0, 0.2]) == [3, 1, 0, 1]
    assert parts(0, [0.0, 0.0]) == [0, 0]


@given(st.integers(0, 10**8), st.integers(1, 7), st.integers(1, 100))
def test_cents_that_divide_are_divided(each, sellers, share):
    """As much for equal shares, whatever these are: .95 / 3 is no number that a computer holds."""
    assert parts(sellers * each, [share / 100 / sellers] * sellers) == [each] * sellers


@pytest.mark.parametrize(("cents", "shares"), [(7, [0.0, 0.0]), (7, [-0.1, 1.1]), (-1, [1.0])])
def test_a_sum_that_nobody_has_a_share_in_is_refused(cents, shares):
    with pytest.raises(ParameterError, match="divided by shares of 0 or more, one of them above 0"):
        parts(cents, shares)


# Opening


def test_everyone_starts_with_as_much_and_the_broker_with_nothing():
    assert open_accounts(2, 3, 19.99).tolist() == [[1999, 1999, 1999, 0]] * 2
    assert open_accounts(1, 2, 0.0).tolist() == [[0, 0, 0]]
    assert open_accounts(1, 1, 1.15).tolist() == [[115, 0]]  # 100 * 1.15 is 114.99999999999999
    books = open_books(2, 3, 0.29)
    assert torch.equal(books.accounts, open_accounts(2, 3, 0.29))
    assert books.reports.shape == (2, 3)
    assert not books.reports.any()
    assert books.ledger.rows.empty


@pytest.mark.parametrize("euros", [-0.01, float("nan"), -float("inf"), float("inf")])
def test_debts_are_refused(euros):
    with pytest.raises(ParameterError, match=rf"money = {euros}, expected 0 euros or more"):
        open_accounts(1, 2, euros)


# The ledger


def two_rounds():
    before, bought = (stack.init(NET, 3, seed=seed) for seed in (0, 1))
    ledger = record_quotes(NOTHING, {"buyer": list("ABC")}, before, bought, torch.tensor([True, False, True]))
    return (
        before,
        bought,
        ledger,
        record_quotes(ledger, {"buyer": list("DEF")}, bought, before, torch.tensor([False, True, False])),
    )


def test_every_quote_has_a_number_and_every_purchase_the_hash_of_what_was_bought():
    before, bought, first, ledger = two_rounds()
    assert ledger.rows.index.tolist() == [0, 1, 2, 3, 4, 5]
    assert ledger.rows.buyer.tolist() == list("ABCDEF")
    hashes = {
        q: stack.content_hash(stack.take(models, k))
        for q, models, k in [(0, bought, 0), (2, bought, 2), (4, before, 1)]
    }
    assert ledger.rows["hash"].tolist() == [hashes.get(q, "") for q in range(6)]
    assert sorted(ledger.before) == sorted(hashes)
    assert len(first.rows) == 3  # the old ledger is as it was
    assert sorted(first.before) == [0, 2]
    assert NOTHING.rows.empty
    assert not NOTHING.before


def test_the_way_back_is_bit_for_bit():
    before, bought, _, ledger = two_rounds()
    for number, models, k in [(0, before, 0), (2, before, 2), (4, bought, 1)]:
        assert equal(revert(ledger, number), stack.take(models, k))


def test_the_way_back_does_not_hang_on_what_happens_later():
    before, _, _, ledger = two_rounds()
    kept = {name: tensor.clone() for name, tensor in stack.take(before, 0).items()}
    for tensor in (*before.values(), *revert(ledger, 0).values()):
        tensor.zero_()
    assert equal(revert(ledger, 0), kept)


@pytest.mark.parametrize("number", [1, 6, -1])
def test_there_is_no_way_back_from_what_was_no_purchase(number):
    with pytest.raises(ParameterError, match=rf"trade = {number}: no purchase bears that number; .*query\('traded'\)"):
        revert(two_rounds()[-1], number)


@pytest.mark.parametrize("cents", [torch.tensor([100]), torch.tensor([100, 100, 100])])
def test_every_sum_has_its_shares(cents):
    with pytest.raises(ShapeError, match="expected a row of shares a sum"):
        inspect.unwrap(split_cents)(cents, torch.ones(2, 2))


@pytest.mark.parametrize("name", ["buyer", "paid", "received", "shares"])
def test_one_number_does_not_serve_several_payments(name):
    two, pairs = torch.tensor([0, 0]), torch.tensor([[1], [1]])
    deal = {"market": two, "buyer": two, "sellers": pairs, "shares": torch.ones(2, 1), "paid": two, "received": two}
    with pytest.raises(ShapeError, match=f"{name} .*expected one shape"):
        inspect.unwrap(pay)(open_accounts(1, 2, 50.0), **deal | {name: deal[name][:1]})
