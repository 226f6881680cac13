"""Schematics: how a soup's sum and sparse experts' masks are put together, drawn with small matrices of weights.

The weights are made up. Every square is a weight; the deeper its colour, the larger it is.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

from paramarket.base import stream, whole_number
from paramarket.errors import ParameterError
from paramarket.plot.look import COLOURS

Colour = tuple[float, float, float]
GREY = (0.35, 0.35, 0.35)
SIDE = 5  # squares on a matrix' side
STEP = 1.5  # from one matrix of a sum to the next
INK = "black"
CHANGE = COLOURS[0]
BACK = COLOURS[3]
EXPERTS = [COLOURS[k] for k in (0, 1, 2, 4)]  # blue, orange, green, pink: told apart from grey, and from one another


def soup_schematic(experts: int = 3) -> None:
    """A soup of experts: Theta(h) = S + sum_i alpha_i E_i, where the router phi makes alpha of a customer's h.

    experts: how many are drawn, 1 to 4. Raises ParameterError for another number.
    """
    _check_drawable(experts)
    drawn = np.random.default_rng(stream(0, "soup schematic").initial_seed())
    alpha = np.array([0.8, 0.1, 0.4, 0.2])[:experts]
    base = _shades(drawn.uniform(0.1, 0.9, (SIDE, SIDE)), GREY)
    bank = [_shades(drawn.uniform(0, 1, (SIDE, SIDE)), EXPERTS[i]) for i in range(experts)]
    places = STEP * np.arange(experts + 2)  # of S, of every expert, of Theta
    axis = _canvas(places[-1] + 1.6, (-0.8, 3.0))

    _matrix(axis, (places[0], 0), base, "base $S$")
    for i in range(experts):
        x = places[i + 1]
        _matrix(axis, (x, 0), bank[i], f"expert $E_{i + 1}$", colour=EXPERTS[i])
        _text(axis, x - 0.25, 0.5, "+", size=15)
        _text(axis, x + 0.5, 1.22, rf"$\alpha_{i + 1}$ = {alpha[i]:.1f} ×", colour=EXPERTS[i], weight="bold")
    _text(axis, places[-1] - 0.25, 0.5, "=", size=15)
    _matrix(axis, (places[-1], 0), _add_up(base, bank, alpha), r"the customer's $\Theta(h)$")

    _draw_router(axis, places[1:-1] + 0.5)
    _draw_backward(axis, places + 0.5)
    axis.set_title("What a customer sees decides how much of each expert goes into its network")
    plt.show()


def _add_up(base: np.ndarray, bank: list[np.ndarray], alpha: np.ndarray) -> np.ndarray:
    """The colours of a weighted sum: those of the parts laid over each other."""
    ink = (1 - base) + np.tensordot(alpha, 1 - np.stack(bank), axes=1)
    return 1 - ink / ink.max() * 0.95


def _draw_router(axis: Axes, experts: np.ndarray) -> None:
    """The way from a customer's h, a row of bars, through the router to the alpha of each expert, above its place."""
    shares = np.array([0.6, 0.0, 0.3, 0.0, 0.1])
    bars = 0.5 + 0.17 * np.arange(-2, 3)
    axis.bar(bars, shares, width=0.13, bottom=2.2, color="black")
    axis.plot([0.05, 0.95], [2.2, 2.2], color="black", lw=1)
    _text(axis, 0.5, 2.02, "what it sees: $h$")
    centre = experts.mean()
    box = FancyBboxPatch((centre - 0.5, 2.2), 1, 0.5, boxstyle="round,pad=0.05", facecolor="white", edgecolor="black")
    axis.add_patch(box)
    _text(axis, centre, 2.45, r"router $\varphi$")
    _arrow(axis, (1.15, 2.45), (centre - 0.6, 2.45), "black")
    for i, x in enumerate(experts):
        _arrow(axis, (centre, 2.12), (x, 1.42), EXPERTS[i])


def _draw_backward(axis: Axes, places: np.ndarray) -> None:
    """The way back, from Theta to every part."""
    *parts, end = places
    low = -0.55
    axis.plot([end, end, parts[0]], [-0.32, low, low], color=BACK, lw=1.4)
    for x in parts:
        _arrow(axis, (x, low), (x, -0.3), BACK)
    _text(axis, (parts[0] + end) / 2, low - 0.17, "one backward pass trains every part, and the router", colour=BACK)


