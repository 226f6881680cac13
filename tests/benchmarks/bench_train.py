"""Training 784-w-w-w-10 MLPs, batch 128, AdamW: a stack against its limit and against one network after another."""

import statistics
from functools import cache
from itertools import pairwise

import pytest
import torch
from conftest import peak
from torch import nn
from torch.nn.functional import cross_entropy

from paramarket import data, stack, train

BATCH, STEPS = 128, {(2, 64): 400, (8, 64): 200, (32, 64): 80, (8, 512): 40}
SPLIT = data.Split(torch.randn(2000, 1, 28, 28), torch.randint(0, 10, (2000,)))


def stacked(copies, width):
    net = stack.mlp(784, [width] * 3, 10)
    start = stack.init(net, copies, seed=0)
    return lambda steps: train.fit(net, start, SPLIT, steps=steps, batch=BATCH, schedule="constant")


def one_by_one(copies, width):
    """What anyone would write: K modules, K optimisers, a loop; the same batches gathered in the same way."""
    nets = [stack.mlp(784, [width] * 3, 10) for _ in range(copies)]
    for net in nets:
        for layer in net:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
    opts = [torch.optim.AdamW(net.parameters(), fused=True) for net in nets]

    def fit(steps):
        for _ in range(steps):
            for net, opt in zip(nets, opts, strict=True):
                chosen = torch.randint(0, 2000, (BATCH,))
                opt.zero_grad()
                cross_entropy(net(SPLIT.x.index_select(0, chosen)), SPLIT.y[chosen]).backward()
                opt.step()

    return fit


def floor(copies, width):
    """The least that a step can be: its matrix products alone, outputs in place, and AdamW's pass over memory."""
    widths = [784, width, width, width, 10]
    products, weights = [], []
    for k, (fan_in, fan_out) in enumerate(pairwise(widths)):
        x, w, g = (torch.randn(copies, *s) for s in [(BATCH, fan_in), (fan_out, fan_in), (BATCH, fan_out)])
        weights.append(torch.nn.Parameter(w))
        weights[-1].grad = torch.randn_like(w)
        products += [(x, w.mT, torch.empty_like(g)), (g.mT, x, torch.empty_like(w))]
        products += [(g, w, torch.empty_like(x))] if k else []
    opt = torch.optim.AdamW(weights, fused=True)

    def fit(steps):
        for _ in range(steps):
            for one, other, out in products:
                torch.bmm(one, other, out=out)
            opt.step()

    return fit


FITS = {"stack": stacked, "loop": one_by_one, "floor": floor}
MEASURED = {}


@pytest.mark.parametrize(("copies", "width"), STEPS)
@pytest.mark.parametrize("kind", FITS)
def bench_training(benchmark, kind, copies, width):
    fit, steps = FITS[kind](copies, width), STEPS[copies, width]
    fit(2)
    limit = peak()
    benchmark.pedantic(fit, args=(steps,), rounds=5)
    seconds = statistics.median(benchmark.stats.stats.data) / steps
    MEASURED[kind, copies, width] = seconds, (limit + peak()) / 2


@cache
def flops(copies, width):
    """Floating-point operations of a step: 6 per weight and example."""
    weights = sum(layer.weight.numel() for layer in stack.mlp(784, [width] * 3, 10) if isinstance(layer, nn.Linear))
    return 6 * weights * BATCH * copies


def bench_ratios(row):
    for copies, width, bar in [(8, 512, 0.85), (32, 64, 0.70)]:
        seconds, limit = MEASURED["stack", copies, width]
        share = flops(copies, width) / seconds / 1e9 / limit
        row(f"share of the machine's matmul peak, K={copies}, w={width}", f"≥ {bar:.2f}", share)
    for copies, width in STEPS:
        share = MEASURED["floor", copies, width][0] / MEASURED["stack", copies, width][0]
        row(f"share of the floor (products and AdamW alone), K={copies}, w={width}", "", share)
        seconds, limit = MEASURED["floor", copies, width]
        row(
            f"share of matmul peak the floor reaches, K={copies}, w={width}",
            "",
            flops(copies, width) / seconds / 1e9 / limit,
        )
    for copies, width, bar in [(2, 64, 1.25), (32, 64, 2.0)]:
        ratio = MEASURED["loop", copies, width][0] / MEASURED["stack", copies, width][0]
        row(f"times faster than one network after another, K={copies}, w={width}", f"≥ {bar:.2f}", ratio)
    many, few = (MEASURED["stack", copies, 64][0] / copies for copies in (32, 8))
    row("time per model at K=32 over that at K=8, w=64", "≤ 1.10", many / few)
