"""Who trades with whom, on what terms, and what is written down: from one quote to a market of many days.

The broker lines up a buyer with its sellers, tries mixtures on `quote` and measures the chosen one on `audit`; a round
of trade settles what was found; the ledger keeps every quote, every cent, and the way back.
"""

from paramarket.market.broker import (
    MATCHES,
    PARTS,
    Audit,
    MixtureScores,
    Quote,
    audit,
    evaluate_mixtures,
    lineup,
    mix_layers,
    purchase_weights,
    quote,
)
from paramarket.market.classroom import ENTRY_FILE, Entries, hand_in, league, read_entries, trading_day
from paramarket.market.ledger import (
    Books,
    Ledger,
    open_accounts,
    open_books,
    pay,
    record_quotes,
    revert,
    split_cents,
)
from paramarket.market.rounds import Meetings, Outcome, Traded, meetings, run, trade
from paramarket.market.terms import AUTHORS, FORMS, GRID, RULES, Agent, Market, Splits, Terms, plants

__all__ = [
    "AUTHORS",
    "ENTRY_FILE",
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
    "Meetings",
    "MixtureScores",
    "Outcome",
    "Quote",
    "Splits",
    "Terms",
    "Traded",
    "audit",
    "evaluate_mixtures",
    "hand_in",
    "league",
    "lineup",
    "meetings",
    "mix_layers",
    "open_accounts",
    "open_books",
    "pay",
    "plants",
    "purchase_weights",
    "quote",
    "read_entries",
    "record_quotes",
    "revert",
    "run",
    "split_cents",
    "trade",
    "trading_day",
]
