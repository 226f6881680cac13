from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from paramarket import align, base, contract, market, price, stack, teach, train
from paramarket.teach import checks_market


def best_bid(value, lowest, highest):
    return min(max((2 * value + lowest) / 3, lowest), highest)


def quote_and_audit(losses, hits, chosen_by=None):
    choice = (losses if chosen_by is None else chosen_by).mean(dim=1).argmin()
    share = hits.mean(dim=1)
    return choice, 100 * (share[choice] - share[0])


def gain_of_loss(losses, hits):
    choice, _ = quote_and_audit(losses, hits)
    means = losses.mean(dim=1)
    return choice, means[0] - means[choice]


def own_accuracy(losses, hits):
    choice, _ = quote_and_audit(losses, hits)
    return choice, 100 * hits[choice].mean()


def scaled_gain(losses, hits, factor):
    choice, points = quote_and_audit(losses, hits)
    return choice, factor * points


def lost_cents(cents, shares):
    return [int(cents * share) for share in shares]


def rest_to_the_first(cents, shares):
    parts = lost_cents(cents, shares)
    return [parts[0] + cents - sum(parts), *parts[1:]]


def split_cents(cents, shares):
    return market.split_cents(torch.tensor([cents]), torch.tensor([shares], dtype=torch.float64))[0].tolist()


def best_answer(score, rival):
    taking = score @ np.array([1 / (1 + action) for action in rival])
    return tuple((taking > 0).astype(int))


