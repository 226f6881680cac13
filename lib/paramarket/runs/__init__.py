"""One run of a notebook, or ten thousand: parameters checked, results recorded, artefacts cached, pages written."""

from paramarket.runs.cache import cached
from paramarket.runs.claims import claim
from paramarket.runs.folders import failed_path
from paramarket.runs.formats import format_interval, format_number
from paramarket.runs.grids import Point, points
from paramarket.runs.index import build_pages
from paramarket.runs.pages import GENERATOR
from paramarket.runs.parameters import Check, ascending, check_parameters, file, folder, number, odd
from paramarket.runs.pictures import find_browser, small_figure, small_term_sheet
from paramarket.runs.records import MIME, environment, read, record
from paramarket.runs.results import results_table
from paramarket.runs.strip import strip
from paramarket.runs.sweep import RunOutcome, execute, run_point
from paramarket.runs.tables import gather, write_table

__all__ = [
    "GENERATOR",
    "MIME",
    "Check",
    "Point",
    "RunOutcome",
    "ascending",
    "build_pages",
    "cached",
    "check_parameters",
    "claim",
    "environment",
    "execute",
    "failed_path",
    "file",
    "find_browser",
    "folder",
    "format_interval",
    "format_number",
    "gather",
    "number",
    "odd",
    "points",
    "read",
    "record",
    "results_table",
    "run_point",
    "small_figure",
    "small_term_sheet",
    "strip",
    "write_table",
]
