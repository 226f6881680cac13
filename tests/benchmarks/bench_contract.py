"""A map of contracts, 200 × 200 worlds at once, against one world at a time; a world's equilibria against Gambit."""

import io

import numpy as np
import pygambit
from conftest import seconds

from paramarket import contract


def worlds(alpha, beta):
    """Two firms; whether they err independently or alike is known only to both together."""
    both = np.stack([alpha * beta, np.minimum(alpha, beta)], axis=-1)
    return contract.correlation_world(alpha, beta, both, prior=(0.5, 0.5), cost=2.0)


def square(points):
    quality = np.linspace(0.5, 0.99, points)
    return np.meshgrid(quality, quality)


def one_at_a_time(points):
    alpha, beta = square(points)
    for place in np.ndindex(alpha.shape):
        contract.judge(worlds(alpha[place], beta[place]))


def bench_a_map(row):
    at_once = seconds(lambda: contract.judge(worlds(*square(200))), rounds=3)
    alone = 400 * seconds(lambda: one_at_a_time(10), rounds=3)
    row("contract map, 200 × 200 worlds, four contracts: seconds", "≤ 5.00", at_once)
    row("contract map: one world at a time takes so many times as long", "", alone / at_once)


def bench_equilibria(row):
    world = worlds(0.8, 0.7)
    text = contract.extensive_form(world, "none").encode()
    ours = seconds(lambda: contract.equilibria(world, "none"))
    theirs = seconds(lambda: pygambit.nash.enumpure_solve(pygambit.read_efg(io.BytesIO(text))))
    row("equilibria of one world, 16 × 16 strategies: Gambit takes so many times as long", "", theirs / ours)
