"""From two checkpoints to a decision. So far: can these two be combined at all, and in which way?"""

from paramarket.decide.compatibility import NEGLIGIBLE_BARRIER, NEGLIGIBLE_LOSS, Compatibility, compatibility

__all__ = [
    "NEGLIGIBLE_BARRIER",
    "NEGLIGIBLE_LOSS",
    "Compatibility",
    "compatibility",
]
