import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from orders import equal

from paramarket import stack, train
from paramarket.errors import ParameterError, ShapeError
from paramarket.train.optimisers import SGD

NET = stack.mlp(64, [8], 10)
HOW = {"steps": 12, "batch": 32, "lr": 1e-2, "schedule": "constant"}


def fitted(digits, **settings):
    start = stack.init(NET, 2, seed=0)
    return start, train.fit(NET, start, digits.quote, **HOW | settings).stack


def everywhere(share, start):
    return stack.map(lambda tensor: torch.full_like(tensor, share), start)


@pytest.mark.parametrize(
    ("ours", "theirs", "extra"),
    [
        (train.AdamW, torch.optim.AdamW, {}),
        (train.AdamWithoutMomentum, torch.optim.AdamW, {"betas": (0.0, 0.999)}),
        (SGD, torch.optim.SGD, {"momentum": 0.9}),
    ],
)
def test_steps_are_those_of_torchs_own_optimiser(ours, theirs, extra):
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(5, 7, generator=generator), torch.randn(3, generator=generator)]
    slopes = [[torch.randn(tensor.shape, generator=generator) for tensor in start] for _ in range(6)]
    weights, plain = [tensor.clone() for tensor in start], [tensor.clone().requires_grad_() for tensor in start]
    optimizer, reference = ours(weights, weight_decay=0.1), theirs(plain, lr=1.0, weight_decay=0.1, **extra)
    for step, each in enumerate(slopes):
        lr = 0.1 / (step + 1)
        reference.param_groups[0]["lr"] = lr
        for tensor, slope in zip(plain, each, strict=True):
            tensor.grad = slope
        reference.step()
        turned = [each[0].T.contiguous().T, each[1]]  # the same numbers, laid out otherwise
        optimizer.step(turned, lr)
        for tensor, expected in zip(weights, plain, strict=True):
            assert torch.allclose(tensor, expected, rtol=1e-5, atol=1e-6)
    assert optimizer.steps.tolist() == [6, 6]


def test_weights_that_lie_otherwise_in_memory_are_refused_and_a_copy_lies_in_order():
    turned = torch.randn(2, 3).T
    with pytest.raises(ShapeError, match="contiguous"):
        train.AdamW([turned])
    assert stack.copy({"w": turned})["w"].is_contiguous()


@given(st.integers(1, 200), st.floats(1e-5, 1.0))
def test_one_cycle_is_torchs_schedule(steps, lr):
    opt = torch.optim.SGD([torch.zeros(1)], lr)
    pace = torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=steps + 1, cycle_momentum=False)
    expected = []
    for _ in range(steps):
        expected.append(opt.param_groups[0]["lr"])
        opt.step()
        pace.step()
    assert train.learning_rates("one-cycle", lr, steps) == pytest.approx(expected, rel=1e-9)


def test_a_straight_schedule_ends_a_step_before_zero_and_a_constant_one_stays():
    assert train.learning_rates("linear", 0.4, 4) == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert train.learning_rates("constant", 0.4, 3) == [0.4, 0.4, 0.4]


def test_a_pull_of_nothing_changes_nothing_and_a_whole_pull_freezes_bit_for_bit(digits):
    start, free = fitted(digits)
    assert equal(fitted(digits, pull=everywhere(0.0, start))[1], free)
    assert equal(fitted(digits, pull=everywhere(1.0, start))[1], start)


def test_each_model_weight_and_layer_has_a_pull_of_its_own(digits):
    start, free = fitted(digits)
    first = torch.tensor([1.0, 0.0]).view(2, 1, 1)
    _, held = fitted(digits, pull={"1.weight": first})
    assert torch.equal(held["1.weight"][0], start["1.weight"][0])
    assert equal(stack.take(held, 1), stack.take(free, 1))
    mask = (torch.rand(2, 8, 64, generator=torch.Generator().manual_seed(0)) < 0.9).float()
    _, sparse = fitted(digits, pull={"1.weight": mask})
    assert ((sparse["1.weight"] != start["1.weight"]).float() <= 1 - mask).all()


def test_the_stronger_the_pull_the_nearer_the_start(digits):
    start = stack.init(NET, 2, seed=0)
    shares = (0.0, 0.01, 0.1, 0.5)
    ends = [fitted(digits, pull=everywhere(share, start))[1] for share in shares]
    away = [sum((end[name] - start[name]).square().sum() for name in start) for end in ends]
    assert away == sorted(away, reverse=True)


@given(st.floats(0, 1), st.integers(0, 1000))
def test_going_back_is_the_decoupled_penalty(share, seed):
    generator = torch.Generator().manual_seed(seed)
    start, now = ({"w": torch.randn(2, 3, generator=generator)} for _ in range(2))
    expected = start["w"] + (1 - share) * (now["w"] - start["w"])
    train.pull_back(now, start, {"w": torch.full((2, 1), share)})
    assert torch.allclose(now["w"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("pull", "error", "says"),
    [
        ({"1.wieght": torch.zeros(2, 8, 64)}, ShapeError, "Did you mean '1.weight'"),
        ({"1.weight": torch.zeros(8, 64)}, ShapeError, r"shape \(8, 64\) for '1.weight', expected \(2, 8, 64\)"),
        ({"1.weight": torch.zeros(3, 1, 1)}, ShapeError, r"shape \(3, 1, 1\)"),
        ({"1.weight": torch.full((2, 1, 1), 1.5)}, ParameterError, "no share from 0 .* to 1"),
    ],
)
def test_a_pull_that_does_not_fit_is_refused_before_work_starts(digits, pull, error, says):
    with pytest.raises(error, match=says):
        fitted(digits, pull=pull)


def test_statistics_are_not_pulled_and_one_pull_may_serve_all_models(digits):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 10))
    start = stack.init(net, 2, seed=0)
    fitted = train.fit(net, start, digits.quote, pull=everywhere(1.0, start), **HOW).stack
    assert torch.equal(fitted["2.weight"], start["2.weight"])
    assert not torch.equal(fitted["1.running_mean"], start["1.running_mean"])
    one = {name: torch.ones(1, *[1] * (tensor.ndim - 1)) for name, tensor in start.items()}
    assert torch.equal(train.fit(net, start, digits.quote, pull=one, **HOW).stack["2.weight"], start["2.weight"])
