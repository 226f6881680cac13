"""Charts: numbers as lines, bars and dots. Each takes raw values, seeds first, and draws their 95 % interval itself.

`plot` passes these names on: write `plot.share_bars`.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from paramarket.base import interval
from paramarket.train import Score

COLOURS = sns.color_palette("colorblind")
Numbers = Float[Tensor, "seeds settings"]
Panels = Mapping[str, Mapping[str, Numbers]]  # {panel: {line: numbers}}


def percent(axis: Axes, side: str = "y") -> None:
    """Label an axis of shares in per cent."""
    getattr(axis, f"{side}axis").set_major_formatter(PercentFormatter(1, decimals=0))


def _band(
    axis: Axes, at: Sequence[float], values: Float[Tensor, "seeds points"], k: int, name: str, **look: str
) -> None:
    """A line of means in colour k, the band its interval over seeds."""
    mean, low, high = interval(values)
    axis.plot(at, mean, color=COLOURS[k], label=name, marker="o", markersize=3.5, **look)
    axis.fill_between(at, low, high, color=COLOURS[k], alpha=0.2, linewidth=0)


def learning_curves(steps: Sequence[int], curves: Mapping[str, Float[Tensor, "seeds steps"]], title: str) -> None:
    """Accuracy against epochs, one line a name, the band its interval over seeds."""
    _, axis = plt.subplots()
    for k, (name, values) in enumerate(curves.items()):
        _band(axis, steps, values, k, name)
    axis.set(title=title, xlabel="training (epochs)", ylabel="accuracy")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(loc="lower right")
    percent(axis)
    plt.show()


def panels(names: Sequence[str], values: Mapping[str, Float[Tensor, "panels seeds ticks"]]) -> Panels:
    """{panel: {line: [seeds, ticks]}} from {line: [panels, seeds, ticks]}."""
    return {name: {line: each[k] for line, each in values.items()} for k, name in enumerate(names)}


def curves(ticks: Sequence[object], lines: Panels, axes_of: tuple[str, str], title: str) -> None:
    """Panels side by side over the same ticks, one line a name, bands the intervals over seeds."""
    figure, axes = plt.subplots(1, len(lines), figsize=(9.6, 3.9), sharey=True, squeeze=False, layout="constrained")
    colours = list(dict.fromkeys(name for each in lines.values() for name in each))
    for axis, (panel, each) in zip(axes[0], lines.items(), strict=True):
        _lines(axis, ticks, each, colours)
        axis.set(xlabel=axes_of[0], title=panel)
    axes[0, 0].set_ylabel(axes_of[1])
    _finish(figure, axes, title)


def turning(
    steps: Sequence[int],
    names: Sequence[str],
    losses: Mapping[str, Float[Tensor, "panels seeds steps"]],
    similarity: Mapping[str, Float[Tensor, "panels seeds steps"]],
    critical: Sequence[int],
    title: str,
) -> None:
    """Losses above, CKA beneath, over the same steps; one column a name, its critical step marked by a dotted line."""
    size = {"figsize": (9.6, 6.4), "height_ratios": [3, 2], "layout": "constrained"}
    figure, axes = plt.subplots(2, len(names), sharex=True, sharey="row", squeeze=False, **size)
    rows, colours = (panels(names, losses), panels(names, similarity)), [*losses, *similarity]
    for column, (name, step) in enumerate(zip(names, critical, strict=True)):
        for axis, row in zip(axes[:, column], rows, strict=True):
            _lines(axis, steps, row[name], colours)
            axis.axvline(list(steps).index(step), color="black", linestyle=":", linewidth=1.5)
        axes[0, column].set(title=name)
        axes[1, column].set(xlabel="steps of specialising")
    axes[0, 0].set(ylabel="loss (nats)", yscale="log")
    axes[0, 0].set_yticks([0.1, 0.2, 0.3, 0.5, 1, 2], ["0.1", "0.2", "0.3", "0.5", "1", "2"])
    axes[0, 0].set_ylim(*(scale * end for scale, end in zip((0.9, 1.1), _ends(losses), strict=True)))
    axes[0, 0].minorticks_off()
    axes[1, 0].set(ylabel="CKA, debiased", ylim=(None, 1.02))
    _finish(figure, axes, title)


def _ends(values: Mapping[str, Tensor]) -> tuple[float, float]:
    return min(each.min().item() for each in values.values()), max(each.max().item() for each in values.values())


def _lines(axis: Axes, ticks: Sequence[object], lines: Mapping[str, Numbers], colours: Sequence[str]) -> None:
    """One line a name over equally spaced ticks, which is how doubling steps are to be read.

    colours: all names of the figure, so that each has its own colour in every panel
    """
    for name, numbers in lines.items():
        _band(axis, range(len(ticks)), numbers, colours.index(name), name)
    axis.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])


def _finish(figure: plt.Figure, axes: np.ndarray, title: str) -> None:
    """One legend for all panels, beneath them, and the title."""
    found = {name: line for axis in axes.flat for line, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found, loc="outside lower center", ncols=4)
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize="medium")
    plt.show()


def loss_path(t: Sequence[float], scores: Mapping[str, Score], title: str) -> None:
    """Loss and accuracy along the straight line from A (t = 0) to B (t = 1), one line a name (see `merge.walk`)."""
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    for k, (name, score) in enumerate(scores.items()):
        _band(axes[0], t, score.loss, k, name)
        _band(axes[1], t, score.accuracy, k, name)
    for axis in axes:
        axis.set_xticks([0, 0.5, 1], ["A", "half-way", "B"])
    axes[0].set(ylabel="loss (nats)", ylim=(0, None))
    axes[1].set(ylabel="accuracy")
    percent(axes[1])
    _finish(figure, axes, title)


def sweeps(
    panels: Mapping[str, tuple[Sequence[float], Mapping[str, Numbers], Numbers]], quantity: str, title: str
) -> None:
    """One panel a setting: {what is varied: (its values, {name: numbers}, accuracy to be noted beneath each value)}."""
    figure, axes = plt.subplots(1, len(panels), figsize=(9.6, 4), sharey=True, squeeze=False, layout="constrained")
    for axis, (what, (values, curves, accuracy)) in zip(axes[0], panels.items(), strict=True):
        for k, (name, numbers) in enumerate(curves.items()):
            _band(axis, range(len(values)), numbers, k, name)
        beneath = zip(values, accuracy.mean(dim=0).tolist(), strict=True)
        axis.set_xticks(range(len(values)), [f"{value:g}\n{share:.0%}" for value, share in beneath])
        axis.set(xlabel=what.replace("_", " "))
        axis.axhline(0, color="black", linewidth=1)
    axes[0, 0].set_ylabel(quantity)
    _finish(figure, axes, title)


def ways(rows: Mapping[str, tuple[Float[Tensor, " seeds"], int, float]], megabytes: float, title: str) -> None:
    """One row a way to merge: a dot a seed, the mean with its interval, and what the way costs beside it.

    rows: {name: (accuracy, models kept, seconds to make, 0 for none)} · megabytes: the size of one model.
    Rows far below the others are cut off, with an arrow; their number stands beside them.
    """
    _, axis = plt.subplots(figsize=(6.4, 1 + 0.36 * len(rows)))
    beside = {"xycoords": ("axes fraction", "data"), "va": "center", "family": "monospace", "fontsize": 9}
    found = [interval(values) for values, _, _ in rows.values()]
    left = np.median([low for _, low, _ in found]) - 0.06
    for row, (mean, low, high) in enumerate(found):
        values, kept, seconds = list(rows.values())[row]
        axis.plot(values, np.full(len(values), row), "o", color="grey", markersize=3.5, alpha=0.6)
        axis.errorbar(mean, row, xerr=[[mean - low], [high - mean]], fmt="D", color=COLOURS[0], capsize=4)
        if mean < left:
            axis.annotate("◀ far below", (0.01, row), color=COLOURS[3], **beside)
        took = f"{1000 * seconds:,.0f} ms" if seconds else "–"
        axis.annotate(f"{mean:>8.1%}  {kept:>4}  {kept * megabytes:>6.2f}  {took:>8}", (1.02, row), **beside)
    axis.annotate(f"{'accuracy':>8}  {'nets':>4}  {'MB':>6}  {'to make':>8}", (1.02, -0.8), **beside)
    axis.set(title=title, xlabel="accuracy", xlim=(max(left, min(low for _, low, _ in found) - 0.01), None))
    axis.set_yticks(range(len(rows)), list(rows))
    axis.invert_yaxis()
    percent(axis, "x")
    plt.show()


def layer_bars(
    layers: Sequence[str], bars: Mapping[str, Float[Tensor, "seeds layers"]], quantity: str, title: str
) -> None:
    """One group of bars a layer, with intervals over seeds."""
    _, axis = plt.subplots()
    width, centre = 0.8 / len(bars), np.arange(len(layers))
    for k, (name, values) in enumerate(bars.items()):
        mean, low, high = interval(values)
        at = centre + (k - (len(bars) - 1) / 2) * width
        axis.bar(at, mean, width, yerr=[mean - low, high - mean], color=COLOURS[k], label=name, capsize=3)
    axis.set(title=title, ylabel=quantity, xlabel="layer, from the input to the output")
    axis.set_xticks(centre, layers)
    axis.grid(visible=False, axis="x")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    plt.show()


def share_bars(
    bars: Mapping[str, Float[Tensor, " seeds"]], title: str, quantity: str = "accuracy", guessing: float | None = None
) -> None:
    """One bar a name, a dot a seed, the interval over seeds, and the line that guessing would reach."""
    _, axis = plt.subplots()
    for k, (name, values) in enumerate(bars.items()):
        mean, low, high = interval(values)
        axis.bar(name, mean, color=COLOURS[k], alpha=0.75, width=0.6)
        axis.errorbar(k, mean, [[mean - low], [high - mean]], color="black", capsize=6, linewidth=1.5)
        axis.plot(k + np.linspace(-0.12, 0.12, len(values)), values, "o", color="black", markersize=3.5, alpha=0.6)
        axis.annotate(f"{mean:.1%}", (k + 0.33, mean), va="center", weight="bold")
    if guessing is not None:
        axis.axhline(guessing, color="grey", linestyle="--")
        axis.annotate(" guessing", (1, guessing), xycoords=("axes fraction", "data"), color="grey", va="center")
    axis.set(title=title, ylabel=quantity, ylim=(0, None))
    axis.set_xlim(-0.5, len(bars) - 0.3)
    axis.grid(visible=False, axis="x")
    percent(axis)
    plt.show()
