"""Running notebooks: each point is a process of its own, on any executor, here or on a cluster."""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import papermill
from traitlets.config import Config

from paramarket.errors import ParameterError, unknown

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Point:
    """One run of `notebook` into `output`; `row` is the terminal line of its progress bar, None for silence."""

    notebook: Path
    output: Path
    parameters: dict[str, Any] = field(default_factory=dict)
    timeout: float = 600  # seconds
    row: int | None = None


class Outcome(NamedTuple):
    """What became of a point: `error` is empty, or names the cell and what it raised."""

    point: Point
    seconds: float
    error: str


def execute(points: Sequence[Point], executor: Executor) -> Iterator[Outcome]:
    """Run every point, one process and one thread each, and yield outcomes as they end; a failure stops no other.

    executor: any `concurrent.futures.Executor`. Unknown notebooks and parameters, and two points with one output, are
    refused before any starts. A finished notebook takes the name `output`; a failed one stays as `….failed.ipynb`.
    """
    for point in points:
        _check(point)
    outputs = [str(point.output) for point in points]
    if twice := {output for output in outputs if outputs.count(output) > 1}:
        raise ParameterError(f"two points write the same output: {min(twice)}.")
    futures = {executor.submit(run_point, point): point for point in points}
    for future in as_completed(futures):
        error = future.exception()
        yield Outcome(futures[future], 0.0, f"the worker failed: {error!r}") if error else future.result()


def _check(point: Point) -> None:
    if not Path(point.notebook).is_file():
        raise ParameterError(f"{point.notebook} is missing.")
    known = papermill.inspect_notebook(str(point.notebook))
    for name, value in point.parameters.items():
        if name not in known:
            raise ParameterError(f"{Path(point.notebook).name}: {unknown('parameter', name, known)}")
        try:
            _json(value)
        except (TypeError, AttributeError) as error:
            raise ParameterError(f"{name} = {value!r}: give numbers, texts or lists ({error}).") from error


def _json(value: Any) -> str:
    return json.dumps(value, default=lambda scalar: scalar.item())  # numpy's numbers, as in a sweep over np.arange


def run_point(point: Point) -> Outcome:
    """Run one point in a child process and wait for it, at most `timeout` seconds.

    The child writes to a file beside; only what ran to its end gets the name `output`.
    """
    start, failed, half = time.monotonic(), failed_path(point.output), Path(point.output).with_suffix(".half.ipynb")
    half.parent.mkdir(parents=True, exist_ok=True)
    failed.unlink(missing_ok=True)
    call = [sys.executable, "-m", "paramarket.runs.sweep", _json(_plain(point)), str(half), str(os.getpid())]
    try:
        done = subprocess.run(
            call, env=os.environ | _ONE_THREAD, stdout=subprocess.DEVNULL, timeout=point.timeout, check=False
        )
        error = "" if done.returncode == 0 else f"the process ended with code {done.returncode}"
    except subprocess.TimeoutExpired:
        error = f"ran past its limit of {point.timeout:g} s"
    if half.is_file():
        os.replace(half, failed if error else point.output)
    return Outcome(point, time.monotonic() - start, _error(failed, error) if error else "")


def failed_path(output: Path | str) -> Path:
    """Where the half-run notebook of a failed point stays."""
    return Path(output).with_suffix(".failed.ipynb")


def _plain(point: Point) -> dict[str, Any]:
    return vars(point) | {"notebook": str(point.notebook), "output": str(point.output)}


def _error(path: Path, error: str) -> str:
    """Name the cell at which a half-run notebook stopped, counted as Jupyter counts, and what it raised."""
    cells = nbformat.read(path, as_version=4).cells if path.is_file() else []
    cells = [cell for cell in cells if cell.cell_type == "code"]
    started = [k for k, cell in enumerate(cells) if cell.metadata.get("papermill", {}).get("start_time")]
    if not started:
        return error
    raised = [output for output in cells[started[-1]].outputs if output.output_type == "error"]
    what = f" raised {raised[0].ename}: {raised[0].evalue}" if raised else f": {error}"
    return f"cell [{started[-1] + 1}]{what}"


def main(plain: str, half: str, parent: str) -> None:
    """The child's side: execute with papermill, into `half`."""
    _end_with(int(parent))
    point = Point(**json.loads(plain))
    bar = {"desc": Path(point.notebook).stem, "position": point.row, "leave": True, "unit": "cell"}
    progress = False if point.row is None else bar
    try:
        with tempfile.TemporaryDirectory(prefix="pm") as folder:
            source, config = str(point.notebook), _kernel(folder)
            papermill.execute_notebook(source, half, point.parameters, progress_bar=progress, config=config)
    except Exception as error:  # whatever stopped it, dead kernels too: one line here, the parent names the cell
        sys.exit(f"{point.notebook}: {(str(error).strip() or repr(error)).splitlines()[-1]}")


def _kernel(folder: str) -> Config:
    """Kernels talk through files of a fresh folder, not TCP ports, which kernels that start together fight over."""
    if sys.platform == "win32":
        return Config()
    return Config({"KernelManager": {"transport": "ipc", "connection_file": f"{folder}/k.json"}})


def _end_with(parent: int) -> None:
    """Do not outlive a killed worker: Linux sends SIGTERM when the parent dies (prctl, PR_SET_PDEATHSIG = 1)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 15)
        if os.getppid() != parent:  # it died before we asked
            sys.exit("the worker that started this is gone")


if __name__ == "__main__":
    main(*sys.argv[1:])