def only_training(alpha):
    rows = stack.grid(beta=np.linspace(0.5, alpha, 60), cost=np.linspace(0.5, 3.0, 51))
    both = np.stack([alpha * rows.beta, rows.beta], axis=-1)
    worlds = contract.correlation_world(alpha, rows.beta.to_numpy(), both, prior=(0.5, 0.5), cost=rows.cost.to_numpy())
    places = contract.judge(worlds).table(rows).query("contract == 'train'")
    return places.iloc[len(places) // 2][["beta", "cost"]]


def payment(gain_a, gain_b):
    return (gain_b - gain_a) / 2 if gain_a + gain_b > 0 else None


def purchase(
    net,
    spec,
    buyer,
    seller,
    splits,
    bid,
    cost,
    match=True,
    chosen_on="quote",
    priced_on="audit",
    end="low",
    needs_gain=True,
    price=lambda value, cost: (value + cost) / 2,
    hands_over=True,
):
    """Right as it stands; every option is a mistake."""
    if match:
        order = align.activation_matching(spec, buyer, seller, net=net, x=splits.quote.x)
        seller = align.permute(spec, order, seller)
    shares = torch.tensor([0.0, *market.GRID])
    mixtures = stack.mix(torch.stack([1 - shares, shares], dim=1), stack.join([buyer, seller]))
    best = train.evaluate(net, mixtures, getattr(splits, chosen_on)).loss.argmin()
    bought = stack.take(mixtures, best)
    judge = getattr(splits, priced_on)
    answers = train.logits(net, stack.join([buyer, bought]), judge.x).argmax(dim=-1)
    old, new = (answers == judge.y).float()
    value = bid * getattr(base.interval(100 * (new - old), "examples"), end)
    if needs_gain and (value <= 0 or value < cost):
        return buyer, 0.0
    return (bought if hands_over else buyer), price(value, cost)


def in_place(net, spec, buyer, *others):
    """Right, and careless with what it was handed."""
    weights, paid = purchase(net, spec, stack.copy(buyer), *others)
    buyer.clear()
    return weights, paid


def unwritten(*_):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("check", "answer", "says"),
    [
        (teach.check_price_from_sample, lambda s, c: price.posted_price(s, c).price, "✓ price_from_sample holds"),
        (teach.check_price_from_sample, lambda s, _: s.mean(), "That is the mean of the values."),
        (teach.check_price_from_sample, lambda s, _: s.max() + 1, "earns 0.00 a buyer"),
        (teach.check_price_from_sample, unwritten, "… price_from_sample is not written yet"),
        (teach.check_best_bid, best_bid, "✓ best_bid holds"),
        (teach.check_best_bid, lambda v, low, high: best_bid(v, low, high) if v > low else v - 1, "✓ best_bid holds"),
        (teach.check_best_bid, lambda v, low, high: best_bid(v, low, high) + 1e-7, "✓ best_bid holds"),
        (teach.check_best_bid, lambda v, low, high: best_bid(v, low, high) + 5e-3, "the truth earns"),
        (teach.check_best_bid, lambda v, low, high: v, "the best bid"),
        (teach.check_best_bid, lambda v, low, high: min(2 * v / 3, high), "and asks from 0.250 to 0.917, a bid of"),
        (teach.check_best_bid, lambda v, low, high: 2 * v / 3 + 1 / 12, "and asks from 0.000 to 1.000, a bid of"),
        (teach.check_best_bid, lambda v, low, high: (2 * v + low) / 3, "and asks from 0.000 to 1.000, a bid of 1."),
        (teach.check_best_bid, lambda v, low, high: max(low, min(high, v)), "earns"),
        (teach.check_best_bid, lambda v, low, high: 0.0, "a bid of 0.000 earns 0.00000"),
        (teach.check_best_bid, lambda v, low, high: float("nan"), "a bid of nan earns nan"),
        (teach.check_best_bid, lambda v, low, high: [][0], "it raised IndexError"),
        (teach.check_best_bid, unwritten, "… best_bid is not written yet"),
        (teach.check_quote_and_audit, quote_and_audit, "✓ quote_and_audit holds"),
        (teach.check_quote_and_audit, lambda q, a: quote_and_audit(q, a, chosen_by=-a), "must not choose the purchase"),
        (teach.check_quote_and_audit, lambda q, a: quote_and_audit(q, a, chosen_by=-q), "it chose mixture"),
        (teach.check_quote_and_audit, lambda q, a: (0, 0.0), "it chose mixture 0, whose mean loss on quote is"),
        (teach.check_quote_and_audit, lambda q, a: (5, 0.0), "expected a choice from 0 to 4, got 5"),
        (teach.check_quote_and_audit, lambda q, a: (1.5, 0.0), "expected a choice from 0 to 4, got 1.5"),
        (teach.check_quote_and_audit, gain_of_loss, "That is by how much the loss on quote falls"),
        (teach.check_quote_and_audit, own_accuracy, "what did the buyer have before?"),
        (teach.check_quote_and_audit, lambda q, a: scaled_gain(q, a, 0.01), "That is a share, not points"),
        (teach.check_quote_and_audit, lambda q, a: scaled_gain(q, a, -1), "The sign is wrong"),
        (teach.check_quote_and_audit, lambda q, a: scaled_gain(q, a, 1.5), "the choice is right; the gain is not"),
        (teach.check_quote_and_audit, unwritten, "… quote_and_audit is not written yet"),
        (teach.check_split_cents, split_cents, "✓ split_cents holds"),
        (teach.check_split_cents, lost_cents, "cents became"),
        (teach.check_split_cents, lambda c, s: [c * share for share in s], "expected as many whole numbers"),
        (teach.check_split_cents, lambda c, s: [c, *[0] * (len(s) - 1)], "a seller with no share got"),
        (teach.check_split_cents, lambda c, s: [*[0] * (len(s) - 1), c], "a cent or more away from its share"),
        (teach.check_split_cents, rest_to_the_first, "a seller with no share got"),
        (teach.check_split_cents, lambda c, s: [c], "expected as many whole numbers"),
        (teach.check_purchase, purchase, "✓ purchase holds"),
        (teach.check_purchase, in_place, "✓ purchase holds"),
        (teach.check_purchase, unwritten, "… purchase is not written yet"),
        (teach.check_purchase, partial(purchase, priced_on="quote", end="mean"), "✗ purchase: "),
        (teach.check_purchase, partial(purchase, end="mean"), "✗ purchase: "),
        (teach.check_purchase, partial(purchase, needs_gain=False), "euros are paid"),
        (teach.check_purchase, partial(purchase, price=lambda value, cost: value / 2), "✗ purchase: "),
        (teach.check_purchase, partial(purchase, price=lambda v, c: (v - c) / 2), "✗ purchase: "),
        (teach.check_purchase, partial(purchase, match=False), "✗ purchase: "),
        (teach.check_purchase, partial(purchase, chosen_on="audit"), "✗ purchase: "),
        (teach.check_purchase, partial(purchase, hands_over=False), "the buyer's weights are still the old ones"),
        (teach.check_purchase, lambda *_: ({}, 0.0), "the buyer's weights afterwards and the net do not fit"),
        (teach.check_best_answer, best_answer, "✓ best_answer holds"),
        (teach.check_best_answer, lambda score, rival: best_answer(score, (0, 0)), "forgets that the rival takes half"),
        (teach.check_best_answer, lambda score, rival: best_answer(score.T, rival), "earns"),
        (teach.check_best_answer, lambda score, rival: (2, 0), "expected two actions, each 0 or 1"),
        (teach.check_only_training, only_training, "✓ only_training holds"),
        (teach.check_only_training, lambda alpha: (alpha, 1.0), "they sign: none = train = infer = full"),
        (teach.check_only_training, lambda alpha: (0.4, 1.0), "expected .5 to alpha"),
        (teach.check_payment_both_sign, payment, "✓ payment_both_sign holds"),
        (teach.check_payment_both_sign, lambda a, b: (b - a) / 2, "there is nothing to share"),
        (teach.check_payment_both_sign, lambda a, b: None, "together they gain, and it says None"),
        (teach.check_payment_both_sign, lambda a, b: a + b if a + b > 0 else None, "A ends with"),
    ],
)
def test_checks_tell_right_from_wrong(capsys, check, answer, says):
    before = torch.get_rng_state()
    check(answer)
    assert says in capsys.readouterr().out
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("lowest", "highest"), [(0.0, 1.0), (0.25, 11 / 12), (0.7, 1.3)])
@pytest.mark.parametrize("value", [0.1, 0.6, 0.9, 2.5])
def test_the_best_bid_is_the_best_of_a_fine_grid(lowest, highest, value):
    """What a bid earns, as the check counts it, against a sum over many asks; and nothing on a grid beats the best."""
    asks = torch.linspace(lowest, highest, 20_001, dtype=torch.float64)

    def earned(bid):
        return torch.where(asks <= bid, value - (bid + asks) / 2, 0.0).mean().item()

    earns = teach.checks_market._bid_earns
    bids = torch.linspace(0, 1.5 * highest, 301).tolist()
    for bid in bids[::20]:
        assert earns(bid, value, lowest, highest) == pytest.approx(earned(bid), abs=2e-4)
    best = earns(best_bid(value, lowest, highest), value, lowest, highest)
    assert max(earns(bid, value, lowest, highest) for bid in bids) <= best + 1e-12


