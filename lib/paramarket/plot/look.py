"""What all pictures share: one style, one palette, how intervals and titles are drawn, and sliders."""

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from IPython import get_ipython
from ipywidgets import interact
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from paramarket.base import Interval, is_watched

COLOURS = sns.color_palette("colorblind")


def style() -> None:
    """The one style of all notebooks: a quiet grid, colours that colour-blind readers can tell apart."""
    sns.set_theme(style="whitegrid", palette=COLOURS, font_scale=0.95)
    plt.rcParams.update(
        {
            "figure.figsize": (7.2, 3.6),
            "figure.dpi": 110,
            "savefig.bbox": "tight",
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "axes.titlesize": "medium",
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )


def controls(picture: Callable[..., None], **sliders: Any) -> None:
    """Sliders for a picture (see ipywidgets.interact), where somebody is there to move them.

    papermill and nbconvert now and then hang on a live widget (jupyter/nbclient issue 312): there nothing is shown, so
    controls may only add to what a static run shows.
    """
    if is_watched() and get_ipython():
        interact(picture, **sliders)


def percent(axis: Axes, side: str = "y") -> None:
    """Label an axis of shares in per cent."""
    getattr(axis, f"{side}axis").set_major_formatter(PercentFormatter(1, decimals=0))


def headline(figure: Figure, title: str) -> None:
    """The title of a figure of several panels, where a single panel has its own."""
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize="medium")


def whiskers(found: Interval) -> np.ndarray:
    """How far an interval reaches below and above its mean, [2, values]: what `Axes.errorbar` asks for."""
    mean, low, high = (np.atleast_1d(part) for part in found)
    return np.stack([mean - low, high - mean])
