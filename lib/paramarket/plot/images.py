"""Images: examples and first-layer weights, to look at rather than to read off."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from torch import Tensor

from paramarket.plot.look import headline


def image_row(images: Float[Tensor, "n channels height width"], captions: Sequence[str], title: str) -> None:
    """Images side by side, all on one scale of greys, each with what there is to say of it.

    The scale leaves out the most extreme pixel in a hundred at either end, so that noise does not pale the rest.
    """
    texts = [caption.split("\n") for caption in captions]
    lines = max(len(text) for text in texts)
    longest = max(len(line) for text in texts for line in text)
    size = (max(1.1, 0.085 * longest) * len(images), 1.5 + 0.17 * lines)
    figure, axes = plt.subplots(1, len(images), figsize=size, squeeze=False, layout="constrained")
    grey = images.mean(dim=1).numpy()
    darkest, brightest = np.quantile(grey, [0.01, 0.99])
    for axis, image, caption in zip(axes[0], grey, captions, strict=True):
        axis.imshow(image, cmap="gray_r", vmin=darkest, vmax=brightest)
        axis.set_title(caption, fontsize=9, weight="normal", loc="center")
        axis.set_axis_off()
    headline(figure, title)
    plt.show()


def filters(rows: Mapping[str, Float[Tensor, "units height width"]], first: int, title: str) -> None:
    """First-layer weights as images, one row a network: red pixels speak for a unit, blue ones against it."""
    units = max(len(images) for images in rows.values())
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
    headline(figure, title)
    plt.show()
