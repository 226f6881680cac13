"""One style, one function per picture. Each takes raw values, seeds first, and draws their 95 % interval itself."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from IPython import get_ipython
from ipywidgets import interact
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from paramarket.base import interval

COLOURS = sns.color_palette("colorblind")


def style() -> None:
    """The one style of all notebooks: a quiet grid, colours that colour-blind readers can tell apart."""
    sns.set_theme(style="whitegrid", palette=COLOURS, font_scale=0.95)
    plt.rcParams.update(
        {"figure.figsize": (7.2, 3.6), "figure.dpi": 110, "savefig.bbox": "tight", "axes.titlelocation": "left"}
    )
    plt.rcParams.update(
        {"axes.titleweight": "bold", "axes.titlesize": "medium", "axes.spines.top": False, "axes.spines.right": False}
    )


def _percent(axis: Axes, side: str = "y") -> None:
    getattr(axis, f"{side}axis").set_major_formatter(PercentFormatter(1, decimals=0))


def controls(picture: Callable[..., None], **sliders: Any) -> None:
    """Sliders for a picture (see ipywidgets.interact), where somebody is there to move them.

    papermill and nbconvert offer no keyboard (allow_stdin is off), and now and then hang on a live widget
    (jupyter/nbclient issue 312): there nothing is shown, so controls may only add to what a static run shows.
    """
    if getattr(getattr(get_ipython(), "kernel", None), "_allow_stdin", False):
        interact(picture, **sliders)


def learning_curves(steps: Sequence[int], curves: Mapping[str, Float[Tensor, "seeds steps"]], title: str) -> None:
    """Accuracy against epochs, one line a name, the band its interval over seeds."""
    _, axis = plt.subplots()
    for colour, (name, values) in zip(COLOURS, curves.items(), strict=False):
        mean, low, high = interval(values)
        axis.plot(steps, mean, color=colour, label=name, marker="o", markersize=3.5)
        axis.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    axis.set(title=title, xlabel="training (epochs)", ylabel="accuracy")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(loc="lower right")
    _percent(axis)
    plt.show()


def image_row(images: Float[Tensor, "n channels height width"], captions: Sequence[str], title: str) -> None:
    """Images side by side, each with what there is to say of it."""
    lines = 1 + max(caption.count("\n") for caption in captions)
    size = (1.1 * len(images), 1.5 + 0.17 * lines)
    figure, axes = plt.subplots(1, len(images), figsize=size, squeeze=False, layout="constrained")
    for axis, image, caption in zip(axes[0], images, captions, strict=True):
        axis.imshow(image.mean(dim=0).numpy(), cmap="gray_r")
        axis.set_title(caption, fontsize=9, weight="normal", loc="center")
        axis.set_axis_off()
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize="medium")
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


def filters(rows: Mapping[str, Float[Tensor, "units height width"]], first: int, title: str) -> None:
    """First-layer weights as images, one row a network: red pixels speak for a unit, blue ones against it."""
    units = len(next(iter(rows.values())))
    size = (1.05 * units + 0.4, 1.05 * len(rows) + 0.7)
    figure, axes = plt.subplots(len(rows), units, figsize=size, squeeze=False, layout="constrained")
    for row, (name, images) in enumerate(rows.items()):
        axes[row, 0].set_ylabel(name, rotation=0, ha="right", va="center")
        for unit, image in enumerate(images):
            top = image.abs().max().item()
            axes[row, unit].imshow(image.numpy(), cmap="RdBu_r", vmin=-top, vmax=top)
            axes[row, unit].set(xticks=[], yticks=[])
            if row == 0:
                axes[row, unit].set_title(f"unit {first + unit}", fontsize=9, weight="normal", loc="center")
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize="medium")
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
    _percent(axis)
    plt.show()


def class_accuracy(classes: Sequence[str], rows: Mapping[str, Float[Tensor, "seeds classes"]], title: str) -> None:
    """Accuracy per kind, one colour an owner, a line between them where they differ."""
    _, axis = plt.subplots()
    at, means = np.arange(len(classes)), [interval(values).mean for values in rows.values()]
    axis.vlines(at, np.min(means, axis=0), np.max(means, axis=0), color="lightgrey", linewidth=5, zorder=0)
    for k, (name, values) in enumerate(rows.items()):
        mean, low, high = interval(values)
        axis.errorbar(
            at, mean, [mean - low, high - mean], fmt="o", markersize=8, color=COLOURS[k], label=name, capsize=3
        )
    axis.set(title=title, xlabel="kind", ylabel="accuracy", ylim=(0, 1.05))
    axis.set_xticks(at, classes)
    axis.grid(visible=False, axis="x")
    axis.legend(loc="lower center", ncols=len(rows))
    _percent(axis)
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
