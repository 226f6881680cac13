"""Pictures: weights, images and landscapes, to look at rather than to read off.

`plot` passes these names on: write `plot.image_row`.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from paramarket.merge import Plane


def image_row(images: Float[Tensor, "n channels height width"], captions: Sequence[str], title: str) -> None:
    """Images side by side, each with what there is to say of it."""
    texts = [caption.split("\n") for caption in captions]
    lines, longest = max(map(len, texts)), max(len(line) for text in texts for line in text)
    size = (max(1.1, 0.085 * longest) * len(images), 1.5 + 0.17 * lines)
    figure, axes = plt.subplots(1, len(images), figsize=size, squeeze=False, layout="constrained")
    for axis, image, caption in zip(axes[0], images, captions, strict=True):
        axis.imshow(image.mean(dim=0).numpy(), cmap="gray_r")
        axis.set_title(caption, fontsize=9, weight="normal", loc="center")
        axis.set_axis_off()
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize="medium")
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


def matrices(
    tables: Mapping[str, Float[Tensor, "rows columns"]], quantity: str, title: str, axes_of: tuple[str, str]
) -> None:
    """Matrices side by side on one scale, centred at zero: red is positive, blue negative."""
    figure, axes = plt.subplots(1, len(tables), figsize=(4.4 * len(tables), 3.9), squeeze=False, layout="constrained")
    top = max(table.abs().max().item() for table in tables.values())
    for axis, (name, table) in zip(axes[0], tables.items(), strict=True):
        rows, columns = table.shape
        ends = (0.5, columns + 0.5, rows + 0.5, 0.5)  # counted from 1
        shown = axis.imshow(table.numpy(), cmap="RdBu_r", vmin=-top, vmax=top, extent=ends)
        axis.set_title(name, loc="center", weight="normal")
        axis.set(xlabel=axes_of[1], ylabel=axes_of[0])
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(MaxNLocator(integer=True))
        axis.grid(visible=False)
    figure.colorbar(shown, ax=axes, label=quantity, shrink=0.85)
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize="medium")
    plt.show()


def loss_plane(plane: Plane, losses: Float[Tensor, " models"], corners: Sequence[str], title: str) -> None:
    """The loss on a plane through three models, as a map: dark valleys, bright mountains; logarithmic steps.

    losses: of `plane.models`, in their order · corners: what the three models are called
    """
    figure, axis = plt.subplots(figsize=(5.8, 4.6), layout="constrained")
    heights = losses.cpu().view(len(plane.y), len(plane.x)).numpy()
    levels = np.geomspace(heights.min(), heights.max() * 1.001, 16)
    shown = axis.contourf(plane.x.numpy(), plane.y.numpy(), heights, levels=levels, cmap="viridis", norm="log")
    for name, at in zip(corners, plane.corners.tolist(), strict=True):
        axis.plot(*at, "o", color="white", markeredgecolor="black", markersize=9)
        label = f"{name}\n{np.hypot(*at):.0f} away" if any(at) else name
        axis.annotate(label, at, xytext=(0, 9), textcoords="offset points", ha="center", color="white", weight="bold")
    bar = figure.colorbar(shown, label="loss (nats)", format="%.2f")
    bar.minorticks_off()
    axis.set(title=title, xlabel="distance between weights", ylabel="distance between weights", aspect="equal")
    axis.grid(visible=False)
    plt.show()
