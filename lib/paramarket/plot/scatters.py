"""Scatters and heatmaps: two measurements against each other, tables of similarity. `plot` passes these names on."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from jaxtyping import Float
from torch import Tensor

from paramarket.base import interval
from paramarket.plot.charts import COLOURS, percent

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


Spots = tuple[Sequence[float], Float[Tensor, "spots seeds"], Float[Tensor, "spots seeds"], Float[Tensor, "spots seeds"]]


def frontier(curve: Spots, families: Mapping[str, Spots], axes_of: tuple[str, str, str], title: str) -> None:
    """Settings as spots, a marker a family, bars their intervals over seeds; the curve is what all have to beat.

    Spots are (what is written beside each, x, y, colour) · axes_of: what x, y and the colour are
    """
    figure, axis = plt.subplots(figsize=(8.2, 4.8), layout="constrained")
    groups = {"free, stopped at a step": curve, **families}
    shades = torch.cat([colour.mean(dim=1) for *_, colour in groups.values()])
    look = {"cmap": "viridis", "norm": plt.Normalize(shades.min().item(), shades.max().item())}
    axis.plot(curve[1].mean(dim=1), curve[2].mean(dim=1), color="grey", linewidth=1.5, zorder=0)
    for k, (name, (labels, x, y, colour)) in enumerate(groups.items()):
        (x, *ends_x), (y, *ends_y) = interval(x.T), interval(y.T)
        bars = {"xerr": [x - ends_x[0], ends_x[1] - x], "yerr": [y - ends_y[0], ends_y[1] - y]}
        axis.errorbar(x, y, **bars, color="grey", elinewidth=1, zorder=1, linestyle="none")
        where = {"marker": MARKERS[k], "s": 95 if k else 40, "edgecolor": "black", "zorder": 2}
        axis.scatter(x, y, c=colour.mean(dim=1), **look, **where)
        for label, *at in zip(labels, x, y, strict=True):
            axis.annotate(f"{label:g}", at, xytext=(8, 5) if k else (4, 6), textcoords="offset points", fontsize=9)
        axis.scatter([], [], marker=MARKERS[k], color="white", edgecolor="black", s=60, label=name)
    figure.colorbar(plt.cm.ScalarMappable(look["norm"], look["cmap"]), ax=axis, label=axes_of[2])
    axis.set(title=title, xlabel=axes_of[0], ylabel=axes_of[1])
    figure.legend(loc="outside lower center", ncols=3)
    plt.show()


def plane(
    spots: Mapping[str, tuple[Float[Tensor, " seeds"], Float[Tensor, " seeds"]]], axes_of: tuple[str, str], title: str
) -> None:
    """Methods in a plane of two measurements, each at its mean with its intervals."""
    figure, axis = plt.subplots(figsize=(9, 4.6), layout="constrained")
    for k, (name, (x, y)) in enumerate(spots.items()):
        (at, *ends), (height, *edges) = interval(x), interval(y)
        bars = {"xerr": [[at - ends[0]], [ends[1] - at]], "yerr": [[height - edges[0]], [edges[1] - height]]}
        look = {
            "fmt": MARKERS[k % len(MARKERS)],
            "color": COLOURS[k % len(COLOURS)],
            "markersize": 8,
            "elinewidth": 0.8,
        }
        axis.errorbar(at, height, **bars, **look, label=name)
    figure.legend(loc="outside right upper")
    axis.set(title=title, xlabel=axes_of[0], ylabel=axes_of[1])
    percent(axis)
    percent(axis, "x")
    plt.show()


def share_map(table: Float[Tensor, "rows columns"], rows: Sequence[str], axes_of: tuple[str, str], title: str) -> None:
    """Shares as a heatmap, like rows beside each other (average linkage), every number written in."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    order = leaves_list(linkage(table.numpy(), "average", optimal_ordering=True)).tolist()
    figure, axis = plt.subplots(figsize=(6.4, 1 + 0.4 * len(rows)), layout="constrained")
    shown = axis.imshow(table[order].numpy(), cmap="viridis", aspect="auto")
    middle = (table.min() + table.max()).item() / 2
    for (row, column), value in ((at, table[order][at].item()) for at in _places(table)):
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", color="black" if value > middle else "white")
    axis.set_yticks(range(len(rows)), [rows[k] for k in order])
    axis.set_xticks(range(table.shape[1]), [str(k + 1) for k in range(table.shape[1])])
    axis.set(title=title, xlabel=axes_of[1], ylabel=axes_of[0])
    axis.grid(visible=False)
    figure.colorbar(shown, ax=axis)
    plt.show()
