"""Bars: surplus, and steps from benefits over costs to what is left. They begin at zero."""

from collections.abc import Mapping
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from paramarket.plot.look import COLOURS

PARTIES = {"buyer": COLOURS[0], "seller": COLOURS[1], "broker": COLOURS[2], "lost": "lightgrey"}
STEPS = {"up": COLOURS[2], "down": COLOURS[3], "net": COLOURS[0]}


def surplus_bars(bars: Mapping[str, Mapping[str, Float[Tensor, " groups"]]], quantity: str, title: str) -> None:
    """One bar a rule: what buyer, seller and broker get, and what is lost of what there is; see `price.surplus_parts`.

    Beside each bar stands the share that is not lost. All are means over the groups.
    """
    means = pd.DataFrame(columns=list(PARTIES), index=list(bars), dtype=float)
    for rule, parts in bars.items():
        for part, values in parts.items():
            means.loc[rule, part] = values.mean().item()
    axis = means.dropna(axis="columns", how="all").plot.barh(
        stacked=True, color=PARTIES, width=0.6, figsize=(7.2, 1.6 + 0.45 * len(bars))
    )
    for row, parts in enumerate(bars.values()):
        note = _share_kept(parts)
        axis.annotate(note, (1.02, row), xycoords=("axes fraction", "data"), va="center")
    axis.set(title=title, xlabel=quantity)
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.legend(loc="upper left", bbox_to_anchor=(0, -0.35), ncols=4)
    plt.show()


def _share_kept(parts: Mapping[str, Float[Tensor, " groups"]]) -> str:
    """What is said beside a bar: the share of the whole that is not lost."""
    whole = sum(parts.values()).sum().item()
    if whole <= 0:
        return "nothing there"
    lost = parts.get("lost")
    if lost is None or lost.abs().max().item() < 1e-9 * whole:  # rounding is no loss
        return "all kept"
    share = 1 - lost.sum().item() / whole
    return f"{share:.0%} kept"


def waterfall(table: pd.DataFrame, item: str, amount: str, kind: str, title: str, unit: str) -> None:
    """Benefits and costs as steps, each from where the one before ended, and at the end what is left: their sum.

    item, amount, kind: the columns with the names, the amounts (costs below 0) and what is written above all of a kind,
    as in `decide.Roi.table` · unit: of the amounts. What is 0 is left out.
    """
    steps = table[table[amount] != 0].reset_index(drop=True)
    stops = [0.0, *steps[amount].cumsum()]
    _, axis = plt.subplots(figsize=(2 + 0.95 * len(steps), 3.8))
    axis.use_sticky_edges = False  # or nothing would be left above the highest bar for its number
    for column, height in enumerate(steps[amount]):
        colour = STEPS["up"] if height > 0 else STEPS["down"]
        _step(axis, column, stops[column], height, colour)
        axis.plot([column, column + 1], [stops[column + 1]] * 2, color="grey", linewidth=0.8, zorder=0)
    _step(axis, len(steps), 0.0, stops[-1], STEPS["net"])
    for name, rows in steps.groupby(kind, sort=False):
        axis.annotate(f"{name}s", (rows.index.to_numpy().mean(), 1.02), xycoords=("data", "axes fraction"), ha="center")
    names = [fill(name, 13) for name in [*steps[item], "net"]]
    axis.set_xticks(range(len(names)), names, fontsize=8)
    axis.axhline(0, color="black", linewidth=1)
    axis.set_title(title, pad=20)
    axis.set_ylabel(unit)
    axis.margins(y=0.1)
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.grid(visible=False, axis="x")
    plt.show()


def _step(axis: Axes, column: int, start: float, height: float, colour: Any) -> None:
    """One bar, and its number beyond the end that it leads to."""
    axis.bar(column, height, bottom=start, color=colour, width=0.7)
    above = height >= 0
    text = f"{height:+,.0f}".replace("-", "−")
    look = {"ha": "center", "va": "bottom" if above else "top", "weight": "bold", "fontsize": 9}
    axis.annotate(text, (column, start + height), (0, 2 if above else -3), textcoords="offset points", **look)
