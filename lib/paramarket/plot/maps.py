"""Maps: tables whose numbers are colours, and the loss as a landscape seen from above."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from torch import Tensor

from paramarket.base import interval
from paramarket.errors import ParameterError
from paramarket.merge import Plane
from paramarket.plot.look import headline


def cka_heatmap(
    tables: Mapping[str, Float[Tensor, "rows columns"]],
    layers: Sequence[str],
    axes_of: tuple[str, str],
    title: str,
) -> None:
    """Tables of CKA side by side on one scale from 0 to 1, every number written in; layers: labels of both axes."""
    figure, axes = plt.subplots(1, len(tables), figsize=(3.3 * len(tables), 3.6), squeeze=False, layout="constrained")
    labels = {"xticklabels": list(layers), "yticklabels": list(layers)}
    look = {"cmap": "viridis", "vmin": 0, "vmax": 1, "square": True, "cbar": False}
    for axis, (name, table) in zip(axes[0], tables.items(), strict=True):
        sns.heatmap(table.numpy(), ax=axis, annot=True, fmt=".2f", annot_kws={"fontsize": 8}, **labels, **look)
        axis.set_title(name, loc="center", weight="normal", fontsize=10)
        axis.set(xlabel=axes_of[1])
        axis.tick_params(axis="y", rotation=0)
    axes[0, 0].set_ylabel(axes_of[0])
    figure.colorbar(axes[0, 0].collections[0], ax=axes, label="CKA", shrink=0.8)
    headline(figure, title)
    plt.show()


def share_map(table: Float[Tensor, "rows columns"], rows: Sequence[str], axes_of: tuple[str, str], title: str) -> None:
    """Shares as a heatmap, like rows beside each other (average linkage), every number written in."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    order = leaves_list(linkage(table.numpy(), "average", optimal_ordering=True)).tolist()
    labels = {"yticklabels": [rows[k] for k in order], "xticklabels": list(range(1, table.shape[1] + 1))}
    _, axis = plt.subplots(figsize=(6.4, 1 + 0.4 * len(rows)), layout="constrained")
    sns.heatmap(table[order].numpy(), ax=axis, cmap="viridis", annot=True, fmt=".2f", **labels)
    axis.set(title=title, xlabel=axes_of[1], ylabel=axes_of[0])
    axis.tick_params(axis="y", rotation=0)
    plt.show()


def harm_table(
    rows: Mapping[str, Mapping[str, Float[Tensor, " seeds"]]], axes_of: tuple[str, str, str], title: str
) -> None:
    """A table of changes in accuracy points, {row: {column: values}}: red is worse, blue is better; mean, interval.

    axes_of: what rows, columns and the colour are
    """
    _, axis = plt.subplots(figsize=(8.2, 1.4 + 0.6 * len(rows)), layout="constrained")
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    found = [[interval(cells[column]) for column in columns] for cells in rows.values()]
    means = np.array([[each.mean for each in row] for row in found])
    texts = [[f"{mean:+.1f}\n[{low:+.1f}, {high:+.1f}]" for mean, low, high in row] for row in found]
    limit = max(abs(means).max(), 1e-9)
    look = {"cmap": "RdBu", "vmin": -limit, "vmax": limit, "cbar_kws": {"label": axes_of[2]}}
    sns.heatmap(means, ax=axis, annot=np.array(texts), fmt="", xticklabels=columns, yticklabels=list(rows), **look)
    axis.set(title=title, xlabel=axes_of[1], ylabel=axes_of[0])
    axis.tick_params(axis="y", rotation=0)
    plt.show()


def matrices(
    tables: Mapping[str, Float[Tensor, "rows columns"]], quantity: str, axes_of: tuple[str, str], title: str
) -> None:
    """Matrices side by side on one scale, centred at zero: red is positive, blue negative."""
    figure, axes = plt.subplots(1, len(tables), figsize=(4.4 * len(tables), 3.9), squeeze=False, layout="constrained")
    top = max(table.abs().max().item() for table in tables.values())
    look = {"cmap": "RdBu_r", "vmin": -top, "vmax": top, "square": True, "cbar": False}
    for axis, (name, table) in zip(axes[0], tables.items(), strict=True):
        rows, columns = (range(1, count + 1) for count in table.shape)
        every = max(1, len(rows) // 8)  # labels that can be read
        counted = pd.DataFrame(table.detach().cpu().numpy(), index=rows, columns=columns)
        sns.heatmap(counted, ax=axis, xticklabels=every, yticklabels=every, **look)
        axis.set_title(name, loc="center", weight="normal")
        axis.set(xlabel=axes_of[1], ylabel=axes_of[0])
        axis.tick_params(rotation=0)
    figure.colorbar(axes[0, 0].collections[0], ax=axes, label=quantity, shrink=0.85)
    headline(figure, title)
    plt.show()


def loss_plane(plane: Plane, losses: Float[Tensor, " models"], corners: Sequence[str], title: str) -> None:
    """The loss on a plane through three models, as a map: dark valleys, bright mountains; logarithmic steps.

    losses: of `plane.models`, in their order · corners: what the three models are called
    """
    figure, axis = plt.subplots(figsize=(5.8, 4.6), layout="constrained")
    heights = losses.cpu().view(len(plane.y), len(plane.x)).numpy()
    levels = np.geomspace(heights.min(), heights.max() * 1.001, 16)
    shown = axis.contourf(plane.x.numpy(), plane.y.numpy(), heights, levels=levels, cmap="viridis", norm="log")
    above = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center", "color": "white", "weight": "bold"}
    for name, (x, y) in zip(corners, plane.corners.tolist(), strict=True):
        axis.plot(x, y, "o", color="white", markeredgecolor="black", markersize=9)
        distance = np.hypot(x, y)
        axis.annotate(f"{name}\n{distance:.0f} away" if distance else name, (x, y), **above)
    bar = figure.colorbar(shown, label="loss (nats)", format="%.2f")
    bar.minorticks_off()
    axis.set(title=title, xlabel="distance between weights", ylabel="distance between weights", aspect="equal")
    axis.grid(visible=False)
    plt.show()


def category_map(table: pd.DataFrame, x: str, y: str, category: str, colours: Mapping[str, Any], title: str) -> Axes:
    """What holds where: a map whose colours are categories, one row of the table a place.

    x, y: columns of numbers, every pair of them once · category: a column of texts · colours: of each category, the
    same on every map, so that maps can be compared; the legend holds those that occur, in this order
    Raises ParameterError for a category without a colour.
    """
    missing = set(table[category]) - set(colours)
    if missing:
        raise ParameterError(f"no colour for {sorted(missing)}: name every category in `colours`.")
    codes = table[category].map({name: code for code, name in enumerate(colours)})
    wide = table.assign(code=codes).pivot(index=y, columns=x, values="code")
    _, axis = plt.subplots(figsize=(6.4, 4.4))
    scale = ListedColormap(list(colours.values()))
    look = {"cmap": scale, "vmin": -0.5, "vmax": len(colours) - 0.5, "shading": "nearest"}
    axis.pcolormesh(wide.columns, wide.index, wide.to_numpy(), rasterized=True, **look)
    axis.grid(visible=False)
    axis.set(xlabel=x, ylabel=y, title=title)
    present = [Patch(color=colour, label=name) for name, colour in colours.items() if (table[category] == name).any()]
    axis.legend(handles=present, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return axis
