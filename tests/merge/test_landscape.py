import inspect
import math

import pytest
import torch
from devices import second_device
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from paramarket import align, merge, stack, train
from paramarket.base import stream
from paramarket.data import Split
from paramarket.errors import ParameterError, ShapeError
from paramarket.merge import barrier, layer_path, path, plane

FLOATS = st.floats(width=32, allow_nan=False)  # infinite ones as well
LOSSES = st.lists(st.floats(0, 100, width=32), min_size=2, max_size=9).map(torch.tensor)
REFERENCES = pytest.mark.parametrize("reference", ["chord", "ends"])


def some(copies, *purpose):
    """Models of an MLP with weights far from small."""
    shapes = {"1.weight": (4, 3), "1.bias": (4,), "3.weight": (2, 4), "3.bias": (2,)}
    generator = stream(0, *purpose)
    return [{n: 3 * torch.randn(shape, generator=generator) for n, shape in shapes.items()} for _ in range(copies)]


def flat(params):
    return torch.cat([tensor.flatten().double() for tensor in params.values()])


def curve(line, points):
    return torch.tensor([line(t) for t in torch.linspace(0, 1, points).tolist()])


@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=6), st.integers(2, 7))
def test_a_path_starts_and_ends_at_its_ends(pairs, points):
    a, b = ({"w": torch.tensor(side)} for side in zip(*pairs, strict=True))
    line = path(a, b, points)
    assert len(line["w"]) == points
    for given_end, found in ((a["w"], line["w"][0]), (b["w"], line["w"][-1])):
        assert torch.equal(found.view(torch.int32), given_end.view(torch.int32))  # the bits, for -0 equals 0


@given(st.integers(2, 9))
def test_a_path_walks_in_equal_steps(points):
    a, b = some(2, "path")
    line = path(a, b, points)
    for k in range(points):
        t = k / (points - 1)
        assert torch.allclose(flat(stack.take(line, k)), (1 - t) * flat(a) + t * flat(b), atol=1e-5)


def test_the_middle_of_a_path_is_the_mean():
    a, b = some(2, "middle")
    middle = stack.take(path(a, b, 5), 2)
    assert all(torch.allclose(middle[name], (a[name] + b[name]) / 2, atol=1e-6) for name in a)


@pytest.mark.parametrize("points", [1, 0, -3])
def test_a_path_without_both_ends_is_refused(points):
    a, b = some(2, "short")
    with pytest.raises(ParameterError, match=f"points = {points}, expected two or more"):
        path(a, b, points)
    with pytest.raises(ParameterError, match=f"points = {points}, expected two or more"):
        layer_path(a, b, ["1.bias"], points)


def test_a_path_between_different_nets_is_refused():
    (a,) = some(1, "fit")
    with pytest.raises(ShapeError, match=r"'1\.bias' has shape \(5,\), expected \(4,\)"):
        path(a, {**a, "1.bias": torch.zeros(5)}, 3)


@given(st.sets(st.sampled_from(["1.weight", "1.bias", "3.weight", "3.bias"])))
def test_a_layer_path_moves_the_named_parameters_alone(names):
    a, b = some(2, "layers")
    line, whole = layer_path(a, b, sorted(names), 4), path(a, b, 4)
    for name in a:
        still = a[name].expand(4, *a[name].shape)
        assert torch.equal(line[name], whole[name]) if name in names else torch.allclose(line[name], still, atol=1e-6)
    assert all(torch.equal(line[name][-1], (b if name in names else a)[name]) for name in a)


def test_a_layer_that_does_not_exist_is_named():
    a, b = some(2, "layers")
    with pytest.raises(ShapeError, match=r"unknown parameter '1\.wieght'. Did you mean '1\.weight'\?"):
        layer_path(a, b, ["1.wieght"], 3)


def test_barriers_of_hand_made_curves():
    assert barrier(torch.tensor([1.0, 4.0, 3.0])).item() == 2  # the chord is 2 in the middle
    assert barrier(torch.tensor([1.0, 4.0, 3.0]), "ends").item() == 2
    assert barrier(torch.tensor([1.0, 2.0, 3.0])).item() == 0
    assert barrier(torch.tensor([1.0, 2.0, 3.0]), "ends").item() == 1  # unequal ends are a barrier already
    assert barrier(torch.tensor([0.0, 0.0, 3.0, 0.0, 4.0])).item() == 1
    assert barrier(torch.tensor([0.0, 3.0, 0.0, 0.0, 4.0])).item() == 2
    assert barrier(torch.tensor([3.0, 0.0, 3.0])).item() == 0


