"""Lines: a learning curve, and what is read off at it."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import seaborn as sns
from jaxtyping import Float
from torch import Tensor

from paramarket.plot.look import COLOURS, interval95, percent, tidy

LOOK = {"errorbar": interval95, "err_kws": {"linewidth": 0}, "marker": "o", "markersize": 4.5, "markeredgewidth": 0}


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
