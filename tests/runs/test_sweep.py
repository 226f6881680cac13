import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import nbformat
import notebooks
import numpy as np
import pytest
import torch

from paramarket import runs
from paramarket.errors import ParameterError
from paramarket.runs import sweep
from paramarket.runs.inspection import Declared, declared_parameters, taken


@pytest.fixture
def notebook(tmp_path):
    return notebooks.write(tmp_path / "square.ipynb")


def test_points_run_on_any_executor_and_their_records_are_read_back(tmp_path):
    parameters = "value: int = 1  # what is squared"
    check = "parameters = runs.check_parameters(globals(), value=(0, 9))"
    record = "runs.record(parameters, square=value**2)"
    code = ["from paramarket import runs", parameters, check, record]
    notebook = notebooks.write(tmp_path / "square.ipynb", code)
    with ProcessPoolExecutor(1) as executor:
        (outcome,) = runs.execute([runs.Point(notebook, tmp_path / "out.ipynb", {"value": 5})], executor)
    assert not outcome.error
    assert runs.read(outcome.point.output)["results"] == {"square": 25}


def test_a_failure_stops_no_other_and_each_has_one_thread(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    values = [2, 99, 3]
    points = [runs.Point(notebook, tmp_path / f"out/{value}.ipynb", {"value": value}) for value in values]
    with ThreadPoolExecutor(2) as executor:
        outcomes = {outcome.point.parameters["value"]: outcome for outcome in runs.execute(points, executor)}
    assert {value: outcome.error for value, outcome in outcomes.items()} == {
        2: "", 3: "", 99: "cell [4] raised ValueError: 99 is too much"
    }  # fmt: skip
    assert notebooks.printed(tmp_path / "out/3.ipynb") == "9 on 1 thread\n"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["2.ipynb", "3.ipynb", "99.failed.ipynb"]


def test_unknown_names_are_refused_before_anything_starts(notebook, tmp_path):
    good, bad = (runs.Point(notebook, tmp_path / "out" / name, {name: 1}) for name in ("value", "valu"))
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(ParameterError, match=r"square\.ipynb: unknown parameter 'valu'\. Did you mean 'value'\?"):
            list(runs.execute([good, bad], executor))
        with pytest.raises(ParameterError, match="missing"):
            list(runs.execute([runs.Point(tmp_path / "no.ipynb", tmp_path / "o.ipynb")], executor))
    assert not (tmp_path / "out").exists()


def test_a_point_that_runs_too_long_is_ended_and_leaves_nothing_behind(notebook, tmp_path, monkeypatch):
    sockets = Path(tempfile.mkdtemp(prefix="pm"))  # not under tmp_path: the path of a socket has at most 107 letters
    monkeypatch.setattr(tempfile, "tempdir", str(sockets))
    outcome = runs.run_point(runs.Point(notebook, tmp_path / "late.ipynb", {"nap": 3600.0}, timeout=6))
    assert re.fullmatch(r"(cell \[\d\]: )?ran past its limit of 6 s", outcome.error)
    assert outcome.seconds < 3600
    assert {path.name for path in tmp_path.iterdir()} <= {"square.ipynb", "late.failed.ipynb"}
    assert not list(sockets.iterdir())
    sockets.rmdir()


def test_a_kernel_that_dies_is_named_with_its_cell(notebook, tmp_path):
    dying = nbformat.read(notebook, as_version=4)
    dying.cells[2].source = "import os\nos._exit(9)"
    nbformat.write(dying, tmp_path / "dying.ipynb")
    outcome = runs.run_point(runs.Point(tmp_path / "dying.ipynb", tmp_path / "out.ipynb", timeout=60))
    assert outcome.error == "cell [3]: its kernel died"
    assert outcome.killed
    assert not (tmp_path / "out.ipynb").exists()
    assert (tmp_path / "out.failed.ipynb").exists()


def test_two_points_never_share_an_output_nor_replace_a_notebook(notebook, tmp_path):
    point = runs.Point(notebook, tmp_path / "out.ipynb")
    same = runs.Point(notebook, tmp_path / "folder/../out.ipynb")
    with ThreadPoolExecutor(1) as executor:
        for other in (point, same):
            with pytest.raises(ParameterError, match=r"two points write the same output: .*out\.ipynb"):
                list(runs.execute([point, other], executor))
        with pytest.raises(ParameterError, match=r"square\.ipynb would replace the notebook itself"):
            list(runs.execute([point, runs.Point(notebook, notebook)], executor))
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize("value", [np.int64(3), np.array(3), torch.tensor(3)], ids=repr)
def test_numbers_of_numpy_and_torch_may_be_parameters(notebook, value):
    assert repr(taken(notebook, "value", value, declared_parameters(notebook))) == "3"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (["value"], r"square\.ipynb: parameters = \['value'\], expected a dict"),
        ([("value", 1)], r"parameters = \[\('value', 1\)\], expected a dict"),
        (None, r"parameters = None, expected a dict"),
        ("value", r"parameters = 'value', expected a dict"),
        ({"value": object()}, r"value = <object.*give numbers, texts or lists"),
        ({"value": {1}}, r"value = \{1\}: give numbers, texts or lists"),
        ({1: 1}, r"unknown parameter 1\."),
        ({"value": 1.5}, r"square\.ipynb: value = 1\.5 is of type float, expected int"),
        ({"value": True}, r"value = True is of type bool, expected int"),
    ],
)
def test_parameters_of_the_wrong_kind_are_refused_by_name(notebook, parameters, message):
    with pytest.raises(ParameterError, match=message):
        sweep._check_parameters(notebook, parameters, {"value": Declared("int", "1")})


def test_a_dead_worker_is_an_outcome(notebook, tmp_path):
    class Broken(ThreadPoolExecutor):
        def submit(self, run, point):
            return super().submit(int, "no number")

    with Broken(1) as executor:
        (outcome,) = runs.execute([runs.Point(notebook, tmp_path / "out.ipynb")], executor)
    assert outcome.error.startswith("the worker failed: ValueError")


def test_a_notebook_is_read_once_however_many_points_it_has(notebook, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(sweep, "declared_parameters", lambda path: read.append(path) or {"value": Declared("int", "1")})
    points = [runs.Point(notebook, tmp_path / "same.ipynb", {"value": value}) for value in range(3)]
    with ThreadPoolExecutor(1) as executor, pytest.raises(ParameterError, match="two points write the same output"):
        list(runs.execute(points, executor))
    assert read == [notebook]


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_child_does_not_outlive_a_killed_worker(notebook, tmp_path):
    point = f"{str(notebook)!r}, {str(tmp_path / 'late.ipynb')!r}, {{'nap': 60.0}}"
    source = f"import runpy; found = runpy.run_path({sweep.__file__!r}); found['run_point'](found['Point']({point}))"
    worker = subprocess.Popen([sys.executable, "-c", source])
    until = time.monotonic() + 60
    while not (tmp_path / "late.half.ipynb").exists() and time.monotonic() < until:  # it runs, and is bound to us
        time.sleep(0.1)
    (child,) = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    while notebooks.alive(child) and time.monotonic() < until:
        time.sleep(0.1)
    assert not notebooks.alive(child)
