import itertools

import numpy as np
import pytest
import torch
from devices import second_device
from hypothesis import given
from hypothesis import strategies as st

from paramarket import cka
from paramarket.errors import DataError, ParameterError, ShapeError

seeds, either = st.integers(0, 2**31), st.booleans()
EXACT = torch.float64


def cloud(seed, n, features, dtype=EXACT):
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def related(seed, n=40, p=6, q=9):
    x = cloud(seed, n, p)
    return x, torch.cat([x, cloud(seed + 1, n, q - p)], dim=1) + cloud(seed + 2, n, q)


def slow(x, y, debiased):
    """CKA from its definition: Gram matrices, H, and Song et al.'s estimator written out."""
    n, one = len(x), torch.ones(len(x), dtype=EXACT)
    h = torch.eye(n, dtype=EXACT) - 1 / n

    def hsic(k, m):
        if not debiased:
            return torch.trace(k @ h @ m @ h)
        k, m = k - torch.diag(k.diag()), m - torch.diag(m.diag())
        apart = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return torch.trace(k @ m) + apart - 2 / (n - 2) * (one @ k @ m @ one)

    k, m = x @ x.T, y @ y.T
    return (hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()).item()


@given(seeds, either, st.sampled_from([(40, 6, 9), (8, 12, 20), (5, 3, 30)]))
def test_it_is_what_the_definition_says_by_features_and_by_grams(seed, debiased, sizes):
    x, y = related(seed, *sizes)
    assert cka.linear_cka(x, y, debiased, EXACT) == pytest.approx(slow(x, y, debiased), abs=1e-10)


@given(seeds, either)
def test_rotation_scale_and_shift_do_not_matter_and_other_maps_do(seed, debiased):
    x, y = related(seed)
    q, _ = torch.linalg.qr(cloud(seed + 3, 6, 6))
    value = cka.linear_cka(x, y, debiased, EXACT)
    assert cka.linear_cka(x, -3 * x @ q + 7, debiased, EXACT) == pytest.approx(1)
    assert cka.linear_cka(-3 * x @ q + 7, y, debiased, EXACT) == pytest.approx(value)
    assert cka.linear_cka(y, x, debiased, EXACT) == pytest.approx(value)
    stretched = x * torch.tensor([10.0, 1, 1, 1, 1, 1], dtype=EXACT)
    assert cka.linear_cka(x, stretched, debiased, EXACT) < 0.95


@given(seeds)
def test_for_one_feature_each_it_is_the_squared_correlation(seed):
    x, y = related(seed, p=1, q=1)
    pearson = np.corrcoef(x.flatten(), y.flatten())[0, 1]
    assert cka.linear_cka(x, y, dtype=EXACT) == pytest.approx(pearson**2)


@given(seeds)
def test_of_whitened_features_it_is_a_participation_ratio(seed):
    x = cloud(seed, 50, 5)
    white, _ = torch.linalg.qr(x - x.mean(dim=0))
    a = cloud(seed + 1, 5, 5)
    s = torch.linalg.svdvals(a)
    ratio = (s**2).sum() ** 2 / (s**4).sum()
    assert cka.linear_cka(white, white @ a, dtype=EXACT) == pytest.approx((ratio / 5).sqrt().item())


def test_it_gives_the_values_that_others_have_published():
    draw = np.random.RandomState(1337)
    x = torch.tensor(draw.randn(100, 10))
    y = torch.tensor(draw.randn(100, 10)) + x
    assert cka.linear_cka(x, y) == pytest.approx(0.55761, abs=5e-6)
    assert cka.linear_cka(x, y, debiased=True) == pytest.approx(0.51346, abs=5e-6)
    assert cka.rbf_cka(x, y, sigma=0.5) == pytest.approx(0.65483, abs=5e-6)


def test_noise_looks_alike_to_the_biased_estimate_alone():
    x, y = cloud(0, 128, 768), cloud(1, 128, 768)
    assert cka.linear_cka(x, y) == pytest.approx(768 / (128 + 768), abs=0.01)
    assert abs(cka.linear_cka(x, y, debiased=True)) < 0.02


