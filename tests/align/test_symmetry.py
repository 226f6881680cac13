import re
from functools import cache

import numpy as np
import pytest
import torch
from devices import second_device
from hypothesis import given
from hypothesis import strategies as st
from orders import equal, shuffle
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from paramarket import align, data, stack
from paramarket.align import PermutationSpec, compose, identity, inverse, permutation_spec, permute, sizes
from paramarket.base import stream
from paramarket.errors import ShapeError

SHAPES = st.tuples(st.integers(1, 9), st.lists(st.integers(1, 8), max_size=4), st.integers(2, 5))


class Block(nn.Module):
    """A residual block as in a wide ResNet: norm, ReLU and convolution, twice, beside a shortcut."""

    def __init__(self, inputs, outputs, groups):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, inputs), nn.GroupNorm(groups, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()

    def forward(self, x):
        inner = self.conv1(F.relu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.relu(self.norm2(inner)))


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.blocks = nn.Sequential(Block(6, 6, 3), Block(6, 8, 2), Block(8, 8, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Functional(nn.Module):
    """Two layers and a free choice of what happens between them."""

    def __init__(self, between, width):
        super().__init__()
        self.conv, self.head, self.between = nn.Conv2d(1, 6, 3), nn.Linear(width, 5), between

    def forward(self, x):
        return self.head(self.between(self.conv(x)))


def dense(*layers):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), *layers, nn.Linear(8, 5))


def conv(*layers, width=216):
    """Layers on 6 channels of 6 × 6, flattened with their places."""
    return nn.Sequential(nn.Conv2d(1, 6, 3), *layers, nn.Tanh(), nn.Flatten(), nn.Linear(width, 5))


NETS = {
    "mlp": lambda: stack.mlp(64, [8, 7, 6], 5),
    "flattened": conv,
    "pooled": lambda: conv(nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 9, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), width=9),
    "BatchNorm2d": lambda: conv(nn.BatchNorm2d(6)),
    "BatchNorm1d": lambda: dense(nn.BatchNorm1d(8), nn.GELU()),
    "BatchNorm1d on places": lambda: conv(nn.Flatten(), nn.BatchNorm1d(216)),
    "GroupNorm 1": lambda: conv(nn.GroupNorm(1, 6)),
    "GroupNorm 2": lambda: conv(nn.GroupNorm(2, 6)),
    "GroupNorm 6": lambda: conv(nn.GroupNorm(6, 6)),
    "LayerNorm": lambda: dense(nn.LayerNorm(8), nn.SiLU()),
    "LayerNorm on images": lambda: conv(nn.LayerNorm([6, 6, 6])),
    "depthwise": lambda: conv(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.ReLU(inplace=True)),
    "wide": Wide,
    "view": lambda: Functional(lambda x: F.relu(x).view(x.size(0), -1), 216),
    "torch.flatten": lambda: Functional(lambda x: torch.flatten(F.max_pool2d(x.relu(), 2), 1), 54),
    "mean": lambda: Functional(lambda x: F.gelu(x).mean((2, 3)), 6),
    "channel attention": lambda: Functional(lambda x: (x * x.mean((2, 3), keepdim=True).sigmoid()).flatten(1), 216),
    "a layer used twice": lambda: dense(*[nn.ReLU(), nn.Linear(8, 8)] * 2),
    "resnet18": lambda: data.torchvision().models.resnet18(num_classes=5),
}

every_net = pytest.mark.parametrize("name", NETS)


def example(name, batch=3):
    return torch.randn(batch, *((3, 16, 16) if name == "resnet18" else (1, 8, 8)), generator=stream(0, name))


@cache
def spec_of(name):
    return permutation_spec(NETS[name](), example(name))


def random(net, *purpose):
    """Weights by PyTorch's rule; biases, norms and running statistics anything positive."""
    params, generator = stack.take(stack.init(net, 1, seed=0), 0), stream(0, *purpose)
    return {n: p if p.ndim > 1 else torch.rand(p.shape, generator=generator) + 0.5 for n, p in params.items()}


