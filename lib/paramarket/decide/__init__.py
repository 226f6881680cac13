"""From two checkpoints to a decision. So far: can these two be combined at all, and in which way?"""

from paramarket.decide.compatibility import FREE, Compatibility, compatibility

__all__ = [
    "FREE",
    "Compatibility",
    "compatibility",
]
