"""A step of a soup of eight experts against a model alone, and a thousand specialists against writing their memory."""

import pytest
import torch
from conftest import seconds

from paramarket import soup, stack
from paramarket.data import Split


@pytest.mark.parametrize(("hidden", "batch", "steps", "bar"), [(12, 128, 400, "≤ 2.00"), (256, 2048, 12, "≤ 1.35")])
def bench_step(row, hidden, batch, steps, bar):
    inputs = 64 if hidden == 12 else 784
    net, h = stack.mlp(inputs, [hidden], 10), torch.full((1, steps, 8), 1 / 8)
    split = Split(torch.randn(4000, 1, inputs, 1), torch.randint(10, (4000,)))
    size = sum(tensor.numel() for tensor in stack.init(net, 1, 0).values())

    def train(experts):
        return soup.pretrain(net, soup.soup_of(net, 8, [experts], [0]), [split] * 8, h, seeds=[0], batch=batch)

    alone, eight = seconds(lambda: train(0)), seconds(lambda: train(8))
    row(f"a step of a soup, n = 8, p = {size:,}, batch {batch:,}, over a step of one model", bar, eight / alone)


def bench_specialists(row):
    net, own = stack.mlp(64, [300], 10), torch.Generator().manual_seed(0)
    made = soup.soup_of(net, 8, [8], [0])
    made = made._replace(experts={name: torch.randn(t.shape, generator=own) for name, t in made.experts.items()})
    h = soup.draw_weights(soup.Law(), 8, 1000, own)
    size = sum(tensor.numel() for tensor in made.base.values())
    fill, make = seconds(lambda: torch.full((1000, size), 1.0), 20), seconds(lambda: soup.specialists(made, h), 20)
    row(f"1,000 specialists of p = {size:,}: share of the speed of torch.full", "≥ .50", fill / make)