@given(seeds, either)
def test_rows_may_be_reordered_together_only(seed, debiased):
    x, y = related(seed)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    value = cka.linear_cka(x, y, debiased, EXACT)
    assert cka.linear_cka(x[order], y[order], debiased, EXACT) == pytest.approx(value)
    assert cka.linear_cka(x, y[order.roll(1)], debiased, EXACT) < value


@given(seeds, either)
def test_a_matrix_holds_every_pair_and_a_batch_every_member(seed, debiased):
    layers = {
        name: torch.stack([cloud(seed + k, 12, p) for k in (9, 10)]) for name, p in [("1", 4), ("3", 7), ("5", 3)]
    }
    others = {name: torch.tanh(layers[name]) + layers["1"][..., :1] for name in ("3", "1")}
    table = cka.cka_matrix(layers, others, debiased, EXACT)
    assert table.shape == (2, 3, 2)
    for k, (i, x), (j, y) in itertools.product(range(2), enumerate(layers.values()), enumerate(others.values())):
        assert table[k, i, j].item() == pytest.approx(cka.linear_cka(x[k], y[k], debiased, EXACT), abs=1e-10)


def every_way(x, y, debiased):
    """CKA of one pair by all that gives it, in float32 where there is a choice; a stream of a single batch is one."""
    values = [cka.linear_cka(x, y, debiased), cka.cka_matrix({"x": x, "y": y}, {"y": y}, debiased)[0, 0].item()]
    if debiased:
        stream = cka.StreamingCKA()
        stream.update({"x": x}, {"y": y})
        values.append(stream.compute().item())
    return values


MEANS = [0, 10, 100, 1e4]
by_features_and_by_grams = pytest.mark.parametrize("sizes", [(40, 6, 9), (8, 12, 20)])


@pytest.mark.parametrize("mean", MEANS)
@by_features_and_by_grams
@given(seeds, either)
def test_a_constant_added_to_every_feature_changes_nothing(sizes, mean, seed, debiased):
    x, y = related(seed, *sizes)
    expected = slow(x, y, debiased)
    assert every_way(x + mean, y - mean, debiased) == pytest.approx([expected] * (3 if debiased else 2), abs=1e-5)
    assert cka.rbf_cka(x + mean, y - mean, 1.0, debiased) == pytest.approx(cka.rbf_cka(x, y, 1.0, debiased), abs=1e-7)


@pytest.mark.parametrize("mean", MEANS)
@by_features_and_by_grams
@given(seeds, either)
def test_of_float32_with_a_large_mean_it_is_what_these_numbers_say_centred_in_float64(sizes, mean, seed, debiased):
    x, y = related(seed, *sizes)
    x, y = (x + mean).float(), (y - mean).float()
    exact = [each.double() - each.double().mean(dim=0) for each in (x, y)]
    found = every_way(x, y, debiased)
    assert found == pytest.approx([slow(*exact, debiased)] * len(found), abs=1e-5)
    assert cka.rbf_cka(x, y, 1.0, debiased) == pytest.approx(cka.rbf_cka(*exact, 1.0, debiased), abs=1e-7)


@pytest.mark.parametrize("mean", MEANS)
def test_a_stream_of_batches_with_a_large_mean_is_that_of_centred_ones(mean):
    x, y = related(0, n=400)
    x, y = (x + mean).float(), (y - mean).float()
    stream, exact = cka.StreamingCKA(), cka.StreamingCKA(EXACT)
    for a, b in zip(x.split(20), y.split(20), strict=True):
        stream.update({"x": a}, {"y": b})
        a, b = a.double(), b.double()
        exact.update({"x": a - a.mean(dim=0)}, {"y": b - b.mean(dim=0)})
    assert stream.compute().item() == pytest.approx(exact.compute().item(), abs=1e-5)


def test_the_mean_over_all_minibatches_is_the_estimate_itself():
    x, y = related(0, n=7)
    stream = cka.StreamingCKA(EXACT)
    for chosen in itertools.combinations(range(7), 4):
        stream.update({"x": x[list(chosen)]}, {"y": y[list(chosen)]})
    assert stream.compute().item() == pytest.approx(cka.linear_cka(x, y, True, EXACT))


