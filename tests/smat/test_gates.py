import math

import pytest
import torch
from devices import second_device
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from paramarket import smat
from paramarket.base import stream
from paramarket.errors import ParameterError
from paramarket.smat import HardConcrete

LAW = HardConcrete()
KNOWN = {  # log alpha: P(z ≠ 0), P(z = 1), E[z], z at u = 1/2 and temperature 2/3, the same at 1
    -4.605: (0.04713, 0.00202, 0.01312, 0, 0),
    -2.398: (0.31017, 0.01805, 0.10272, 0, 0),
    -1.599: (0.50000, 0.03927, 0.19431, 0, 0.1018),
    0.0: (0.83182, 0.16818, 0.50000, 0.5, 0.5),
    1.599: (0.96073, 0.50000, 0.80569, 1, 0.8982),
    4.605: (0.99798, 0.95287, 0.98688, 1, 1),
}
alphas = st.floats(-8, 8)


def at(value):
    return torch.tensor([value], dtype=torch.float64)


@pytest.mark.parametrize("log_alpha", KNOWN)
def test_the_closed_forms_have_their_known_values(log_alpha):
    def one(x):  # a gate is fully open as often as its opposite is closed
        return 1 - LAW.nonzero(-x)

    found = (LAW.nonzero, one, LAW.mean, LAW.median, lambda x: LAW.median(x, 1.0))
    assert [law(at(log_alpha)).item() for law in found] == pytest.approx(KNOWN[log_alpha], abs=1.5e-4)


@pytest.mark.parametrize("log_alpha", KNOWN)
def test_draws_follow_the_law(log_alpha):
    u = torch.rand(400_000, generator=stream(0, "gates")).clamp(1e-6, 1 - 1e-6)
    z = LAW.median(log_alpha + u.logit())  # s = sigmoid((logit u + log alpha) / temperature)
    assert (z != 0).float().mean().item() == pytest.approx(LAW.nonzero(at(log_alpha)).item(), abs=3e-3)
    assert (z == 1).float().mean().item() == pytest.approx(1 - LAW.nonzero(at(-log_alpha)).item(), abs=3e-3)
    assert z.mean().item() == pytest.approx(LAW.mean(at(log_alpha)).item(), abs=3e-3)


@given(alphas, st.sampled_from([2 / 3, 1.0, 0.3]))
def test_the_mean_is_the_integral_of_the_tail(log_alpha, temperature):
    law = HardConcrete(temperature)

    def tail(t):  # P(z > t)
        return 1 - 1 / (1 + math.exp(log_alpha - temperature * math.log((t - law.low) / (law.high - t))))

    assert law.mean(at(log_alpha)).item() == pytest.approx(quad(tail, 0, 1)[0], abs=1e-6)


@given(alphas)
def test_means_of_opposite_gates_are_mirror_images(log_alpha):
    assert (LAW.mean(at(log_alpha)) + LAW.mean(at(-log_alpha))).item() == pytest.approx(1, abs=1e-6)


@given(alphas)
def test_the_expected_number_of_open_gates_has_the_gradient_of_a_sigmoid(log_alpha):
    x = at(log_alpha).requires_grad_()
    LAW.nonzero(x).backward()
    q = LAW.nonzero(x).item()
    assert x.grad.item() == pytest.approx(q * (1 - q), abs=1e-9)


@given(alphas)
def test_a_gate_at_its_median_is_off_exactly_where_it_is_off_more_often_than_not(log_alpha):
    assert (LAW.median(at(log_alpha)).item() == 0) == (LAW.nonzero(at(log_alpha)).item() <= 0.5)


def test_a_gate_that_is_clipped_gets_no_gradient():
    x = torch.tensor([-1.7, -1.5, 0.0, 1.5, 1.7], requires_grad=True)
    LAW.median(x).sum().backward()
    assert (x.grad != 0).tolist() == [False, True, True, True, False]


@given(st.lists(alphas, min_size=1))
def test_the_slope_of_a_gate_can_be_told_from_the_gate_alone(values):
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    z = LAW.median(x)
    z.sum().backward()
    assert torch.allclose(LAW.slope(z.detach()), x.grad, atol=1e-9)


def test_far_out_a_gate_is_surely_off_or_on():
    assert LAW.median(torch.tensor([-60.0, 60.0])).tolist() == [0.0, 1.0]


def test_on_another_device_gates_are_the_same_there():
    x = torch.linspace(-3, 3, 50)
    with second_device() as device:
        for law in (LAW.median, LAW.nonzero, LAW.mean):
            there = law(x.to(device))
            assert there.device == device
            assert torch.equal(there.cpu(), law(x))


def test_a_multiplier_takes_a_target_of_its_own_run_from_the_cpu():
    multiplier, sparsity = torch.full((2, 3), 0.5), torch.tensor([[0.1, 0.6, 0.2]] * 2)
    target = torch.tensor([0.0, 0.5])
    found = smat.dual_ascent_step(multiplier, sparsity, target, 2.0)
    assert found.tolist() == [[0, 0, 0], pytest.approx([0.5 + 2 * 0.4, 0.0, 0.5 + 2 * 0.3])]
    with second_device() as device:
        there = smat.dual_ascent_step(multiplier.to(device), sparsity.to(device), target, 2.0)
        assert torch.equal(there.cpu(), found)


def test_a_multiplier_rises_by_the_violation_and_restarts_once_the_constraint_is_met():
    found = smat.dual_ascent_step(torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.1, 0.9, 0.95]), torch.tensor(0.9), 2.0)
    assert found.tolist() == pytest.approx([0.5 + 2 * 0.8, 0.0, 0.0])
    for target in (-0.5, 1.0):
        with pytest.raises(ParameterError, match=f"target = {target}: expected numbers in"):
            smat.dual_ascent_step(torch.zeros(1), torch.zeros(1), torch.tensor(target), 1.0)


def test_under_the_constraint_the_largest_weights_are_kept():
    """min sum (w_j z_j - a_j)² with half of the gates to be closed: the gates of the largest |a_j| stay open."""
    a = torch.tensor([3.0, -0.2, 2.0, 0.1, -2.5, 0.3, 1.5, -0.1])
    learnt, multiplier = torch.stack([a, torch.full((8,), 0.5)]).requires_grad_(), torch.zeros(1)
    for _ in range(600):  # of plain descent
        w, log_alpha = learnt
        loss = (w * LAW.median(log_alpha) - a).square().sum()
        (slope,) = torch.autograd.grad((loss + multiplier * 8 * (LAW.nonzero(log_alpha).mean() - 0.5)).sum(), learnt)
        learnt = (learnt.detach() - 0.05 * slope).requires_grad_()
        multiplier = smat.dual_ascent_step(
            multiplier, (LAW.median(learnt[1].detach()) == 0).float().mean()[None], torch.tensor(0.5), 0.02
        )
    kept = LAW.median(learnt[1].detach()) > 0
    assert kept.sum() == 4
    assert kept[a.abs().topk(4).indices].all()
    assert multiplier.item() == 0  # complementary slackness: the constraint is met
