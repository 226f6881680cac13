import inspect
from itertools import pairwise

import numpy as np
import pytest
import torch
from devices import second_device
from hypothesis import given
from hypothesis import strategies as st
from orders import spec_of
from torch import nn
from torch.func import functional_call

from paramarket import data, merge, stack, train
from paramarket.base import stream
from paramarket.data import Split
from paramarket.errors import DataError, ParameterError, ShapeError, WeightsError

WEIGHTED = ["average", "repair", "task arithmetic", "regmean"]
every_method = pytest.mark.parametrize("method", merge.METHODS)


def conv(*norm, inplace=False):
    body = (nn.Conv2d(1, 6, 3), *norm, nn.ReLU(inplace), nn.Conv2d(6, 4, 3, padding=1), nn.ReLU(inplace))
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(144, 10))


NETS = {
    "mlp": lambda: stack.mlp(64, [12, 8], 10),
    "conv": conv,
    "ReLU in place": lambda: conv(inplace=True),
    "BatchNorm": lambda: conv(nn.BatchNorm2d(6)),
}
every_net = pytest.mark.parametrize("name", NETS)
plain_net = pytest.mark.parametrize("name", ["mlp", "conv", "ReLU in place"])


@pytest.fixture(scope="module")
def split(digits):
    return Split(digits.train.x[:200], digits.train.y[:200])


@pytest.fixture(scope="module")
def trained(digits):
    """A net and three models of it that have learnt a little, each from classes of its own."""
    net, holds = NETS["mlp"](), [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
    splits = [data.holding(digits.train, classes, 0.1, stream(0, "holding", k)) for k, classes in enumerate(holds)]
    start = {name: tensor.expand(3, *tensor.shape[1:]) for name, tensor in stack.init(net, 1, seed=0).items()}
    return net, train.fit(net, start, splits, epochs=4, lr=1e-2).stack


def some(name, copies=2):
    net = NETS[name]()
    return net, spec_of(net, torch.zeros(1, 1, 8, 8)), stack.init(net, copies, seed=1)


def run(method, net, models, split, **more):
    spec = spec_of(net, split.x[:1])
    return merge.METHODS[method](net, spec, models, split, torch.Generator().manual_seed(0), **more)


def close(one, other, atol=1e-5):
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=atol) for name in one)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def loss(net, params, split):
    return train.evaluate(net, stack.join([params]), split).loss.item()


@every_method
@plain_net
def test_equal_models_merge_to_themselves(name, method, split):
    net, _, models = some(name, 1)
    models = {key: tensor.repeat(3, *[1] * (tensor.ndim - 1)) for key, tensor in models.items()}
    assert close(run(method, net, models, split), stack.take(models, 0))


@pytest.mark.parametrize("method", WEIGHTED)
@plain_net
def test_a_weight_of_one_gives_that_model(name, method, split):
    net, _, models = some(name, 3)
    for k in range(3):
        assert close(run(method, net, models, split, weights=[float(j == k) for j in range(3)]), stack.take(models, k))


@every_method
@every_net
def test_merging_changes_neither_models_nor_net(name, method, split):
    net, _, models = some(name)
    net.train()
    before = {key: tensor.clone() for key, tensor in models.items()}
    own = {key: tensor.clone().nan_to_num() for key, tensor in net.state_dict().items()}
    merged = run(method, net, models, split)
    assert not any(tensor.requires_grad for tensor in merged.values())
    assert all(module.training and getattr(module, "momentum", 0.1) == 0.1 for module in net.modules())
    assert equal(models, before)
    assert equal({key: tensor.nan_to_num() for key, tensor in net.state_dict().items()}, own)


@every_method
def test_models_that_cannot_be_merged_are_refused(method, split):
    net, _, models = some("mlp")
    with pytest.raises(ShapeError, match="a merge needs two or more models, got 1"):
        run(method, net, stack.take(models, slice(1)), split)
    with pytest.raises(ShapeError, match=r"'1\.weight' has shape \(13, 64\), expected \(12, 64\)"):
        run(method, net, stack.init(stack.mlp(64, [13, 8], 10), 2, seed=0), split)
    with pytest.raises(WeightsError, match=r"'3\.bias' of the models to merge holds values that are NaN or infinite"):
        run(method, net, {**models, "3.bias": models["3.bias"] / 0}, split)
    if method in WEIGHTED:
        with pytest.raises(ParameterError, match=r"weights = \[1, 2, 3\] for 2 models: expected one number for each"):
            run(method, net, models, split, weights=[1, 2, 3])