def test_against_the_asks_of_the_linear_equilibrium_its_bid_is_the_best():
    bid = price.linear_equilibrium().bid
    for value in (0.3, 0.6, 1.0):
        assert best_bid(value, 1 / 4, 11 / 12) == pytest.approx(bid(value), abs=1e-12)


def test_what_brings_nothing_must_cost_nothing():
    shop = checks_market._open_shop()
    pays_the_cost = partial(purchase, needs_gain=False, price=lambda value, cost: cost)
    assert checks_market._needless_fault(purchase, shop) == ""
    assert "nothing is gained" in checks_market._needless_fault(pays_the_cost, shop)


@pytest.mark.parametrize(
    ("paid", "says"),
    [
        (250.0, "gain on `quote`, which chose the mixture"),
        (200.0, "mean gain on `audit`, not of the lower end"),
        (100.0, "That is half of the value"),
        (50.0, "That is the price of the surplus alone"),
        (77.0, "were they matched?"),
        (78.0, ""),
    ],
)
def test_the_mistake_that_leads_to_a_sum_is_named(paid, says):
    row = pd.Series({"promised": 2.0, "quoted": 4.0, "audited": 3.0})
    evening = checks_market.Evening({}, {}, {}, row, pd.Series({"paid": 77.0}))
    sentence = checks_market._likely_mistake(paid, evening, bid=100.0, cost=100.0)
    assert says in sentence
    assert bool(sentence) == bool(says)
