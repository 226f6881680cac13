"""What a purchase should cost, the deal that comes of it, and what the purchase is worth."""

from paramarket.price.caution import Caution, cautious_trades
from paramarket.price.money import to_cents, whole_units
from paramarket.price.rules import (
    Bargain,
    Deal,
    Fixed,
    Posted,
    PriceRule,
    Strategies,
    double_auction,
    fixed_price,
    linear_equilibrium,
    nash_price,
    posted_price,
    settle,
)
from paramarket.price.sharing import shapley_shares
from paramarket.price.theory import (
    RegressionMarket,
    Regressions,
    expected_maximum,
    refund_rate,
    regression_market,
    regressions,
)
from paramarket.price.worth import (
    Curse,
    LemonMarket,
    SurplusParts,
    labels_worth,
    lemon_market,
    surplus_parts,
    winners_curse,
)

__all__ = [
    "Bargain",
    "Caution",
    "Curse",
    "Deal",
    "Fixed",
    "LemonMarket",
    "Posted",
    "PriceRule",
    "RegressionMarket",
    "Regressions",
    "Strategies",
    "SurplusParts",
    "cautious_trades",
    "double_auction",
    "expected_maximum",
    "fixed_price",
    "labels_worth",
    "lemon_market",
    "linear_equilibrium",
    "nash_price",
    "posted_price",
    "refund_rate",
    "regression_market",
    "regressions",
    "settle",
    "shapley_shares",
    "surplus_parts",
    "to_cents",
    "whole_units",
    "winners_curse",
]