@given(LOSSES)
def test_no_barrier_is_negative_and_a_flat_curve_has_none(losses):
    assert barrier(losses) >= 0
    assert barrier(losses, "ends") >= -1e-5
    level = losses[:1].expand(5)
    assert barrier(level).item() == pytest.approx(0, abs=1e-4)
    assert barrier(level, "ends").item() == 0


@given(LOSSES, st.floats(-50, 50), st.floats(-50, 50))
def test_a_slope_changes_no_barrier_above_the_chord(losses, slope, offset):
    tilted = losses + curve(lambda t: offset + slope * t, len(losses))
    assert barrier(tilted).item() == pytest.approx(barrier(losses).item(), abs=1e-3)


@given(st.floats(0, 50), st.floats(-5, 5), st.integers(2, 30))
def test_a_convex_curve_has_no_barrier_above_the_chord(scale, lowest, points):
    assert barrier(curve(lambda t: scale * (t - lowest) ** 2, points)).item() == pytest.approx(0, abs=1e-2)
    assert barrier(curve(lambda t: math.exp(lowest * t), points)).item() == pytest.approx(0, abs=1e-3)


@REFERENCES
def test_barriers_of_many_paths_are_those_of_each(reference):
    losses = torch.rand(2, 3, 7, generator=stream(0, "losses"))
    found = barrier(losses, reference)
    assert found.shape == (2, 3)
    assert all(found[j, k] == barrier(losses[j, k], reference) for j in range(2) for k in range(3))


@REFERENCES
def test_other_examples_choose_the_stop_at_which_a_barrier_is_measured(reference):
    losses = torch.tensor([0.0, 1.0, 3.0, 0.0])
    other = torch.tensor([0.0, 5.0, 2.0, 0.0])
    assert barrier(losses, reference, stops_by=other).item() == 1
    assert barrier(losses, reference, stops_by=losses) == barrier(losses, reference)
    with pytest.raises(ShapeError, match="expected the same paths"):
        barrier(losses, reference, stops_by=other[:3])


def test_a_barrier_is_too_high_on_average_unless_others_choose_the_stop():
    """Flat paths with noise have no barrier: the maximum says they do, on average; the chosen stop does not."""
    noise = torch.randn(2, 4000, 11, generator=stream(0, "noise"))
    noise[..., [0, -1]] = 0
    assert barrier(noise[0]).mean() > 1
    assert barrier(noise[0], stops_by=noise[1]).mean().abs() < 0.1


def test_an_unknown_reference_is_refused():
    with pytest.raises(ParameterError, match=r"unknown reference 'cord'\. Did you mean 'chord'"):
        barrier(torch.zeros(3), "cord")


@given(st.integers(0, 2**31), st.integers(2, 5), st.floats(0, 1))
def test_distances_in_a_plane_are_distances_between_weights(seed, points, margin):
    a, b, c = some(3, seed)
    found = plane(a, b, c, points, margin=margin)
    y, x = torch.meshgrid(found.y, found.x, indexing="ij")
    for model in (a, b, c):
        corner = found.corners[[model is a, model is b, model is c].index(True)]
        expected = torch.hypot(x - corner[0], y - corner[1]).flatten()
        for k in range(points**2):
            distance = (flat(stack.take(found.models, k)) - flat(model)).norm().item()
            assert distance == pytest.approx(expected[k].item(), abs=1e-3)


def test_the_corners_of_a_plane_are_the_three_models():
    a, b = some(2, "corners")
    c = {name: a[name] + 2 * torch.rand(a[name].shape, generator=stream(0, name)) for name in a}
    found = plane(a, b, c, points=2, margin=0)
    assert found.corners[0].tolist() == [0, 0]
    assert found.corners[1, 1] == 0 < found.corners[2, 1]
    assert found.corners[1, 0].item() == pytest.approx((flat(b) - flat(a)).norm().item())
    assert torch.allclose(flat(stack.take(found.models, 0)), flat(a), atol=1e-5)
    assert torch.allclose(flat(stack.take(found.models, 1)), flat(b), atol=1e-5)


