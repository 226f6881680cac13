import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from paramarket import align, stack

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 8), st.integers(0, 3), st.integers(2, 5))


@given(SHAPES, st.integers(1, 4), st.booleans())
def test_residual_nets_side_by_side_say_what_each_says_alone(shape, copies, shared):
    net = stack.residual_mlp(*shape)
    many = stack.init(net, copies, seed=0)
    x = torch.randn(6, shape[0]) if shared else torch.randn(copies, 6, shape[0])
    together = stack.forward(net, many, x)
    for k in range(copies):
        alone = functional_call(net, stack.take(many, k), (x if shared else x[k],))
        assert torch.allclose(together[k], alone, atol=1e-5)


def test_a_residual_block_adds_to_the_stream():
    net = stack.residual_mlp(3, 4, 2, 2)
    many, x = stack.init(net, 2, seed=0), torch.randn(7, 3)
    said = stack.features(net, many, x)
    assert list(said) == ["1", "2", "3", "4", "5"]
    assert (said["3"] >= said["2"]).all()
    silent = many | {"3.linear.weight": torch.zeros(2, 4, 4), "3.linear.bias": torch.zeros(2, 4)}
    assert torch.equal(stack.features(net, silent, x)["3"], said["2"])
    assert torch.equal(said["5"], stack.forward(net, many, x))


def test_gradients_reach_a_stack_of_residual_nets_as_they_reach_one():
    net = stack.residual_mlp(3, 4, 2, 2).double()
    start = {name: tensor.double() for name, tensor in stack.init(net, 2, seed=0).items()}
    x = torch.randn(5, 3, dtype=torch.float64)
    many = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    stack.run(net, many, x, shared=True, training=True).square().sum().backward()
    for k in range(2):
        one = {name: tensor[k].clone().requires_grad_() for name, tensor in start.items()}
        functional_call(net, one, (x,)).square().sum().backward()
        assert all(torch.allclose(many[name].grad[k], one[name].grad) for name in one)


def test_one_order_holds_for_the_whole_stream():
    net = stack.residual_mlp(3, 4, 2, 2)
    spec = align.permutation_spec(net, torch.zeros(1, 3))
    assert spec.axes["1.weight"] == ("1", None)
    assert spec.axes["3.linear.weight"] == spec.axes["4.linear.weight"] == ("1", "1")
    assert spec.axes["5.weight"] == (None, "1")


@pytest.mark.parametrize("net", [nn.Sequential(nn.Conv2d(1, 2, 3)), nn.Linear(2, 3), nn.Sequential(nn.ReLU(True))])
def test_what_is_not_dense_is_left_to_the_general_path(net):
    assert not stack.is_dense(net)
