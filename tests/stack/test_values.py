import pytest
import torch
from devices import second_device
from hypothesis import given
from hypothesis import strategies as st
from orders import equal
from torch import Tensor, nn
from torch.func import functional_call

from paramarket import stack
from paramarket.base import stream
from paramarket.errors import ShapeError

SHAPES = st.tuples(st.integers(1, 9), st.lists(st.integers(1, 8), max_size=3), st.integers(2, 5))
COPIES = st.integers(1, 5)


def models(shape, copies, seed=0):
    net = stack.mlp(*shape)
    return net, stack.init(net, copies, seed)


def conv_net():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


@given(SHAPES, COPIES)
def test_join_and_take_are_inverse(shape, copies):
    _, many = models(shape, copies)
    assert equal(stack.join([stack.take(many, k) for k in range(copies)]), many)
    assert equal(stack.take(many, slice(None)), many)
    assert equal(stack.take(stack.take(many, [0]), 0), stack.take(many, 0))


@given(SHAPES, COPIES, st.booleans())
def test_forward_of_a_stack_equals_its_members_as_plain_modules(shape, copies, shared):
    net, many = models(shape, copies)
    x = torch.randn(6, shape[0]) if shared else torch.randn(copies, 6, shape[0])
    out = stack.forward(net, many, x)
    for k in range(copies):
        net.load_state_dict(stack.take(many, k))
        expected = net(x if shared else x[k])
        assert torch.allclose(out[k], expected, atol=1e-5)
        assert torch.allclose(
            stack.forward(net, stack.take(many, [k]), x if shared else x[[k]])[0], expected, atol=1e-5
        )


class Halved(nn.Sequential):
    def forward(self, x):
        return super().forward(x) / 2


def reused():
    relu = nn.ReLU()
    return nn.Sequential(nn.Linear(6, 5), relu, nn.Linear(5, 5), relu, nn.Linear(5, 2))


@pytest.mark.parametrize(
    "net",
    [
        reused(),
        Halved(nn.Linear(6, 2)),
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 2, bias=False)),
        nn.Sequential(nn.Linear(6, 5), nn.Dropout(), nn.Tanh(), nn.Linear(5, 2)),
    ],
    ids=["a module used twice", "a subclass", "in place", "dropout"],
)
def test_forward_does_what_unusual_sequentials_do(net):
    many, x = stack.init(net, 2, seed=0), torch.randn(4, 6)
    out = stack.forward(net, many, x)
    for k in range(2):
        assert torch.allclose(out[k], functional_call(net.eval(), stack.take(many, k), (x,)), atol=1e-6)