def says(net, params, x):
    return functional_call(net.eval(), params, (x.to(next(iter(params.values()))),))


def assert_same_function(net, spec, x, rounds=3):
    params = random(net)
    for k in range(rounds):
        for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
            own = {name: tensor.to(dtype) for name, tensor in params.items()}
            moved = permute(spec, shuffle(spec, own, k), own)
            assert not equal(moved, own)
            expected = says(net.to(dtype), own, x)
            assert torch.allclose(says(net, moved, x), expected, rtol=tolerance, atol=tolerance)


@every_net
def test_permuting_hidden_units_keeps_the_function(name):
    assert_same_function(NETS[name](), spec_of(name), example(name), rounds=1 if name == "resnet18" else 3)


@given(SHAPES, st.integers(0, 2**31))
def test_permuting_any_mlp_keeps_its_function(shape, seed):
    net, x = stack.mlp(*shape), torch.randn(4, shape[0], generator=stream(seed, "x"), dtype=torch.float64)
    params = {name: tensor[0].double() for name, tensor in stack.init(net, 1, seed).items()}
    spec = permutation_spec(net, x)
    moved = permute(spec, shuffle(spec, params, seed), params)
    assert torch.allclose(says(net, moved, x), says(net, params, x), atol=1e-10)


@every_net
def test_the_spec_holds_every_parameter_and_buffer_with_all_its_axes(name):
    spec, params = spec_of(name), random(NETS[name]())
    assert {name: len(axes) for name, axes in spec.axes.items()} == {name: p.ndim for name, p in params.items()}
    labels = {label for axes in spec.axes.values() for label in axes} - {None}
    assert set(sizes(spec, params)) == labels
    assert set(spec.groups) <= labels


def test_finding_the_symmetry_leaves_the_net_alone():
    net = NETS["BatchNorm2d"]().train()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    permutation_spec(net, example("BatchNorm2d"))
    assert net.training
    assert equal(before, net.state_dict())


def test_the_spec_of_an_mlp_names_each_layer_by_its_outputs():
    spec = permutation_spec(stack.mlp(3, [8, 7], 2), torch.zeros(1, 3))
    assert spec.axes == {
        "1.weight": ("1", None), "1.bias": ("1",),
        "3.weight": ("3", "1"), "3.bias": ("3",),
        "5.weight": (None, "3"), "5.bias": (None,),
    }  # fmt: skip
    assert not spec.groups
    assert str(spec).splitlines()[2:5] == ["3.weight  [3, 1]", "3.bias  [3]", "5.weight  [·, 3]"]


def test_a_spec_written_by_hand_does_as_well():
    net, x = stack.mlp(3, [8], 2), torch.randn(5, 3, generator=stream(0, "x"))
    spec = PermutationSpec({"1.weight": ("hidden", None), "1.bias": ("hidden",), "3.weight": (None, "hidden")})
    params = random(net)
    moved = permute(spec, shuffle(spec, params), params)
    assert not equal(moved, params)
    assert torch.allclose(says(net, moved, x), says(net, params, x), atol=1e-5)
    assert torch.equal(moved["3.bias"], params["3.bias"])


def test_what_is_added_shares_one_permutation_and_both_ends_stay():
    spec = permutation_spec(Wide(), example("wide"))
    assert spec.axes["stem.weight"] == ("stem", None, None, None)
    assert spec.axes["blocks.0.conv2.weight"][0] == spec.axes["blocks.0.norm1.bias"][0] == "stem"
    late = spec.axes["head.weight"][1]
    assert spec.axes["blocks.1.shortcut.weight"][:2] == (late, "stem")
    assert spec.axes["blocks.1.conv2.weight"][0] == spec.axes["blocks.2.conv2.weight"][0] == late
    assert spec.axes["head.weight"][0] is spec.axes["head.bias"][0] is None
    assert spec.groups == {"blocks.0.conv1": 3, "blocks.1.conv1": 2}