@given(st.lists(st.floats(0, 2), min_size=2, max_size=5).filter(lambda weights: sum(weights) > 0.01))
def test_the_average_is_the_mean_and_task_arithmetic_adds_differences(weights):
    net, _, models = some("mlp", len(weights))
    nothing = Split(torch.zeros(1, 64), torch.zeros(1, dtype=torch.long))  # neither needs data
    first, mean = stack.take(models, 0), {name: tensor.mean(dim=0) for name, tensor in models.items()}
    total = sum(weights)
    sums = {name: sum(w / total * tensor[k] for k, w in enumerate(weights)) for name, tensor in models.items()}
    added = {
        name: tensor[0] + sum(w * (tensor[k] - tensor[0]) for k, w in enumerate(weights))
        for name, tensor in models.items()
    }
    assert close(run("average", net, models, nothing), mean)
    assert close(run("average", net, models, nothing, weights=weights), sums)
    assert close(run("task arithmetic", net, models, nothing, weights=weights), added)
    assert close(run("task arithmetic", net, models, nothing, weights=[1.0] + [0.0] * (len(weights) - 1)), first)


SHARES = ["average", "repair", "regmean", "ensemble"]


def shared(method, net, models, split, weights):
    """What a method that takes shares makes of them, an ensemble too, as a dict of tensors."""
    if method == "ensemble":
        return {"": merge.ensemble(net, models, split.x, weights=weights)}
    return run(method, net, models, split, weights=weights)


@pytest.mark.parametrize("method", SHARES)
@pytest.mark.parametrize("times", [1e-300, 0.25, 7, 1e307])
def test_shares_count_in_any_unit(method, times, split):
    net, _, models = some("mlp", 3)
    shares = [0.25, 0.5, 0.25]
    expected = shared(method, net, models, split, shares)
    assert close(shared(method, net, models, split, [times * share for share in shares]), expected)
    assert close(shared(method, net, models, split, [1, 1, 1]), shared(method, net, models, split, None))


@pytest.mark.parametrize("method", SHARES)
@pytest.mark.parametrize("weights", [[3, 0, -1], [0, 0, 0], [-1, -1, -1], [float("nan"), 1, 1], [float("inf"), 1, 1]])
def test_what_is_no_share_is_refused(method, weights, split):
    net, _, models = some("mlp", 3)
    with pytest.raises(ParameterError, match=r"weights = \[.*\], expected (finite numbers|numbers ≥ 0, one of them)"):
        shared(method, net, models, split, weights)


@pytest.mark.parametrize("weights", [[1, float("nan"), 1], [1, float("-inf"), 1]])
def test_factors_of_task_arithmetic_are_finite(weights, split):
    net, _, models = some("mlp", 3)
    with pytest.raises(ParameterError, match="expected finite numbers"):
        run("task arithmetic", net, models, split, weights=weights)


@pytest.mark.parametrize("copies", [2, 3])
@pytest.mark.parametrize("method", ["task arithmetic", "ties"])
def test_what_is_tuned_on_a_split_loses_there_to_no_simpler_choice(method, copies, trained, digits):
    net, models = trained[0], stack.take(trained[1], slice(copies))
    tuned = loss(net, run(method, net, models, digits.quote), digits.quote)
    assert tuned <= loss(net, stack.take(models, 0), digits.quote) + 1e-5
    if method == "task arithmetic":
        assert tuned <= loss(net, run("average", net, models, digits.quote), digits.quote) + 1e-5


