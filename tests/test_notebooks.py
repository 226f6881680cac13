"""Every notebook, executed by papermill on its quick parameters; and what must hold of the files themselves."""

import nbformat
import pytest
import yaml

from paramarket import runs, sweep, teach
from paramarket.__main__ import HOME

NOTEBOOKS = sorted((HOME / "notebooks").glob("[0-9]*.ipynb"))
QUICK = yaml.safe_load((HOME / "tests/quick.yaml").read_text())

RESULTS = (HOME / "RESULTS.md").read_text()
KEYS = {"01_train_two_mlps": ["accuracy", "agreement", "averaged_accuracy", "plant_a_accuracy", "plant_b_accuracy"]}

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def run(path, output, parameters):
    outcome = sweep.run_point(sweep.Point(path, output, parameters, timeout=300))
    assert not outcome.error
    return runs.read(output)


def test_every_notebook_has_quick_parameters_and_asked_for_results():
    assert sorted(QUICK) == sorted(KEYS) == [path.stem for path in NOTEBOOKS]


@each
def test_the_solved_notebook_and_its_student_copy_leave_the_same_record(path, tmp_path):
    """So the story does not hang on a learner's code, and the same parameters give the same record, bit for bit."""
    teach.student_copy(path, tmp_path / "copy.ipynb")
    solved = run(path, tmp_path / "solved.ipynb", QUICK[path.stem])
    student = run(tmp_path / "copy.ipynb", tmp_path / "student.ipynb", QUICK[path.stem])
    assert solved == student
    assert solved["parameters"].items() >= QUICK[path.stem].items()
    for key in KEYS[path.stem]:
        assert solved["results"][f"{key}_low"] <= solved["results"][key] <= solved["results"][f"{key}_high"]
    for each in solved["claims"]:
        assert f"| {each['claim']} | {path.stem} | {each['figure']} | `{each['result']}` " in RESULTS
    assert solved["claims"]
    exercises = path.read_text().count("BEGIN SOLUTION")
    assert said(tmp_path / "solved.ipynb").count("holds on fresh random input") == exercises >= 2
    assert "✗" not in said(tmp_path / "solved.ipynb")
    assert said(tmp_path / "student.ipynb").count("is not written yet") == exercises


def said(path):
    """All that a run printed."""
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


@each
def test_nothing_that_a_run_leaves_is_committed(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert "papermill" not in cell.metadata
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
