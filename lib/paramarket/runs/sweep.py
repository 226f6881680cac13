"""Running notebooks: each point is a process of its own, on any executor, here or on a cluster."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from paramarket.errors import ParameterError
from paramarket.runs.folders import (
    failed_path,
    half_path,
    is_whole,
    keep_failure,
    open_folder,
    read_failure,
    reason_path,
)
from paramarket.runs.grids import THREADS, Point
from paramarket.runs.inspection import Declared, declared_parameters, plain, taken

CHILD = Path(__file__).with_name("child.py")
KERNEL_DIED = 75  # child.py's exit code, "try again" in sysexits.h
ATTEMPTS = 3  # of a point whose process was killed
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(THREADS))
_CHILDREN: set[subprocess.Popen] = set()  # that run now, started by this process: they end with their sweep


class RunOutcome(NamedTuple):
    """What became of a point: `error` is empty, or names the cell and what it raised."""

    point: Point
    seconds: float
    error: str
    killed: bool = False  # its process, kernel or worker was: nothing is wrong with the point
    ran: bool = True  # False: finished or failed in an earlier sweep, or there was no worker left


def execute(points: Sequence[Point], executor: Executor, *, retry: bool = False) -> Iterator[RunOutcome]:
    """Run every point, one process and one thread each, and yield outcomes as they end; a failure stops no other.

    executor: any `concurrent.futures.Executor`. Here a ThreadPoolExecutor is the one to take: the work is done in
    processes anyway, and a pool of processes is lost with one of them. For a cluster: dask's `client.get_executor`.
    retry: run points again that failed in an earlier sweep

    Unknown notebooks and parameters, wrong types, and outputs that would replace one another or a notebook are refused
    before any starts. A finished notebook takes the name `output`; a failed one stays as `….failed.ipynb`. A point that
    was killed is run again, up to three times in all; whatever else goes wrong costs that point only.
    Points with a hash (`points` makes them) that are finished do not run again, nor do those that failed. Their folder
    says in sweep.json what made it.
    Whoever stops listening, by Ctrl-C say, ends what runs in this process; what waits is not begun.
    """
    _check_points(points)
    points = _open_folders(points)
    outcomes = queue.SimpleQueue()
    waiting: dict[Future, tuple[Point, int]] = {}

    def submit(point: Point, attempt: int) -> None:
        future = executor.submit(run_point, point)
        waiting[future] = point, attempt
        future.add_done_callback(outcomes.put)

    try:
        for point in points:
            known = _known_outcome(point, retry)
            if known:
                yield known
            else:
                submit(point, 1)
        while waiting:
            future = outcomes.get()
            point, attempt = waiting.pop(future)
            outcome = _outcome_of(future, point)
            if outcome.killed and attempt < ATTEMPTS:
                with suppress(Exception):  # whatever a broken executor, or a client without its scheduler, raises
                    submit(point, attempt + 1)
                    continue
            if outcome.error and outcome.ran and point.hash:
                with suppress(OSError):  # a full disk, say: then this sweep alone knows the reason
                    keep_failure(point, outcome.error)
            yield outcome
    finally:
        _stop(waiting)


def _open_folders(points: Sequence[Point]) -> Sequence[Point]:
    """Describe the folders of points that have a hash; they run a copy of their notebook there."""
    folders = {}
    for point in points:
        if point.hash:
            folders.setdefault(point.output.parent, []).append(point)
    copies = {folder: open_folder(folder, some) for folder, some in folders.items()}
    return [replace(point, notebook=copies[point.output.parent]) if point.hash else point for point in points]


def _known_outcome(point: Point, retry: bool) -> RunOutcome | None:
    """What became of a point in an earlier sweep, if anything did."""
    if not point.hash:
        return None
    if is_whole(point.output):
        return RunOutcome(point, 0.0, "", ran=False)
    reason = read_failure(reason_path(point.output))
    return RunOutcome(point, 0.0, reason["error"], ran=False) if reason and not retry else None


def _outcome_of(future: Future, point: Point) -> RunOutcome:
    """What a future came to; one that raised lost its worker, for `run_point` itself does not raise."""
    try:
        return future.result()
    except (BrokenExecutor, CancelledError) as error:  # all that wait end like this: the next sweep runs them
        return RunOutcome(point, 0.0, f"the worker failed: {error!r}", killed=True, ran=False)
    except Exception as error:
        return RunOutcome(point, 0.0, f"the worker failed: {error!r}", killed=True)


def _stop(waiting: Collection[Future]) -> None:
    """Begin nothing more, and end the children of this process. On a cluster, what runs there goes on to its end."""
    for future in waiting:
        future.cancel()
    until = time.monotonic() + 5
    while time.monotonic() < until and not all(future.done() for future in waiting):
        for child in list(_CHILDREN):
            child.terminate()
        time.sleep(0.05)


def _check_points(points: Sequence[Point]) -> None:
    """Whether every point can run, as far as that can be told before it does."""
    declared = {notebook: declared_parameters(notebook) for notebook in dict.fromkeys(each.notebook for each in points)}
    for point in points:
        _check_parameters(point.notebook, point.parameters, declared[point.notebook])
    _check_outputs(points)


def _check_parameters(notebook: Path, parameters: Any, declared: Mapping[str, Declared]) -> None:
    """Whether these are parameters, each one known to the notebook, of its type, and can be written into it."""
    if not isinstance(parameters, Mapping):
        raise ParameterError(f"{notebook}: parameters = {parameters!r}, expected a dict, name -> value.")
    for name, value in parameters.items():
        taken(notebook, name, value, declared)


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


def run_point(point: Point) -> RunOutcome:
    """Run one point in a child process and wait for it, at most `timeout` seconds.

    The child writes to a file beside; only what ran to its end gets the name `output`.
    """
    if point.hash and is_whole(point.output):  # a worker finished it and was lost before it could say so
        return RunOutcome(point, 0.0, "", ran=False)
    start = time.monotonic()
    try:
        error, killed = _run_and_rename(point)
    except OSError as problem:  # no space, no permission, …
        error, killed = f"its files could not be written: {problem}", False
        with suppress(OSError):
            half_path(point.output).replace(failed_path(point.output))
    return RunOutcome(point, time.monotonic() - start, error, killed)


def _run_and_rename(point: Point) -> tuple[str, bool]:
    """Run one point into a file beside and rename that; give back what went wrong, and whether it was killed."""
    half, failed = half_path(point.output), failed_path(point.output)
    half.parent.mkdir(parents=True, exist_ok=True)
    for earlier in (failed, half, reason_path(point.output)):
        earlier.unlink(missing_ok=True)
    # for the kernel's sockets; made here, since a child that is killed would leave it behind. A short name: the path
    # of a socket has at most 107 letters
    with tempfile.TemporaryDirectory(prefix="pm", ignore_cleanup_errors=True) as sockets:
        error, killed = _run_child(point, half, sockets)
    if not error:
        os.replace(half, point.output)
    elif half.is_file():
        os.replace(half, failed)
        error = _name_the_cell(failed, error)
    return error, killed


def _run_child(point: Point, output: Path, sockets: str) -> tuple[str, bool]:
    """Run child.py, which executes the notebook into `output`: what went wrong, and whether it was killed."""
    call = {
        "notebook": str(point.notebook),
        "output": str(output),
        "parameters": plain(point.parameters),
        "row": point.row,
        "sockets": sockets,
        "parent": os.getpid(),
    }
    # -P: the files beside child.py are no modules of its own; `pages` and `parameters` could hide someone else's
    command = [sys.executable, "-P", str(CHILD), json.dumps(call)]
    # a session of its own: a terminal's Ctrl-C reaches this process only, which ends its children itself
    settings = {"env": os.environ | _THREADS, "stdout": subprocess.DEVNULL, "start_new_session": True}
    with tempfile.TemporaryFile() as said:  # no pipe: a kernel that outlives the child would keep it open
        child = subprocess.Popen(command, stderr=said if point.row is None else None, **settings)
        _CHILDREN.add(child)
        try:
            code = child.wait(point.timeout)
        except subprocess.TimeoutExpired:
            return f"ran past its limit of {point.timeout:g} s", False
        finally:
            child.kill()
            child.wait()
            _CHILDREN.discard(child)
        said.seek(0)
        lines = said.read().decode(errors="replace").split("\n")
    if code == -signal.SIGTERM:  # we did it, see `_stop`: there is nothing to tell of it
        output.unlink(missing_ok=True)
    if code < 0:
        return f"the process was ended by signal {-code} ({signal.strsignal(-code)})", True
    if code == KERNEL_DIED:
        return "its kernel died", True
    reason = next((line for line in reversed(lines) if line.strip()), f"the process ended with code {code}")
    return reason.removeprefix(f"{point.notebook}: ") if code else "", False


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