def slow_ties(base, others, density, scale):
    """Trim, elect and merge as TIES (Yadav et al. 2023) says it: number by number."""
    names = list(base)
    start = torch.cat([base[name].flatten() for name in names]).tolist()
    changes = [(torch.cat([o[name].flatten() for name in names]) - torch.tensor(start)).tolist() for o in others]
    kept = []
    for change in changes:
        smallest = sorted(map(abs, change), reverse=True)[max(1, round(density * len(change))) - 1]
        kept.append([value if abs(value) >= smallest else 0.0 for value in change])
    merged = []
    for place, values in enumerate(zip(*kept, strict=True)):
        sign = np.sign(sum(values))
        agree = [value for value in values if value * sign > 0]
        merged.append(start[place] + scale * (sum(agree) / len(agree) if agree else 0.0))
    parts = torch.tensor(merged).split([base[name].numel() for name in names])
    return {name: part.view(base[name].shape) for name, part in zip(names, parts, strict=True)}


@pytest.mark.parametrize("density", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("copies", [2, 3])
def test_ties_equals_a_slow_reference(density, copies, trained, digits):
    net, models = trained[0], stack.take(trained[1], slice(copies))
    base, *others = (stack.take(models, k) for k in range(copies))
    ways = [slow_ties(base, others, density, scale / 10) for scale in range(21)]
    best = min(ways, key=lambda way: loss(net, way, digits.quote))
    assert close(run("ties", net, models, digits.quote, density=density), best)


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.9, 0.1], [0.2, 0.3, 0.5]])
def test_regmean_of_a_linear_layer_that_reads_the_same_is_the_average(weights, split):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    models = stack.init(net, len(weights), seed=2)
    found, mean = (run(method, net, models, split, weights=weights) for method in ("regmean", "average"))
    assert close(found, mean)


def test_regmean_answers_the_least_squares_problem_of_numpy():
    """The second of two layers, for which models read different things; .9 off the diagonal is a tenth of ridge."""
    net = nn.Sequential(nn.Linear(20, 6), nn.Linear(6, 10))
    models, x = stack.init(net, 2, seed=2), torch.randn(300, 20, generator=stream(0, "regmean"))
    merged = run("regmean", net, models, Split(x, torch.zeros(300, dtype=torch.long)), weights=[0.3, 0.7])
    rows, wanted = [], []
    for k, share in enumerate([0.3, 0.7]):
        own = {name: tensor.double().numpy() for name, tensor in stack.take(models, k).items()}
        read = x.double().numpy() @ own["0.weight"].T + own["0.bias"]
        ridge = np.diag(np.linalg.norm(read, axis=0))
        rows.append(np.concatenate([(0.9 * share) ** 0.5 * read, (0.1 * share) ** 0.5 * ridge]))
        wanted.append(rows[-1] @ own["1.weight"].T)
    expected = np.linalg.lstsq(np.concatenate(rows), np.concatenate(wanted), rcond=None)[0].T
    assert np.allclose(merged["1.weight"].numpy(), expected, atol=1e-4)
    assert torch.allclose(merged["1.bias"], 0.3 * models["1.bias"][0] + 0.7 * models["1.bias"][1], atol=1e-6)


def test_regmean_of_a_layer_that_reads_nothing_is_the_average(split):
    net, _, models = some("mlp")
    dark = Split(torch.zeros_like(split.x), split.y)
    merged, mean = run("regmean", net, models, dark), run("average", net, models, dark)
    assert torch.allclose(merged["1.weight"], mean["1.weight"], atol=1e-5)


def moments(net, params, x, kinds=(nn.Linear, nn.Conv2d)):
    """Mean and spread of every unit of every hidden layer, by plain hooks."""
    seen, layers = [], [module for module in net.modules() if isinstance(module, kinds)][:-1]
    hooks = [layer.register_forward_hook(lambda _, given, out: seen.append(out.clone())) for layer in layers]
    functional_call(net.eval(), params, (x,))
    for hook in hooks:
        hook.remove()
    return [
        torch.stack([out.transpose(0, 1).flatten(1).mean(dim=1), out.transpose(0, 1).flatten(1).std(dim=1)])
        for out in seen
    ]