@pytest.mark.parametrize("margin", [0.0, 0.25, 1.0])
def test_the_grid_of_a_plane_reaches_beyond_the_models_by_the_margin(margin):
    a, b, c = some(3, "margin")
    found = plane(a, b, c, points=5, margin=margin)
    for axis, corners in ((found.x, found.corners[:, 0]), (found.y, found.corners[:, 1])):
        width = (corners.max() - corners.min()).item()
        assert axis[0].item() == pytest.approx(corners.min().item() - margin * width, abs=1e-4)
        assert axis[-1].item() == pytest.approx(corners.max().item() + margin * width, abs=1e-4)
        assert len(axis) == 5


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0, 1.7])
def test_three_models_on_one_line_span_no_plane(share):
    a, b = some(2, "line")
    between = {name: (1 - share) * a[name] + share * b[name] for name in a}
    with pytest.raises(ShapeError, match="three models on one line span no plane"):
        plane(a, b, between, 3)


def test_a_model_given_twice_spans_no_plane():
    a, b = some(2, "line")
    with pytest.raises(ShapeError, match="three models on one line span no plane"):
        plane(a, a, b, 3)


@pytest.fixture(scope="module")
def trained(digits):
    """A net, its symmetry, a model of it that has learnt digits, and the same model in another order."""
    net = stack.mlp(64, [32, 32], 10)
    spec = align.permutation_spec(net, digits.train.x[:1])
    fitted = train.fit(net, stack.init(net, 1, seed=0), digits.train, epochs=5, lr=1e-2, seed=0).stack
    model, generator = stack.take(fitted, 0), stream(0, "order")
    p = {label: torch.randperm(size, generator=generator) for label, size in align.sizes(spec, model).items()}
    return net, spec, model, align.permute(spec, p, model)


def rise(net, a, b, split):
    return barrier(merge.walk(net, [path(a, b, 11)], split).loss).item()


def test_a_walk_scores_every_stop_of_every_line(trained, digits):
    net, _, model, copy = trained
    lines = [path(model, copy, 4), path(copy, model, 4)]
    score = merge.walk(net, iter(lines), digits.test)
    for k, line in enumerate(lines):
        alone = train.evaluate(net, line, digits.test)
        assert all(torch.equal(many[k], own) for many, own in zip(score, alone, strict=True))


