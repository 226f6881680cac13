"""Matching two trained MLPs against rebasin (PyPI, extra `peers`), scipy's solver and the least it can cost; a path."""

import copy
import statistics
import time

import pytest
import torch
from conftest import peak
from scipy.optimize import linear_sum_assignment
from torch import nn

from paramarket import align, data, merge, stack, train

PAIRS, ROUNDS = 5, 5


@pytest.fixture(scope="module")
def images():
    return data.load("mnist-5k")


@pytest.fixture(scope="module")
def trained(images):
    """{width: (net, spec, five pairs)}, trained alike for both matchers."""
    found = {}
    for width in (512, 1024):
        net = stack.mlp(784, [width] * 3, 10)
        start = stack.init(net, 2 * PAIRS, seed=0)
        models = train.fit(net, start, images.train, epochs=4, batch=128).stack
        pairs = [(stack.take(models, k), stack.take(models, k + PAIRS)) for k in range(PAIRS)]
        found[width] = net, align.permutation_spec(net, images.train.x[:1]), pairs
    return found


def module(net, params):
    own = copy.deepcopy(net)
    own.load_state_dict(params)
    return own


def midpoint_loss(net, a, b, images):
    return train.evaluate(net, stack.take(merge.path(a, b, 3), [1]), images.test).loss.item()


@pytest.mark.parametrize(("width", "bar"), [(512, 4), (1024, 15)])
def bench_against_rebasin(row, trained, images, width, bar):
    rebasin = pytest.importorskip("rebasin", reason="pip install -e '.[peers]'")
    net, spec, pairs = trained[width]
    times, losses = {"ours": [], "rebasin": []}, {"ours": [], "rebasin": []}
    for a, b in pairs:
        start = time.perf_counter()
        moved = align.reorder(spec, a, b)
        times["ours"].append(time.perf_counter() - start)
        losses["ours"].append(midpoint_loss(net, a, moved, images))
        one, other = module(net, a), module(net, b)
        start = time.perf_counter()
        rebasin.PermutationCoordinateDescent(one, other, images.train.x[:1]).rebasin()
        times["rebasin"].append(time.perf_counter() - start)
        theirs = {name: tensor.detach() for name, tensor in other.state_dict().items()}
        assert torch.allclose(module(net, theirs)(images.test.x), module(net, b)(images.test.x), atol=1e-3)
        losses["rebasin"].append(midpoint_loss(net, a, theirs, images))
    fast = statistics.median(times["rebasin"]) / statistics.median(times["ours"])
    row(f"times faster than rebasin 0.0.47, width {width}", f"≥ {bar:.2f}", fast)
    row(f"seconds to match a pair, width {width}", "", statistics.median(times["ours"]))
    better = statistics.mean(losses["ours"]) / statistics.mean(losses["rebasin"])
    row(f"midpoint test loss over rebasin's, mean of five pairs, width {width}", "≤ 1.00", better)


WEIGHTS, ACTIVATIONS = "weight_matching", "activation_matching"


@pytest.mark.parametrize("width", [512, 1024])
@pytest.mark.parametrize(("matcher", "bar"), [(WEIGHTS, 2.5), (ACTIVATIONS, 1.5)])
def bench_assignments_against_scipy(row, trained, images, monkeypatch, matcher, bar, width):
    """The costs that matching asks about, solved by lapx and by scipy in turn; then the whole matching with each."""
    net, spec, pairs = trained[width]
    solve, costs = align.matching.lapjvr_batch, []
    how = {} if matcher == WEIGHTS else {"net": net, "x": images.train.x[:2000]}

    def noted(tables, **settings):
        costs.extend(tables.copy())
        return solve(tables, **settings)

    def by_scipy(tables, **settings):
        return tuple(zip(*(linear_sum_assignment(cost) for cost in tables), strict=True))

    def seconds_of(call, *args, **settings):
        start = time.perf_counter()
        call(*args, **settings)
        return time.perf_counter() - start

    def match():
        for a, b in pairs:
            getattr(align, matcher)(spec, a, b, **how)

    monkeypatch.setattr(align.matching, "lapjvr_batch", noted)
    match()
    ours = theirs = excess = 0.0
    for cost in costs:
        theirs += seconds_of(linear_sum_assignment, cost)
        ours += seconds_of(solve, cost[None], return_cost=False)
        rows, columns = solve(cost[None], return_cost=False)
        orders = linear_sum_assignment(cost), (rows[0], columns[0])
        best, found = (cost[order].astype("float64").sum() for order in orders)
        excess = max(excess, found / best - 1)
    name = f"{matcher}, width {width}"
    row(f"{name}: assignments by lapx, times faster than scipy", f"≥ {bar:.2f}", theirs / ours)
    row(f"{name}: cost above scipy's, in 1e-12", "≤ 1.00", 1e12 * excess)
    whole = {}
    for who, solver in {"lapx": solve, "scipy": by_scipy}.items():
        monkeypatch.setattr(align.matching, "lapjvr_batch", solver)
        whole[who] = seconds_of(match)
    row(f"{name}: the whole, times faster than with scipy", "≥ 1.00", whole["scipy"] / whole["lapx"])


def bench_against_the_limit(row, trained, monkeypatch):
    """The same run, with the time inside the assignments and inside the matrix products taken apart."""
    _, spec, pairs = trained[512]
    assign, rows = align.matching.lapjvr_batch, align.matching._rows
    assigning, factors, shares = [], [], []

    def timed_assign(*args, **kwargs):
        start = time.perf_counter()
        found = assign(*args, **kwargs)
        assigning.append(time.perf_counter() - start)
        return found

    def noted_rows(*args):
        factors.append(rows(*args))
        return factors[-1]

    monkeypatch.setattr(align.matching, "lapjvr_batch", timed_assign)
    monkeypatch.setattr(align.matching, "_rows", noted_rows)
    for a, b in pairs:
        assigning.clear()
        factors.clear()
        start = time.perf_counter()
        align.weight_matching(spec, a, b)
        whole = time.perf_counter() - start
        of_target, of_source = factors[::2], factors[1::2]
        outs = [torch.empty(len(one), len(one)) for one in of_target]
        start = time.perf_counter()
        for one, other, out in zip(of_target, of_source, outs, strict=True):
            torch.mm(one, other.mT, out=out)
        multiplying = time.perf_counter() - start
        shares.append(whole / (sum(assigning) + multiplying))
    row("time of matching over its assignments and products alone, width 512", "≤ 1.50", statistics.median(shares))


def bench_path(row, trained, images):
    net, _, pairs = trained[512]
    weights = sum(layer.weight.numel() for layer in net if isinstance(layer, nn.Linear))
    times, limits = [], []
    for _ in range(ROUNDS):
        limits.append(peak())
        start = time.perf_counter()
        merge.walk(net, [merge.path(*pairs[0], 25)], images.test)
        times.append(time.perf_counter() - start)
    share = 2 * weights * len(images.test) * 25 / statistics.median(times) / 1e9 / statistics.median(limits)
    row("share of matmul peak, a path of 25 points on 1,000 images, width 512", "≥ 0.70", share)