def test_a_stream_is_near_the_truth_where_the_mean_of_ratios_is_not():
    x, y = related(0, n=4096)
    stream, ratios = cka.StreamingCKA(), []
    for a, b in zip(x.split(16), y.split(16), strict=True):
        stream.update({"x": a}, {"y": b})
        ratios.append(cka.linear_cka(a, b))
    truth = cka.linear_cka(x, y, debiased=True)
    assert stream.compute().item() == pytest.approx(truth, abs=0.02)
    assert np.mean(ratios) > truth + 0.1


def test_batches_weigh_by_their_size():
    x, y = related(0, n=30)
    parts = [slice(0, 4), slice(4, 30)]
    one, other = cka.StreamingCKA(EXACT), cka.StreamingCKA(EXACT)
    for part in parts:
        one.update({"x": x[part]}, {"y": y[part]})
    for part in reversed(parts):
        other.update({"x": x[part]}, {"y": y[part]})
    assert one.compute().item() == pytest.approx(other.compute().item())
    with pytest.raises(DataError, match="call update first"):
        cka.StreamingCKA().compute()


@given(seeds, either)
def test_a_wide_gaussian_kernel_is_linear_and_a_narrow_one_sees_only_itself(seed, debiased):
    x, y = related(seed)
    assert cka.rbf_cka(x, y, 1e3, debiased) == pytest.approx(cka.linear_cka(x, y, debiased, EXACT), abs=1e-4)
    assert cka.rbf_cka(x, x, 1.0, debiased) == pytest.approx(1)
    assert cka.rbf_cka(x, y, 0.01) == pytest.approx(1, abs=1e-6)


def test_one_outlier_rules_the_value():
    x = cloud(0, 1000, 10)
    y = x.clone()
    y[0] += 1000
    assert cka.linear_cka(x, y) < 0.1


@pytest.mark.parametrize(
    ("x", "y", "debiased", "error", "says"),
    [
        (torch.ones(9, 3), cloud(0, 9, 3), False, DataError, "'x' is constant"),
        (cloud(0, 9, 3), torch.full((9, 3), 1e6), False, DataError, "'y' is constant"),
        (cloud(0, 3, 3), cloud(1, 3, 3), True, DataError, "'x' has shape (3, 3): CKA needs 4"),
        (cloud(0, 1, 3), cloud(1, 1, 3), False, DataError, "CKA needs 2"),
        (cloud(0, 9, 3), cloud(1, 8, 3), False, ShapeError, "{'x': 9} and {'y': 8}"),
        (cloud(0, 9, 3), cloud(1, 9, 3) / 0, False, DataError, "'y' holds values that are NaN or infinite"),
    ],
)
def test_what_has_no_cka_is_refused_by_name(x, y, debiased, error, says):
    for call in (cka.linear_cka, lambda x, y, debiased: cka.rbf_cka(x, y, debiased=debiased)):
        with pytest.raises(error) as raised:
            call(x, y, debiased)
        assert says in str(raised.value) or "got 9 and 8" in str(raised.value)


def test_layers_of_one_name_are_still_compared_by_their_examples():
    with pytest.raises(ShapeError, match=r"\{'1': 9\} and \{'1': 8\}"):
        cka.cka_matrix({"1": cloud(0, 9, 3)}, {"1": cloud(0, 8, 3)})


def test_a_kernel_needs_a_width():
    with pytest.raises(ParameterError, match="sigma = 0"):
        cka.rbf_cka(cloud(0, 9, 3), cloud(1, 9, 3), sigma=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, EXACT])
def test_what_is_said_of_one_example_alone_is_refused_if_debiased(dtype):
    x = torch.zeros(50, 3)
    x[7] = 2.0
    assert cka.linear_cka(x, x, dtype=dtype) == pytest.approx(1)
    with pytest.raises(DataError, match="of a single example only"):
        cka.linear_cka(x, cloud(0, 50, 3).float(), debiased=True, dtype=dtype)


def test_an_outlier_does_not_cost_the_digits():
    x = cloud(0, 200, 5, torch.float32)
    x[0] *= 1e4
    y = x + cloud(1, 200, 5, torch.float32)
    exact = cka.linear_cka(x, y, debiased=True, dtype=EXACT)
    assert cka.linear_cka(x, y, debiased=True) == pytest.approx(exact, abs=1e-6)


