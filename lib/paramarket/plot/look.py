"""What all pictures share: one style, one palette, how intervals and titles are drawn, and sliders."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython import get_ipython
from ipywidgets import interact
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, Formatter
from torch import Tensor

from paramarket.base import Interval, interval, is_watched

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


def interval95(values: Collection[float]) -> tuple[float, float]:
    """The ends of the 95 % interval of the mean, by Student's t (see `base.interval`): what seaborn's errorbar= takes.

    A single value is its own interval. Without values, or with one that is not finite, both ends are nan: nothing is
    drawn.

    >>> from paramarket import plot
    >>> low, high = plot.interval95([1.0, 2.0, 3.0])
    >>> print(f"[{low:.2f}, {high:.2f}]")
    [-0.48, 4.48]
    """
    numbers = np.array(values, dtype=np.float64)
    if len(numbers) == 0 or not np.isfinite(numbers).all():
        return np.nan, np.nan
    if len(numbers) == 1:
        return float(numbers[0]), float(numbers[0])
    _, low, high = interval(numbers)
    return low, high


def tidy(groups: Mapping[str, Float[Tensor, "seeds ..."]], places: Sequence[object] | None = None) -> pd.DataFrame:
    """What seaborn draws from, a row a number: whose it is ("name"), where it stands ("place"), and the "value".

    groups: {name: numbers}, [seeds] or [seeds, places] · places: what they are called; counted from 0 if not given
    """
    tables = []
    for name, numbers in groups.items():
        wide = pd.DataFrame(numbers.detach().cpu().double().numpy(), columns=places)
        tables.append(wide.melt(var_name="place").assign(name=name))
    return pd.concat(tables, ignore_index=True)


def controls(picture: Callable[..., None], **sliders: Any) -> None:
    """Sliders for a picture (see ipywidgets.interact), where somebody is there to move them.

    papermill and nbconvert now and then hang on a live widget (jupyter/nbclient issue 312): there nothing is shown, so
    controls may only add to what a static run shows.
    """
    if is_watched() and get_ipython():
        interact(picture, **sliders)


def percent(axis: Axes, side: str = "y") -> None:
    """Label an axis of shares in per cent: at whole ones if it spans ten of them. Ticks that were chosen stay."""
    ruler = getattr(axis, f"{side}axis")
    locator = ruler.get_major_locator()
    if isinstance(locator, AutoLocator):
        locator.set_params(steps=[1, 2, 5, 10])  # without its 2.5: that puts ticks at 62.5 %
    ruler.set_major_formatter(_in_percent)


def _in_percent(share: float, _position: int) -> str:
    """What stands at a tick: "62.5%" at 0.625."""
    return Formatter.fix_minus(f"{round(100 * share, 2):g}%")


def headline(figure: Figure, title: str) -> None:
    """The title of a figure of several panels, where a single panel has its own."""
    place = {} if figure.get_constrained_layout() else {"y": 1, "va": "bottom"}  # there nothing makes room for it
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize="medium", **place)


def whiskers(found: Interval) -> np.ndarray:
    """How far an interval reaches below and above its mean, [2, values]: what `Axes.errorbar` asks for."""
    mean, low, high = (np.atleast_1d(part) for part in found)
    return np.stack([mean - low, high - mean])
