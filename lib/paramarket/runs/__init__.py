"""One run of a notebook, or ten thousand: parameters checked, results recorded, artefacts cached, pages written."""

from paramarket.runs.pages import build, claims, page, with_intervals
from paramarket.runs.records import MIME, cached, check_parameters, claim, environment, read, record, refuse, show
from paramarket.runs.sweep import Outcome, Point, execute, failed_path, run_point

__all__ = [
    "MIME",
    "Outcome",
    "Point",
    "build",
    "cached",
    "check_parameters",
    "claim",
    "claims",
    "environment",
    "execute",
    "failed_path",
    "page",
    "read",
    "record",
    "refuse",
    "run_point",
    "show",
    "with_intervals",
]
