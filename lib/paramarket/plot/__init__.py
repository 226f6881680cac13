"""One style, the interval that seaborn draws, and pictures that take more than one call; a file holds one kind of them.

matplotlib and seaborn take seconds to import: the files open when one of their names is first asked for (PEP 562), so
that whoever draws nothing does not wait.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paramarket.plot.bars import surplus_bars, waterfall
    from paramarket.plot.dots import gain_rows, interval_dots
    from paramarket.plot.images import filters, image_row
    from paramarket.plot.lines import labels_curve
    from paramarket.plot.look import COLOURS, controls, headline, interval95, percent, style
    from paramarket.plot.maps import category_map, cka_heatmap, loss_plane
    from paramarket.plot.schematics import mask_schematic, soup_schematic

__all__ = [
    "COLOURS",
    "category_map",
    "cka_heatmap",
    "controls",
    "filters",
    "gain_rows",
    "headline",
    "image_row",
    "interval95",
    "interval_dots",
    "labels_curve",
    "loss_plane",
    "mask_schematic",
    "percent",
    "soup_schematic",
    "style",
    "surplus_bars",
    "waterfall",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for file in ("bars", "dots", "images", "lines", "look", "maps", "schematics"):
        opened = vars(import_module(f"{__name__}.{file}"))
        globals().update({public: opened[public] for public in __all__ if public in opened})
    return globals()[name]


def __dir__() -> list[str]:
    return __all__
