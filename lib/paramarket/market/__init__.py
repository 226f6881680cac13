"""Who trades with whom, on what terms, and what is written down: from one quote to a market of many days.

The broker lines up a buyer with its sellers, tries mixtures on `quote` and measures the chosen one on `audit`; a round
of trade settles what was found; the ledger keeps every quote, every cent, and the way back.
"""

from paramarket.market.broker import (
    MATCHES,
    PARTS,
    Audit,
    Quote,
    audit,
    layer_count,
    lineup,
    milliseconds,
    mixed,
    mixtures,
    quote,
    tried,
)
from paramarket.market.classroom import FILE, Entries, hand_in, league, read, trading_day
from paramarket.market.ledger import Ledger, move, opened, revert, written
from paramarket.market.rounds import Books, Splits, meetings, trade
from paramarket.market.run import Outcome, run
from paramarket.market.terms import AUTHORS, FORMS, GRID, RULES, Agent, Market, Terms, plants

__all__ = [
    "AUTHORS",
    "FILE",
    "FORMS",
    "GRID",
    "MATCHES",
    "PARTS",
    "RULES",
    "Agent",
    "Audit",
    "Books",
    "Entries",
    "Ledger",
    "Market",
    "Outcome",
    "Quote",
    "Splits",
    "Terms",
    "audit",
    "hand_in",
    "layer_count",
    "league",
    "lineup",
    "meetings",
    "milliseconds",
    "mixed",
    "mixtures",
    "move",
    "opened",
    "plants",
    "quote",
    "read",
    "revert",
    "run",
    "trade",
    "trading_day",
    "tried",
    "written",
]