@pytest.mark.parametrize("shared", [True, False])
def test_gradients_equal_autograds(shared):
    """The linear layer's gradients are written out by hand: compare with plain modules, in float64."""
    net, many = models((5, [4], 3), 2)
    many = {name: tensor.double().requires_grad_() for name, tensor in many.items()}
    x = torch.randn(6, 5, dtype=torch.float64) if shared else torch.randn(2, 6, 5, dtype=torch.float64)
    x.requires_grad_()
    found = torch.autograd.grad(stack.forward(net, many, x).square().sum(), [*many.values(), x])
    plain = [functional_call(net, stack.take(many, k), (x if shared else x[k],)) for k in range(2)]
    expected = torch.autograd.grad(torch.stack(plain).square().sum(), [*many.values(), x])
    assert all(torch.allclose(one, other, atol=1e-10) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("shared", [True, False])
def test_forward_of_any_other_module_equals_its_members(shared):
    net = conv_net()
    many = stack.init(net, 3, seed=0)
    x = torch.randn(2, 1, 8, 8) if shared else torch.randn(3, 2, 1, 8, 8)
    out = stack.forward(net, many, x)
    for k in range(3):
        expected = functional_call(net.eval(), stack.take(many, k), (x if shared else x[k],))
        assert torch.allclose(out[k], expected, atol=1e-5)


def test_forward_never_reads_the_tensors_of_the_net_and_leaves_its_mode():
    net = conv_net().train()
    many, x = stack.init(net, 2, seed=0), torch.randn(2, 1, 8, 8)
    before = stack.forward(net, many, x)
    for tensor in net.state_dict().values():
        tensor.fill_(3)
    assert torch.equal(stack.forward(net, many, x), before)
    assert net.training
    assert all(bool((tensor == 3).all()) for tensor in net.state_dict().values())


@given(SHAPES, COPIES, st.data())
def test_mix_with_a_one_hot_row_is_that_model_bit_for_bit(shape, copies, draw):
    _, many = models(shape, copies)
    k = draw.draw(st.integers(0, copies - 1))
    chosen = stack.mix(torch.eye(copies)[[k]], many)
    assert equal(stack.take(chosen, 0), stack.take(many, k))


@given(SHAPES, COPIES, st.integers(1, 4))
def test_mix_is_linear(shape, copies, rows):
    _, many = models(shape, copies)
    one, other = torch.randn(2, rows, copies)
    left = stack.mix(2 * one - other, many)
    first, second = stack.mix(one, many), stack.mix(other, many)
    assert all(torch.allclose(left[name], 2 * first[name] - second[name], atol=1e-5) for name in left)


def test_mix_of_a_batch_of_stacks_is_a_mix_of_each():
    _, many = models((3, [4], 2), 6)
    batch = {name: tensor.unflatten(0, (3, 2)) for name, tensor in many.items()}
    weights = torch.rand(3, 5, 2)
    mixed = stack.mix(weights, batch)
    for k in range(3):
        expected = stack.mix(weights[k], stack.take(batch, k))
        assert all(torch.allclose(mixed[name][k], expected[name], atol=1e-6) for name in mixed)


def test_mix_includes_scalar_parameters_and_floating_buffers():
    many = {"scale": torch.tensor([1.0, 3.0]), "w": torch.ones(2, 2, 2)}
    mixed = stack.mix(torch.tensor([[0.5, 0.5]]), many)
    assert mixed["scale"].tolist() == [2.0]
    names = stack.init(conv_net(), 1, seed=0)
    assert "1.running_var" in names
    assert "1.num_batches_tracked" not in names


@given(SHAPES, st.integers(0, 2**31))
def test_the_same_seed_gives_the_same_weights_and_another_seed_other_ones(shape, seed):
    assert equal(models(shape, 2, seed)[1], models(shape, 2, seed)[1])
    assert not equal(models(shape, 2, seed)[1], models(shape, 2, seed + 1)[1])


@given(SHAPES, COPIES)
def test_a_model_does_not_depend_on_how_many_there_are(shape, copies):
    assert equal(stack.take(models(shape, copies)[1], 0), stack.take(models(shape, copies + 3)[1], 0))


def test_init_leaves_the_global_generator_alone_and_follows_pytorchs_rule():
    before = torch.get_rng_state()
    _, many = models((400, [300], 10), 2)
    assert torch.equal(before, torch.get_rng_state())
    assert many["1.weight"].abs().max() <= 1 / 20
    assert many["1.weight"].std().item() == pytest.approx(1 / 20 / 3**0.5, rel=0.01)


def test_init_names_a_module_that_it_cannot_start():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(3))

    with pytest.raises(ShapeError, match=r"cannot initialise 1 \(Odd\): it has no reset_parameters"):
        stack.init(nn.Sequential(nn.Linear(2, 3), Odd()), 1, seed=0)


def test_features_are_every_layers_output():
    net, many = models((3, [4, 5], 2), 2)
    x = torch.randn(7, 3)
    found = stack.features(net, many, x)
    assert {name: tuple(t.shape) for name, t in found.items()} == {
        "1": (2, 7, 4), "2": (2, 7, 4), "3": (2, 7, 5), "4": (2, 7, 5), "5": (2, 7, 2)
    }  # fmt: skip
    assert torch.equal(found["5"], stack.forward(net, many, x))
    assert torch.equal(found["2"], found["1"].relu())
    with pytest.raises(ShapeError, match="features needs a Sequential"):
        stack.features(conv_net(), stack.init(conv_net(), 1, 0), torch.randn(2, 1, 8, 8))


def test_wrong_shapes_name_the_key_and_both_shapes():
    net, many = models((3, [4], 2), 2)
    wide = stack.init(stack.mlp(3, [5], 2), 2, seed=0)
    with pytest.raises(ShapeError, match=r"'1\.weight' has shape \(5, 3\), expected \(4, 3\)"):
        stack.forward(net, wide, torch.randn(2, 3))
    with pytest.raises(ShapeError, match=r"'1\.weight' has shape \(5, 3\), expected \(4, 3\)"):
        stack.join([stack.take(many, 0), stack.take(wide, 0)])
    deep = stack.init(stack.mlp(3, [4, 4], 2), 2, seed=0)
    with pytest.raises(ShapeError, match=r"given has '5\.weight' alone"):
        stack.forward(net, {**many, "5.weight": deep["5.weight"]}, torch.randn(2, 3))
    with pytest.raises(ShapeError, match="nothing to join"):
        stack.join([])


