import inspect
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise, permutations, product

import pytest
import torch
from devices import second_device
from hypothesis import given
from hypothesis import strategies as st
from orders import equal, shuffle
from scipy.optimize import linear_sum_assignment
from torch import nn

from paramarket import align, data, stack, train
from paramarket.align import PermutationSpec, inner_product, match_many, permutation_spec, permute, weight_matching
from paramarket.base import stream
from paramarket.errors import ShapeError, WeightsError

MATCHERS = ("weight_matching", "activation_matching")
MANY = [(matcher, copies) for matcher in MATCHERS for copies in (2, 3)] + [("weight_matching", 5)]
MANY.append(pytest.param("activation_matching", 5, marks=pytest.mark.full))


class Residual(nn.Module):
    """A narrow residual net: what is added shares one order, and the shortcut leads to another."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.outer = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.wide, self.shortcut = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(8, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.norm(self.stem(x))
        x = x + self.outer(self.inner(x.relu()).relu())
        return self.head((self.wide(x.relu()) + self.shortcut(x)).mean((2, 3)))


class Grouped(nn.Module):
    """Six heads of queries read two of keys and values."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(18, 3)
        self.q, self.k, self.v = nn.Linear(8, 18), nn.Linear(8, 6), nn.Linear(8, 6)

    def forward(self, x):
        x = self.first(x)
        q, k, v = (each(x).unflatten(-1, (-1, 3)).transpose(1, 2) for each in (self.q, self.k, self.v))
        said = (q @ k.repeat_interleave(3, 1).mT).softmax(-1) @ v.repeat_interleave(3, 1)
        return self.last(said.transpose(1, 2).flatten(2))


def conv(*norm):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), *norm, nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5)
    )


NETS = {
    "mlp": lambda: stack.mlp(64, [16, 12], 5),
    "conv": conv,
    "BatchNorm": lambda: conv(nn.BatchNorm2d(8)),
    "GroupNorm": lambda: conv(nn.GroupNorm(4, 8)),
    "GroupNorm 1": lambda: conv(nn.GroupNorm(1, 8)),
    "residual": Residual,
    "a layer used twice": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 5), *[nn.Tanh(), nn.Linear(5, 5)] * 2),
}  # fmt: skip
every_net = pytest.mark.parametrize("name", NETS)


def transformer(blocks, units=16, heads=4):
    return stack.vit(1, 8, 10, units=units, heads=heads, blocks=blocks)


@cache
def spec_of(blocks):
    return permutation_spec(transformer(blocks), images(1))


@cache
def trained(blocks):
    """A pair of transformers trained apart on the digits."""
    net = transformer(blocks)
    fit = train.fit(net, stack.init(net, 2, seed=blocks), data.load("digits").train, steps=20, batch=32, lr=1e-2)
    return [stack.take(fit.stack, k) for k in range(2)]


def images(count):
    return torch.randn(count, 1, 8, 8, generator=stream(0, "images"))


def random(net, copies, *purpose):
    """Normal weights, each layer's outputs as large as its inputs; vectors anything positive."""
    models = []
    for k in range(copies):
        params, generator = {}, stream(0, k, *purpose)
        for name, tensor in stack.take(stack.init(net, 1, seed=0), 0).items():
            scale = (2 / tensor[0].numel()) ** 0.5 if tensor.ndim > 1 else 0.3
            values = scale * torch.randn(tensor.shape, generator=generator)
            params[name] = values if tensor.ndim > 1 else values.abs() + 0.1
        models.append(params)
    return models


@cache
def spec_named(name):
    return permutation_spec(NETS[name](), images(2))


def setting(name, copies=2):
    net = NETS[name]()
    return net, spec_named(name), random(net, copies, name)


def how(matcher, net, count=20):
    return {} if matcher == "weight_matching" else {"net": net, "x": images(count)}


