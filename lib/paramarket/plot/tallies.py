"""Pictures of purchases: what was bought, what it is worth, who gets how much. `plot` passes these names on."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor

from paramarket.base import Interval, interval
from paramarket.plot.charts import COLOURS, percent

PARTIES = {"buyer": COLOURS[0], "seller": COLOURS[1], "broker": COLOURS[2], "lost": "lightgrey"}


def class_arrows(
    before: Float[Tensor, "seeds classes"],
    changes: Mapping[str, Float[Tensor, "seeds classes"]],
    known: Bool[Tensor, " classes"],
    classes: Sequence[str],
    title: str,
) -> None:
    """Accuracy by kind before and after: {panel: change in points}, an arrow a kind, from mean to mean.

    known: kinds on a grey ground, those that the buyer knew best
    """
    figure, axes = plt.subplots(1, len(changes), figsize=(9.6, 3.8), sharey=True, squeeze=False, layout="constrained")
    for axis, (name, change) in zip(axes[0], changes.items(), strict=True):
        was, becomes = (of.mean(dim=0).tolist() for of in (before, before + change / 100))
        for k, (start, end) in enumerate(zip(was, becomes, strict=True)):
            colour = COLOURS[2] if end >= start else COLOURS[3]
            look = {"arrowstyle": "-|>", "color": colour, "linewidth": 2.5, "mutation_scale": 9, "shrinkA": 0}
            axis.annotate("", (k, end), (k, start), arrowprops=look | {"shrinkB": 0})
            axis.plot(k, start, "o", color=colour, markersize=5)
            if known[k]:
                axis.axvspan(k - 0.5, k + 0.5, color="grey", alpha=0.15, linewidth=0)
        axis.set(title=name, xlabel="kind (grey: knew it well)", xlim=(-0.5, len(classes) - 0.5))
        axis.set_xticks(range(len(classes)), classes)
        axis.grid(visible=False, axis="x")
    axes[0, 0].set(ylabel="accuracy, before → after")
    percent(axes[0, 0])
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize="medium")
    plt.show()


def gain_rows(
    names: Sequence[str], told: Float[Tensor, " Q"], audited: Interval, tested: Float[Tensor, " Q"], title: str
) -> None:
    """One row a purchase: its gain as told on `quote`, as audited with its interval, and on `test`; accuracy points."""
    _, axis = plt.subplots(figsize=(7.2, 1.2 + 0.32 * len(names)))
    at = np.arange(len(names))
    mean, low, high = map(np.asarray, audited)
    look = {"fmt": "D", "color": COLOURS[0], "capsize": 4, "label": "audited, 95 % interval over images"}
    axis.errorbar(mean, at, xerr=[mean - low, high - mean], **look)
    axis.plot(low, at, "|", color=COLOURS[0], markersize=14, markeredgewidth=3, label="what is paid for")
    axis.plot(told, at, "o", markerfacecolor="white", color=COLOURS[1], label="told, where it was chosen")
    axis.plot(tested, at, "x", color="black", label="on test")
    axis.axvline(0, color="black", linewidth=1)
    axis.set(title=title, xlabel="gain (accuracy points)")
    axis.set_yticks(at, names)
    axis.invert_yaxis()
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    plt.show()


def labels_curve(
    extra: Sequence[int],
    curve: Float[Tensor, "seeds points"],
    reached: Mapping[str, tuple[Float[Tensor, " seeds"], Float[Tensor, " seeds"]]],
    title: str,
) -> None:
    """The buyers' own learning curve over labels more; and {purchase: (accuracy, labels)} read off at it."""
    _, axis = plt.subplots()
    mean, low, high = interval(curve)
    axis.plot(extra, mean, color=COLOURS[0], marker="o", markersize=4, label="labels of its own")
    axis.fill_between(extra, low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
    for k, (name, (accuracy, labels)) in enumerate(reached.items(), start=1):
        height, at = accuracy.mean().item(), labels.mean().item()
        axis.plot([0, at, at], [height, height, mean.min()], "--", color=COLOURS[k], linewidth=2, label=name)
        axis.annotate(f"≈ {at:.0f}", (at, mean.min()), xytext=(4, 4), textcoords="offset points", color=COLOURS[k])
    axis.set(title=title, xlabel="labelled images more, of the rare kinds", ylabel="accuracy")
    axis.set_xticks(extra, [f"{count:,}" for count in extra])
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    percent(axis)
    plt.show()


def surplus_bars(bars: Mapping[str, Mapping[str, Float[Tensor, " groups"]]], quantity: str, title: str) -> None:
    """One bar a rule: what buyer, seller and broker get, and what is lost of what there is; see `worth.parties`.

    Beside each bar stands the share that is not lost, and what is, with its interval over the groups.
    """
    _, axis = plt.subplots(figsize=(7.2, 1.6 + 0.45 * len(bars)))
    for row, parts in enumerate(bars.values()):
        left = 0.0
        for part, values in parts.items():
            mean = values.mean().item()
            axis.barh(row, mean, left=left, height=0.6, color=PARTIES[part], hatch="//" if part == "lost" else None)
            left += mean
        axis.annotate(_kept(parts), (1.02, row), xycoords=("axes fraction", "data"), va="center", weight="bold")
    axis.set(title=title, xlabel=quantity)
    axis.set_yticks(range(len(bars)), list(bars))
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    shown = {part for parts in bars.values() for part in parts}
    patches = [Patch(color=colour, label=part) for part, colour in PARTIES.items() if part in shown]
    axis.legend(handles=patches, loc="upper left", bbox_to_anchor=(0, -0.35), ncols=4)
    plt.show()


def _kept(parts: Mapping[str, Float[Tensor, " groups"]]) -> str:
    whole = sum(parts.values()).sum().item()
    if whole <= 0:
        return "nothing there"
    lost = parts.get("lost")
    if lost is None or lost.abs().max().item() < 1e-9 * whole:  # rounding is no loss
        return "all kept"
    return "{:.1%} kept; lost {:.2g} [{:.2g}, {:.2g}]".format(1 - lost.sum().item() / whole, *interval(lost))


def harm_table(
    rows: Mapping[str, Mapping[str, Float[Tensor, " seeds"]]], axes_of: tuple[str, str, str], title: str
) -> None:
    """A table of changes in accuracy points, {row: {column: values}}: red is worse, blue is better; mean, interval.

    axes_of: what rows, columns and the colour are
    """
    figure, axis = plt.subplots(figsize=(8.2, 1.4 + 0.6 * len(rows)), layout="constrained")
    columns = list(next(iter(rows.values())))
    found = [[interval(values) for values in each.values()] for each in rows.values()]
    means = np.array([[each.mean for each in line] for line in found])
    limit = max(abs(means).max(), 1e-9)
    shown = axis.imshow(means, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for row, line in enumerate(found):
        for column, (mean, low, high) in enumerate(line):
            colour = "white" if abs(mean) > 0.6 * limit else "black"
            axis.text(column, row, f"{mean:+.1f}\n[{low:+.1f}, {high:+.1f}]", ha="center", va="center", color=colour)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set(title=title, xlabel=axes_of[1], ylabel=axes_of[0])
    axis.grid(visible=False)
    figure.colorbar(shown, ax=axis, label=axes_of[2])
    plt.show()


def price_sheet(
    rows: Mapping[str, tuple[Mapping[str, Float[Tensor, " seeds"]], Sequence[str]]],
    columns: Sequence[str],
    quantity: str,
    title: str,
) -> None:
    """One row a way: what it reaches, {what: values} with the intervals, on a log scale; and beside it what it costs.

    rows: {way: ({what: values}, one text a column)}
    """
    figure, axis = plt.subplots(figsize=(11, 1.3 + 0.42 * len(rows)))
    figure.subplots_adjust(left=0.23, right=0.58)
    kinds = list(dict.fromkeys(what for losses, _ in rows.values() for what in losses))
    for row, (losses, texts) in enumerate(rows.values()):
        for what, values in losses.items():
            (mean, low, high), k = interval(values), kinds.index(what)
            look = {"color": COLOURS[k], "marker": "oD"[k % 2], "capsize": 3, "linestyle": "none"}
            axis.errorbar(mean, row, xerr=[[mean - low], [high - mean]], **look)
        _beside(axis, row, texts)
    _beside(axis, -0.75, columns, weight="bold")
    axis.set(xlabel=quantity, xscale="log", ylim=(len(rows) - 0.5, -0.5))
    axis.set_yticks(range(len(rows)), list(rows))
    left, right = axis.get_xlim()
    ticks = [tick for tick in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10) if left <= tick <= right]
    axis.set_xticks(ticks or [left, right], [f"{tick:.2g}" for tick in ticks or [left, right]])
    axis.minorticks_off()
    axis.set_title(title, pad=26)
    marks = [
        Line2D([], [], linestyle="none", marker="oD"[k % 2], color=COLOURS[k], label=what)
        for k, what in enumerate(kinds)
    ]
    axis.legend(handles=marks, loc="lower left", bbox_to_anchor=(0, 0.98), ncols=2, frameon=False)
    plt.show()


def _beside(axis: Axes, row: float, texts: Sequence[str], weight: str = "normal") -> None:
    """Texts to the right of the picture, a column each."""
    for k, text in enumerate(texts):
        where = (1.28 + 0.31 * k, row)
        axis.annotate(
            text, where, xycoords=("axes fraction", "data"), va="center", ha="right", weight=weight, fontsize=9
        )