def test_two_layers_that_share_a_weight_still_compute_the_same():
    net = dense(nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    net[5].weight = net[3].weight
    assert_same_function(net, permutation_spec(net, example("tied")), example("tied"))


@pytest.mark.parametrize(("shape", "width"), [((-1, 36), 36), ((3, 4, 54), 54), ((3, 4, 9, 6), 6), ((3, 9, 4, 6), 6)])
def test_a_reshape_that_lays_channels_beside_places_leaves_no_order(shape, width):
    spec = permutation_spec(Functional(lambda x: x.reshape(shape), width), example("reshape"))
    assert {label for axes in spec.axes.values() for label in axes} == {None}


@every_net
def test_permutations_form_a_group(name):
    spec, params = spec_of(name), random(NETS[name]())
    p, q, r = (shuffle(spec, params, k) for k in range(3))
    still = identity(spec, params)
    assert equal(permute(spec, still, params), params)
    assert equal(compose(inverse(p), p), still)
    assert equal(compose(p, inverse(p)), still)
    assert equal(compose(compose(p, q), r), compose(p, compose(q, r)))
    assert equal(permute(spec, compose(p, q), params), permute(spec, p, permute(spec, q, params)))
    assert equal(permute(spec, inverse(p), permute(spec, p, params)), params)


def test_an_order_says_where_each_unit_comes_from():
    spec, p = PermutationSpec({"w": ("h",), "blocks": ("h",)}), {"h": torch.tensor([2, 0, 1])}
    moved = permute(spec, p, {"w": torch.arange(3), "blocks": torch.arange(6)})
    assert moved["w"].tolist() == [2, 0, 1]
    assert moved["blocks"].tolist() == [4, 5, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("operation", "why", "between"),
    [
        ("linalg_pinv", "there is no rule for it", lambda x: torch.linalg.pinv(x).mean((2, 3))),
        ("randn_like", "the net draws at random", lambda x: (x + torch.randn_like(x)).mean((2, 3))),
        ("tolist", "numbers that leave the net", lambda x: x.mean((2, 3)) * torch.tensor(x.mean((0, 2, 3)).tolist())),
        ("numpy", "numbers that leave the net", lambda x: torch.from_numpy(x.numpy()).mean((2, 3))),
        ("__array__", "numbers that leave the net", lambda x: torch.tensor(np.asarray(x)).mean((2, 3))),
        ("__setitem__", "no box of places", lambda x: write_a_diagonal(x).mean((2, 3))),
        ("__getitem__", "depends on the data", lambda x: x.mean((2, 3)) + x[x > 0].mean()),
    ],
)
def test_an_operation_that_cannot_be_traced_is_named_with_the_reason_and_the_remedy(operation, why, between):
    with pytest.raises(ShapeError, match=rf"cannot trace the operation '{operation}'.*{why}.* write the spec by hand"):
        permutation_spec(Functional(between, 6), example("refused"))


def write_a_diagonal(x):
    out = torch.zeros(x.shape)
    out[:, torch.arange(6), torch.arange(6)] = x[:, torch.arange(6), torch.arange(6)]
    return out


def test_both_parts_of_complex_answers_count():
    """The real part is a sum of units, the same in any order; the imaginary part is not."""
    layer, x = nn.Linear(3, 4), torch.zeros(5, 3)
    net = Then(layer, lambda h: torch.complex(h.sum(1), h @ torch.arange(4.0)))
    assert not sizes(permutation_spec(net, x), dict(net.named_parameters()))
    spec = PermutationSpec({"layer.weight": ("h", None), "layer.bias": ("h",)})
    align.verify(Then(layer, lambda h: torch.complex(h.sum(1), h.square().sum(1))), spec, x)
    with pytest.raises(ShapeError, match="the spec is no symmetry"):
        align.verify(net, spec, x)


class Then(nn.Module):
    def __init__(self, layer, function):
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, x):
        return self.function(self.layer(x))


def test_a_net_may_write_into_its_input():
    """The answers are compared on the input as it was."""
    net = Functional(lambda h: h.mean((2, 3)), 6)
    written = nn.Sequential(Then(nn.Identity(), lambda x: x.mul_(2).add_(1)), net)
    x = example("written")
    before = x.clone()
    assert sizes(permutation_spec(written, x), dict(written.named_parameters())) == {"1.conv": 6}
    assert torch.equal(x, before)