def test_a_batch_in_which_one_example_speaks_does_not_stop_the_stream():
    x, y = related(0, 80)
    x[:20] = 0
    x[3] = 1.0
    stream = cka.StreamingCKA(EXACT)
    for start in range(0, 80, 20):
        stream.update({"x": x[start : start + 20]}, {"y": y[start : start + 20]})
    assert 0 < stream.compute().item() < 1


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("sizes", [(300, 500, 600), (600, 270, 300), (1100, 1200, 1300)])
def test_products_cut_into_blocks_are_whole_again(sizes, debiased):
    x, y = related(0, *sizes)
    assert cka.linear_cka(x, y, debiased, EXACT) == pytest.approx(slow(x, y, debiased), abs=1e-10)


def streamed():
    """A stream of two layers against two, of the same names, after one batch; and what fits as a second one."""
    batches = [{name: cloud(seed, 8, features) for name, features in [("1", 3), ("3", 4)]} for seed in range(3)]
    stream = cka.StreamingCKA(EXACT)
    stream.update(batches[0], batches[1])
    return stream, {"xs": batches[1], "ys": batches[2]}


OTHER_LAYERS = {
    "fewer": (lambda layers: {"1": layers["1"]}, "layer '3' is missing"),
    "the last alone": (lambda layers: {"3": layers["3"]}, "layer '1' is missing"),
    "more": (lambda layers: {**layers, "5": layers["3"]}, "unknown layer '5'"),
    "renamed": (lambda layers: {"1": layers["1"], "layer 3": layers["3"]}, "unknown layer 'layer 3'"),
    "reordered": (lambda layers: {"3": layers["3"], "1": layers["1"]}, "'3' stands at place 0, where '1' stood before"),
    "narrower": (lambda layers: {**layers, "3": layers["3"][:, :1]}, r"'3' has .* = \(1,\), before it had \(4,\)"),
    "repeated": (lambda layers: {n: x.expand(2, -1, -1) for n, x in layers.items()}, r"'1' has .* = \(2, 3\), before"),
    "none": (lambda layers: {}, "layer '1' is missing"),
}


@pytest.mark.parametrize("side", ["xs", "ys"])
@pytest.mark.parametrize("what", OTHER_LAYERS)
def test_a_batch_of_other_layers_is_refused_by_name_and_adds_nothing(what, side):
    change, says = OTHER_LAYERS[what]
    stream, batch = streamed()
    before, seen = stream.compute(), stream.seen
    with pytest.raises(ShapeError, match=f"{side}: .*{says}"):
        stream.update(**{**batch, side: change(batch[side])})
    assert torch.equal(stream.compute(), before)
    assert stream.seen == seen
    stream.update(**batch)
    assert stream.seen == seen + 8
    assert not torch.equal(stream.compute(), before)


def test_a_batch_that_has_no_cka_adds_nothing():
    stream, batch = streamed()
    before = stream.compute()
    with pytest.raises(DataError, match="'3' is constant"):
        stream.update(batch["xs"], {**batch["ys"], "3": torch.ones(8, 4)})
    with pytest.raises(ShapeError, match="of the same examples"):
        stream.update({name: x[:5] for name, x in batch["xs"].items()}, batch["ys"])
    assert torch.equal(stream.compute(), before)
    fresh = cka.StreamingCKA(EXACT)
    with pytest.raises(DataError, match="'1' is constant"):
        fresh.update({"1": torch.ones(8, 3)}, batch["ys"])
    fresh.update({"another": batch["xs"]["1"]}, batch["ys"])  # the first batch that counts says which layers there are
    assert fresh.compute().shape == (1, 2)


