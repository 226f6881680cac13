"""From two checkpoints to a decision: can they be combined, and in which way; try it first, and watch it after."""

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
from paramarket.decide.ways import Case, Service, Way, Ways, recommend, ways

__all__ = [
    "NEGLIGIBLE_BARRIER",
    "NEGLIGIBLE_LOSS",
    "Case",
    "Compatibility",
    "ConfidenceSequence",
    "Pilot",
    "Service",
    "Way",
    "Ways",
    "compatibility",
    "confidence_sequence",
    "drift_alarm",
    "pilot",
    "pilot_examples",
    "pilot_power",
    "recommend",
    "ways",
]
