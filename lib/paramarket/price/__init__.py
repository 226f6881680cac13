"""What a purchase should cost, the deal that comes of it, and what the purchase is worth."""

from paramarket.price.rules import (
    Deal,
    double_auction,
    fixed_price,
    linear_equilibrium,
    nash_price,
    posted_price,
    settle,
)
from paramarket.price.worth import expected_top, labels, lemons, parties, refund_rate, regressions, winners_curse

__all__ = [
    "Deal",
    "double_auction",
    "expected_top",
    "fixed_price",
    "labels",
    "lemons",
    "linear_equilibrium",
    "nash_price",
    "parties",
    "posted_price",
    "refund_rate",
    "regressions",
    "settle",
    "winners_curse",
]
