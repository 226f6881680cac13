"""Lines: numbers over steps, shares or settings. Each takes raw values, seeds first, and draws their 95 % interval."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from jaxtyping import Float
from torch import Tensor

from paramarket.plot.look import COLOURS, headline, interval95, percent, tidy

Numbers = Float[Tensor, "seeds settings"]
Panels = Mapping[str, Mapping[str, Numbers]]  # {panel: {line: numbers}}
LOOK = {"errorbar": interval95, "err_kws": {"linewidth": 0}, "marker": "o", "markersize": 4.5, "markeredgewidth": 0}


def panels(names: Sequence[str], values: Mapping[str, Float[Tensor, "panels seeds ticks"]]) -> Panels:
    """{panel: {line: [seeds, ticks]}} from {line: [panels, seeds, ticks]}."""
    return {name: {line: each[k] for line, each in values.items()} for k, name in enumerate(names)}


def _table(lines: Panels, places: Sequence[float] | None = None) -> pd.DataFrame:
    """What `tidy` makes of every panel, one beneath the other; "panel" says which."""
    tables = [tidy(each, places).assign(panel=panel) for panel, each in lines.items()]
    return pd.concat(tables, ignore_index=True)


def _draw(table: pd.DataFrame, height: float, title: str, **facets: Any) -> sns.FacetGrid:
    """A line a name in every panel, the band its interval over seeds; one legend for all, beneath them.

    facets: for FacetGrid, which axes are shared and how high the rows are
    """
    row = "row" if "row" in table else None
    grid = sns.relplot(
        table, kind="line", x="place", y="value", hue="name", col="panel", row=row, facet_kws=facets, **LOOK
    )
    grid.set_titles("{col_name}", size="medium")
    grid.figure.set_size_inches(9.6, height)
    grid.figure.set_layout_engine("constrained")
    sns.move_legend(grid, "outside lower center", ncols=4, title=None, frameon=True)
    headline(grid.figure, title)
    return grid


def curves(ticks: Sequence[object], lines: Panels, axes_of: tuple[str, str], title: str) -> None:
    """Panels side by side over the same ticks, one line a name, bands the intervals over seeds.

    The ticks are equally far apart, which is how doubling steps are to be read.
    """
    grid = _draw(_table(lines), 3.9, title)
    grid.set_axis_labels(*axes_of)
    grid.set(xticks=range(len(ticks)), xticklabels=ticks)
    plt.show()


def sweeps(
    panels: Mapping[str, tuple[Sequence[float], Mapping[str, Numbers], Numbers]], quantity: str, title: str
) -> None:
    """One panel a setting: {what is varied: (its values, {name: numbers}, accuracy to be noted beneath each value)}."""
    lines = {what.replace("_", " "): numbers for what, (_, numbers, _) in panels.items()}
    grid = _draw(_table(lines), 4, title, sharex=False)
    for what, (values, _, accuracy) in panels.items():
        axis = grid.axes_dict[what.replace("_", " ")]
        beneath = zip(values, accuracy.mean(dim=0).tolist(), strict=True)
        axis.set_xticks(range(len(values)), [f"{value:g}\n{share:.0%}" for value, share in beneath])
        axis.set(title="", xlabel=what.replace("_", " "))
        axis.axhline(0, color="black", linewidth=1)
    grid.set_ylabels(quantity)
    plt.show()


def labels_curve(
    extra: Sequence[int],
    curve: Float[Tensor, "seeds points"],
    reached: Mapping[str, tuple[Float[Tensor, " seeds"], Float[Tensor, " seeds"]]],
    title: str,
) -> None:
    """The buyers' own learning curve over labels more; and {purchase: (accuracy, labels)} read off at it."""
    _, axis = plt.subplots()
    sns.lineplot(tidy({"": curve}, extra), x="place", y="value", ax=axis, label="labels of its own", **LOOK)
    floor = curve.mean(dim=0).min().item()
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
