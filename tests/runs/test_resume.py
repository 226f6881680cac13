"""What a sweep's folder remembers: what has run never runs again, what failed stays with its reason."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor

import notebooks
import pandas as pd
import pytest

from paramarket import runs
from paramarket.errors import DataError, ParameterError
from paramarket.runs import sweep


@pytest.fixture
def logged(tmp_path):
    return notebooks.write_logged(tmp_path / "logged.ipynb", tmp_path / "log")


def run(points, workers=2, **more):
    with ThreadPoolExecutor(workers) as executor:
        return list(runs.execute(points, executor, **more))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_sweep_runs_what_is_missing_keeps_what_failed_and_is_one_table(logged, tmp_path):
    folder = tmp_path / "sweep"
    few = runs.points(logged, {"value": [3, 99]}, folder)
    assert {outcome.error for outcome in run(few)} == {"", "cell [5] raised ValueError: 99 is too much"}
    more = runs.points(logged, {"value": [2, 3, 99]}, folder)
    outcomes = {outcome.point.parameters["value"]: outcome for outcome in run(more)}
    assert {value: outcome.ran for value, outcome in outcomes.items()} == {2: True, 3: False, 99: False}
    assert outcomes[99].error == "cell [5] raised ValueError: 99 is too much"
    assert notebooks.logged(tmp_path / "log", "began") == [2, 3, 99]
    two, three, failed = (point.hash for point in more)
    made = [f"{two}.ipynb", f"{three}.ipynb", f"{failed}.failed.ipynb", f"{failed}.failed.json"]
    assert names(folder) == sorted([*made, "logged.ipynb", "sweep.json"])

    table = runs.write_table(folder)
    row = ["hash", "value", "nap", "square", "square_low", "square_high", "error", "env_torch", "seconds"]
    assert list(table) == row
    assert table.hash.tolist() == [two, three, failed]
    assert table.value.tolist() == [2, 3, 99]
    assert table.square.tolist()[:2] == [4, 9]
    assert table.error.tolist() == ["", "", outcomes[99].error]
    assert table.square.isna().tolist() == [False, False, True]
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "table.parquet"), table)
    read = pd.read_csv(folder / "table.csv", keep_default_na=False, na_values={"square": "", "seconds": ""})
    assert read.value.tolist() == [2, 3, 99]
    assert read.error.tolist() == table.error.tolist()

    said = json.loads((folder / "sweep.json").read_text())
    assert said["notebook"] == "logged.ipynb"
    assert said["threads"] == 1
    assert said["sweeps"][-1]["varied"] == {"value": [2, 3, 99]}
    assert said["sweeps"][-1]["fixed"] == {"nap": 0.0}
    assert said["sweeps"][-1]["command"] == shlex.join(sys.orig_argv)


def test_a_finished_point_does_not_run_again_even_if_a_worker_is_asked_to(logged, tmp_path):
    (point,) = runs.points(logged, {}, tmp_path / "sweep")
    point.output.parent.mkdir()
    point.output.write_text("{}\n")
    assert runs.run_point(point) == runs.RunOutcome(point, 0.0, "", ran=False)
    for broken in ("", "{", '{"cells": ['):  # a disk that lost power: this one does run
        point.output.write_text(broken)
        assert not sweep.is_whole(point.output)


@pytest.mark.full
def test_retry_runs_what_failed_again(logged, tmp_path):
    points = runs.points(logged, {"value": [99]}, tmp_path / "sweep")
    first, again = run(points)[0], run(points, retry=True)[0]
    assert first.ran
    assert again.ran
    assert again.error == first.error
    assert notebooks.logged(tmp_path / "log", "began") == [99, 99]


@pytest.mark.full
def test_a_rename_that_fails_costs_that_point_only(logged, tmp_path):
    good, bad = runs.points(logged, {"value": [1, 2]}, tmp_path / "sweep")
    bad.output.mkdir(parents=True)  # no file can take the name of a folder
    errors = {outcome.point.hash: outcome.error for outcome in run([good, bad])}
    assert errors[good.hash] == ""
    assert errors[bad.hash].startswith("its files could not be written: [Errno 21]")
    table = runs.gather(tmp_path / "sweep")
    assert table.error.tolist() == ["", errors[bad.hash]]
    assert runs.failed_path(bad.output).is_file()
    assert notebooks.logged(tmp_path / "log", "ended") == [1, 2]  # once: a disk that is full stays full


def test_another_notebook_library_or_changed_code_is_refused(logged, tmp_path):
    folder = tmp_path / "sweep"
    points = runs.points(logged, {"value": [99]}, folder)
    with Inline([""]) as executor:
        list(runs.execute(points, executor))
    other = notebooks.write_logged(tmp_path / "other.ipynb", tmp_path / "log")
    with pytest.raises(ParameterError, match=r"another notebook \(logged\.ipynb, now other\.ipynb\)"):
        run(runs.points(other, {"value": [1]}, folder))
    notebooks.write_logged(logged, tmp_path / "log2")
    with pytest.raises(ParameterError, match=r"holds a sweep with another source .*Name another folder"):
        run(runs.points(logged, {"value": [1]}, folder))
    with pytest.raises(ParameterError, match="changed since these points were made: make new ones"):
        run(points)
    with pytest.raises(ParameterError, match="is for one notebook, got"):
        run([*runs.points(logged, {"value": [1]}, folder), *runs.points(other, {"value": [2]}, folder)])
    assert notebooks.logged(tmp_path / "log", "began") == []


@pytest.mark.full
def test_a_notebook_that_is_edited_meanwhile_changes_no_point(logged, tmp_path):
    points = runs.points(logged, {"value": [1, 2]}, tmp_path / "sweep")
    with ThreadPoolExecutor(1) as executor:
        for outcome in runs.execute(points, executor):
            assert not outcome.error
            logged.write_text("an editor has it")
    assert notebooks.logged(tmp_path / "log", "ended") == [1, 2]


def test_what_no_sweep_has_made_is_no_table(tmp_path):
    with pytest.raises(DataError, match="is no folder of a sweep"):
        runs.gather(tmp_path)


class Inline(ThreadPoolExecutor):
    """Runs nothing: gives what a list says, a value or an error, one entry a call."""

    def __init__(self, said):
        super().__init__(1)
        self.said, self.asked = list(said), 0

    def submit(self, call, point):
        self.asked += 1
        entry = self.said.pop(0)
        if isinstance(entry, BrokenExecutor):
            raise entry
        return super().submit(lambda: self._give(entry, point))

    def _give(self, entry, point):
        if isinstance(entry, Exception):
            raise entry
        return runs.RunOutcome(point, 1.0, entry, killed=bool(entry))


@pytest.mark.parametrize(
    ("said", "asked", "error", "kept"),
    [
        (["ended by signal 9", ""], 2, "", False),
        (["ended by signal 9"] * 3, 3, "ended by signal 9", True),
        ([OSError("worker lost"), ""], 2, "", False),
        ([OSError("worker lost")] * 3, 3, "the worker failed: OSError('worker lost')", True),
        (["ended by signal 9", BrokenExecutor()], 2, "ended by signal 9", True),
    ],
)
def test_what_was_killed_is_tried_three_times(logged, tmp_path, said, asked, error, kept):
    (point,) = runs.points(logged, {}, tmp_path / "sweep")
    with Inline(said) as executor:
        (outcome,) = runs.execute([point], executor)
    assert executor.asked == asked
    assert outcome.error == error
    assert (tmp_path / "sweep" / f"{point.hash}.failed.json").exists() == kept


def test_points_that_never_ran_because_a_pool_broke_are_not_failed(logged, tmp_path):
    class Broken(Inline):
        def _give(self, entry, point):
            raise BrokenExecutor("a process ended")

    (point,) = runs.points(logged, {}, tmp_path / "sweep")
    with Broken(["", "", ""]) as executor:
        (outcome,) = runs.execute([point], executor)
    assert not outcome.ran
    assert len(runs.gather(tmp_path / "sweep")) == 0


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_child_costs_nothing_and_a_killed_sweep_leaves_no_process(logged, tmp_path):
    (point,) = runs.points(logged, {"nap": [3.0]}, tmp_path / "sweep")
    found = []
    sweeping = threading.Thread(target=lambda: found.extend(run([point])))
    sweeping.start()
    assert wait_for(lambda: notebooks.logged(tmp_path / "log", "began"))
    (child,) = notebooks.running(f"{tmp_path}/sweep")
    os.kill(child, signal.SIGKILL)
    sweeping.join()
    assert [outcome.error for outcome in found] == [""]
    assert notebooks.logged(tmp_path / "log", "began") == [1, 1]
    assert notebooks.logged(tmp_path / "log", "ended") == [1]
    assert names(tmp_path / "sweep") == sorted([f"{point.hash}.ipynb", "logged.ipynb", "sweep.json"])


def finished(folder):
    return [path for path in folder.glob("*.ipynb") if len(path.stem) == 16]


def kernels_of(folder):
    """Kernels that were told this folder, by a variable of their environment."""
    found = []
    for process in notebooks.running("ipykernel_launcher"):
        with contextlib.suppress(OSError), open(f"/proc/{process}/environ", "rb") as file:
            found += [process] * (f"SWEEP={folder}".encode() in file.read())
    return found


def as_in_a_terminal():
    """A shell starts what runs in its background deaf to Ctrl-C, and the tests may run there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_ends_what_runs_and_the_same_command_goes_on(logged, tmp_path):
    folder = tmp_path / "sweep"
    words = ["-m", "paramarket", "sweep", logged, "--grid", "value=1:7", "--set", "nap=0.5", "--workers", 2]
    command = [sys.executable, *map(str, words), "--out", str(folder)]
    variables = os.environ | {"SWEEP": str(folder)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, env=variables, preexec_fn=as_in_a_terminal, **pipes)
    assert wait_for(lambda: len(finished(folder)) >= 2)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 130
    assert "the same command goes on" in said
    assert not notebooks.running(f"{folder}/")
    assert wait_for(lambda: not kernels_of(folder), 20)
    there = finished(folder)
    assert len(there) < 6
    assert not list(folder.glob("*.half.ipynb"))
    assert not list(folder.glob("*.failed.*"))
    second = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
    assert f"that ran: {6 - len(there)} · that were there: {len(there)} · that failed: 0" in second.stdout
    assert runs.gather(folder).square.tolist() == [1, 4, 9, 16, 25, 36]