@pytest.mark.parametrize("case", range(20))
@pytest.mark.parametrize("width", [8, 16, 64, 256])
def test_a_planted_order_of_an_mlp_is_found_exactly(width, case):
    net = stack.mlp(10, [width] * (1 + case % 8), 4)
    (model,), spec = random(net, 1, width, case), permutation_spec(net, torch.zeros(1, 10))
    planted = shuffle(spec, model, case)
    assert equal(weight_matching(spec, permute(spec, planted, model), model, seed=case), planted)


@pytest.mark.parametrize("matcher", MATCHERS)
@every_net
def test_a_planted_order_of_any_net_is_found_exactly(name, matcher):
    net, spec, (model,) = setting(name, copies=1)
    for k in range(5):
        planted = shuffle(spec, model, k)
        found = getattr(align, matcher)(spec, permute(spec, planted, model), model, **how(matcher, net))
        assert equal(found, planted)


@pytest.mark.parametrize("case", range(20))
@pytest.mark.parametrize("start", ["drawn", "trained"])
@pytest.mark.parametrize("blocks", [2, 6])
def test_planted_heads_units_and_stream_of_a_transformer_are_found_exactly(blocks, start, case):
    net = transformer(blocks)
    spec = spec_of(blocks)
    model = trained(blocks)[0] if start == "trained" else stack.take(stack.init(net, 1, seed=case), 0)
    planted = align.random_permutations(spec, model, stream(case, "planted"))
    found = weight_matching(spec, permute(spec, planted, model), model, seed=case)
    assert equal(found, planted)


@pytest.mark.parametrize("case", range(5))
@pytest.mark.parametrize("blocks", [2, 6])
def test_a_planted_order_of_a_transformer_is_found_by_what_units_say(blocks, case):
    net = transformer(blocks)
    spec, model = spec_of(blocks), trained(blocks)[0]
    planted = align.random_permutations(spec, model, stream(case, "planted"))
    found = align.activation_matching(spec, permute(spec, planted, model), model, net=net, x=images(8))
    assert equal(found, planted)


@pytest.mark.parametrize("blocks", [2, 6])
def test_transformers_trained_apart_come_nearer_and_still_answer_the_same(blocks):
    net, (a, b) = transformer(blocks), trained(blocks)
    spec = spec_of(blocks)
    for matcher in MATCHERS:
        moved = align.reorder(spec, a, b, matcher=getattr(align, matcher), **how(matcher, net))
        said, before = (stack.forward(net, stack.join([model]), images(20)) for model in (moved, b))
        assert torch.allclose(said, before, atol=1e-4)
    values = [inner_product(a, permute(spec, weight_matching(spec, a, b, sweeps=n), b)) for n in (0, 1, 100)]
    assert inner_product(a, b) < values[0] <= values[1] + 1e-4 <= values[2] + 2e-4


@given(seed=st.integers(0, 2**31))
def test_heads_are_assigned_at_the_cost_of_their_units_best_orders(seed):
    """Two heads of two queries' and two values' units: all 2! · 2!^4 orders of one attention, one by one."""
    spec = PermutationSpec(
        {"queries": ("q", None), "values": ("v", None)}, {"q": 2, "v": 2}, {"q": "heads", "v": "heads"}
    )
    target, source = (
        {name: torch.randn(4, 3, generator=stream(seed, who, name)) for name in spec.axes} for who in ("a", "b")
    )
    found = weight_matching(spec, target, source)
    best = inner_product(target, permute(spec, found, source))
    flips = [torch.tensor([0, 1]), torch.tensor([1, 0])]
    for heads, *inner in product(flips, repeat=5):
        q, v = (
            torch.stack([2 * heads[k] + each for k, each in enumerate(pair)]).flatten()
            for pair in (inner[:2], inner[2:])
        )
        order = {"q": q, "v": v, "heads": heads}
        assert inner_product(target, permute(spec, order, source)) <= best + 1e-5


