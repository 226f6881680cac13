"""A market round in the authors' setting against its matrix products alone, and its cost against the number of agents.

Two agents, 784-128-128-128-10, 2,750 images each, 10 purchase weights and none, 10,000 images to evaluate them, weights
matched both ways. Drawn tensors serve: nothing here hangs on what the images show.
"""

import statistics
import time
from itertools import pairwise

import torch
from conftest import peak

from paramarket import data, stack
from paramarket.market import Agent, Market, Splits, Terms, run

WIDTHS, BATCH, IMAGES, EVALUATED, MIXTURES, ROUNDS = [784, 128, 128, 128, 10], 64, 2750, 10_000, 11, 5
PAIRS = list(pairwise(WIDTHS))


def drawn(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return data.Split(torch.randn(n, 784, generator=generator), torch.randint(0, 10, (n,), generator=generator))


def seconds_a_round(agents, evaluated, terms, rounds=ROUNDS):
    """What one round more costs: a market of `rounds` rounds less one of a single round."""
    net = stack.mlp(784, WIDTHS[1:-1], 10)
    split = Splits(drawn(evaluated, 1), drawn(100, 2), drawn(101, 3))
    members = [Agent(str(k), drawn(IMAGES, 10 + k)) for k in range(agents)]

    def took(count):
        start = time.perf_counter()
        run(net, [Market(members, terms, 0)], split, rounds=count, batch=BATCH)
        return time.perf_counter() - start

    took(1)
    return statistics.median((took(rounds) - took(1)) / (rounds - 1) for _ in range(3))


def products_alone():
    """Seconds for the round's own matrix products, operands and results in place: training, then 11 mixtures twice."""
    steps = -(-IMAGES // BATCH)
    jobs = [(steps * (3 if k else 2), 2, BATCH, a, b) for k, (a, b) in enumerate(PAIRS)]  # the first needs no dx
    block = 2**19 // (128 * MIXTURES)
    jobs += [(2 * EVALUATED / block, 2, block, *PAIRS[0])]
    jobs += [(2 * EVALUATED / block, MIXTURES, block, a, b) for a, b in PAIRS[1:]]
    total = 0.0
    for times, models, rows, a, b in jobs:
        x, w, out = torch.randn(models, rows, a), torch.randn(models, a, b), torch.empty(models, rows, b)
        torch.bmm(x, w, out=out)
        start = time.perf_counter()
        for _ in range(20):
            torch.bmm(x, w, out=out)
        total += times * (time.perf_counter() - start) / 20
    return total


def bench_a_round_in_the_authors_setting(row):
    terms = Terms(match="weights", rule="quote", by="loss")
    took, shares = [], []
    for _ in range(3):
        took.append(seconds_a_round(2, EVALUATED, terms))
        shares.append(products_alone() / took[-1])
    row("market round, authors' setting: its matrix products alone, share of it", "≥ 0.60", statistics.median(shares))
    row("market round, authors' setting: milliseconds", "", 1000 * statistics.median(took))
    row("machine: GFLOP/s of a square product", "", peak())


def bench_agents(row):
    terms = Terms(match="weights", rule="quote", by="loss")
    ratios = []
    for _ in range(3):
        two, sixteen = (seconds_a_round(agents, 1000, terms, rounds=3) / agents for agents in (2, 16))
        ratios.append(sixteen / two)
    row("market round with 16 agents: cost per agent, against 2 agents", "≤ 1.10", statistics.median(ratios))
