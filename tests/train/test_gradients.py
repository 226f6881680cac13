"""The gradients that are written out are autograd's, for every net that they serve."""

import pytest
import torch
from devices import second_device
from hypothesis import given
from hypothesis import strategies as st
from orders import equal
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from paramarket import stack, train
from paramarket.train.gradients import _autograd_backward, _backpropagate

NETS = {
    "one layer": stack.mlp(6, [], 3),
    "mlp": stack.mlp(6, [5, 4], 3),
    "residual": stack.residual_mlp(6, 5, 2, 3),
    "residual first": nn.Sequential(nn.Flatten(), stack.Residual(6), nn.Linear(6, 3)),
}


def drawn(net, copies, batch, seed, dtype=torch.float64):
    """Models, a batch, targets and a place for gradients, which holds something else before."""
    generator = torch.Generator().manual_seed(seed)
    models = stack.map(lambda tensor: tensor.to(dtype), stack.init(net, copies, seed))
    x = torch.randn(copies, batch, 1, 2, 3, generator=generator, dtype=dtype)
    y = torch.randint(3, (copies, batch), generator=generator)
    return models, x, y, stack.map(lambda tensor: torch.full_like(tensor, torch.nan), models)


@pytest.mark.parametrize("kind", NETS)
@given(copies=st.integers(1, 3), batch=st.integers(1, 5), seed=st.integers(0, 999))
def test_every_model_gets_its_own_loss_and_the_gradient_of_autograd(kind, copies, batch, seed):
    net = NETS[kind]
    models, x, y, gradients = drawn(net, copies, batch, seed)
    backward = train.make_backward(net, models, gradients, batch)
    assert backward.func is _backpropagate
    losses = backward(x, train.probabilities(y, 3).double())
    for k in range(copies):
        one = {name: tensor.requires_grad_() for name, tensor in stack.take(models, k).items()}
        loss = cross_entropy(functional_call(net, one, (x[k],)), y[k])
        slopes = torch.autograd.grad(loss, list(one.values()))
        assert torch.allclose(losses[k], loss, atol=1e-12)
        for name, slope in zip(one, slopes, strict=True):
            assert torch.allclose(gradients[name][k], slope, atol=1e-12)


def test_memory_that_is_used_again_keeps_nothing_of_the_step_before():
    net = NETS["residual"]
    models, x, y, gradients = drawn(net, 2, 4, seed=0)
    _, other_x, other_y, _ = drawn(net, 2, 4, seed=1)
    backward = train.make_backward(net, models, gradients, 4)
    first = backward(x, train.probabilities(y, 3).double())
    kept = stack.copy(gradients)
    backward(other_x, train.probabilities(other_y, 3).double())
    assert not equal(gradients, kept)
    assert torch.equal(backward(x, train.probabilities(y, 3).double()), first)
    assert equal(gradients, kept)


def test_models_are_read_anew_and_examples_are_left_alone():
    net = NETS["mlp"]
    models, x, y, gradients = drawn(net, 2, 4, seed=0)
    targets, before = train.probabilities(y, 3).double(), x.clone()
    backward = train.make_backward(net, models, gradients, 4)
    first = backward(x, targets)
    for tensor in models.values():
        tensor.mul_(2)
    assert not torch.equal(backward(x, targets), first)
    assert torch.equal(x, before)
    assert torch.equal(targets, train.probabilities(y, 3).double())


@pytest.mark.parametrize("kind", NETS)
def test_soft_targets_and_rows_of_one_matrix_are_served_alike_by_both_ways(kind):
    net = NETS[kind]
    models, x, _, _ = drawn(net, 3, 4, seed=0)
    targets = torch.rand(3, 4, 3, dtype=torch.float64).softmax(dim=-1)
    one, rows = stack.take(models, 0), torch.zeros_like(stack.vectors(models))
    written, plain = stack.from_vectors(rows, one), stack.map(torch.zeros_like, models)
    views = stack.from_vectors(stack.vectors(models), one)
    losses = train.make_backward(net, views, written, 4)(x, targets)
    expected = _autograd_backward(net, models, plain)(x, targets)
    assert torch.allclose(losses, expected, atol=1e-12)
    for name in plain:
        assert torch.allclose(written[name], plain[name], atol=1e-12)


def test_any_other_net_goes_through_autograd_and_a_parameter_without_use_has_no_slope():
    class Convolution(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))
            self.unused = nn.Parameter(torch.zeros(2))

        def forward(self, x):
            return self.inner(x)

    net = Convolution()
    inner = stack.init(net.inner, 2, seed=0)
    models = {"unused": torch.ones(2, 2)} | {f"inner.{name}": tensor for name, tensor in inner.items()}
    _, x, y, _ = drawn(NETS["mlp"], 2, 4, seed=0, dtype=torch.float32)
    gradients = stack.map(lambda tensor: torch.full_like(tensor, torch.nan), models)
    losses = train.make_backward(net, models, gradients, 4)(x, train.probabilities(y, 3))
    assert (gradients["unused"] == 0).all()
    for k in range(2):
        one = {name: tensor.requires_grad_() for name, tensor in stack.take(models, k).items()}
        loss = cross_entropy(functional_call(net, one, (x[k],)), y[k])
        assert torch.allclose(losses[k], loss)
        for name, slope in zip(one, torch.autograd.grad(loss, list(one.values()), materialize_grads=True), strict=True):
            assert torch.allclose(gradients[name][k], slope, atol=1e-6)


def test_on_a_second_device_the_gradients_are_the_cpus():
    net = NETS["residual"]
    models, x, y, gradients = drawn(net, 2, 4, seed=0, dtype=torch.float32)
    losses = train.make_backward(net, models, gradients, 4)(x, train.probabilities(y, 3))
    with second_device() as device:
        away = stack.map(lambda tensor: tensor.to(device), models)
        there = stack.map(torch.zeros_like, away)
        found = train.make_backward(net, away, there, 4)(x.to(device), train.probabilities(y.to(device), 3))
        assert torch.equal(found.cpu(), losses)
        assert equal(stack.map(lambda tensor: tensor.cpu(), there), gradients)
