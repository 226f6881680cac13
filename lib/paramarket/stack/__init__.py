"""Models as values. A model is its parameters, a stack is K models side by side on one more leading axis.

Two verbs carry the project: `forward` runs all K models at once, `mix` makes new models as weighted sums of old ones.
"""

from paramarket.stack.files import Params, card, card_of, content_hash, load, save
from paramarket.stack.nets import Residual, is_dense, mlp, residual_mlp
from paramarket.stack.values import (
    Stack,
    chain,
    check,
    compare,
    features,
    flat,
    forward,
    init,
    join,
    mix,
    probe,
    run,
    take,
)

__all__ = [
    "Params",
    "Residual",
    "Stack",
    "card",
    "card_of",
    "chain",
    "check",
    "compare",
    "content_hash",
    "features",
    "flat",
    "forward",
    "init",
    "is_dense",
    "join",
    "load",
    "mix",
    "mlp",
    "probe",
    "residual_mlp",
    "run",
    "save",
    "take",
]
