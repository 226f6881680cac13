"""Training 784-w-w-w-10 MLPs, batch 128, AdamW: a stack against its limit and against one network after another."""

import statistics
from functools import cache, partial
from itertools import pairwise

import pytest
import torch
from conftest import interleaved, peak
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
def bench_training(copies, width):
    """All kinds in turn, so that what else the machine does falls on each alike."""
    steps = STEPS[copies, width]
    took = interleaved({kind: partial(make(copies, width), steps) for kind, make in FITS.items()})
    MEASURED[copies, width] = {kind: [second / steps for second in seconds] for kind, seconds in took.items()}


def median_ratio(one, other):
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


@cache
def flops(copies, width):
    """Floating-point operations of a step: 6 per weight and example."""
    weights = sum(layer.weight.numel() for layer in stack.mlp(784, [width] * 3, 10) if isinstance(layer, nn.Linear))
    return 6 * weights * BATCH * copies


def bench_ratios(row):
    limit = peak()
    for (copies, width), share_asked in {(2, 64): 0.75, (8, 64): 0.85, (32, 64): 0.85, (8, 512): 0.90}.items():
        took = MEASURED[copies, width]
        share = median_ratio(took["floor"], took["stack"])
        row(f"share of the floor (products and AdamW alone), K={copies}, w={width}", f"≥ {share_asked:.2f}", share)
        reached = flops(copies, width) / statistics.median(took["floor"]) / 1e9 / limit
        row(f"share of matmul peak the floor reaches, K={copies}, w={width}", "", reached)
    for copies, width, bar in [(8, 512, 0.85), (32, 64, 0.70)]:
        share = flops(copies, width) / statistics.median(MEASURED[copies, width]["stack"]) / 1e9 / limit
        row(f"share of the machine's matmul peak, K={copies}, w={width}", f"≥ {bar:.2f}", share)
    for copies, width, bar in [(2, 64, 1.25), (32, 64, 2.0)]:
        ratio = median_ratio(MEASURED[copies, width]["loop"], MEASURED[copies, width]["stack"])
        row(f"times faster than one network after another, K={copies}, w={width}", f"≥ {bar:.2f}", ratio)
    many, few = (statistics.median(MEASURED[copies, 64]["stack"]) / copies for copies in (32, 8))
    row("time per model at K=32 over that at K=8, w=64", "≤ 1.10", many / few)
