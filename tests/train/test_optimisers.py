import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from orders import equal

from paramarket import stack, train
from paramarket.errors import ParameterError, ShapeError

NET = stack.mlp(64, [8], 10)
HOW = {"steps": 12, "batch": 32, "lr": 1e-2, "schedule": "constant"}


def fitted(digits, **settings):
    start = stack.init(NET, 2, seed=0)
    return start, train.fit(NET, start, digits.quote, **HOW | settings).stack


def everywhere(share, start):
    return stack.map(lambda tensor: torch.full_like(tensor, share), start)


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
