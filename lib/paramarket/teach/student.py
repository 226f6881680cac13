"""Student copies: the notebooks without their solutions."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paramarket.base import atomic
from paramarket.errors import DataError

# What a region is called in its marks, and what stands in its place; as in nbgrader's preprocessors ClearSolutions,
# ClearHiddenTests and ClearMarkScheme: a mark counts wherever it stands in a line, whatever is around it.
_STUBS = {"code": "raise NotImplementedError", "markdown": "YOUR ANSWER HERE", "raw": "YOUR ANSWER HERE"}
_REGIONS = ("SOLUTION", "HIDDEN TESTS", "MARK SCHEME")
_ALMOST = re.compile(r"\b(begin|end)[\s_-]*(solution|hidden[\s_-]*tests?|mark[\s_-]*scheme)\b", re.I)
_LINE_END = re.compile(r"\r\n|\r|\n")


def student_copy(notebook: Path | str, output: Path | str) -> None:
    """Write the notebook without its solutions and outputs: what stands between the solution marks becomes a stub.

    Marks are nbgrader's, and so are its rules: `### BEGIN SOLUTION` and `### END SOLUTION` count wherever they stand in
    a line, and what lies between is left out whole. Hidden tests and mark schemes go, too. Raises DataError, naming the
    cell, for a region that is nested or not closed, one in a cell that is not marked as a solution, a solution without
    a region, and a line that reads almost like a mark; no copy is written then. A copy that exists already, perhaps
    with a learner's own work in it, is never overwritten.
    """
    if Path(output).exists():
        raise DataError(
            f"{output} exists already, perhaps with a learner's work in it: move it, or name another folder."
        )
    import nbformat  # not above: it takes as long to import as all the rest a notebook needs

    try:
        copy = nbformat.read(notebook, as_version=4)
    except Exception as error:  # nbformat has its own, json others, for what is no notebook
        raise DataError(f"{notebook} is no readable notebook ({' '.join(str(error).split())[:200]}).") from error
    for number, cell in enumerate(copy.cells, start=1):
        where = f"{notebook}, cell {number}"
        for region in _REGIONS:
            _cut(cell, region, where)
        if _ALMOST.search(cell.source) and (cell.cell_type == "code" or _is_solution(cell)):
            raise DataError(f"{where}: {_ALMOST.search(cell.source)[0]!r} reads almost like a mark: write it as one.")
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    copy.metadata.pop("widgets", None)  # what controls showed last
    with atomic(output) as beside:
        nbformat.write(copy, beside)


def _is_solution(cell: Any) -> bool:
    marks = cell.metadata.get("nbgrader")
    return isinstance(marks, Mapping) and bool(marks.get("solution"))


def _cut(cell: Any, region: str, where: str) -> None:
    """Leave out what stands between the marks of a region; of a solution, put a stub in its place."""
    begin, end = f"BEGIN {region}", f"END {region}"
    kept = []
    inside = found = False
    for line in _LINE_END.split(cell.source):
        if begin in line:
            if inside:
                raise DataError(f"{where}: {begin} within another one: close the first with {end}.")
            inside = found = True
            if region == "SOLUTION":
                kept.append(line[: len(line) - len(line.lstrip())] + _STUBS[cell.cell_type])
        elif end in line:
            if not inside:
                raise DataError(f"{where}: {end} without {begin}.")
            inside = False
        elif not inside:
            kept.append(line)
    if inside:
        raise DataError(f"{where}: {begin} is not closed: {end} is missing.")
    if region == "SOLUTION" and found != _is_solution(cell):
        if found:
            raise DataError(f"{where} has a solution, and is not marked as one in nbgrader's metadata: mark it.")
        raise DataError(f"{where}: the solution cell has no ### BEGIN SOLUTION … ### END SOLUTION.")
    if found:
        cell.source = "\n".join(kept)