@pytest.mark.parametrize("points", [2, 3, 8])
@pytest.mark.parametrize(
    "net",
    [
        stack.mlp(64, [16, 12], 10),
        stack.residual_mlp(64, 12, 2, 10),
        nn.Sequential(nn.Unflatten(1, (1, 64)), nn.Flatten(), nn.Linear(64, 10)),  # none that begins with a layer
    ],
    ids=["mlp", "residual", "general"],
)
def test_a_walk_of_pairs_is_the_walk_along_their_paths(net, points, digits):
    a, b = stack.init(net, 3, seed=0), stack.init(net, 3, seed=1)
    split = Split(digits.quote.x.flatten(1), digits.quote.y)
    lines = [path(stack.take(a, k), stack.take(b, k), points) for k in range(3)]
    by_path = merge.walk(net, lines, split)
    score = merge.walk_pairs(net, a, b, split, points=points)
    assert score.loss.shape == (3, points)
    for found, expected in zip(score, by_path, strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


def test_a_walk_of_pairs_needs_partners_and_two_points(digits):
    net = stack.mlp(64, [4], 10)
    a, b = stack.init(net, 3, seed=0), stack.init(net, 2, seed=1)
    with pytest.raises(ShapeError, match="the two stacks of partners"):
        merge.walk_pairs(net, a, b, digits.quote, points=3)
    with pytest.raises(ParameterError, match="points = 1, expected two or more"):
        merge.walk_pairs(net, a, a, digits.quote, points=1)


def test_the_rise_of_a_layer_is_that_half_way_along_its_own_path(trained, digits):
    net, _, model, copy = trained
    found, still = merge.layer_rise(net, iter([(model, copy), (model, model)]), digits.test)
    for layer, rises in zip("135", found, strict=True):
        line = layer_path(model, copy, [f"{layer}.weight", f"{layer}.bias"], 3)
        losses = train.evaluate(net, line, digits.test).loss
        assert rises.item() == pytest.approx((losses[1] - losses[0]).item(), abs=1e-5)
    assert still.abs().max() <= 1e-6


def test_a_trained_model_has_no_barrier_to_itself(trained, digits):
    net, _, model, _ = trained
    assert rise(net, model, model, digits.test) <= 1e-6


@pytest.mark.parametrize("matcher", ["weight_matching", "activation_matching"])
def test_the_barrier_to_a_reordered_copy_vanishes_with_the_order(trained, digits, matcher):
    net, spec, model, copy = trained
    settings = {} if matcher == "weight_matching" else {"net": net, "x": digits.train.x}
    found = getattr(align, matcher)(spec, model, copy, **settings)
    assert rise(net, model, copy, digits.test) > 0.1
    assert rise(net, model, align.permute(spec, found, copy), digits.test) <= 1e-5


def stacks():
    net = stack.mlp(4, [3], 2)
    return net, stack.init(net, 3, seed=0), stack.init(net, 3, seed=1)


def test_a_blend_is_the_line_between_partners():
    _, a, b = stacks()
    shares = [0.0, 0.25, 0.5, 1.0]
    found = merge.blend_pairs(a, b, shares)
    for k in range(3):
        line = merge.path(stack.take(a, k), stack.take(b, k), 5)
        for at, stop in enumerate((0, 1, 2, 4)):
            assert all(torch.allclose(found[name][k, at], line[name][stop], atol=1e-6) for name in a)
    assert all(torch.equal(found[name][:, 2], each) for name, each in merge.average_pairs(a, b).items())


def test_the_best_blend_is_best_for_each_couple_by_itself():
    net, a, b = stacks()
    split = Split(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 2)
    shares = [0.0, 0.3, 0.7, 1.0]
    best = train.evaluate(net, merge.best_blend(net, a, b, split, shares=shares), split).loss
    for k in range(3):
        tried = {name: each[k] for name, each in merge.blend_pairs(a, b, shares).items()}
        assert best[k].item() == pytest.approx(train.evaluate(net, tried, split).loss.min().item())


def test_a_blend_needs_partners_and_shares():
    net, a, b = stacks()
    for one, other in ((a, stack.take(b, slice(1))), (stack.take(a, slice(1)), b), (a, stack.take(b, slice(2)))):
        with pytest.raises(ShapeError, match="the two stacks of partners do not fit"):
            merge.average_pairs(one, other)
    with pytest.raises(ShapeError, match=r"'3\.bias'"):
        merge.average_pairs(a, {name: tensor for name, tensor in b.items() if name != "3.bias"})
    with pytest.raises(ParameterError, match=r"shares = \[\], expected one or more"):
        merge.best_blend(net, a, b, Split(torch.zeros(1, 4), torch.zeros(1, dtype=torch.long)), shares=[])


@pytest.mark.parametrize("points", [1, 0, -3])
def test_a_plane_of_fewer_than_two_points_is_refused(points):
    with pytest.raises(ParameterError, match=f"points = {points}, expected two or more on each axis"):
        plane(*some(3, "short"), points)


@pytest.mark.parametrize("points", [3.0, "3", True])
def test_points_are_a_whole_number(points):
    a, b, c = some(3, "short")
    for way, first in ((path, (a, b)), (plane, (a, b, c))):
        with pytest.raises(ParameterError, match=f"points = {points!r}, expected a whole number"):
            inspect.unwrap(way)(*first, points)


def test_a_number_is_no_list_of_shares_and_a_text_no_list_of_names():
    _, a, b = stacks()
    with pytest.raises(ParameterError, match=r"shares = 0\.5, expected a list"):
        inspect.unwrap(merge.blend_pairs)(a, b, 0.5)
    one, other = some(2, "short")
    with pytest.raises(ParameterError, match=r"names = '1\.bias', expected a list"):
        layer_path(one, other, "1.bias", 3)


def test_of_equally_good_blends_the_first_is_taken():
    net, a, _ = stacks()
    a = stack.map(torch.zeros_like, a)
    b = stack.map(lambda tensor: tensor.clone(), a)
    b["3.bias"] += 1  # the same for every class: no answer changes
    split = Split(torch.zeros(2, 4), torch.tensor([0, 1]))
    for shares in ([0.0, 1.0], [1.0, 0.0]):
        best = merge.best_blend(net, a, b, split, shares=shares)
        assert torch.equal(best["3.bias"], (b if shares[0] else a)["3.bias"])


def test_a_walk_needs_lines_of_the_same_number_of_points(trained, digits):
    net, _, model, copy = trained
    with pytest.raises(ShapeError, match=r"lines of \[3, 4\] points"):
        merge.walk(net, [path(model, copy, 3), path(model, copy, 4)], digits.quote)
    with pytest.raises(ShapeError, match=r"lines of \[\] points: expected one line or more"):
        merge.walk(net, [], digits.quote)


def looked_at(net, a, b, split):
    """What is shown of two stacks of models, and the models made on the way."""
    one, other, third = stack.take(a, 0), stack.take(b, 0), stack.take(b, 1)
    line, grid = path(one, other, 4), plane(one, other, third, 3)
    losses = train.evaluate(net, line, split).loss.to(stack.device(line))
    rises = merge.layer_rise(net, [(one, other)], split)
    pairs = merge.walk_pairs(net, a, b, split, points=4)
    shown = [*merge.walk(net, [line, line], split), *pairs, rises, barrier(losses), grid.x, grid.y, grid.corners]
    best = merge.best_blend(net, a, b, split, shares=[0.2, 0.8])
    models = [line, layer_path(one, other, ["1.bias"], 3), merge.average_pairs(a, b), best, grid.models]
    return shown, models


def test_models_stay_on_a_second_device_and_what_is_shown_comes_back():
    net, a, b = stacks()
    split = Split(torch.randn(20, 4, generator=stream(0, "x")), torch.arange(20) % 2)
    shown, models = looked_at(net, a, b, split)
    with second_device() as device:
        away = [stack.map(lambda tensor: tensor.to(device), each) for each in (a, b)]
        shown_there, models_there = looked_at(net, *away, split)
        assert {tensor.device.type for tensor in shown_there} == {"cpu"}
        assert {tensor.device for each in models_there for tensor in each.values()} == {device}
        assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(shown_there, shown, strict=True))
        for one, other in zip(models_there, models, strict=True):
            assert all(torch.allclose(one[name].cpu(), other[name], atol=1e-6) for name in other)