def test_layers_of_other_batch_axes_are_refused_and_so_are_none():
    one, five = cloud(0, 9, 3), torch.stack([cloud(k, 9, 4) for k in range(5)])
    for x, y in ((one, five), (five, one), (five[:1], five), (five, five[:1])):
        with pytest.raises(ShapeError, match="layers with the same batch axes"):
            cka.cka_matrix({"x": x}, {"y": y})
    with pytest.raises(ShapeError, match="layers with the same batch axes"):
        cka.cka_matrix({"1": five, "3": five[:1]}, {"y": five})
    for xs, ys in (({}, {"y": one}), ({"x": one}, {}), ({}, {})):
        with pytest.raises(DataError, match="CKA compares layers with layers"):
            cka.cka_matrix(xs, ys)


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("sizes", [(40, 6, 9), (8, 12, 20)])
def test_representations_on_a_second_device_are_compared_there_and_shown_on_the_cpu(sizes, debiased):
    pairs = [related(seed, *sizes) for seed in (0, 10)]
    x, y = (torch.stack(side) for side in zip(*pairs, strict=True))
    expected = cka.linear_cka(x, y, debiased, EXACT)
    stream = cka.StreamingCKA(EXACT)
    stream.update({"x": x}, {"y": y})
    with second_device() as device:
        there, other = x.to(device), y.to(device)
        found = cka.linear_cka(there, other, debiased, EXACT)
        table = cka.cka_matrix({"x": there}, {"y": other, "z": other}, debiased, EXACT)
        away = cka.StreamingCKA(EXACT)
        away.update({"x": there}, {"y": other})
        shown = [found, table[:, 0, 0], table[:, 0, 1], away.compute()]
        assert {each.device.type for each in shown} == {"cpu"}
        assert all(torch.allclose(each, expected) for each in shown[:3])
        assert torch.allclose(shown[3], stream.compute())
        assert cka.linear_cka(there[0], other[0], debiased, EXACT) == pytest.approx(expected[0].item())
        assert cka.rbf_cka(there[0], other[0], 1.0, debiased) == pytest.approx(cka.rbf_cka(x[0], y[0], 1.0, debiased))


# Whatever the numbers are


def whole(seed):
    x, y = related(seed)
    return (100 * x).round(), (100 * y).round()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("kind", ["biased", "debiased", "kernel"])
def test_features_of_any_type_are_compared_as_the_numbers_that_they_are(dtype, kind):
    x, y = (each.clamp(-120, 120).to(dtype) for each in whole(0))
    call = cka.rbf_cka if kind == "kernel" else lambda x, y: cka.linear_cka(x, y, kind == "debiased")
    exact = call(x.double(), y.double())
    assert call(x, y) == pytest.approx(exact, abs=1e-5)
    assert call(x, y.double()) == pytest.approx(exact, abs=1e-5)


def test_truth_values_are_features_and_complex_numbers_are_not():
    x, y = related(0)
    assert cka.linear_cka(x > 0, y, dtype=EXACT) == pytest.approx(cka.linear_cka((x > 0).double(), y, dtype=EXACT))
    with pytest.raises(DataError, match=r"'x' holds torch\.complex128, expected real numbers"):
        cka.linear_cka(x.to(torch.complex128), y)
    with pytest.raises(ParameterError, match=r"dtype = torch\.float16, expected torch\.float32 or torch\.float64"):
        cka.linear_cka(x, y, dtype=torch.float16)


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-12, 1e-6, 1e9, 1e20, 1e30, 3e37])
@by_features_and_by_grams
@given(seeds, either)
def test_the_size_of_the_numbers_does_not_matter(sizes, scale, seed, debiased):
    x, y = related(seed, *sizes)
    expected = slow(x, y, debiased)
    digits = 1e-2 if scale < 1e-37 else 1e-5  # of what lies so near 0, float32 holds three digits
    for one, other in ((scale, 1.0), (scale, scale), (1.0, scale)):
        found = every_way((one * x).float(), (other * y).float(), debiased)
        assert found == pytest.approx([expected] * len(found), abs=digits)
    assert cka.linear_cka(1e150 * x, 1e-150 * y, debiased) == pytest.approx(expected, abs=1e-5)
    assert cka.rbf_cka(1e200 * x, 1e-200 * y, 1.0, debiased) == pytest.approx(cka.rbf_cka(x, y, 1.0, debiased))


def test_features_of_a_half_precision_net_may_be_larger_than_their_squares_can_be():
    x, y = related(0, n=300)
    x = (30_000 * x / x.abs().max()).half()
    assert cka.linear_cka(x, y) == pytest.approx(cka.linear_cka(x.double(), y, dtype=EXACT), abs=1e-5)