def test_a_mismatch_in_the_number_of_models_is_named():
    net, many = models((3, [4], 2), 2)
    with pytest.raises(ShapeError, match="first axis of 2 models"):
        stack.forward(net, many, torch.randn(3, 5, 3))
    with pytest.raises(ShapeError, match=r"same number of models under every name, got \[1, 2\]"):
        stack.forward(net, {**many, "1.bias": many["1.bias"][:1]}, torch.randn(2, 3))
    with pytest.raises(ShapeError, match=r"weights \(1, 3\) and '1\.weight' \(2, 4, 3\)"):
        stack.mix(torch.ones(1, 3), many)


def test_examples_of_the_wrong_shape_are_refused():
    net, many = models((3, [4], 2), 2)
    with pytest.raises(ShapeError, match=r"x brings 7 values per example to layer '1', expected 3"):
        stack.forward(net, many, torch.randn(2, 7))
    with pytest.raises(ShapeError, match=r"x has shape \(3,\)"):
        stack.forward(net, many, torch.randn(3))


def test_a_probe_sees_what_modules_read_and_say_and_may_change_it():
    net = stack.mlp(4, [3, 5], 2)
    params, x = stack.take(stack.init(net, 1, seed=0), 0), torch.randn(6, 4)
    seen = {}
    stack.probe(net, params, x, ["1", "3"], lambda name, read, said: seen.update({name: (read, said)}))
    layers = stack.features(net, stack.join([params]), x)
    assert torch.allclose(seen["1"][1], layers["1"][0], atol=1e-6)
    assert torch.allclose(seen["3"][0], layers["2"][0], atol=1e-6)
    changed = {}
    stack.probe(net, params, x, ["1", "3"], lambda name, read, said: changed.update({name: read}) or said * 0)
    assert not changed["3"].any()
    assert not any(module._forward_hooks for module in net.modules())


@given(SHAPES, COPIES, COPIES)
def test_chain_puts_one_stack_behind_the_other(shape, few, more):
    _, one = models(shape, few)
    _, other = models(shape, more, seed=1)
    both = stack.chain(each for each in (one, other))
    assert equal(stack.take(both, slice(few)), one)
    assert equal(stack.take(both, slice(few, None)), other)


def test_stacks_that_differ_are_not_chained():
    _, one = models((3, [4], 2), 2)
    _, other = models((3, [5], 2), 2)
    with pytest.raises(
        ShapeError, match=r"the stacks to chain do not fit: '1\.weight' has shape \(5, 3\), expected \(4, 3\)"
    ):
        stack.chain([one, other])


def test_flat_lays_the_stacks_of_a_stack_end_to_end():
    grid = stack.unflat(stack.init(stack.mlp(4, [3], 2), 6, seed=0), (2, 3))
    row = stack.flat(grid)
    for k in range(2):
        for j in range(3):
            one, other = stack.take(grid, (k, j)), stack.take(row, 3 * k + j)
            assert all(torch.equal(one[name], other[name]) for name in grid)


@given(SHAPES, COPIES)
def test_map_is_what_it_does_to_each_tensor(shape, copies):
    _, many = models(shape, copies)
    _, other = models(shape, copies, seed=1)
    summed = stack.map(lambda one, two: one + 2 * two, many, other)
    assert list(summed) == list(many)
    assert all(torch.equal(summed[name], many[name] + 2 * other[name]) for name in many)
    assert equal(stack.map(lambda tensor: tensor, many), many)


def test_map_names_what_one_of_the_stacks_lacks():
    _, shallow = models((3, [4], 2), 2)
    _, deep = models((3, [4, 4], 2), 2)
    for pair in ((shallow, deep), (deep, shallow)):
        with pytest.raises(ShapeError, match=r"one of the stacks alone has '5\.(weight|bias)'"):
            stack.map(torch.add, *pair)


@given(SHAPES, COPIES, COPIES)
def test_counting_is_the_length_of_the_leading_axes(shape, rows, columns):
    _, many = models(shape, rows * columns)
    grid = stack.unflat(many, (rows, columns))
    assert stack.count(many) == rows * columns
    assert stack.leading(grid, 2) == (rows, columns)
    assert equal(stack.flat(grid), many)
    assert equal(stack.unflat(many, (-1, columns)), grid)


