"""Scatters: two measurements against each other."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import seaborn as sns
import torch
from jaxtyping import Float
from torch import Tensor

from paramarket.base import interval
from paramarket.plot.look import COLOURS, percent, tidy, whiskers

MARKERS = "oDs^vPX*"


class Spots(NamedTuple):
    """Settings in a plane of two measurements, a third one their colour. labels: what is written beside each."""

    labels: Sequence[float]
    x: Float[Tensor, "spots seeds"]
    y: Float[Tensor, "spots seeds"]
    colour: Float[Tensor, "spots seeds"]


def trails(
    groups: Mapping[str, tuple[Float[Tensor, "seeds steps"], Float[Tensor, "seeds steps"]]],
    axes_of: tuple[str, str],
    title: str,
) -> None:
    """How two quantities move together: {group: (x, y)}; a faint dot a seed and step, an arrow along the means."""
    _, axis = plt.subplots(figsize=(6.4, 4.2))
    table = tidy({name: x for name, (x, _) in groups.items()}).rename(columns={"value": "x"})
    table["y"] = tidy({name: y for name, (_, y) in groups.items()}).value
    means = table.groupby(["name", "place"], sort=False)[["x", "y"]].mean()
    sns.scatterplot(table, x="x", y="y", hue="name", ax=axis, s=22, alpha=0.35, linewidth=0, legend=False)
    sns.lineplot(means, x="x", y="y", hue="name", ax=axis, sort=False, estimator=None, linewidth=2)
    for k, name in enumerate(groups):
        before, last = means.loc[name].to_numpy()[-2:]
        arrow = {"arrowstyle": "-|>", "color": COLOURS[k], "linewidth": 2, "mutation_scale": 18}
        axis.annotate("", last, before, arrowprops=arrow)
    axis.set(title=title, xlabel=axes_of[0], ylabel=axes_of[1])
    axis.legend()
    plt.show()


def frontier(curve: Spots, families: Mapping[str, Spots], axes_of: tuple[str, str, str], title: str) -> None:
    """Settings as spots, a marker a family, bars their intervals over seeds; the curve is what all have to beat.

    axes_of: what x, y and the colour are
    """
    figure, axis = plt.subplots(figsize=(8.2, 4.8), layout="constrained")
    groups = {"free, stopped at a step": curve, **families}
    shades = torch.cat([spots.colour.mean(dim=1) for spots in groups.values()])
    scale = {"cmap": "viridis", "norm": plt.Normalize(shades.min().item(), shades.max().item())}
    axis.plot(curve.x.mean(dim=1), curve.y.mean(dim=1), color="grey", linewidth=1.5, zorder=0)
    for k, (name, spots) in enumerate(groups.items()):
        across = interval(spots.x.T)
        up = interval(spots.y.T)
        bars = {"color": "grey", "elinewidth": 1, "zorder": 1, "linestyle": "none"}
        axis.errorbar(across.mean, up.mean, xerr=whiskers(across), yerr=whiskers(up), **bars)
        look = {"marker": MARKERS[k], "s": 95 if k else 40, "edgecolor": "black", "zorder": 2}
        axis.scatter(across.mean, up.mean, c=spots.colour.mean(dim=1), **scale, **look)
        aside = {"xytext": (8, 5) if k else (4, 6), "textcoords": "offset points", "fontsize": 9}
        for label, x_mean, y_mean in zip(spots.labels, across.mean, up.mean, strict=True):
            axis.annotate(f"{label:g}", (x_mean, y_mean), **aside)
        axis.scatter([], [], marker=MARKERS[k], color="white", edgecolor="black", s=60, label=name)
    figure.colorbar(plt.cm.ScalarMappable(scale["norm"], scale["cmap"]), ax=axis, label=axes_of[2])
    axis.set(title=title, xlabel=axes_of[0], ylabel=axes_of[1])
    figure.legend(loc="outside lower center", ncols=3)
    plt.show()


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
