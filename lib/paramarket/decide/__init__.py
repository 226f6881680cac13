"""From two checkpoints to a decision: can these two be combined, and in which way; try it first, and watch it after."""

from paramarket.decide.compatibility import NEGLIGIBLE_BARRIER, NEGLIGIBLE_LOSS, Compatibility, compatibility
from paramarket.decide.pilot import (
    ConfidenceSequence,
    Pilot,
    confidence_sequence,
    drift_alarm,
    pilot,
    pilot_examples,
    pilot_power,
)

__all__ = [
    "NEGLIGIBLE_BARRIER",
    "NEGLIGIBLE_LOSS",
    "Compatibility",
    "ConfidenceSequence",
    "Pilot",
    "compatibility",
    "confidence_sequence",
    "drift_alarm",
    "pilot",
    "pilot_examples",
    "pilot_power",
]
