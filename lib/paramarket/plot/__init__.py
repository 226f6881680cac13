"""One style, and one function for every picture that the notebooks show."""

from paramarket.plot.charts import (
    COLOURS,
    curves,
    layer_bars,
    learning_curves,
    loss_path,
    panels,
    percent,
    share_bars,
    sweeps,
    turning,
    ways,
)
from paramarket.plot.pictures import filters, image_row, loss_plane, matrices
from paramarket.plot.scatters import cka_heatmap, frontier, plane, share_map, trails
from paramarket.plot.style import class_accuracy, controls, money_bars, style
from paramarket.plot.tallies import class_arrows, gain_rows, harm_table, labels_curve, price_sheet, surplus_bars

__all__ = [
    "COLOURS",
    "cka_heatmap",
    "class_accuracy",
    "class_arrows",
    "controls",
    "curves",
    "filters",
    "frontier",
    "gain_rows",
    "harm_table",
    "image_row",
    "labels_curve",
    "layer_bars",
    "learning_curves",
    "loss_path",
    "loss_plane",
    "matrices",
    "money_bars",
    "panels",
    "percent",
    "plane",
    "price_sheet",
    "share_bars",
    "share_map",
    "style",
    "surplus_bars",
    "sweeps",
    "trails",
    "turning",
    "ways",
]
