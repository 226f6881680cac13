"""A step of a soup of eight, dense and of low rank, against a model alone; specialists against writing their memory."""

from statistics import median

import pytest
import torch
from conftest import interleaved, seconds

from paramarket import soup, stack
from paramarket.data import Split


@pytest.mark.parametrize(("hidden", "batch", "steps", "bar"), [(12, 128, 400, "≤ 2.00"), (256, 2048, 12, "≤ 1.35")])
def bench_step(row, hidden, batch, steps, bar):
    inputs = 64 if hidden == 12 else 784
    net, h = stack.mlp(inputs, [hidden], 10), torch.full((1, steps, 8), 1 / 8)
    split = Split(torch.randn(4000, 1, inputs, 1), torch.randint(10, (4000,)))
    size = stack.vectors(stack.init(net, 1, 0)).shape[1]

    def train(experts, rank=None):
        start = soup.init_soups(net, 8, experts=[experts], seeds=[0])
        return soup.train_soups(net, start, [split] * 8, h, seeds=[0], batch=batch, rank=rank)

    took = interleaved({"alone": lambda: train(0), "soup": lambda: train(8), "rank 4": lambda: train(8, rank=4)})
    alone, dense, low = [median(each) for each in took.values()]
    row(f"a step of a soup, n = 8, p = {size:,}, batch {batch:,}, over a step of one model", bar, dense / alone)
    row(f"the same with experts of rank 4, p = {size:,}, batch {batch:,}", bar, low / alone)


def bench_specialists(row):
    net, own = stack.mlp(64, [300], 10), torch.Generator().manual_seed(0)
    soups = soup.init_soups(net, 8, experts=[8], seeds=[0])
    soups = soups._replace(experts=stack.map(lambda tensor: torch.randn(tensor.shape, generator=own), soups.experts))
    h = soup.draw_weights(soup.WeightLaw(), 8, 1000, own)
    size = stack.vectors(soups.base).shape[1]
    fill = seconds(lambda: torch.full((1000, size), 1.0), 20)
    make = seconds(lambda: soup.specialists(soups, h), 20)
    row(f"1,000 specialists of p = {size:,}: share of the speed of torch.full", "≥ .50", fill / make)