def test_batches_of_unlike_size_keep_their_weight():
    """A layer whose numbers grow from batch to batch: sums of batches share their unit."""
    x, y = related(0, n=120)
    growth = torch.tensor([1e-6, 1.0, 1e4]).repeat_interleave(40).unsqueeze(1).double()
    stream, k, m, own = cka.StreamingCKA(), 0.0, 0.0, 0.0
    for a, b in zip((growth * x).split(40), (y / growth).split(40), strict=True):
        stream.update({"x": a.float()}, {"y": b.float()})
        top, left, right = (hsic_1(one, other) for one, other in ((a, b), (a, a), (b, b)))
        k, m, own = k + top, m + left, own + right
    assert stream.compute().item() == pytest.approx((k / (m * own).sqrt()).item(), abs=1e-5)


def hsic_1(x, y):
    """Song et al. 2012, as written there."""
    n = len(x)
    k, m = (x @ x.T).fill_diagonal_(0), (y @ y.T).fill_diagonal_(0)
    apart = k.sum() * m.sum() / ((n - 1) * (n - 2))
    return ((k @ m).trace() + apart - 2 / (n - 2) * (k.sum(0) @ m.sum(0))) / (n * (n - 3))


# The width of a kernel


def kernel_cka(k, m):
    """Biased CKA of two kernels, by its definition."""
    h = torch.eye(len(k), dtype=EXACT) - 1 / len(k)
    k, m = h @ k @ h, h @ m @ h
    return ((k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt()).item()


def gaussian(x, width):
    return torch.exp(-(torch.cdist(x, x) ** 2) / width)


@pytest.mark.parametrize("few", [2, 20, 40, 50])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 5.0])
def test_of_a_feature_of_two_values_only_which_is_which_counts(few, sigma):
    z = (torch.arange(100) < few).double().unsqueeze(1)
    y = cloud(0, 100, 5) + 2 * z
    median = (torch.cdist(y, y) ** 2).numpy()
    expected = kernel_cka((z == z.T).double(), gaussian(y, 2 * sigma**2 * float(np.median(median))))
    assert cka.rbf_cka(7 * z - 3, y, sigma) == pytest.approx(expected, abs=1e-9)


def test_where_most_examples_are_alike_the_others_give_the_width():
    z = torch.zeros(60, 1, dtype=EXACT)
    z[:6, 0] = torch.tensor([1.0, 1.0, 2.0, 3.0, 5.0, 5.0])
    squares = (z - z.T) ** 2
    median = np.median(squares[squares > 0].numpy())
    y = cloud(0, 60, 3)
    other = float(np.median((torch.cdist(y, y) ** 2).numpy()))
    expected = kernel_cka(gaussian(z, 2 * median), gaussian(y, 2 * other))
    assert cka.rbf_cka(z, y) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("sigma", [1e4, 1e8, 1e30, 1e160, 1e300])
@pytest.mark.parametrize("debiased", [False, True])
def test_the_wider_a_kernel_the_nearer_to_linear(sigma, debiased):
    x, y = related(0)
    assert cka.rbf_cka(x, y, sigma, debiased) == pytest.approx(cka.linear_cka(x, y, debiased, EXACT), abs=1e-7)


@pytest.mark.parametrize("sigma", [1e-3, 1e-30, 1e-200, 1e-320])
def test_the_narrowest_kernel_sees_only_which_examples_are_equal(sigma):
    x, y = related(0)
    assert cka.rbf_cka(x, y, sigma) == pytest.approx(1)
    z = (torch.arange(40) % 3).double().unsqueeze(1)
    same = (z == z.T).double()
    assert cka.rbf_cka(z, y, sigma) == pytest.approx(kernel_cka(same, torch.eye(40, dtype=EXACT)), abs=1e-9)


def test_a_kernel_of_one_example_alone_is_refused_if_debiased():
    x = torch.zeros(50, 3)
    x[7] = 2.0
    with pytest.raises(DataError, match="of a single example only"):
        cka.rbf_cka(x, cloud(0, 50, 3), debiased=True)
    assert cka.rbf_cka(x, x) == pytest.approx(1)
