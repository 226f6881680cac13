"""What lies in the folder of a sweep: its points by hash, the reasons of those that failed, and what made them."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from paramarket.base import atomic
from paramarket.errors import DataError, ParameterError
from paramarket.runs.grids import THREADS, Point, origin_of, point_hash
from paramarket.runs.inspection import declared_parameters
from paramarket.runs.records import environment

DESCRIPTION = "sweep.json"


def failed_path(output: Path | str) -> Path:
    """Where the half-run notebook of a failed point stays."""
    return Path(output).with_suffix(".failed.ipynb")


def half_path(output: Path | str) -> Path:
    """Where a notebook is written while it runs."""
    return Path(output).with_suffix(".half.ipynb")


def reason_path(output: Path | str) -> Path:
    """Where the reason of a failed point stays."""
    return Path(output).with_suffix(".failed.json")


def is_whole(output: Path | str) -> bool:
    """Whether a point has run to its end. Its name says so; a disk that lost power may have kept the name only."""
    try:
        with Path(output).open("rb") as file:
            file.seek(-2, os.SEEK_END)
            return file.read().rstrip().endswith(b"}")
    except OSError:  # there is none, or it is empty
        return False


def keep_failure(point: Point, error: str) -> None:
    """Write down why a point failed, so that a rerun and `gather` know; its half-run notebook lies beside it."""
    if half_path(point.output).is_file():  # of a worker that was killed
        half_path(point.output).replace(failed_path(point.output))
    with atomic(reason_path(point.output)) as beside:
        content = {"hash": point.hash, "error": error, "parameters": point.parameters}
        beside.write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_failure(path: Path) -> dict[str, Any] | None:
    """The hash, error and parameters that `keep_failure` wrote; None if there is no such file, or half of one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def open_folder(folder: Path, points: Sequence[Point]) -> Path:
    """Make the folder of these points, write what makes them into sweep.json, and give a copy of their notebook.

    It is the copy that runs: whoever edits the notebook meanwhile changes no point. The grid may grow from sweep to
    sweep. Another notebook, library or number of threads is a ParameterError: its points would stand in one table.
    """
    notebook = points[0].notebook
    origin = origin_of(notebook)
    for point in points:
        if point.notebook != notebook:
            raise ParameterError(f"{folder} is for one notebook, got {notebook.name} and {point.notebook.name}.")
        if point.hash != point_hash(origin, point.parameters):
            raise ParameterError(f"{notebook.name} or the library changed since these points were made: make new ones.")
    known = read_description(folder) if (folder / DESCRIPTION).exists() else {"sweeps": []}
    for name, now in {"notebook": notebook.name, **origin}.items():
        before = known.get(name, now)
        if before != now:
            raise ParameterError(
                f"{folder} holds a sweep with another {name} ({before}, now {now}). Name another folder."
            )
    sweeps = [each for each in known["sweeps"] if each["command"] != _command()]
    content = {
        "notebook": notebook.name,
        **origin,
        "parameters": list(declared_parameters(notebook)),
        "sweeps": [*sweeps, _this_sweep(points)],
    }
    with atomic(folder / DESCRIPTION) as beside:
        beside.write_text(json.dumps(content, indent=1), encoding="utf-8")
    copy = folder / notebook.name
    with atomic(copy) as beside:
        shutil.copyfile(notebook, beside)
    return copy


def read_description(folder: Path) -> dict[str, Any]:
    """What made the points of a folder; DataError if it does not say so."""
    try:
        content = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        return {"notebook": content["notebook"], "parameters": content["parameters"], **content}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is no folder of a sweep: its {DESCRIPTION} cannot be read ({error}).") from error


def _this_sweep(points: Sequence[Point]) -> dict[str, Any]:
    """One entry of sweep.json: the command, when, on what, and which values."""
    varied, fixed = {}, {}
    for name in points[0].parameters:
        values = {json.dumps(point.parameters[name]): point.parameters[name] for point in points}
        if len(values) > 1:
            varied[name] = list(values.values())
        else:
            fixed[name] = points[0].parameters[name]
    return {
        "command": _command(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "points": len(points),
        "varied": varied,
        "fixed": fixed,
        "environment": {"python": sys.version.split()[0], **environment(), "threads": THREADS},
    }


def _command() -> str:
    return shlex.join(sys.orig_argv)
