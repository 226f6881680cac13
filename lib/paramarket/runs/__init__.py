"""One run of a notebook, or ten thousand: parameters checked, results recorded, artefacts cached, pages written."""

from paramarket.runs.cache import cached
from paramarket.runs.pages import build_pages, results_table
from paramarket.runs.parameters import check_parameters, refuse_if
from paramarket.runs.records import MIME, claim, environment, format_number, read, record
from paramarket.runs.sweep import Point, RunOutcome, execute, failed_path, run_point

__all__ = [
    "MIME",
    "Point",
    "RunOutcome",
    "build_pages",
    "cached",
    "check_parameters",
    "claim",
    "environment",
    "execute",
    "failed_path",
    "format_number",
    "read",
    "record",
    "refuse_if",
    "results_table",
    "run_point",
]