def mask_schematic(experts: int = 3) -> None:
    """Sparse interpolated experts: pretrained + (sum_m alpha_m z_m) * delta, a mask z_m of open and closed gates each.

    experts: how many masks are drawn, 1 to 4. Raises ParameterError for another number.
    """
    _check_drawable(experts)
    drawn = np.random.default_rng(stream(0, "mask schematic").initial_seed())
    alpha = {1: [1.0], 2: [0.7, 0.3], 3: [0.6, 0.3, 0.1], 4: [0.4, 0.3, 0.2, 0.1]}[experts]
    pretrained = _shades(drawn.uniform(0.15, 0.8, (SIDE, SIDE)), GREY)
    change = drawn.uniform(0.5, 1, (SIDE, SIDE))
    gates = np.arange(SIDE * SIDE) < 4  # how many are open
    masks = np.stack([drawn.permutation(gates).reshape(SIDE, SIDE) for _ in range(experts)])
    middle = 0.7 * (experts - 1)
    axis = _canvas(9.4, (-0.4, 2 * middle + 1.2))

    _matrix(axis, (0, middle), _shades(change, CHANGE), "one shared\nchange $\\delta$", colour=CHANGE)
    for m, mask in enumerate(masks):
        y = 2 * middle - 1.4 * m
        _arrow(axis, (1.1, middle + 0.5), (2.1, y + 0.5), CHANGE)
        _matrix(axis, (2.2, y), _shades(change * mask, CHANGE), f"mask $z_{m + 1}$")
        _text(axis, 3.75, y + 0.5, rf"× $\alpha_{m + 1}$ = {alpha[m]:.1f}", weight="bold")
        _arrow(axis, (4.3, y + 0.5), (5.0, middle + 0.5), CHANGE)
    share = np.tensordot(alpha, masks, axes=1)
    added = _shades(change * np.sqrt(share), CHANGE)  # the root: a tenth can still be seen
    _matrix(axis, (5.1, middle), added, "the task's\nchange", colour=CHANGE)
    _text(axis, 6.4, middle + 0.5, "+", size=15)
    _matrix(axis, (6.7, middle), pretrained, "pretrained,\nfrozen")
    _text(axis, 8.0, middle + 0.5, "=", size=15)
    untouched = (share == 0)[..., None]
    _matrix(axis, (8.3, middle), np.where(untouched, pretrained, added), "the task's\nnetwork")
    axis.set_title("One shared change; every expert's mask lets a few of its weights through")
    plt.show()


def _check_drawable(experts: int) -> None:
    if whole_number("experts", experts, least=1) > len(EXPERTS):
        raise ParameterError(f"experts = {experts}: expected 1 to {len(EXPERTS)}, as many as there are colours.")


def _canvas(right: float, heights: tuple[float, float]) -> Axes:
    """An empty sheet on which a matrix is one unit wide and high."""
    low, high = heights
    _, axis = plt.subplots(figsize=(right + 0.4, high - low + 0.3), layout="constrained")
    axis.set(xlim=(-0.3, right), ylim=(low, high), aspect="equal")
    axis.set_axis_off()
    return axis


def _shades(values: np.ndarray, colour: Colour) -> np.ndarray:
    """Values from 0 to 1 as colours [..., 3], from white to `colour`."""
    return 1 - values[..., None] * (1 - np.array(colour))


def _matrix(
    axis: Axes, corner: tuple[float, float], colours: np.ndarray, name: str, colour: Colour | str = INK
) -> None:
    """A matrix of squares, from its lower left corner, and its name beneath."""
    x, y = corner
    side = 1 / SIDE
    for row, column in np.ndindex(SIDE, SIDE):
        place = (x + column * side, y + 1 - (row + 1) * side)
        axis.add_patch(Rectangle(place, side, side, facecolor=colours[row, column], edgecolor=".85", linewidth=0.8))
    axis.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=colour, linewidth=1.4))
    axis.text(x + 0.5, y - 0.06, name, ha="center", va="top", color=colour, fontsize=11)


def _text(axis: Axes, x: float, y: float, text: str, colour: Colour | str = INK, size: int = 11, **look: str) -> None:
    axis.text(x, y, text, ha="center", va="center", color=colour, fontsize=size, **look)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], colour: Colour | str) -> None:
    look = {"arrowstyle": "-|>", "color": colour, "lw": 1.4, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", end, start, arrowprops=look)