@pytest.mark.parametrize("branch", [lambda x: x.sum() > 0, lambda x: x.sum().item() > 0, lambda x: x.nonzero().numel()])
def test_a_net_that_branches_on_data_is_refused(branch):
    net = Functional(lambda x: x.flatten(1) if branch(x) else x.mean((2, 3)), 6)
    with pytest.raises(
        ShapeError, match=r"cannot trace the operation .*the net branches on data; write the spec by hand"
    ):
        permutation_spec(net, example("refused"))


def test_groups_that_cross_are_refused():
    with pytest.raises(ShapeError, match=r"cannot trace Sequential: blocks of 3 and of 2 units cross"):
        permutation_spec(conv(nn.GroupNorm(2, 6), nn.GroupNorm(3, 6)), example("refused"))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *(("flattened", shape) for shape in [(2, 1, 9, 9), (2, 3, 8, 8), (1, 8, 8)]),
        *((name, (1, 8, 8)) for name in ["BatchNorm2d", "wide", "mean"]),
        *(("BatchNorm1d", shape) for shape in [(2, 63), (64,)]),
    ],
)
def test_an_example_that_does_not_run_through_the_net_is_refused_with_its_shape(name, shape):
    with pytest.raises(ShapeError, match=rf"shape {re.escape(str(shape))} does not run through the net"):
        permutation_spec(NETS[name](), torch.zeros(shape))


def test_parameters_that_do_not_fit_the_spec_are_named():
    net = stack.mlp(3, [8], 2)
    spec, params = permutation_spec(net, torch.zeros(1, 3)), random(net)
    with pytest.raises(ShapeError, match=r"the spec has '3\.bias' with 1 axes, the model has nothing there"):
        align.sizes(spec, {name: tensor for name, tensor in params.items() if name != "3.bias"})
    with pytest.raises(ShapeError, match=r"the spec has '1\.weight' with 2 axes, the model has \(8,\) there"):
        permute(spec, identity(spec, params), {**params, "1.weight": torch.zeros(8)})
    with pytest.raises(ShapeError, match=r"'3\.weight'"):
        permute(spec, identity(spec, params), {**params, "3.weight": torch.zeros(2, 9)})


def test_orders_may_lie_on_another_device_than_the_model():
    net = stack.mlp(3, [8, 6], 2)
    spec, params = permutation_spec(net, torch.zeros(1, 3)), random(net)
    p = shuffle(spec, params)
    expected = permute(spec, p, params)
    with second_device() as device:
        away = stack.map(lambda tensor: tensor.to(device), params)
        assert permutation_spec(net, torch.zeros(1, 3).to(device)) == spec
        assert {order.device.type for order in identity(spec, away).values()} == {"cpu"}
        moved = permute(spec, p, away)
        assert {tensor.device for tensor in moved.values()} == {device}
        assert equal(stack.map(lambda tensor: tensor.cpu(), moved), expected)


def test_a_spec_that_changes_answers_is_an_error_naming_the_parameter():
    net, x = stack.mlp(3, [8, 7], 2), torch.zeros(1, 3)
    right = permutation_spec(net, x)
    align.verify(net, right, x)
    for name, axes in {"3.weight": ("3", None), "3.bias": (None,), "1.bias": (None,), "5.weight": (None, None)}.items():
        with pytest.raises(
            ShapeError, match=rf"no symmetry of Sequential: reordering '\d' changes.*'{name}' moves wrongly"
        ):
            align.verify(net, PermutationSpec({**right.axes, name: axes}), x)


@pytest.mark.parametrize("start", [nn.init.zeros_, nn.init.ones_])
def test_no_zero_and_no_tie_of_a_start_hides_a_mistake(start):
    net = conv(nn.BatchNorm2d(6), nn.GroupNorm(1, 6))
    for parameter in net.parameters():
        start(parameter)
    right = permutation_spec(net, example("start"))
    for name in right.axes:
        if "0" in right.axes[name]:
            wrong = PermutationSpec({**right.axes, name: (None,) * len(right.axes[name])})
            with pytest.raises(ShapeError, match=rf"'{name}' moves wrongly"):
                align.verify(net, wrong, example("start"))


