"""From a grid to points: what is to run, each point known by a hash of all that its result depends on."""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paramarket import __version__
from paramarket.base import check_list
from paramarket.errors import ParameterError
from paramarket.runs.cache import library_hash
from paramarket.runs.inspection import declared_parameters, default_values, source_hash, taken

THREADS = 1  # of every point: two threads on a busy core are several times slower than one


@dataclass(frozen=True)
class Point:
    """One run of `notebook` into `output`; `row` is the terminal line of its progress bar, None for silence.

    hash: of all that the result depends on. A point that has one never runs again once its output is there.
    """

    notebook: Path
    output: Path
    parameters: dict[str, Any] = field(default_factory=dict)
    timeout: float = 600  # seconds
    row: int | None = None
    hash: str = ""


def points(
    notebook: Path | str,
    grid: Mapping[str, Sequence[Any] | np.ndarray],
    folder: Path | str,
    *,
    parameters: Mapping[str, Any] | None = None,
    timeout: float = 600,
) -> list[Point]:
    """Every combination of the grid's values as a point, the last name changing fastest. Nothing is run or written.

    grid: {parameter: its values} · parameters: the same for every point; all others keep the notebook's defaults
    timeout: of one point, in seconds
    A point's hash, from which its output in `folder` has its name, covers the notebook's code cells, every parameter
    (defaults too: naming one makes no other point), this library's version and source, and the number of threads.
    Raises ParameterError for what the notebook does not know or take, and for a value that stands in a grid twice.
    """
    notebook, folder = Path(notebook).absolute(), Path(folder).absolute()
    declared = declared_parameters(notebook)
    fixed = {name: taken(notebook, name, value, declared) for name, value in (parameters or {}).items()}
    varied = {name: _distinct(notebook, name, values, declared) for name, values in grid.items()}
    for name in varied:
        if name in fixed:
            raise ParameterError(f"{name} is in the grid and among the fixed parameters: name it once.")
    origin, defaults = origin_of(notebook), default_values(declared)
    made = []
    for values in itertools.product(*varied.values()):
        given = defaults | fixed | dict(zip(varied, values, strict=True))
        key = point_hash(origin, given)
        made.append(Point(notebook, folder / f"{key}.ipynb", given, timeout, hash=key))
    return made


def _distinct(notebook: Path, name: str, values: Sequence[Any] | np.ndarray, declared: Mapping[str, Any]) -> list[Any]:
    """The values of one name as the notebook takes them; one that comes twice would be the same point twice."""
    check_list(f"the grid of {name}", values)
    found = [taken(notebook, name, value, declared) for value in values]
    if not found:
        raise ParameterError(f"the grid of {name} is empty: give one or more values.")
    written = [json.dumps(value) for value in found]
    twice = [value for value in written if written.count(value) > 1]
    if twice:
        raise ParameterError(f"the grid of {name} holds {twice[0]} twice: name it once.")
    return found


def origin_of(notebook: Path | str) -> dict[str, Any]:
    """What all points of one notebook have in common: its code, the library's, the threads."""
    return {
        "source": source_hash(notebook),
        "version": __version__,
        "library": library_hash(),
        "threads": THREADS,
    }


def point_hash(origin: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    """Sixteen hex digits that tell one point from another, whatever order its parameters are named in."""
    content = json.dumps([origin, parameters], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
