"""Scatters: two measurements against each other."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
from jaxtyping import Float
from torch import Tensor

from paramarket.base import interval
from paramarket.plot.look import COLOURS, percent, whiskers

MARKERS = "oDs^vPX*"


def method_plane(
    methods: Mapping[str, tuple[Float[Tensor, " seeds"], Float[Tensor, " seeds"]]],
    axes_of: tuple[str, str],
    title: str,
) -> None:
    """Methods in a plane of two measurements, each at its mean with its intervals: {method: (x, y)}, shares."""
    figure, axis = plt.subplots(figsize=(9, 4.6), layout="constrained")
    for k, (name, (x, y)) in enumerate(methods.items()):
        across = interval(x)
        up = interval(y)
        marker = MARKERS[k % len(MARKERS)]
        look = {"fmt": marker, "color": COLOURS[k % len(COLOURS)], "markersize": 8, "elinewidth": 0.8}
        axis.errorbar(across.mean, up.mean, xerr=whiskers(across), yerr=whiskers(up), label=name, **look)
    figure.legend(loc="outside right upper")
    axis.set(title=title, xlabel=axes_of[0], ylabel=axes_of[1])
    percent(axis)
    percent(axis, "x")
    plt.show()
