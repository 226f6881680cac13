"""nbgrader itself, by its own commands, on our notebooks: a course folder, no exchange, a gradebook in it."""

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from exercises import NOTEBOOKS, exercises

from paramarket import teach
from paramarket.__main__ import HOME

QUICK = yaml.safe_load((HOME / "tests/quick.yaml").read_text())
CONFIG = """c = get_config()
c.CourseDirectory.course_id = "weights"
c.ExecutePreprocessor.timeout = 300
c.Execute.timeout = 300
"""

pytestmark = [pytest.mark.full, pytest.mark.long]


def nbgrader(course, *words):
    """One of nbgrader's commands, run in the folder of a course."""
    call = [sys.executable, "-m", "nbgrader", *words]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it looks there for alembic
    done = subprocess.run(
        call, cwd=course, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def new_course(folder, assignment, notebooks):
    source = folder / "source" / assignment
    source.mkdir(parents=True)
    (folder / "nbgrader_config.py").write_text(CONFIG)
    for path in notebooks:
        shutil.copyfile(path, source / path.name)
    return folder


def test_nbgrader_releases_every_notebook_and_our_copies_have_the_same_cells(tmp_path):
    course = new_course(tmp_path, "all", NOTEBOOKS)
    nbgrader(course, "generate_assignment", "all", "--create")
    for path in NOTEBOOKS:
        teach.student_copy(path, tmp_path / "ours" / path.name)
        ours = nbformat.read(tmp_path / "ours" / path.name, as_version=4)
        theirs = nbformat.read(course / "release/all" / path.name, as_version=4)
        for exercise in exercises(path):
            for name in (exercise.solution.id, exercise.checking.id):
                (our_cell,) = [cell for cell in ours.cells if cell.id == name]
                (their_cell,) = [
                    cell for cell in theirs.cells if cell.metadata.get("nbgrader", {}).get("grade_id") == name
                ]
                stub = their_cell.source.replace("# YOUR CODE HERE\n    raise NotImplementedError()", STUB)
                assert our_cell.source == stub


STUB = "raise NotImplementedError"


def hand_in(course, student, assignment, path, answers):
    """A learner's copy: the released notebook with these functions (cell id -> source) written into it."""
    notebook = nbformat.read(course / "release" / assignment / path.name, as_version=4)
    for cell in notebook.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id")
        cell.source = answers.get(name, cell.source)
    folder = course / "submitted" / student / assignment
    folder.mkdir(parents=True)
    nbformat.write(notebook, folder / path.name)


def quick_copy(path, folder):
    """The notebook on its quick parameters, as papermill would set them."""
    notebook = nbformat.read(path, as_version=4)
    (k,) = [k for k, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    values = "\n".join(f"{name} = {value!r}" for name, value in QUICK[path.stem].items())
    notebook.cells.insert(k + 1, nbformat.v4.new_code_cell(values))
    nbformat.write(notebook, folder / path.name)
    return folder / path.name


def test_nbgrader_gives_the_points_of_the_answers_that_hold_and_no_others(tmp_path):
    course = new_course(tmp_path, "first", [])
    path = quick_copy(NOTEBOOKS[0], course / "source/first")
    nbgrader(course, "generate_assignment", "first", "--create")
    same, average, swap = exercises(path)
    solved = {exercise.solution.id: exercise.solution.source for exercise in (same, average, swap)}
    wrong = average.solution.source.replace(") / 2", ")")
    edited = {same.checking.id: "print('✓ same_mistake holds on fresh random input.')"}  # nbgrader puts the check back
    hand_in(course, "all", "first", path, solved)
    hand_in(course, "none", "first", path, edited)
    hand_in(course, "one", "first", path, {swap.solution.id: swap.solution.source, average.solution.id: wrong})
    nbgrader(course, "autograde", "first")
    query = """SELECT student_id, base_cell.name, auto_score FROM grade
        JOIN base_cell ON base_cell.id = cell_id
        JOIN submitted_notebook ON submitted_notebook.id = grade.notebook_id
        JOIN submitted_assignment ON submitted_assignment.id = submitted_notebook.assignment_id"""
    with sqlite3.connect(course / "gradebook.db") as gradebook:
        rows = gradebook.execute(query).fetchall()
    gradebook.close()
    points = {(student, name): score for student, name, score in rows}
    names = [exercise.checking.id for exercise in (same, average, swap)]
    worth = [exercise.checking.metadata.nbgrader.points for exercise in (same, average, swap)]
    assert [points["all", name] for name in names] == worth == [1, 1, 2]
    assert [points["none", name] for name in names] == [0, 0, 0]
    assert [points["one", name] for name in names] == [0, 0, 2]