@pytest.mark.parametrize("weights", [None, [0.25, 0.75]])
@plain_net
def test_repaired_units_vary_as_those_of_the_models_do(name, weights, split):
    net, _, models = some(name)
    goals = [moments(net, stack.take(models, k), split.x) for k in range(2)]
    first, second = weights or (0.5, 0.5)
    before = moments(net, run("average", net, models, split, weights=weights), split.x)
    found = moments(net, run("repair", net, models, split, weights=weights), split.x)
    assert len(found) == 2
    for a, b, after, plain in zip(*goals, found, before, strict=True):
        assert torch.allclose(after, first * a + second * b, atol=1e-4)
        assert not torch.allclose(plain, first * a + second * b, atol=1e-2)


def test_batch_norm_is_measured_anew(split):
    net, _, models = some("BatchNorm")
    net[1].momentum = 0.3
    merged = run("repair", net, models, split)
    x = functional_call(net[0], {key: merged[f"0.{key}"] for key in ("weight", "bias")}, (split.x,))
    assert torch.allclose(merged["1.running_mean"], x.mean(dim=(0, 2, 3)), atol=1e-5)
    assert torch.allclose(merged["1.running_var"], x.transpose(0, 1).flatten(1).var(dim=1), rtol=1e-4)
    mean = run("average", net, models, split)
    assert all(torch.equal(merged[key], mean[key]) for key in mean if "running" not in key)
    assert net[1].momentum == 0.3
    net.eval()
    run("repair", net, models, split)
    assert not any(module.training for module in net.modules())


@every_net
def test_a_repaired_path_starts_and_ends_at_its_ends_and_is_repaired_between(name, split):
    net, spec, models = some(name)
    a, b = stack.take(models, 0), stack.take(models, 1)
    found = merge.repaired_path(net, spec, a, b, split.x, points=5)
    assert equal(stack.take(found, 0), a)
    assert equal(stack.take(found, 4), b)
    for k in range(1, 4):
        assert close(stack.take(found, k), run("repair", net, models, split, weights=[1 - k / 4, k / 4]), atol=1e-4)
    assert not close(stack.take(found, 2), run("average", net, models, split), atol=1e-3)


@pytest.mark.parametrize("weights", [None, [0.2, 0.3, 0.5]])
def test_an_ensemble_says_the_mean_of_probabilities(weights, split):
    net, _, models = some("mlp", 3)
    each = stack.forward(net, models, split.x).softmax(dim=-1)
    said = merge.ensemble(net, models, split.x, weights=weights)
    assert torch.allclose(said, sum(w * p for w, p in zip(weights or [1 / 3] * 3, each, strict=True)), atol=1e-6)
    assert torch.allclose(said.sum(dim=1), torch.ones(len(split)), atol=1e-5)
    assert torch.allclose(
        merge.ensemble(net, stack.take(models, [1, 1, 1]), split.x, weights=weights), each[1], atol=1e-6
    )
    assert torch.allclose(merge.ensemble(net, models, split.x, weights=[0, 0, 1]), each[2], atol=1e-6)


def distilled(net, models, split, seed=0, steps=60):
    spec, generator = spec_of(net, split.x[:1]), torch.Generator().manual_seed(seed)
    return merge.distil(net, spec, models, split, generator, steps=steps)


def test_a_distilled_student_comes_nearer_to_its_ensemble(trained, split):
    net, models = trained
    before = {name: tensor.clone() for name, tensor in models.items()}
    taught = merge.ensemble(net, models, split.x)

    def apart(params):
        said = stack.forward(net, stack.join([params]), split.x)[0].log_softmax(dim=-1)
        return nn.functional.kl_div(said, taught, reduction="batchmean").item()

    far = [apart(distilled(net, models, split, steps=steps)) for steps in (5, 60, 400)]
    assert all(after < before for before, after in pairwise([apart(stack.take(models, 0)), *far]))
    assert equal(models, before)


def test_a_student_depends_on_the_generator_alone_and_on_no_label(trained, split):
    net, models = trained
    student = distilled(net, models, split)
    assert equal(student, distilled(net, models, split))
    assert equal(student, distilled(net, models, Split(split.x, split.y.flip(0))))
    assert not equal(student, distilled(net, models, split, seed=1))
    with pytest.raises(ShapeError, match="a merge needs two or more models, got 1"):
        distilled(net, stack.take(models, slice(1)), split)


