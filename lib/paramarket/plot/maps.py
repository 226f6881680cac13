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
