import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from paramarket import runs
from paramarket.errors import ParameterError
from paramarket.runs import sweep

CODE = [
    "from paramarket import runs\nimport os, time",
    "value: int = 1  # what is squared\nnap: float = 0.0  # seconds",
    "parameters = runs.check_parameters(globals(), value=(0, 9), nap=(0, 3600))",
    "time.sleep(nap)\nruns.record(parameters, square=value**2, threads=int(os.environ['OMP_NUM_THREADS']))",
]


@pytest.fixture
def notebook(tmp_path):
    cells = [nbformat.v4.new_code_cell(source) for source in CODE]
    cells[1].metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "square.ipynb")
    return tmp_path / "square.ipynb"


def test_points_run_on_any_executor(notebook, tmp_path):
    with ProcessPoolExecutor(1) as executor:
        (outcome,) = runs.execute([runs.Point(notebook, tmp_path / "out.ipynb", {"value": 5})], executor)
    assert not outcome.error
    assert runs.read(outcome.point.output)["results"]["square"] == 25


def test_a_failure_stops_no_other(notebook, tmp_path):
    values = [2, 99, 3]
    points = [runs.Point(notebook, tmp_path / f"out/{value}.ipynb", {"value": value}) for value in values]
    with ThreadPoolExecutor(2) as executor:
        outcomes = {outcome.point.parameters["value"]: outcome for outcome in runs.execute(points, executor)}
    assert {value: outcome.error for value, outcome in outcomes.items()} == {
        2: "", 3: "", 99: "cell [4] raised ParameterError: value = 99 is out of range, expected 0 … 9."
    }  # fmt: skip
    assert runs.read(tmp_path / "out/3.ipynb")["results"] == {"square": 9, "threads": 1}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["2.ipynb", "3.ipynb", "99.failed.ipynb"]


def test_unknown_names_are_refused_before_anything_starts(notebook, tmp_path):
    good, bad = (runs.Point(notebook, tmp_path / "out" / name, {name: 1}) for name in ("value", "valu"))
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(ParameterError, match=r"square\.ipynb: unknown parameter 'valu'\. Did you mean 'value'\?"):
            list(runs.execute([good, bad], executor))
        with pytest.raises(ParameterError, match="missing"):
            list(runs.execute([runs.Point(tmp_path / "no.ipynb", tmp_path / "o.ipynb")], executor))
    assert not (tmp_path / "out").exists()


def test_a_point_that_runs_too_long_is_ended_and_leaves_nothing_under_its_name(notebook, tmp_path):
    outcome = runs.run_point(runs.Point(notebook, tmp_path / "late.ipynb", {"nap": 3600.0}, timeout=12))
    assert re.fullmatch(r"(cell \[\d\]: )?ran past its limit of 12 s", outcome.error)
    assert outcome.seconds < 3600
    assert {path.name for path in tmp_path.iterdir()} <= {"square.ipynb", "late.failed.ipynb"}


def test_a_kernel_that_dies_is_named_with_its_cell(notebook, tmp_path):
    dying = nbformat.read(notebook, as_version=4)
    dying.cells[2].source = "import os\nos._exit(9)"
    nbformat.write(dying, tmp_path / "dying.ipynb")
    outcome = runs.run_point(runs.Point(tmp_path / "dying.ipynb", tmp_path / "out.ipynb", timeout=60))
    assert outcome.error == "cell [3]: the process ended with code 1"
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
    sweep._check_parameters_of(notebook, {"value": value})
    assert sweep._to_json({"value": value, "rest": np.arange(2)}) == '{"value": 3, "rest": [0, 1]}'


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
    ],
)
def test_parameters_of_the_wrong_kind_are_refused_by_name(notebook, parameters, message):
    with pytest.raises(ParameterError, match=message):
        sweep._check_parameters_of(notebook, parameters)


def test_a_dead_worker_is_an_outcome(notebook, tmp_path):
    class Broken(ThreadPoolExecutor):
        def submit(self, run, point):
            return super().submit(int, "no number")

    with Broken(1) as executor:
        (outcome,) = runs.execute([runs.Point(notebook, tmp_path / "out.ipynb")], executor)
    assert outcome.error.startswith("the worker failed: ValueError")


def test_a_notebook_that_imports_runs_waits_for_none_of_what_runs_it():
    heavy = {"papermill", "nbformat", "nbconvert", "jinja2", "latex2mathml", "jsonschema"}
    code = f"from paramarket import runs; import sys; print(*sorted({heavy} & set(sys.modules)), runs.sweep.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["paramarket.runs.sweep"]


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_child_does_not_outlive_a_killed_worker(notebook, tmp_path):
    source = (
        "from paramarket import runs\n"
        f"runs.run_point(runs.Point({str(notebook)!r}, {str(tmp_path / 'late.ipynb')!r}, {{'nap': 60.0}}))"
    )
    worker = subprocess.Popen([sys.executable, "-c", source])
    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children")
    until = time.monotonic() + 60
    while not (found := children.read_text().split()) and time.monotonic() < until:
        time.sleep(0.1)
    assert found
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    while alive(found[0]) and time.monotonic() < until:
        time.sleep(0.1)
    assert not alive(found[0])
