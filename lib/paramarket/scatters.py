"""Scatters and heatmaps: two measurements against each other, tables of similarity. `plot` passes these names on."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
from jaxtyping import Float
from torch import Tensor

from paramarket.base import interval
from paramarket.charts import COLOURS

MARKERS = "oDs^vPX*"


def cka_heatmap(
    tables: Mapping[str, Float[Tensor, "rows columns"]],
    layers: Sequence[str],
    axes_of: tuple[str, str],
    title: str,
) -> None:
    """Tables of CKA side by side on one scale from 0 to 1, every number written in; layers: labels of both axes."""
    figure, axes = plt.subplots(1, len(tables), figsize=(3.3 * len(tables), 3.6), squeeze=False, layout="constrained")
    for axis, (name, table) in zip(axes[0], tables.items(), strict=True):
        shown = axis.imshow(table.numpy(), cmap="viridis", vmin=0, vmax=1)
        for (row, column), value in ((at, table[at].item()) for at in _places(table)):
            colour = "black" if value > 0.6 else "white"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
        axis.set_title(name, loc="center", weight="normal", fontsize=10)
        axis.set_xticks(range(len(layers)), layers)
        axis.set_yticks(range(len(layers)), layers)
        axis.set(xlabel=axes_of[1])
        axis.grid(visible=False)
    axes[0, 0].set_ylabel(axes_of[0])
    figure.colorbar(shown, ax=axes, label="CKA", shrink=0.8)
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize="medium")
    plt.show()


def _places(table: Tensor) -> list[tuple[int, int]]:
    return [(row, column) for row in range(table.shape[0]) for column in range(table.shape[1])]


def trails(
    groups: Mapping[str, tuple[Float[Tensor, "seeds steps"], Float[Tensor, "seeds steps"]]],
    axes_of: tuple[str, str],
    title: str,
) -> None:
    """How two quantities move together: {group: (x, y)}; a faint dot a seed and step, an arrow along the means."""
    _, axis = plt.subplots(figsize=(6.4, 4.2))
    for k, (name, (x, y)) in enumerate(groups.items()):
        axis.plot(x.flatten(), y.flatten(), "o", color=COLOURS[k], markersize=3.5, alpha=0.35)
        means = [(a, b) for a, b in zip(x.mean(dim=0).tolist(), y.mean(dim=0).tolist(), strict=True)]
        axis.plot(*zip(*means, strict=True), color=COLOURS[k], linewidth=2, label=name)
        arrow = {"arrowstyle": "-|>", "color": COLOURS[k], "linewidth": 2, "mutation_scale": 18}
        axis.annotate("", means[-1], means[-2], arrowprops=arrow)
    axis.set(title=title, xlabel=axes_of[0], ylabel=axes_of[1])
    axis.legend()
    plt.show()


class Spot(NamedTuple):
    """One setting in a frontier: what is written beside it, and what each seed reached there [seeds]."""

    label: str
    x: Float[Tensor, " seeds"]
    y: Float[Tensor, " seeds"]
    colour: Float[Tensor, " seeds"]


def frontier(
    line: Sequence[Spot], families: Mapping[str, Sequence[Spot]], axes_of: tuple[str, str, str], title: str
) -> None:
    """Settings as spots, a marker a family, bars their intervals over seeds; the line is what every one has to beat.

    axes_of: what x, y and the colour are
    """
    figure, axis = plt.subplots(figsize=(8.2, 4.8), layout="constrained")
    spots = [*line, *(spot for family in families.values() for spot in family)]
    shades = [spot.colour.mean().item() for spot in spots]
    scale = plt.Normalize(min(shades), max(shades))
    axis.plot([s.x.mean() for s in line], [s.y.mean() for s in line], color="grey", linewidth=1.5, zorder=0)
    for k, (name, family) in enumerate({"free, stopped at a step": line, **families}.items()):
        for spot in family:
            (x, *ends_x), (y, *ends_y) = interval(spot.x), interval(spot.y)
            bars = {"xerr": [[x - ends_x[0]], [ends_x[1] - x]], "yerr": [[y - ends_y[0]], [ends_y[1] - y]]}
            axis.errorbar(x, y, **bars, color="lightgrey", elinewidth=1, zorder=1)
            where = {"marker": MARKERS[k], "s": 40 if k == 0 else 95, "edgecolor": "black", "zorder": 2}
            axis.scatter(x, y, c=[spot.colour.mean().item()], cmap="viridis", norm=scale, **where)
            axis.annotate(spot.label, (x, y), xytext=(7, 5), textcoords="offset points", fontsize=9)
        axis.scatter([], [], marker=MARKERS[k], color="white", edgecolor="black", s=60, label=name)
    figure.colorbar(plt.cm.ScalarMappable(scale, "viridis"), ax=axis, label=axes_of[2])
    axis.set(title=title, xlabel=axes_of[0], ylabel=axes_of[1])
    figure.legend(loc="outside lower center", ncols=3)
    plt.show()
