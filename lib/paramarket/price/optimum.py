"""Where a price is best, over all prices: distributions of any make, and a search that cannot miss a peak."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from paramarket.errors import ParameterError

Points = Float[np.ndarray, " points"]
MOST_POINTS = 2**14
CLOSE = 1e-7  # of the peak: what cannot be higher by more is not searched
TIE = 1e-12  # a smaller difference is rounding


class Distribution(NamedTuple):
    """One continuous distribution: density, distribution function, what lies above, their inverses, mean, support."""

    pdf: Callable
    cdf: Callable
    sf: Callable
    ppf: Callable
    isf: Callable
    mean: float
    support: tuple[float, float]


def continuous(values: Any) -> Distribution | None:
    """A frozen distribution of scipy.stats, or one of its new ones (`stats.Normal(mu=1)`); None for anything else.

    A distribution without a mean, one of whole numbers, and several at once are none.
    """
    names = ("pdf", "cdf", "sf", "ppf", "isf")
    if not all(hasattr(values, name) for name in names):
        names = ("pdf", "cdf", "ccdf", "icdf", "iccdf")
    discrete = any(kind.__name__ == "DiscreteDistribution" for kind in type(values).__mro__)  # it has a pdf, too
    if discrete or not all(hasattr(values, name) for name in (*names, "mean", "support")):
        return None
    try:
        mean, (low, high) = values.mean(), values.support()
        if np.size(mean) != 1 or np.size(low) != 1 or np.isnan([float(low), float(high)]).any():
            return None
    except (TypeError, ValueError, AttributeError):  # one that is not frozen asks for its parameters
        return None
    return Distribution(*(getattr(values, name) for name in names), float(mean), (float(low), float(high)))


def quantiles(inverse: Callable, shares: Points) -> Float[np.ndarray, " found"]:
    """Where a distribution reaches these shares, as far as it can tell: far out some of scipy's find no answer."""
    try:
        found = np.asarray(inverse(shares), dtype=np.float64)
    except (ValueError, RuntimeError, FloatingPointError):
        found = np.array([_quantile(inverse, share) for share in shares])
    return found[np.isfinite(found)]


def _quantile(inverse: Callable, share: float) -> float:
    try:
        return float(inverse(share))
    except (ValueError, RuntimeError, FloatingPointError):
        return np.nan


def highest(height: Callable, slope: Callable, bound: Callable, grid: Points) -> float:
    """The price of the highest peak; of a flat top, or of equal peaks, the lowest price.

    height(points), slope(point) · bound(low, high): what no price between the two exceeds
    Branch and bound: an interval whose bound lies below the best price so far holds no peak, all others are halved, so
    that no peak is missed, however narrow. Raises ParameterError where the best points reach to the end of the grid.
    """
    points = np.unique(grid[np.isfinite(grid)])
    heights = height(points)
    tops = heights >= heights.max() - TIE * abs(heights.max())
    if tops[-1] and not tops[0]:
        raise ParameterError("the tail of values is so heavy that the profit grows with the price without end.")
    low, high = points[:-1], points[1:]
    while len(low) and len(points) < MOST_POINTS:
        best = heights.max()
        higher = bound(low, high) > best + CLOSE * abs(best)
        wide = high - low > 1e-12 * np.maximum(abs(low), abs(high))
        low, high = low[higher & wide], high[higher & wide]
        middle = (low + high) / 2
        points, heights = np.append(points, middle), np.append(heights, height(middle))
        low, high = np.append(low, middle), np.append(middle, high)
    order = points.argsort()
    with np.errstate(all="ignore"):  # a density may be infinite where the support begins
        return _top(points[order], heights[order], height, slope)


def _top(points: Points, heights: Points, height: Callable, slope: Callable) -> float:
    """The lowest of the best points, or where the slope turns beside it."""
    from scipy.optimize import brentq

    ties = heights >= heights.max() - TIE * abs(heights.max())
    first = int(ties.argmax())
    last = first + int(np.append(~ties[first:], True).argmax()) - 1  # of those that lie side by side
    best = float(points[first])
    left, right = points[max(first - 1, 0)], points[min(last + 1, len(points) - 1)]
    if points[last] - best > 1e-4 * abs(best) or not slope(left) > 0 > slope(right):
        return best  # a flat top, or a corner
    turn = float(brentq(slope, left, right, xtol=1e-13))
    return turn if height(np.array([turn]))[0] >= heights[first] * (1 - TIE) else best


def shortfall(cdf: Callable, low: float, cells: Points) -> Callable[[Points], Points]:
    """E[(p - x)+] as a function of prices p within the cells: the integral of the distribution function up to p.

    low: where the support begins · cells: ascending, from the lowest price on; between two of them the integral is
    Gauss-Legendre's on eight nodes, and they are halved as long as that changes it
    """
    from scipy.integrate import quad

    nodes, weights = np.polynomial.legendre.leggauss(8)

    def integral(start: Points, end: Points) -> Points:
        half = (end - start) / 2
        places = start[:, None] + half[:, None] * (nodes + 1)
        return half * (np.asarray(cdf(places.ravel())).reshape(places.shape) @ weights)

    before = quad(cdf, low, cells[0])[0] if low < cells[0] else 0.0
    start, end = cells[:-1], cells[1:]
    sizes = before + np.cumsum(integral(start, end))  # an error is judged by what has been summed up to there
    while len(start) and len(cells) < MOST_POINTS:
        middle = (start + end) / 2
        change = np.abs(integral(start, end) - integral(start, middle) - integral(middle, end))
        coarse = change > 1e-11 * np.abs(sizes)
        start, middle, end, sizes = start[coarse], middle[coarse], end[coarse], sizes[coarse]
        cells = np.union1d(cells, middle)
        start, end = np.concatenate([start, middle]), np.concatenate([middle, end])
        sizes = np.concatenate([sizes, sizes])
    sums = before + np.append(0.0, np.cumsum(integral(cells[:-1], cells[1:])))

    def at(points: Points) -> Points:
        place = np.clip(np.searchsorted(cells, points, side="right") - 1, 0, len(cells) - 1)
        return sums[place] + integral(cells[place], points)

    return at
