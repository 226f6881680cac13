"""Running notebooks: each point is a process of its own, on any executor, here or on a cluster."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from paramarket.errors import ParameterError, unknown

# papermill and nbformat are imported in the functions that need them: a notebook imports `runs`, too, and needs neither

CHILD = Path(__file__).with_name("child.py")
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Point:
    """One run of `notebook` into `output`; `row` is the terminal line of its progress bar, None for silence."""

    notebook: Path
    output: Path
    parameters: dict[str, Any] = field(default_factory=dict)
    timeout: float = 600  # seconds
    row: int | None = None


class RunOutcome(NamedTuple):
    """What became of a point: `error` is empty, or names the cell and what it raised."""

    point: Point
    seconds: float
    error: str


def execute(points: Sequence[Point], executor: Executor) -> Iterator[RunOutcome]:
    """Run every point, one process and one thread each, and yield outcomes as they end; a failure stops no other.

    executor: any `concurrent.futures.Executor`. Unknown notebooks and parameters, and outputs that would replace one
    another or a notebook, are refused before any starts. A finished notebook takes the name `output`; a failed one
    stays as `….failed.ipynb`.
    """
    known = {notebook: _parameters_of(notebook) for notebook in dict.fromkeys(point.notebook for point in points)}
    for point in points:
        _check_parameters(point.notebook, point.parameters, known[point.notebook])
    _check_outputs(points)
    futures = {executor.submit(run_point, point): point for point in points}
    for future in as_completed(futures):
        error = future.exception()
        if error:
            yield RunOutcome(futures[future], 0.0, f"the worker failed: {error!r}")
        else:
            yield future.result()


def _parameters_of(notebook: Path) -> Mapping[str, Any]:
    """The parameters that a notebook knows, by name. Reading them takes a while: once a notebook, not once a point."""
    import papermill

    if not Path(notebook).is_file():
        raise ParameterError(f"{notebook} is missing.")
    return papermill.inspect_notebook(str(notebook))


def _check_parameters(notebook: Path, parameters: Any, known: Mapping[str, Any]) -> None:
    """Whether these are parameters, each one known to the notebook, of values that can be written into it."""
    if not isinstance(parameters, Mapping):
        raise ParameterError(f"{notebook}: parameters = {parameters!r}, expected a dict, name -> value.")
    for name, value in parameters.items():
        if name not in known:
            raise ParameterError(f"{Path(notebook).name}: {unknown('parameter', name, known)}")
        try:
            _to_json(value)
        except (TypeError, ValueError, AttributeError) as error:
            raise ParameterError(f"{name} = {value!r}: give numbers, texts or lists ({error}).") from error


def _check_outputs(points: Sequence[Point]) -> None:
    """Whether every run writes to a place of its own."""
    sources = {Path(point.notebook).resolve() for point in points}
    outputs = set()
    for point in points:
        output = Path(point.output).resolve()
        if output in outputs:
            raise ParameterError(f"two points write the same output: {point.output}.")
        if output in sources:
            raise ParameterError(f"{point.output} would replace the notebook itself: name another output.")
        outputs.add(output)


def _to_json(value: Any) -> str:
    return json.dumps(value, default=lambda array: array.tolist())  # numpy's numbers, as in a sweep over np.arange


def run_point(point: Point) -> RunOutcome:
    """Run one point in a child process and wait for it, at most `timeout` seconds.

    The child writes to a file beside; only what ran to its end gets the name `output`.
    """
    start = time.monotonic()
    failed = failed_path(point.output)
    unfinished = Path(point.output).with_suffix(".half.ipynb")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    for earlier in (failed, unfinished):
        earlier.unlink(missing_ok=True)
    error = _run_child(point, unfinished)
    if unfinished.is_file():
        os.replace(unfinished, failed if error else point.output)
    if error:
        error = _name_the_cell(failed, error)
    return RunOutcome(point, time.monotonic() - start, error)


def _run_child(point: Point, output: Path) -> str:
    """Run child.py, which executes the notebook into `output`, and give back what went wrong, if anything did."""
    call = {
        "notebook": str(point.notebook),
        "output": str(output),
        "parameters": dict(point.parameters),
        "row": point.row,
        "parent": os.getpid(),
    }
    # -P: the files beside child.py are no modules of its own; `pages` and `parameters` could hide someone else's
    command = [sys.executable, "-P", str(CHILD), _to_json(call)]
    environment = os.environ | _ONE_THREAD
    try:
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, timeout=point.timeout, check=False)
    except subprocess.TimeoutExpired:
        return f"ran past its limit of {point.timeout:g} s"
    return f"the process ended with code {done.returncode}" if done.returncode else ""


def failed_path(output: Path | str) -> Path:
    """Where the half-run notebook of a failed point stays."""
    return Path(output).with_suffix(".failed.ipynb")


def _name_the_cell(path: Path, error: str) -> str:
    """The cell at which a half-run notebook stopped, counted as Jupyter counts, and what it raised; else `error`."""
    import nbformat

    try:
        cells = nbformat.read(path, as_version=4).cells if path.is_file() else []
    except Exception:  # it was cut off as it was written
        cells = []
    cells = [cell for cell in cells if cell.cell_type == "code"]
    last = 0
    for number, cell in enumerate(cells, start=1):
        if cell.metadata.get("papermill", {}).get("start_time"):
            last = number
    if last == 0:
        return error
    raised = [output for output in cells[last - 1].outputs if output.output_type == "error"]
    if raised:
        return f"cell [{last}] raised {raised[0].ename}: {raised[0].evalue}"
    return f"cell [{last}]: {error}"
