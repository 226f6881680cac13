import math

import pytest
import torch

from paramarket import teach
from paramarket.smat import HardConcrete


def shaded(value):
    return 2 * value / 3


def lost_cents(cents, shares):
    return [int(cents * share) for share in shares]


def split_cents(cents, shares):
    parts = lost_cents(cents, shares)
    return [parts[0] + cents - sum(parts), *parts[1:]]


def rounds_to(curve, goal):
    reached = (curve >= goal).nonzero().flatten()
    return int(reached[0]) + 1 if len(reached) else None


def mixed_alpha(keys, a, b, share, scaled=True):
    e = share * a + (1 - share) * b
    scores = (keys @ (e / e.norm() * len(e) ** 0.5 if scaled else e)).sigmoid()
    return scores / scores.sum()


def specialist(base, experts, alpha):
    return {name: tensor + torch.tensordot(alpha, experts[name], 1) for name, tensor in base.items()}


def without_base(base, experts, alpha):
    return {name: torch.tensordot(alpha, experts[name], 1) for name in base}


def without_biases(*of):
    return {"1.weight": specialist(*of)["1.weight"]}


def as_a_stack(*of):
    return {name: tensor.unsqueeze(0) for name, tensor in specialist(*of).items()}


def first_alone(base, experts, alpha):
    return {name: tensor + alpha[0] * experts[name][0] for name, tensor in base.items()}


def pays_after(once, each, instead, rounded=math.ceil):
    return math.inf if each >= instead else rounded(once / (instead - each))


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
        (teach.check_split_cents, lambda c, s: [c, *[0] * (len(s) - 1)], "cents away from its share"),
        (teach.check_split_cents, lambda c, s: [c], "expected as many whole numbers"),
        (teach.check_open_chance, HardConcrete().nonzero, "✓ open_chance holds"),
        (teach.check_open_chance, HardConcrete().one, "that is the chance of z = 1"),
        (teach.check_open_chance, torch.sigmoid, "it is off by up to 0.3"),
        (teach.check_open_chance, lambda x: x.mean(), "expected one chance a gate"),
        (teach.check_mixed_alpha, mixed_alpha, "✓ mixed_alpha holds"),
        (teach.check_mixed_alpha, lambda *of: mixed_alpha(*of, scaled=False), "✗ mixed_alpha: expected"),
        (teach.check_mixed_alpha, lambda keys, *_: torch.ones(len(keys)), "expected 4 numbers that sum to 1"),
        (teach.check_rounds_to, rounds_to, "✓ rounds_to holds"),
        (teach.check_rounds_to, lambda c, g: rounds_to(c, g) or 0, "expected None"),
        (teach.check_rounds_to, lambda c, g: (rounds_to(c, g) or 1) - 1, "expected 1"),
        (teach.check_specialist, specialist, "✓ specialist holds"),
        (teach.check_specialist, without_base, "'1.weight' is the sum of the experts without S."),
        (teach.check_specialist, without_biases, "expected '1.bias' of shape (4,) among its tensors"),
        (teach.check_specialist, as_a_stack, "expected '1.weight' of shape (4, 3) among its tensors"),
        (teach.check_specialist, first_alone, "'1.weight' is not S + sum alpha E."),
        (teach.check_specialist, lambda base, *_: base, "'1.weight' is not S + sum alpha E."),
        (teach.check_pays_after, pays_after, "✓ pays_after holds"),
        (teach.check_pays_after, lambda *of: pays_after(*of, rounded=math.floor), "it does not pay yet"),
        (teach.check_pays_after, lambda *of: pays_after(*of) + 1, "it pays before"),
        (teach.check_pays_after, lambda *of: pays_after(*of, rounded=math.floor) + 1, "it pays before customer"),
        (teach.check_pays_after, lambda *of: pays_after(*of, rounded=float), "expected a whole number of customers"),
        (teach.check_pays_after, lambda *_: math.inf, "expected a whole number of customers, got inf"),
        (teach.check_pays_after, lambda once, each, instead: math.ceil(once / (instead - each)), "it never pays: math"),
    ],
)
def test_checks_tell_right_from_wrong(capsys, check, answer, says):
    check(answer)
    assert says in capsys.readouterr().out


def test_every_check_draws_anew():
    assert teach.fresh().initial_seed() != teach.fresh().initial_seed()
