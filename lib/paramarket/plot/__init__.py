"""One style, and one function for every picture that the notebooks show; a file holds one kind of picture."""

from paramarket.plot.bars import layer_bars, money_bars, share_bars, surplus_bars
from paramarket.plot.dots import PriceRow, class_accuracy, class_arrows, gain_rows, price_sheet, ways
from paramarket.plot.images import filters, image_row
from paramarket.plot.lines import curves, labels_curve, learning_curves, loss_path, panels, sweeps, turning
from paramarket.plot.maps import cka_heatmap, harm_table, loss_plane, matrices, share_map
from paramarket.plot.scatter import Spots, frontier, method_plane, trails
from paramarket.plot.style import COLOURS, controls, percent, style

__all__ = [
    "COLOURS",
    "PriceRow",
    "Spots",
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
    "method_plane",
    "money_bars",
    "panels",
    "percent",
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
