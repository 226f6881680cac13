import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from orders import equal

from paramarket import stack
from paramarket.errors import ParameterError
from paramarket.market import Ledger, move, opened, revert, written

NET = stack.mlp(4, [3], 2)
NOTHING = Ledger(pd.DataFrame(), {})
MARKETS, AGENTS = 2, 4


@st.composite
def payments(draw):
    """Up to six payments between agents of two markets, one or more sellers each, at any price in whole cents."""
    count, sellers = draw(st.integers(1, 6)), draw(st.integers(1, 3))

    def whole(low, high, *shape):
        size = torch.Size(shape).numel()
        return torch.tensor(draw(st.lists(st.integers(low, high), min_size=size, max_size=size))).view(shape)

    market, buyer = whole(0, MARKETS - 1, count), whole(0, AGENTS - 1, count)
    others = torch.stack([(buyer + 1 + s) % AGENTS for s in range(sellers)], dim=1)
    shares, paid = whole(0, 1000, count, sellers) / 1000, whole(0, 10**8, count).double() / 100
    received = (paid * whole(0, 1000, count) / 1000 * 100).floor() / 100
    return market, buyer, others, shares, paid, received


@given(payments())
def test_no_payment_makes_or_loses_a_cent(deal):
    before = opened(MARKETS, AGENTS, 123.45)
    after = move(before, *deal)
    assert torch.equal(before, opened(MARKETS, AGENTS, 123.45))  # not in place
    assert torch.equal(before.sum(dim=1), after.sum(dim=1))
    assert before.sum(dim=1).tolist() == [AGENTS * 12345] * MARKETS
    market, _, _, _, paid, received = deal
    for m in range(MARKETS):
        kept = (100 * (paid - received))[market == m].sum()
        assert after[m, -1].item() == round(kept.item())
        assert after[m, -1] >= 0


@given(payments())
def test_payments_in_one_go_are_payments_one_by_one(deal):
    accounts = opened(MARKETS, AGENTS, 10.0)
    one_by_one = accounts
    for q in range(len(deal[0])):
        one_by_one = move(one_by_one, *(part[q : q + 1] for part in deal))
    assert torch.equal(move(accounts, *deal), one_by_one)


def paid_out(cents, shares):
    """What each of the sellers 1, 2, … gets of so many cents, all of which buyer 0 pays."""
    sellers = torch.arange(1, len(shares) + 1).unsqueeze(0)
    here, euros = torch.tensor([0]), torch.tensor([cents / 100], dtype=torch.float64)
    after = move(opened(1, len(shares) + 1, 0.0), here, here, sellers, torch.tensor([shares]), euros, euros)
    assert after[0, 0].item() == -cents
    assert after[0, -1].item() == 0
    return after[0, 1:-1].tolist()


def test_cents_that_do_not_divide_go_to_the_first_seller():
    assert paid_out(10, [0.3, 0.3, 0.3]) == [4, 3, 3]
    assert paid_out(11, [0.1, 0.1]) == [6, 5]
    assert paid_out(1, [0.01, 0.02, 0.03]) == [1, 0, 0]
    assert paid_out(100, [0.25, 0.5, 0.25]) == [25, 50, 25]
    assert paid_out(7, [0.0, 0.0]) == [7, 0]


@given(st.integers(0, 10**8), st.integers(1, 3), st.integers(1, 100))
def test_cents_that_divide_are_divided(each, sellers, share):
    """As much for equal shares, whatever these are: .95 / 3 is no number that a computer holds."""
    assert paid_out(sellers * each, [share / 100 / sellers] * sellers) == [each] * sellers


def test_the_broker_gets_what_was_paid_and_not_received():
    one = torch.tensor([0])
    accounts = move(
        opened(1, 2, 50.0), one, one, one[:, None] + 1, torch.ones(1, 1), torch.tensor([12.34]), torch.tensor([10.0])
    )
    assert accounts.tolist() == [[5000 - 1234, 5000 + 1000, 234]]


def test_everyone_starts_with_as_much_and_the_broker_with_nothing():
    assert opened(2, 3, 19.99).tolist() == [[1999, 1999, 1999, 0]] * 2
    assert opened(1, 2, 0.0).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("euros", [-0.01, float("nan"), -float("inf")])
def test_debts_are_refused(euros):
    with pytest.raises(ParameterError, match=rf"money = {euros}, expected 0 euros or more"):
        opened(1, 2, euros)


def two_rounds():
    before, bought = (stack.init(NET, 3, seed=seed) for seed in (0, 1))
    ledger = written(NOTHING, {"buyer": list("ABC")}, before, bought, torch.tensor([True, False, True]))
    return (
        before,
        bought,
        ledger,
        written(ledger, {"buyer": list("DEF")}, bought, before, torch.tensor([False, True, False])),
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
