"""Dots: one row for every way or purchase, with the 95 % interval that was measured with it."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from paramarket.base import Interval
from paramarket.plot.look import COLOURS, headline, whiskers


def interval_dots(
    table: pd.DataFrame,
    row: str,
    panels: Mapping[str, str],
    title: str,
    *,
    limits: Mapping[str, float] | None = None,
) -> None:
    """One row an entry of a column, one panel a measure: a dot, and the interval that was measured with it.

    table: for every measure a column with its name, and its ends as `…_low` and `…_high` · panels: {measure: what its
    axis says} · limits: {measure: where a dashed line stands}, 0 if not said
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(2.2 + 3 * len(panels), 1.2 + 0.3 * len(table)), sharey=True, squeeze=False
    )
    places = np.arange(len(table))
    for axis, (measure, words) in zip(axes[0], panels.items(), strict=True):
        axis.axvline((limits or {}).get(measure, 0.0), color="grey", linewidth=1, linestyle="--")
        axis.hlines(places, table[f"{measure}_low"], table[f"{measure}_high"], colors=COLOURS[0])
        axis.scatter(table[measure], places, color=COLOURS[0], zorder=3)
        axis.set_xlabel(words)
    axes[0, 0].set_yticks(places, table[row])
    axes[0, 0].invert_yaxis()
    headline(figure, title)
    plt.show()


def gain_rows(
    names: Sequence[str],
    quoted: Float[Tensor, " Q"],
    audited: Interval,
    tested: Float[Tensor, " Q"],
    title: str,
) -> None:
    """One row a purchase: its gain as told on `quote`, as audited with its interval, and on `test`; accuracy points."""
    _, axis = plt.subplots(figsize=(7.2, 1.2 + 0.32 * len(names)))
    places = np.arange(len(names))
    look = {"fmt": "D", "color": COLOURS[0], "capsize": 4, "label": "audited, 95 % interval over images"}
    axis.errorbar(audited.mean, places, xerr=whiskers(audited), **look)
    axis.plot(audited.low, places, "|", color=COLOURS[0], markersize=14, markeredgewidth=3, label="lower end of that")
    axis.plot(quoted, places, "o", markerfacecolor="white", color=COLOURS[1], label="on quote, where it was chosen")
    axis.plot(tested, places, "x", color="black", label="on test")
    axis.axvline(0, color="black", linewidth=1)
    axis.set(title=title, xlabel="gain (accuracy points)")
    axis.set_yticks(places, names)
    axis.invert_yaxis()
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    plt.show()