def test_a_planted_order_of_grouped_queries_is_found():
    net = Grouped()
    spec = permutation_spec(net, torch.zeros(2, 5, 6))
    (model,) = random(net, 1, "grouped")
    assert any(isinstance(axis, align.Places) for axes in spec.axes.values() for axis in axes)
    for k in range(5):
        planted = align.random_permutations(spec, model, stream(k, "planted"))
        target = permute(spec, planted, model)
        assert equal(permute(spec, weight_matching(spec, target, model), model), target)


@pytest.mark.parametrize("depth", [1, 4, 8])
def test_a_planted_order_is_found_by_what_units_say(depth):
    layers = [nn.Tanh() if isinstance(layer, nn.ReLU) else layer for layer in stack.mlp(64, [32] * depth, 5)]
    net, x = nn.Sequential(*layers), images(300)  # a ReLU that never fires could stand anywhere
    (model,), spec = random(net, 1, depth), permutation_spec(net, x)
    planted = shuffle(spec, model, depth)
    assert equal(align.activation_matching(spec, permute(spec, planted, model), model, net=net, x=x), planted)


@every_net
def test_matching_never_loses_by_another_sweep_and_gives_orders_that_the_spec_allows(name):
    _, spec, (target, source) = setting(name)
    orders = [weight_matching(spec, target, source, sweeps=sweeps) for sweeps in (0, 1, 2, 3, 100)]
    values = [inner_product(target, permute(spec, order, source)) for order in orders]
    assert all(after >= before - 1e-6 * abs(before) for before, after in pairwise(values))
    for label, order in orders[-1].items():
        assert order.sort().values.tolist() == list(range(len(order)))
        groups = order.view(spec.groups.get(label, 1), -1) // (len(order) // spec.groups.get(label, 1))
        assert (groups == groups[:, :1]).all()


@given(st.integers(0, 2**31), st.integers(1, 2))
def test_no_other_order_of_one_layer_is_better(seed, depth):
    """All 24 orders of each layer of four units; with a single hidden layer that is all there is."""
    net = stack.mlp(3, [4] * depth, 2)
    (target, source), spec = random(net, 2, seed), permutation_spec(net, torch.zeros(1, 3))
    found = weight_matching(spec, target, source, seed=seed)
    best = inner_product(target, permute(spec, found, source))
    for label, order in product(found, permutations(range(4))):
        other = {**found, label: torch.tensor(order)}
        assert inner_product(target, permute(spec, other, source)) <= best + 1e-5


@pytest.mark.parametrize("name", ["mlp", "conv", "BatchNorm", "GroupNorm 1", "residual"])
def test_no_assignment_of_one_layer_improves_what_was_found(name):
    _, spec, (target, source) = setting(name)
    found = weight_matching(spec, target, source)
    for label, order in found.items():
        gain = align.weight_products(spec, label, target, source, found).double().numpy()
        rows, columns = linear_sum_assignment(gain, maximize=True)
        assert gain[rows, columns].sum() <= gain[rows, order.numpy()].sum() + 1e-5 * abs(gain).max() * len(gain)


def test_the_order_in_which_a_spec_lists_its_parameters_does_not_matter():
    net = nn.Sequential(*[nn.Linear(16, 16, bias=False) for _ in range(5)])
    (model,), spec = random(net, 1, "order"), permutation_spec(net, torch.zeros(1, 16))
    planted = shuffle(spec, model)
    for names in (["4.weight", "3.weight", "2.weight", "1.weight", "0.weight"],
                  ["2.weight", "0.weight", "1.weight", "3.weight", "4.weight"]):  # fmt: skip
        mixed = PermutationSpec({name: spec.axes[name] for name in names})
        assert equal(weight_matching(mixed, permute(spec, planted, model), model), planted)


