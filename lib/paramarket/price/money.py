"""Money is whole: the one place where an amount becomes cents, or whole units of any other smallest money.

What a computer holds of .29 lies a little beside it. An amount is therefore taken for the decimal number that it means:
what lies within a millionth of a cent of a whole cent, or of a half one, is that.
"""

from collections.abc import Sequence

import numpy as np

from paramarket.errors import ParameterError, unknown

Amounts = float | int | Sequence[float] | np.ndarray
ROUNDINGS = ("nearest", "down", "up")
CLOSE = 1e-6  # of a unit
MOST = 2**50  # cents: above, float64 would soon not tell one cent from the next


def whole_units(amount: Amounts, unit: float, rounding: str = "nearest") -> np.ndarray:
    """How many units of money an amount is: whole numbers as float64; NaN, no amount, stays NaN.

    rounding: "nearest" (halves to the even neighbour), for prices and fees · "down", for a value that a buyer may not
    exceed · "up", for a cost that a seller must get
    """
    if rounding not in ROUNDINGS:
        raise ParameterError(unknown("rounding", rounding, ROUNDINGS))
    units = np.asarray(amount, dtype=np.float64) * (1 / unit)
    close = np.maximum(CLOSE, 2 * np.spacing(np.abs(units)))
    if rounding == "down":
        return np.asarray(np.floor(units + close))
    if rounding == "up":
        return np.asarray(np.ceil(units - close) + 0.0)  # no negative zero
    half = np.floor(units) + 0.5
    return np.asarray(np.rint(np.where(np.abs(units - half) <= close, half, units)) + 0.0)


def to_cents(euros: Amounts, rounding: str = "nearest") -> np.ndarray:
    """Euros as whole cents, int64; see `whole_units`. ParameterError for what is not finite, or above 10^13 euros.

    >>> from paramarket import price
    >>> price.to_cents([0.29, 1.005, 1.015]).tolist()  # 100 * .29 is 28.999999999999996 to a computer
    [29, 100, 102]
    >>> price.to_cents(1.239, "down").item(), price.to_cents(1.231, "up").item()
    (123, 124)
    """
    euros = np.asarray(euros, dtype=np.float64)
    fine = np.isfinite(euros) & (np.abs(euros) <= MOST / 100)
    if not fine.all():
        raise ParameterError(
            f"{euros[~fine][0]:g} euros, expected a finite sum of no more than {MOST / 100:.2g} euros."
        )
    return whole_units(euros, 0.01, rounding).astype(np.int64)
