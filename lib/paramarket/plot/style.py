"""One style, one function per picture: four modules of pictures under one name, and what the case needs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from IPython import get_ipython
from ipywidgets import interact
from jaxtyping import Float
from matplotlib.patches import Patch
from torch import Tensor

from paramarket.base import interval, watched
from paramarket.plot.charts import (
    COLOURS,
    curves,
    layer_bars,
    learning_curves,
    loss_path,
    panels,
    percent,
    share_bars,
    sweeps,
    turning,
    ways,
)
from paramarket.plot.pictures import filters, image_row, loss_plane, matrices
from paramarket.plot.scatters import cka_heatmap, frontier, plane, share_map, trails
from paramarket.plot.tallies import class_arrows, gain_rows, harm_table, labels_curve, price_sheet, surplus_bars

__all__ = ["cka_heatmap", "class_accuracy", "class_arrows", "controls", "curves", "filters", "frontier"]
__all__ += ["gain_rows", "harm_table", "image_row", "labels_curve", "layer_bars", "learning_curves", "loss_path"]
__all__ += ["loss_plane", "plane", "share_map"]
__all__ += ["matrices", "money_bars", "panels", "price_sheet", "share_bars", "style", "surplus_bars", "sweeps"]
__all__ += ["trails", "turning", "ways"]


def style() -> None:
    """The one style of all notebooks: a quiet grid, colours that colour-blind readers can tell apart."""
    sns.set_theme(style="whitegrid", palette=COLOURS, font_scale=0.95)
    plt.rcParams.update(
        {"figure.figsize": (7.2, 3.6), "figure.dpi": 110, "savefig.bbox": "tight", "axes.titlelocation": "left"}
    )
    plt.rcParams.update(
        {"axes.titleweight": "bold", "axes.titlesize": "medium", "axes.spines.top": False, "axes.spines.right": False}
    )


def controls(picture: Callable[..., None], **sliders: Any) -> None:
    """Sliders for a picture (see ipywidgets.interact), where somebody is there to move them.

    papermill and nbconvert now and then hang on a live widget (jupyter/nbclient issue 312): there nothing is shown, so
    controls may only add to what a static run shows.
    """
    if watched() and get_ipython():
        interact(picture, **sliders)


def class_accuracy(
    classes: Sequence[str], rows: Mapping[str, Float[Tensor, "seeds classes"]], title: str, what: str = "kind"
) -> None:
    """Accuracy per kind (or what else there is), one colour an owner, a line between them where they differ."""
    _, axis = plt.subplots()
    at, means = np.arange(len(classes)), [interval(values).mean for values in rows.values()]
    axis.vlines(at, np.min(means, axis=0), np.max(means, axis=0), color="lightgrey", linewidth=5, zorder=0)
    for k, (name, values) in enumerate(rows.items()):
        mean, low, high = interval(values)
        axis.errorbar(
            at, mean, [mean - low, high - mean], fmt="o", markersize=8, color=COLOURS[k], label=name, capsize=3
        )
    axis.set(title=title, xlabel=what, ylabel="accuracy", ylim=(0, 1.05))
    axis.set_xticks(at, classes)
    axis.grid(visible=False, axis="x")
    axis.legend(loc="lower center", ncols=len(rows))
    percent(axis)
    plt.show()


def money_bars(bars: Mapping[str, Mapping[str, Float[Tensor, " seeds"]]], quantity: str, title: str) -> None:
    """One horizontal bar a name, stacked from its parts, the interval of the whole at its end."""
    _, axis = plt.subplots(figsize=(7.2, 1.1 + 0.6 * len(bars)))
    parts = list(dict.fromkeys(part for bar in bars.values() for part in bar))
    for row, bar in enumerate(bars.values()):
        left = 0.0
        for part, values in bar.items():
            mean = interval(values).mean
            axis.barh(row, mean, left=left, height=0.55, color=COLOURS[parts.index(part)])
            left += mean
        _, low, high = interval(sum(bar.values()))
        axis.errorbar(left, row, xerr=[[left - low], [high - left]], color="black", capsize=5)
        axis.annotate(
            f"{left:,.0f}", (high, row), xytext=(8, 0), textcoords="offset points", va="center", weight="bold"
        )
    axis.set(title=title, xlabel=quantity)
    axis.set_yticks(range(len(bars)), list(bars))
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.grid(visible=False, axis="y")
    patches = [Patch(color=COLOURS[k], label=part) for k, part in enumerate(parts)]
    axis.legend(handles=patches, loc="upper left", bbox_to_anchor=(1, 1))
    plt.show()