def test_products_are_those_of_the_formula():
    """M_l = W_l^A P_{l-1} W_l^B' + W_{l+1}^A' P_{l+1} W_{l+1}^B + b_l^A b_l^B', with permutations as matrices."""
    net = stack.mlp(3, [4, 5, 6], 2)
    (a, b), spec = random(net, 2, "formula"), permutation_spec(net, torch.zeros(1, 3))
    p = shuffle(spec, b)
    matrix = {label: torch.eye(len(order))[order] for label, order in p.items()}
    below = a["3.weight"] @ matrix["1"] @ b["3.weight"].T
    above = a["5.weight"].T @ matrix["5"] @ b["5.weight"]
    bias = torch.outer(a["3.bias"], b["3.bias"])
    assert torch.allclose(align.weight_products(spec, "3", a, b, p), below + above + bias, atol=1e-6)
    first = a["1.weight"] @ b["1.weight"].T + torch.outer(a["1.bias"], b["1.bias"])
    first = first + a["3.weight"].T @ matrix["3"] @ b["3.weight"]
    assert torch.allclose(align.weight_products(spec, "1", a, b, p), first, atol=1e-6)


def test_what_products_rest_on_goes_by_name():
    _, spec, (target, source) = setting("mlp")
    p = align.identity(spec, source)
    with pytest.raises(TypeError, match="positional"):
        inspect.unwrap(align.weight_products)(spec, next(iter(p)), target, source, p, {None})


def test_running_statistics_do_not_count():
    _, spec, (target, source) = setting("BatchNorm")
    other = {name: 100 * tensor if "running" in name else tensor for name, tensor in source.items()}
    assert inner_product(target, other) == inner_product(target, source)
    assert equal(weight_matching(spec, target, other), weight_matching(spec, target, source))


TABLES = {
    "normal": lambda n, generator: torch.randn(n, n, generator=generator),
    "float64": lambda n, generator: torch.randn(n, n, generator=generator, dtype=torch.float64),
    "many ties": lambda n, generator: torch.randint(-1, 2, (n, n), generator=generator).float(),
    "all equal": lambda n, generator: torch.randn(1, 1, generator=generator).expand(n, n),
    "equal rows": lambda n, generator: torch.randn(1, n, generator=generator).expand(n, n),
    "silent units": lambda n, generator: torch.randn(n, n, generator=generator) * (torch.arange(n) % 3 > 0),
    "of rank 1": lambda n, generator: torch.randn(n, 1, generator=generator) @ torch.randn(1, n, generator=generator),
    "of all sizes": lambda n, generator: 10 ** (12 * torch.randn(n, n, generator=generator)).clamp(-38, 38),
    "tiny": lambda n, generator: 1e-42 * torch.rand(n, n, generator=generator),
    "transposed": lambda n, generator: torch.randn(n, n, generator=generator).mT,
}
every_table = pytest.mark.parametrize("table", TABLES)


