"""Lines: numbers over steps, shares or settings. Each takes raw values, seeds first, and draws their 95 % interval."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from paramarket.base import interval
from paramarket.plot.look import COLOURS, headline, percent
from paramarket.train import Score

Numbers = Float[Tensor, "seeds settings"]
Panels = Mapping[str, Mapping[str, Numbers]]  # {panel: {line: numbers}}


def _band(axis: Axes, x: Sequence[float], values: Float[Tensor, "seeds points"], k: int, name: str) -> None:
    """A line of means in colour k, the band its interval over seeds."""
    mean, low, high = interval(values)
    axis.plot(x, mean, color=COLOURS[k], label=name, marker="o", markersize=3.5)
    axis.fill_between(x, low, high, color=COLOURS[k], alpha=0.2, linewidth=0)


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
    rows = [panels(names, losses), panels(names, similarity)]
    colours = [*losses, *similarity]
    for column, (name, step) in enumerate(zip(names, critical, strict=True)):
        for axis, row in zip(axes[:, column], rows, strict=True):
            _lines(axis, steps, row[name], colours)
            axis.axvline(list(steps).index(step), color="black", linestyle=":", linewidth=1.5)
        axes[0, column].set(title=name)
        axes[1, column].set(xlabel="steps of specialising")
    least = min(each.min().item() for each in losses.values())
    most = max(each.max().item() for each in losses.values())
    axes[0, 0].set(ylabel="loss (nats)", yscale="log")
    axes[0, 0].set_yticks([0.1, 0.2, 0.3, 0.5, 1, 2], ["0.1", "0.2", "0.3", "0.5", "1", "2"])
    axes[0, 0].set_ylim(0.9 * least, 1.1 * most)
    axes[0, 0].minorticks_off()
    axes[1, 0].set(ylabel="CKA, debiased", ylim=(None, 1.02))
    _finish(figure, axes, title)


def _lines(axis: Axes, ticks: Sequence[object], lines: Mapping[str, Numbers], colours: Sequence[str]) -> None:
    """One line a name over equally spaced ticks, which is how doubling steps are to be read.

    colours: all names of the figure, so that each has its own colour in every panel
    """
    for name, numbers in lines.items():
        _band(axis, range(len(ticks)), numbers, colours.index(name), name)
    axis.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])


def _finish(figure: Figure, axes: np.ndarray, title: str) -> None:
    """One legend for all panels, beneath them, and the title."""
    found = {name: line for axis in axes.flat for line, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found, loc="outside lower center", ncols=4)
    headline(figure, title)
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


def labels_curve(
    extra: Sequence[int],
    curve: Float[Tensor, "seeds points"],
    reached: Mapping[str, tuple[Float[Tensor, " seeds"], Float[Tensor, " seeds"]]],
    title: str,
) -> None:
    """The buyers' own learning curve over labels more; and {purchase: (accuracy, labels)} read off at it."""
    _, axis = plt.subplots()
    _band(axis, extra, curve, 0, "labels of its own")
    floor = interval(curve).mean.min()
    for k, (name, (accuracy, labels)) in enumerate(reached.items(), start=1):
        height = accuracy.mean().item()
        worth = labels.mean().item()
        axis.plot([0, worth, worth], [height, height, floor], "--", color=COLOURS[k], linewidth=2, label=name)
        axis.annotate(f"≈ {worth:.0f}", (worth, floor), xytext=(4, 4), textcoords="offset points", color=COLOURS[k])
    axis.set(title=title, xlabel="labelled images more, of the rare kinds", ylabel="accuracy")
    axis.set_xticks(extra, [f"{count:,}" for count in extra])
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    percent(axis)
    plt.show()