@given(SHAPES, COPIES)
def test_vectors_hold_every_weight_once_and_come_back_bit_for_bit(shape, copies):
    net, many = models(shape, copies)
    rows = stack.vectors(many)
    assert rows.shape == (copies, sum(parameter.numel() for parameter in net.parameters()))
    assert equal(stack.from_vectors(rows, stack.take(many, 0)), many)
    grid = stack.unflat(many, (1, copies))
    assert torch.equal(stack.vectors(grid, axes=2)[0], rows)


def test_a_layer_owns_its_parameters_in_order():
    net = stack.residual_mlp(3, 4, 2, 2)
    assert stack.layers(stack.init(net, 2, seed=0)) == ["1", "3.linear", "4.linear", "5"]
    assert stack.layer_of("3.linear.bias") == "3.linear"


def test_a_copy_shares_no_memory_and_no_gradient():
    _, many = models((3, [4], 2), 2)
    many["1.weight"].requires_grad_()
    copied = stack.copy(many)
    assert equal(copied, many)
    assert not copied["1.weight"].requires_grad
    copied["1.bias"] += 1
    assert not equal(copied, many)


def test_models_on_a_second_device_say_what_they_say_here():
    net, many = models((3, [4], 2), 2)
    x = torch.randn(5, 3)
    with second_device() as device:
        away = stack.map(lambda tensor: tensor.to(device), many)
        assert stack.device(away) == device
        assert stack.device(stack.init(net, 2, seed=0, device=device)) == device
        assert stack.place(x, away).device == device
        assert torch.equal(stack.forward(net, away, x).cpu(), stack.forward(net, many, x))
        halves = stack.mix(torch.tensor([[0.5, 0.5]]), away)
        assert equal(stack.map(lambda tensor: tensor.cpu(), halves), stack.mix(torch.tensor([[0.5, 0.5]]), many))
        assert equal(stack.map(lambda tensor: tensor.cpu(), stack.copy(away)), many)


def test_models_started_for_other_purposes_draw_other_numbers():
    net = stack.mlp(3, [4], 2)
    one, other = stack.init(net, 2, seed=0), stack.init(net, 2, seed=0, purpose="router")
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_a_packed_stack_is_the_same_stack_in_one_piece_of_memory():
    models = stack.init(stack.mlp(4, [3], 2), 3, seed=0)
    packed = stack.pack(models)
    assert equal(packed.models, models)
    assert packed.numbers.numel() == sum(tensor.numel() for tensor in models.values())
    packed.numbers.zero_()
    assert all((tensor == 0).all() and tensor.is_contiguous() for tensor in packed.models.values())
    assert not any((tensor == 0).all() for tensor in models.values())


# Half precision is stored so, and computed in float32


HALF = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALF)
def test_models_of_half_precision_answer_as_the_same_numbers_in_float32(dtype):
    net = stack.mlp(6, [8], 3)
    models = stack.map(lambda tensor: (100 * tensor).to(dtype), stack.init(net, 2, 0))
    x = torch.randn(20, 6, generator=stream(0, "half"))
    exact = stack.map(Tensor.float, models)
    assert torch.equal(stack.forward(net, models, x), stack.forward(net, exact, x))
    assert all(
        torch.equal(a, b)
        for a, b in zip(stack.features(net, models, x).values(), stack.features(net, exact, x).values(), strict=True)
    )
    said = []
    for params in (stack.take(models, 0), stack.take(exact, 0)):
        stack.probe(net, params, x, ["3"], lambda name, read, answer: said.append((read, answer)))
    assert all(torch.equal(one, other) for one, other in zip(*said, strict=True))


@pytest.mark.parametrize("dtype", HALF)
def test_a_mixture_of_half_precision_is_rounded_once(dtype):
    models = {"w": torch.tensor([[60000.0, 1.0], [60000.0, 1.0078125], [-60000.0, 1.0]]).to(dtype)}
    found = stack.mix(torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.9, 0.9, 0.8]]), models)["w"]
    exact = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.9, 0.9, 0.8]]).double() @ models["w"].double()
    assert torch.equal(found, exact.to(dtype))


def test_whole_numbers_are_not_mixed():
    with pytest.raises(ShapeError, match=r"'order' holds torch\.int64: a weighted sum of whole numbers is none"):
        stack.mix(torch.tensor([[0.5, 0.5]]), {"order": torch.tensor([[1], [3]])})
