"""Numbers as a record holds them, and as a reader wants them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from paramarket.base import Interval
from paramarket.errors import ParameterError


def finite(name: str, value: Any) -> float:
    """One finite number, as Python has it: numpy's and torch's single numbers are taken out of their boxes."""
    if isinstance(value, (np.generic, np.ndarray, Tensor)) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, (int, float)):
        raise ParameterError(f"{name} is of type {type(value).__name__}, expected one number, a text or an Interval.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ParameterError(f"{name} is {value}: a record holds finite numbers only.")
    return value


def format_number(value: Any, unit: str = "") -> str:
    """A number as a reader wants it, with four digits or to the unit; whole numbers and texts stay what they are.

    unit: see `claim`.

    >>> [format_number(value) for value in (0.123456, 12345.6, 7, "digits")]
    ['0.1235', '12,346', '7', 'digits']
    >>> format_number(0.02, "nats"), format_number(0.02, "%"), format_number(0.02, "% points")
    ('0.02 nats', '2 %', '2 points')
    >>> format_number(0.01, "% points")
    '1 point'
    """
    return _with_unit(_four_digits(_scaled(value, unit)), unit)


def format_interval(interval: Interval, unit: str = "") -> str:
    """`mean [low, high] unit`, all three with as many decimals as give the interval's length two digits.

    There are never more than four digits in all: a tiny interval is the noise of floating-point numbers.

    unit: see `claim`.

    >>> format_interval(Interval(1.2597, 1.2034, 1.3161), "nats")
    '1.26 [1.20, 1.32] nats'
    >>> format_interval(Interval(1736.0, 1507.2, 1965.1), "euros a day")
    '1,736 [1,507, 1,965] euros a day'
    >>> format_interval(Interval(0.594, 0.5821, 0.6059), "%")
    '59.4 [58.2, 60.6] %'
    """
    ends = [_scaled(value, unit) for value in interval]
    if math.isclose(ends[1], ends[2], rel_tol=1e-9):
        shown = [_four_digits(value) for value in ends]
    else:
        two_digits_of_length = 1 - math.floor(math.log10(ends[2] - ends[1]))
        four_digits = 3 - math.floor(math.log10(max(abs(value) for value in ends)))
        decimals = max(0, min(two_digits_of_length, four_digits))
        shown = [f"{value:,.{decimals}f}" for value in ends]
    return _with_unit(f"{shown[0]} [{shown[1]}, {shown[2]}]", unit)


def format_results(results: Mapping[str, Any]) -> dict[str, str]:
    """{name: what a reader sees} of recorded results: `x`, `x_low`, `x_high` become one entry, `x [low, high]`.

    >>> format_results({"gain": 0.5, "gain_low": 0.4, "gain_high": 0.6, "best": "mean"})
    {'gain': '0.50 [0.40, 0.60]', 'best': 'mean'}
    """
    shown, ends = {}, set()
    for name, value in results.items():
        low, high = f"{name}_low", f"{name}_high"
        if low in results and high in results:
            shown[name] = format_interval(Interval(value, results[low], results[high]))
            ends.update((low, high))
        else:
            shown[name] = format_number(value)
    return {name: text for name, text in shown.items() if name not in ends}


def _four_digits(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _scaled(value: Any, unit: str) -> Any:
    """A share is read in hundredths."""
    return 100 * value if unit.startswith("%") else value


def _with_unit(number: str, unit: str) -> str:
    unit = unit.removeprefix("% ")
    if number == "1" and unit in ("points", "nats"):
        unit = unit.removesuffix("s")
    return f"{number} {unit}".strip()
