"""Bars: shares, layers, money. They begin at zero, and carry the 95 % interval of their whole."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.patches import Patch
from torch import Tensor

from paramarket.base import interval
from paramarket.plot.look import COLOURS, percent, whiskers

PARTIES = {"buyer": COLOURS[0], "seller": COLOURS[1], "broker": COLOURS[2], "lost": "lightgrey"}


def share_bars(
    bars: Mapping[str, Float[Tensor, " seeds"]], title: str, quantity: str = "accuracy", guessing: float | None = None
) -> None:
    """One bar a name, a dot a seed, the interval over seeds, and the line that guessing would reach."""
    _, axis = plt.subplots()
    for k, (name, values) in enumerate(bars.items()):
        found = interval(values)
        axis.bar(name, found.mean, color=COLOURS[k], alpha=0.75, width=0.6)
        axis.errorbar(k, found.mean, whiskers(found), color="black", capsize=6, linewidth=1.5)
        axis.plot(k + np.linspace(-0.12, 0.12, len(values)), values, "o", color="black", markersize=3.5, alpha=0.6)
        axis.annotate(f"{found.mean:.1%}", (k + 0.33, found.mean), va="center", weight="bold")
    if guessing is not None:
        axis.axhline(guessing, color="grey", linestyle="--")
        axis.annotate(" guessing", (1, guessing), xycoords=("axes fraction", "data"), color="grey", va="center")
    axis.set(title=title, ylabel=quantity, ylim=(0, None))
    axis.set_xlim(-0.5, len(bars) - 0.3)
    axis.grid(visible=False, axis="x")
    percent(axis)
    plt.show()


def layer_bars(
    layers: Sequence[str], bars: Mapping[str, Float[Tensor, "seeds layers"]], quantity: str, title: str
) -> None:
    """One group of bars a layer, with intervals over seeds."""
    _, axis = plt.subplots()
    width = 0.8 / len(bars)
    centre = np.arange(len(layers))
    for k, (name, values) in enumerate(bars.items()):
        found = interval(values)
        places = centre + (k - (len(bars) - 1) / 2) * width
        axis.bar(places, found.mean, width, yerr=whiskers(found), color=COLOURS[k], label=name, capsize=3)
    axis.set(title=title, ylabel=quantity, xlabel="layer, from the input to the output")
    axis.set_xticks(centre, layers)
    axis.grid(visible=False, axis="x")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
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
        whole = interval(sum(bar.values()))
        axis.errorbar(whole.mean, row, xerr=whiskers(whole), color="black", capsize=5)
        beside = {"xytext": (8, 0), "textcoords": "offset points", "va": "center", "weight": "bold"}
        axis.annotate(f"{whole.mean:,.0f}", (whole.high, row), **beside)
    axis.set(title=title, xlabel=quantity)
    axis.set_yticks(range(len(bars)), list(bars))
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.grid(visible=False, axis="y")
    patches = [Patch(color=COLOURS[k], label=part) for k, part in enumerate(parts)]
    axis.legend(handles=patches, loc="upper left", bbox_to_anchor=(1, 1))
    plt.show()


def surplus_bars(bars: Mapping[str, Mapping[str, Float[Tensor, " groups"]]], quantity: str, title: str) -> None:
    """One bar a rule: what buyer, seller and broker get, and what is lost of what there is; see `price.surplus_parts`.

    Beside each bar stands the share that is not lost, and what is, with its interval over the groups.
    """
    _, axis = plt.subplots(figsize=(7.2, 1.6 + 0.45 * len(bars)))
    for row, parts in enumerate(bars.values()):
        left = 0.0
        for part, values in parts.items():
            mean = values.mean().item()
            axis.barh(row, mean, left=left, height=0.6, color=PARTIES[part], hatch="//" if part == "lost" else None)
            left += mean
        note = _share_kept(parts)
        axis.annotate(note, (1.02, row), xycoords=("axes fraction", "data"), va="center", weight="bold")
    axis.set(title=title, xlabel=quantity)
    axis.set_yticks(range(len(bars)), list(bars))
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    shown = {part for parts in bars.values() for part in parts}
    patches = [Patch(color=colour, label=part) for part, colour in PARTIES.items() if part in shown]
    axis.legend(handles=patches, loc="upper left", bbox_to_anchor=(0, -0.35), ncols=4)
    plt.show()


def _share_kept(parts: Mapping[str, Float[Tensor, " groups"]]) -> str:
    """What is said beside a bar: the share of the whole that is not lost, and the loss with its interval."""
    whole = sum(parts.values()).sum().item()
    if whole <= 0:
        return "nothing there"
    lost = parts.get("lost")
    if lost is None or lost.abs().max().item() < 1e-9 * whole:  # rounding is no loss
        return "all kept"
    share = 1 - lost.sum().item() / whole
    mean, low, high = interval(lost)
    return f"{share:.1%} kept; lost {mean:.2g} [{low:.2g}, {high:.2g}]"
