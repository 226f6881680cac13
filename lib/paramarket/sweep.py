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

from paramarket.base import ParamarketError, ParameterError, atomic, unknown

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Point:
    """One run of `notebook` into `output`; `row` is the terminal line of its progress bar, None for silence."""

    notebook: Path
    output: Path
    parameters: dict[str, Any] = field(default_factory=dict)
    timeout: int | float = 600  # seconds
    row: int | None = None


class Outcome(NamedTuple):
    """What became of a point: `error` is empty, or names the cell and what it raised."""

    point: Point
    seconds: float
    error: str


def execute(points: Sequence[Point], executor: Executor) -> Iterator[Outcome]:
    """Run every point, one process and one thread each, and yield outcomes as they end; a failure stops no other.

    executor: any `concurrent.futures.Executor`. Unknown notebooks and parameters are refused before any starts. A
    finished notebook takes the name `output`; a failed one stays beside it as `….failed.ipynb`.
    """
    for point in points:
        _check(point)
    yield from (future.result() for future in as_completed([executor.submit(run_point, point) for point in points]))


def _check(point: Point) -> None:
    if not Path(point.notebook).is_file():
        raise ParameterError(f"{point.notebook} is missing.")
    known = papermill.inspect_notebook(str(point.notebook))
    for name in point.parameters:
        if name not in known:
            raise ParameterError(f"{Path(point.notebook).name}: {unknown('parameter', name, known)}")


def run_point(point: Point) -> Outcome:
    """Run one point in a child process and wait for it, at most `timeout` seconds."""
    start, failed = time.monotonic(), failed_path(point.output)
    failed.unlink(missing_ok=True)
    call = [sys.executable, "-m", "paramarket.sweep", json.dumps(_plain(point)), str(os.getpid())]
    try:
        done = subprocess.run(
            call, env=os.environ | _ONE_THREAD, stdout=subprocess.DEVNULL, timeout=point.timeout, check=False
        )
        error = "" if done.returncode == 0 else _error(failed) or f"the process ended with code {done.returncode}"
    except subprocess.TimeoutExpired:
        error = f"ran past its limit of {point.timeout:g} s"
    return Outcome(point, time.monotonic() - start, error)


def failed_path(output: Path | str) -> Path:
    """Where the half-run notebook of a failed point stays."""
    return Path(output).with_suffix(".failed.ipynb")


def _plain(point: Point) -> dict[str, Any]:
    return vars(point) | {"notebook": str(point.notebook), "output": str(point.output)}


def _error(path: Path) -> str:
    """Name the failing cell of a half-run notebook, counted as Jupyter counts, and the last line of what it raised."""
    if not path.is_file():
        return ""
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return f"cell [{cell.execution_count}] raised {output.ename}: {output.evalue}"
    return ""


def main(plain: str, parent: str) -> None:
    """The child's side: execute with papermill under the final name, or leave the half-run notebook as failed."""
    _end_with(int(parent))
    point = Point(**json.loads(plain))
    bar = {"desc": Path(point.notebook).stem, "position": point.row, "leave": True, "unit": "cell"}
    try:
        with atomic(point.output) as beside, tempfile.TemporaryDirectory(prefix="pm") as folder:
            try:
                papermill.execute_notebook(
                    str(point.notebook),
                    str(beside),
                    point.parameters,
                    progress_bar=False if point.row is None else bar,
                    config=_kernel(folder),
                )
            except papermill.PapermillExecutionError:
                os.replace(beside, failed_path(point.output))
                raise
    except (papermill.PapermillExecutionError, ParamarketError) as error:
        sys.exit(f"{point.notebook}: {str(error).strip().splitlines()[-1]}")


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