def test_certain_probabilities_train_as_labels_do(split):
    net, _, models = some("mlp")
    certain = Split(split.x, nn.functional.one_hot(split.y, 10).float())
    one, other = (train.fit(net, models, each, steps=20, lr=1e-2) for each in (split, certain))
    assert close(one.stack, other.stack)
    assert np.allclose(one.history.loss, other.history.loss, atol=1e-5)


@pytest.mark.parametrize("classes", [1, 9, 11])
def test_probabilities_of_another_number_of_classes_are_refused(classes, split):
    net, _, models = some("mlp")
    with pytest.raises(DataError, match="a net with 10 classes"):
        train.fit(net, models, Split(split.x, torch.full((len(split), classes), 1 / classes)), steps=1)


def test_pairs_are_merged_one_by_one(digits):
    net = stack.mlp(64, [8], 10)
    a, b = (stack.init(net, 3, seed=seed) for seed in (0, 1))
    spec = spec_of(net, digits.quote.x[:1])
    found = merge.merge_pairs(net, spec, a, b, digits.quote, stream(0, "pairs"), method=merge.repair)
    for k in range(3):
        two = stack.join([stack.take(a, k), stack.take(b, k)])
        assert close(stack.take(found, k), merge.repair(net, spec, two, digits.quote, stream(0, "pairs")))


def test_pairs_are_averaged_where_no_method_is_named_and_draw_from_one_generator(digits):
    net = stack.mlp(64, [8], 10)
    a, b = (stack.init(net, 2, seed=seed) for seed in (0, 1))
    spec = spec_of(net, digits.quote.x[:1])
    plain = merge.merge_pairs(net, spec, a, b, digits.quote, stream(0, "pairs"))
    assert equal(plain, merge.average_pairs(a, b))
    own = stream(0, "pairs")
    pairs = [stack.join([stack.take(a, k), stack.take(b, k)]) for k in range(2)]
    one_by_one = [merge.distil(net, spec, pair, digits.quote, own) for pair in pairs]
    many = merge.merge_pairs(net, spec, a, b, digits.quote, stream(0, "pairs"), method=merge.distil)
    assert equal(many, stack.join(one_by_one))


def test_a_model_without_a_partner_is_refused(digits):
    net = stack.mlp(64, [8], 10)
    spec = spec_of(net, digits.quote.x[:1])
    for copies in ((2, 3), (3, 2), (1, 3), (3, 1)):
        a, b = (stack.init(net, number, seed=0) for number in copies)
        with pytest.raises(ShapeError, match="the two stacks of partners do not fit"):
            merge.merge_pairs(net, spec, a, b, digits.quote, stream(0, "pairs"))


@pytest.mark.parametrize("density", [-0.1, 1.01, float("nan")])
def test_a_density_that_is_no_share_is_refused(density, split):
    net, _, models = some("mlp")
    with pytest.raises(ParameterError, match=r"density = .*, expected a share of the weights"):
        run("ties", net, models, split, density=density)


def test_what_is_listed_are_merge_methods():
    assert all(isinstance(method, merge.MergeMethod) for method in [*merge.METHODS.values(), merge.distil])
    for method in [*merge.METHODS.values(), merge.distil]:
        parameters = list(inspect.signature(method).parameters.values())
        assert [each.name for each in parameters[:5]] == ["net", "spec", "models", "split", "generator"]
        assert all(each.kind is each.KEYWORD_ONLY and each.default is not each.empty for each in parameters[5:])


def away(models, device):
    return stack.map(lambda tensor: tensor.to(device), models)


def back(models):
    return stack.map(lambda tensor: tensor.cpu(), models)


@pytest.mark.parametrize("method", [*merge.METHODS, "distil"])
def test_models_on_a_second_device_merge_there_to_the_same(method, split):
    net, spec, models = some("mlp")
    way = merge.METHODS.get(method, merge.distil)
    expected = way(net, spec, models, split, stream(0, "merge"))
    with second_device() as device:
        merged = way(net, spec, away(models, device), split, stream(0, "merge"))
        assert {tensor.device for tensor in merged.values()} == {device}
        assert close(back(merged), expected)