def test_an_answer_that_is_no_number_proves_nothing():
    net = Functional(lambda x: (x * 1e200 * 1e200).mean((2, 3)), 6)
    with pytest.raises(ShapeError, match="no finite answers"):
        permutation_spec(net, example("infinite"))


def test_a_net_that_always_says_the_same_proves_nothing():
    net = Functional(lambda x: (x > 1e9).to(x.dtype).mean((2, 3)), 6)
    net.head = nn.Linear(6, 5, bias=False)
    with pytest.raises(ShapeError, match="always says the same"):
        permutation_spec(net, example("constant"))


@given(st.integers(2, 50), st.integers(0, 2**31))
def test_a_cycle_moves_every_unit_through_every_place(count, seed):
    order, place, visited = align.symmetry.random_cycle(count, stream(seed, "cycle")), 0, set()
    for _ in range(count):
        place = int(order[place])
        visited.add(place)
    assert visited == set(range(count))


def test_an_order_that_tears_blocks_apart_is_refused():
    spec = PermutationSpec({"w": ("q",), "v": ("v",)}, {"q": 2, "v": 2}, {"q": "heads", "v": "heads"})
    params = {"w": torch.arange(4), "v": torch.arange(6)}
    assert sizes(spec, params) == {"q": 4, "v": 6, "heads": 2}
    p = {"q": torch.tensor([3, 2, 0, 1]), "v": torch.tensor([4, 3, 5, 0, 1, 2]), "heads": torch.tensor([1, 0])}
    assert permute(spec, p, params)["v"].tolist() == [4, 3, 5, 0, 1, 2]
    with pytest.raises(ShapeError, match="the order of 'q' tears its 2 groups apart"):
        permute(spec, {**p, "q": torch.tensor([3, 1, 0, 2])}, params)
    with pytest.raises(ShapeError, match="the groups of 'v' are not in the order of 'heads'"):
        permute(spec, {**p, "v": torch.arange(6)}, params)


def test_pieces_side_by_side_move_each_by_its_own_order():
    places = align.side_by_side(("q", 2), (None, 1), ("q", 2), ("v", 3))
    assert str(places) == "q + · + q + v"
    spec = PermutationSpec({"w": (places,)})
    p = {"q": torch.tensor([1, 0]), "v": torch.tensor([2, 0, 1])}
    assert permute(spec, p, {"w": torch.arange(8)})["w"].tolist() == [1, 0, 2, 4, 3, 7, 5, 6]
    with pytest.raises(ShapeError, match="'w' has 9 places, the spec 8"):
        permute(spec, p, {"w": torch.arange(9)})


def test_a_part_of_a_symmetry_moves_only_what_is_named_and_keeps_the_function():
    net = stack.vit(1, 8, 4, units=8, heads=2, blocks=2)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    spec = align.permutation_spec(net, x[:1].float())
    model = stack.map(torch.Tensor.double, stack.take(stack.init(net, 1, seed=0), 0))
    before = stack.forward(net, stack.join([model]), x)
    labels = list(align.sizes(spec, model))
    families = [[label for label in labels if word in label] for word in ("attention", "layers")]
    families.append([label for label in labels if "attention" not in label and "layers" not in label])
    for family in families:
        own = align.part(spec, family)
        assert set(align.sizes(own, model)) == set(family)
        p = align.random_permutations(own, model, torch.Generator().manual_seed(1))
        moved = align.permute(own, p, model)
        assert torch.allclose(stack.forward(net, stack.join([moved]), x), before, atol=1e-10)
        whole = {**align.identity(spec, model), **p}
        assert all(torch.equal(tensor, moved[name]) for name, tensor in align.permute(spec, whole, model).items())
    with pytest.raises(ShapeError, match="name both of them or none"):
        align.part(spec, [label for label in families[0] if "heads" not in label])
    with pytest.raises(ShapeError, match="nowhere"):
        align.part(spec, ["nowhere"])