@every_table
@given(n=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_no_order_is_better_than_the_one_chosen_even_where_many_are_as_good(table, n, seed):
    gain = TABLES[table](n, stream(seed, "gain"))
    order = align.matching._best_order(gain, 1)
    assert order.sort().values.tolist() == list(range(n))
    exact = gain.double().numpy()
    best = exact[linear_sum_assignment(exact, maximize=True)].sum()
    rounding = n * torch.finfo(gain.dtype).eps * abs(exact).max()  # of gains as they are turned into costs
    assert exact[range(n), order].sum() >= best - rounding


@every_table
def test_one_table_gives_one_order_bit_for_bit_also_to_many_at_once(table):
    tables = [TABLES[table](60, stream(seed, "gain")) for seed in range(8)]
    orders = [align.matching._best_order(gain, 1) for gain in tables]
    with ThreadPoolExecutor(4) as executor:
        again = list(executor.map(lambda gain: align.matching._best_order(gain.clone(), 1), tables))
    assert all(torch.equal(one, other) for one, other in zip(orders, again, strict=True))


@given(seed=st.integers(0, 2**31), ties=st.booleans())
def test_a_grouped_assignment_is_the_best_of_all_that_keep_groups(seed, ties):
    gain = TABLES["many ties" if ties else "normal"](4, stream(seed, "gain"))
    value = {order: gain[torch.arange(4), list(order)].sum().item() for order in permutations(range(4))}
    allowed = [order for order in value if {*order[:2]} in ({0, 1}, {2, 3})]
    found = tuple(align.matching._best_order(gain, 2).tolist())
    assert found in allowed
    assert value[found] == pytest.approx(max(value[order] for order in allowed))


@pytest.mark.parametrize("matcher", MATCHERS)
@pytest.mark.parametrize("name", ["mlp", "GroupNorm"])
def test_weights_too_large_to_be_multiplied_are_refused(name, matcher):
    net, spec, models = setting(name)
    target, source = ({key: 1e30 * tensor for key, tensor in model.items()} for model in models)
    with pytest.raises(WeightsError, match="the products that matching rests on are not finite"):
        getattr(align, matcher)(spec, target, source, **how(matcher, net))


@every_net
def test_the_same_seed_finds_the_same_order_and_nothing_is_changed(name):
    _, spec, (target, source) = setting(name)
    before = [{key: tensor.clone() for key, tensor in model.items()} for model in (target, source)]
    assert equal(weight_matching(spec, target, source, seed=3), weight_matching(spec, target, source, seed=3))
    assert equal(target, before[0])
    assert equal(source, before[1])


def matched(net, spec, models, matcher):
    orders = match_many(spec, stack.join(models), matcher=getattr(align, matcher), **how(matcher, net))
    return orders, [permute(spec, order, model) for order, model in zip(orders, models, strict=True)]


@pytest.mark.parametrize(("matcher", "copies"), MANY)
@pytest.mark.parametrize("name", ["mlp", "conv", "GroupNorm", "residual"])
def test_permuted_copies_of_one_model_all_come_back_equal(name, copies, matcher):
    net, spec, (model,) = setting(name, copies=1)
    many = [permute(spec, shuffle(spec, model, k), model) for k in range(copies)]
    _, moved = matched(net, spec, many, matcher)
    assert all(equal(each, many[0]) for each in moved)


def dispersion(models):
    """The sum of squared distances to the mean; running statistics are not matched."""
    tensors = [t for name, t in stack.join(models).items() if "running" not in name]
    return sum((tensor - tensor.mean(dim=0)).square().sum().item() for tensor in tensors)


@pytest.mark.parametrize(("matcher", "copies"), MANY)
@every_net
def test_matching_many_brings_them_together_in_the_order_of_the_first(name, copies, matcher):
    net, spec, models = setting(name, copies)
    orders, moved = matched(net, spec, models, matcher)
    assert equal(orders[0], align.identity(spec, models[0]))
    assert dispersion(moved) <= dispersion(models) * (1 + 1e-6)


@pytest.mark.parametrize("name", ["mlp", "GroupNorm"])
def test_reordering_permutes_by_what_was_matched(name):
    net, spec, models = setting(name, 3)
    for matcher in MATCHERS:
        _, moved = matched(net, spec, models, matcher)
        match, settings = getattr(align, matcher), how(matcher, net)
        assert equal(align.reorder_many(spec, stack.join(models), matcher=match, **settings), stack.join(moved))
        order = match(spec, *models[:2], **settings)
        assert equal(align.reorder(spec, *models[:2], matcher=match, **settings), permute(spec, order, models[1]))


def test_one_model_is_not_enough_to_match():
    _, spec, models = setting("mlp", copies=1)
    with pytest.raises(ShapeError, match="matching needs two or more models, got 1"):
        match_many(spec, stack.join(models))


@pytest.mark.parametrize("matcher", MATCHERS)
def test_models_that_cannot_be_compared_are_refused(matcher):
    net, spec, (target, source) = setting("mlp")
    match, settings = getattr(align, matcher), how(matcher, net)
    (wide,) = random(stack.mlp(64, [16, 13], 5), 1)
    with pytest.raises(ShapeError, match=r"'3\.weight' has shape \(13, 16\), expected \(12, 16\)"):
        match(spec, target, wide, **settings)
    with pytest.raises(ShapeError, match=r"'5\.bias'"):
        match(spec, target, {name: source[name] for name in source if name != "5.bias"}, **settings)
    bad = {**source, "3.bias": source["3.bias"] * float("nan")}
    with pytest.raises(WeightsError, match=r"the source's '3\.bias' holds values that are NaN or infinite"):
        match(spec, target, bad, **settings)
    with pytest.raises(WeightsError, match=r"the target's '3\.bias' holds values that are NaN or infinite"):
        match(spec, bad, target, **settings)


def test_each_model_is_put_in_its_partners_order():
    _, spec, models = setting("mlp", copies=3)
    moved = [permute(spec, shuffle(spec, one, k), one) for k, one in enumerate(models)]
    assert equal(align.reorder_pairs(spec, stack.join(models), stack.join(moved)), stack.join(models))


def test_a_model_without_a_partner_is_refused():
    _, spec, models = setting("mlp", copies=3)
    whole, part = stack.join(models), stack.join(models[:2])
    for a, b in ((whole, part), (part, whole), (whole, stack.take(whole, slice(1)))):
        with pytest.raises(ShapeError, match="the two stacks of partners do not fit"):
            align.reorder_pairs(spec, a, b)


def test_what_finds_an_order_is_a_matcher():
    for matcher in MATCHERS:
        assert isinstance(getattr(align, matcher), align.Matcher)
        parameters = list(inspect.signature(getattr(align, matcher)).parameters.values())
        assert [each.name for each in parameters[:3]] == ["spec", "target", "source"]
        assert all(each.kind is each.KEYWORD_ONLY for each in parameters[3:])


@pytest.mark.parametrize("matcher", MATCHERS)
@pytest.mark.parametrize(("name", "copies"), [("mlp", 3), ("conv", 2), ("GroupNorm", 2), ("residual", 2)])
def test_models_on_a_second_device_are_matched_alike_by_orders_on_the_cpu(name, copies, matcher):
    net, spec, models = setting(name, copies)
    match, settings = getattr(align, matcher), how(matcher, net, count=4)  # each of them is slow there
    many = stack.join(models)
    turned = torch.arange(copies).roll(-1)
    orders = match_many(spec, many, matcher=match, **settings)
    moved = align.reorder_pairs(spec, many, stack.take(many, turned), matcher=match, **settings)
    with second_device() as device:
        away = stack.map(lambda tensor: tensor.to(device), many)
        found = match_many(spec, away, matcher=match, **settings)
        assert {order.device.type for each in found for order in each.values()} == {"cpu"}
        assert all(equal(one, other) for one, other in zip(found, orders, strict=True))
        reordered = align.reorder_pairs(spec, away, stack.take(away, turned), matcher=match, **settings)
        assert {tensor.device for tensor in reordered.values()} == {device}
        assert equal(stack.map(lambda tensor: tensor.cpu(), reordered), moved)


class Traced(nn.Sequential):
    """The same layers; as a class of its own it might do anything, so its units are followed."""


@pytest.mark.parametrize("hidden", [[16], [16, 7, 16], []])
def test_a_chain_of_layers_says_what_following_its_units_would_say(hidden):
    net = stack.mlp(64, hidden, 5)
    spec = permutation_spec(net, torch.zeros(1, 64))
    model = stack.take(stack.init(net, 1, seed=3), 0)
    x = torch.randn(9, 64, generator=stream(0, "x"))
    quick = align.specs.reads(net, spec, model, x)
    followed = align.specs.reads(Traced(*net), spec, model, x)
    assert [label for label, _ in quick] == [label for label, _ in followed]
    assert len(quick) == len(hidden)
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(quick, followed, strict=True))
