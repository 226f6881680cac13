import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from paramarket import align, stack
from paramarket.base import stream
from paramarket.errors import ShapeError

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
    stack.apply(net, many, x, shared=True, training=True).square().sum().backward()
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


@given(SHAPES)
def test_the_plan_of_an_mlp_computes_what_the_net_does(shape):
    for net in (stack.residual_mlp(*shape), stack.mlp(shape[0], [shape[1]] * shape[2], shape[3])):
        many, x = stack.init(net, 3, seed=0), torch.randn(5, shape[0])
        h = x.expand(3, -1, -1)
        for layer in stack.dense_plan(net):
            h = layer.output(h, stack.linear(net, many, layer.name, h))
        assert torch.allclose(h, stack.forward(net, many, x), atol=1e-6)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU()),
        nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)),
        nn.Sequential(nn.ReLU(), nn.Linear(3, 4), nn.Linear(4, 2)),
        nn.Conv2d(1, 2, 3),
    ],
)
def test_what_is_no_plain_mlp_has_no_plan(net):
    with pytest.raises(ShapeError, match="expected an MLP as"):
        stack.dense_plan(net)


def test_the_first_layer_and_what_follows_are_the_net():
    net = stack.residual_mlp(3, 4, 2, 2)
    many, x = stack.init(net, 2, seed=0), torch.randn(5, 3)
    name, rest = stack.split_first(net)
    first = stack.linear(net, many, name, x)
    assert torch.equal(stack.apply(rest, many, first, shared=False, training=False), stack.forward(net, many, x))
    assert stack.split_first(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())) is None
    assert stack.split_first(nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(3, 2))) is None


@given(st.integers(1, 9), st.lists(st.integers(1, 8), max_size=3), st.integers(1, 5))
def test_an_mlp_is_read_off_its_weights(inputs, hidden, classes):
    net = stack.mlp(inputs, hidden, classes)
    assert str(stack.mlp_of(stack.init(net, 2, seed=0))) == str(net)


def test_a_stack_of_transformers_says_what_each_says_alone():
    net, x = stack.vit(1, 8, 10, units=8, heads=2), torch.randn(5, 1, 8, 8, generator=stream(0, "x"))
    models = stack.init(net, copies=3, seed=0)
    said = stack.forward(net, models, x)
    assert said.shape == (3, 5, 10)
    for k in range(3):
        alone = torch.func.functional_call(net, stack.take(models, k), (x,))
        assert torch.allclose(said[k], alone, atol=1e-5)


@pytest.mark.parametrize(("side", "patch", "blocks"), [(8, 2, 1), (8, 4, 3), (6, 3, 2)])
def test_a_transformer_reads_patches_of_images_and_learns(side, patch, blocks):
    net = stack.vit(3, side, 4, patch=patch, units=8, heads=2, blocks=blocks)
    assert len(net) == blocks + 4
    assert net[0].places.shape == ((side // patch) ** 2, 8)
    assert net(torch.zeros(2, 3, side, side)).shape == (2, 4)
    for name, parameter in net.named_parameters():
        net(torch.randn(2, 3, side, side, generator=stream(0, "images"))).sum().backward()
        assert parameter.grad is not None, name