def test_the_table_of_a_walk_has_a_row_a_line_and_stop(trained, digits):
    net, _, model, copy = trained
    score = merge.walk(net, [path(model, copy, 3), path(copy, model, 3)], digits.quote)
    lines, t = stack.grid(pair=["there", "back"]), torch.linspace(0, 1, 3)
    table = score.table(lines, {"t": t})
    assert len(table) == 6
    for row in table.itertuples():
        k, stop = ["there", "back"].index(row.pair), t.tolist().index(row.t)
        assert row.loss == score.loss[k, stop].item()
        assert row.accuracy == score.accuracy[k, stop].item()
    with pytest.raises(ShapeError, match=r"'loss' has shape \(2, 3\), expected \(2, 4\)"):
        score.table(lines, {"t": torch.linspace(0, 1, 4)})
    with pytest.raises(ShapeError, match=r"expected \(2,\): one for each row of the grid\."):
        score.table(lines)


@pytest.mark.parametrize("share", [float("nan"), float("inf")])
def test_a_share_that_is_no_number_blends_nothing(share):
    models = {"w": torch.zeros(1, 2)}
    with pytest.raises(ParameterError, match="expected finite numbers"):
        merge.blend_pairs(models, models, [0.5, share])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_barrier_of_half_precision_is_computed_in_float32(dtype):
    losses = torch.tensor([[1.0, 4.125, 3.0], [0.5, 60000.0, 0.25]]).to(dtype)
    assert torch.equal(barrier(losses), barrier(losses.float()))
