import numpy as np
import pytest
import torch

from paramarket import contract, market, stack, teach


def shaded(value):
    return 2 * value / 3


def lost_cents(cents, shares):
    return [int(cents * share) for share in shares]


def rest_to_the_first(cents, shares):
    parts = lost_cents(cents, shares)
    return [parts[0] + cents - sum(parts), *parts[1:]]


def split_cents(cents, shares):
    return market.split_cents(torch.tensor([cents]), torch.tensor([shares], dtype=torch.float64))[0].tolist()


def rounds_to(curve, goal):
    reached = (curve >= goal).nonzero().flatten()
    return int(reached[0]) + 1 if len(reached) else None


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


def unwritten(*_):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("check", "answer", "says"),
    [
        (teach.check_best_share, lambda b, s: (b / (b + s), b * s / (b + s)), "✓ best_share holds"),
        (teach.check_best_share, lambda b, s: (s / (b + s), b * s / (b + s)), "That is the buyer's own share."),
        (teach.check_best_share, lambda b, s: (0.0, b), "the bowl is lowest elsewhere"),
        (teach.check_best_share, lambda b, s: (b / (b + s), min(b, s)), "the share is right; the error is not"),
        (teach.check_best_share, unwritten, "… best_share is not written yet"),
        (teach.check_better_bid, shaded, "✓ better_bid holds"),
        (teach.check_better_bid, lambda v: v, "the truth wins"),
        (teach.check_better_bid, lambda v: 0.0, "a bid of 0.00 wins"),
        (teach.check_better_bid, lambda v: [][0], "it raised IndexError"),
        (teach.check_split_cents, split_cents, "✓ split_cents holds"),
        (teach.check_split_cents, lost_cents, "cents became"),
        (teach.check_split_cents, lambda c, s: [c * share for share in s], "expected as many whole numbers"),
        (teach.check_split_cents, lambda c, s: [c, *[0] * (len(s) - 1)], "a seller with no share got"),
        (teach.check_split_cents, lambda c, s: [*[0] * (len(s) - 1), c], "a cent or more away from its share"),
        (teach.check_split_cents, rest_to_the_first, "a seller with no share got"),
        (teach.check_split_cents, lambda c, s: [c], "expected as many whole numbers"),
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
        (teach.check_rounds_to, rounds_to, "✓ rounds_to holds"),
        (teach.check_rounds_to, lambda c, g: rounds_to(c, g) or 0, "expected None"),
        (teach.check_rounds_to, lambda c, g: (rounds_to(c, g) or 1) - 1, "expected 1"),
    ],
)
def test_checks_tell_right_from_wrong(capsys, check, answer, says):
    before = torch.get_rng_state()
    check(answer)
    assert says in capsys.readouterr().out
    assert torch.equal(before, torch.get_rng_state())
