"""Dots: one place for every way, kind or purchase, its mean with the 95 % interval, and costs as a table beside it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from paramarket.base import Interval, interval
from paramarket.plot.look import COLOURS, headline, interval95, percent, tidy, whiskers

DOTS = {"errorbar": interval95, "linestyle": "none", "capsize": 0.25, "err_kws": {"linewidth": 1.5}}
IN_ROW = ("axes fraction", "data")  # across: a share of the picture's width; down: a row


def ways(rows: Mapping[str, tuple[Float[Tensor, " seeds"], int, float]], megabytes: float, title: str) -> None:
    """One row a way to merge: a dot a seed, the mean with its interval, and what the way costs beside it.

    rows: {name: (accuracy, models kept, seconds to make, 0 for none)} · megabytes: the size of one model.
    Rows far below the others are cut off, with an arrow; their number stands beside them.
    """
    _, axis = plt.subplots(figsize=(6.4, 1 + 0.36 * len(rows)))
    table = tidy({name: values for name, (values, _, _) in rows.items()})
    sns.stripplot(table, x="value", y="name", ax=axis, jitter=False, color="grey", size=4.5, alpha=0.6, zorder=1)
    sns.pointplot(table, x="value", y="name", ax=axis, marker="D", markersize=6, color=COLOURS[0], **DOTS)
    beside = {"xycoords": IN_ROW, "va": "center", "family": "monospace", "fontsize": 9}
    lows = [interval(values).low for values, _, _ in rows.values()]
    left = np.median(lows) - 0.06
    for row, (values, kept, seconds) in enumerate(rows.values()):
        mean = values.mean().item()
        if mean < left:
            axis.annotate("◀ far below", (0.01, row), color=COLOURS[3], **beside)
        duration = f"{1000 * seconds:,.0f} ms" if seconds else "–"
        axis.annotate(f"{mean:>8.1%}  {kept:>4}  {kept * megabytes:>6.2f}  {duration:>8}", (1.02, row), **beside)
    axis.annotate(f"{'accuracy':>8}  {'nets':>4}  {'MB':>6}  {'to make':>8}", (1.02, -0.8), **beside)
    axis.set(title=title, xlabel="accuracy", ylabel="", xlim=(max(left, min(lows) - 0.01), None))
    axis.grid(visible=True, axis="y")
    percent(axis, "x")
    plt.show()


class PriceRow(NamedTuple):
    """A way on a price sheet: what it reaches, {what: values}, and what it costs, one text a column."""

    reached: Mapping[str, Float[Tensor, " seeds"]]
    costs: Sequence[str]


def price_sheet(
    rows: Mapping[str, PriceRow],
    columns: Sequence[str],
    quantity: str,
    title: str,
) -> None:
    """One row a way: what it reaches, with the intervals, on a log scale; and beside it what it costs."""
    figure, axis = plt.subplots(figsize=(11, 1.3 + 0.42 * len(rows)))
    figure.subplots_adjust(left=0.23, right=0.58)
    table = pd.concat([tidy(way.reached).assign(way=name) for name, way in rows.items()], ignore_index=True)
    kinds = table.name.nunique()
    sns.pointplot(table, x="value", y="way", hue="name", ax=axis, markers=["o", "D"][:kinds], markersize=6, **DOTS)
    for row, way in enumerate(rows.values()):
        _beside(axis, row, way.costs)
    _beside(axis, -0.75, columns, weight="bold")
    axis.set(xlabel=quantity, ylabel="", xscale="log")
    axis.grid(visible=True, axis="y")
    left, right = axis.get_xlim()
    ticks = [tick for tick in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10) if left <= tick <= right]
    ticks = ticks or [left, right]
    axis.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_title(title, pad=26)
    sns.move_legend(axis, "lower left", bbox_to_anchor=(0, 0.98), ncols=2, frameon=False, title=None)
    plt.show()


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


def _beside(axis: Axes, row: float, texts: Sequence[str], weight: str = "normal") -> None:
    """Texts to the right of the picture, a column each."""
    for k, text in enumerate(texts):
        place = (1.28 + 0.31 * k, row)
        axis.annotate(text, place, xycoords=IN_ROW, va="center", ha="right", weight=weight, fontsize=9)


def class_accuracy(
    classes: Sequence[object], rows: Mapping[str, Float[Tensor, "seeds classes"]], title: str, what: str
) -> None:
    """Accuracy per class, kind or camera, one colour an owner. what: what the classes are."""
    _, axis = plt.subplots()
    sns.pointplot(tidy(rows, classes), x="place", y="value", hue="name", ax=axis, dodge=0.3, markersize=8, **DOTS)
    axis.set(title=title, xlabel=what, ylabel="accuracy", ylim=(0, 1.05))
    sns.move_legend(axis, "upper left", bbox_to_anchor=(1, 1), title=None)
    percent(axis)
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