@pytest.mark.parametrize("name", ["mlp", "conv", "BatchNorm"])
def test_paths_are_repaired_and_pairs_merged_on_a_second_device(name, split):
    net, spec, models = some(name)
    ends = [stack.take(models, k) for k in range(2)]
    line = merge.repaired_path(net, spec, *ends, split.x, points=5)
    pairs = merge.merge_pairs(net, spec, models, models, split, stream(0, "pairs"), method=merge.repair)
    with second_device() as device:
        there = away(models, device)
        ends = [stack.take(there, k) for k in range(2)]
        assert close(back(merge.repaired_path(net, spec, *ends, split.x, points=5)), line)
        found = merge.merge_pairs(net, spec, there, there, split, stream(0, "pairs"), method=merge.repair)
        assert {tensor.device for tensor in found.values()} == {device}
        assert close(back(found), pairs)


def test_an_ensemble_on_a_second_device_is_shown_on_the_cpu(split):
    net, _, models = some("mlp")
    expected = merge.ensemble(net, models, split.x)
    with second_device() as device:
        said = merge.ensemble(net, away(models, device), split.x)
        assert said.device.type == "cpu"
        assert torch.allclose(said, expected)


def test_points_of_a_repaired_path_go_by_name(split):
    net, spec, models = some("mlp")
    ends = [stack.take(models, k) for k in range(2)]
    with pytest.raises(TypeError, match="positional"):
        inspect.unwrap(merge.repaired_path)(net, spec, *ends, split.x, 3)


def test_a_number_is_no_list_of_weights(split):
    net, _, models = some("mlp")
    with pytest.raises(ParameterError, match=r"weights = 0\.5, expected a list"):
        inspect.unwrap(merge.methods._shares)(net, models, 0.5)


def test_of_equally_good_candidates_the_first_is_taken(split):
    net, _, models = some("mlp")
    model = stack.take(models, 0)
    gone = {name: torch.zeros_like(tensor) for name, tensor in model.items()}
    signed = {name: -tensor for name, tensor in gone.items()}  # -0.0: the same loss, to the last bit
    best = merge.methods._best(net, stack.join([signed, gone]), split)
    assert all(tensor.signbit().all() for tensor in best.values())


@pytest.mark.parametrize("method", ["repair", "regmean"])
def test_a_layer_that_is_used_twice_is_refused_by_name(method, split):
    twice = [nn.Linear(12, 12), nn.Tanh()] * 2
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), *twice, nn.Linear(12, 10))
    models = stack.init(net, 3, seed=0)
    with pytest.raises(ShapeError, match="layer '3' is used 2 times in the net, expected once"):
        run(method, net, models, split)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["mlp", "BatchNorm"])
@every_method
def test_a_merge_of_half_precision_is_that_of_the_same_numbers_rounded_once(method, name, dtype, split):
    net, _, models = some(name, 3)
    models = stack.map(lambda tensor: tensor.to(dtype), models)
    exact = run(method, net, stack.map(torch.Tensor.float, models), split)
    found = run(method, net, models, split)
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    assert all(torch.equal(found[key], exact[key].to(dtype)) for key in exact)


@pytest.mark.parametrize("name", ["mlp", "BatchNorm"])
def test_a_repaired_path_of_half_precision_is_rounded_once(name, split):
    net, spec, models = some(name)
    a, b = (stack.map(torch.Tensor.bfloat16, stack.take(models, k)) for k in range(2))
    found = merge.repaired_path(net, spec, a, b, split.x, points=3)
    single = [stack.map(torch.Tensor.float, params) for params in (a, b)]
    exact = merge.repaired_path(net, spec, *single, split.x, points=3)
    assert all(torch.equal(found[key], exact[key].bfloat16()) for key in exact)


def test_a_student_of_half_precision_models_is_one_itself(split):
    net, spec, models = some("mlp")
    models = stack.map(torch.Tensor.bfloat16, models)
    student = merge.distil(net, spec, models, split, torch.Generator().manual_seed(0), steps=2)
    assert {tensor.dtype for tensor in student.values()} == {torch.bfloat16}
