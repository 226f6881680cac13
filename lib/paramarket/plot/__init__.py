"""One style, the interval that seaborn draws, and pictures that take more than one call; a file holds one kind of them.

matplotlib and seaborn take seconds to import: the files open when one of their names is first asked for (PEP 562), so
that whoever draws nothing does not wait.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paramarket.plot.bars import layer_bars, share_bars, surplus_bars, waterfall
    from paramarket.plot.dots import PriceRow, class_accuracy, gain_rows, interval_dots, price_sheet, ways
    from paramarket.plot.images import filters, image_row
    from paramarket.plot.lines import curves, labels_curve, panels, sweeps
    from paramarket.plot.look import COLOURS, controls, headline, interval95, percent, style
    from paramarket.plot.maps import category_map, cka_heatmap, harm_table, loss_plane, matrices, share_map
    from paramarket.plot.scatter import method_plane
    from paramarket.plot.schematics import mask_schematic, soup_schematic

__all__ = [
    "COLOURS",
    "PriceRow",
    "category_map",
    "cka_heatmap",
    "class_accuracy",
    "controls",
    "curves",
    "filters",
    "gain_rows",
    "harm_table",
    "headline",
    "image_row",
    "interval95",
    "interval_dots",
    "labels_curve",
    "layer_bars",
    "loss_plane",
    "mask_schematic",
    "matrices",
    "method_plane",
    "panels",
    "percent",
    "price_sheet",
    "share_bars",
    "share_map",
    "soup_schematic",
    "style",
    "surplus_bars",
    "sweeps",
    "waterfall",
    "ways",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for file in ("bars", "dots", "images", "lines", "look", "maps", "scatter", "schematics"):
        opened = vars(import_module(f"{__name__}.{file}"))
        globals().update({public: opened[public] for public in __all__ if public in opened})
    return globals()[name]


def __dir__() -> list[str]:
    return __all__
