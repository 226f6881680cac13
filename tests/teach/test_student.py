import nbformat
import pytest

from paramarket import teach
from paramarket.errors import DataError


def write(path, source, solution=True):
    cell = nbformat.v4.new_code_cell(source, execution_count=3, outputs=[nbformat.v4.new_output("stream", text="x")])
    if solution:
        cell.metadata["nbgrader"] = {
            "solution": True,
            "grade_id": "a",
            "schema_version": 3,
            "grade": False,
            "locked": False,
        }
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)


def test_a_student_copy_has_stubs_for_solutions_and_no_outputs(tmp_path):
    write(
        tmp_path / "a.ipynb", "def f(x):\n    '''Doc.'''\n    ### BEGIN SOLUTION\n    return x\n    ### END SOLUTION\nf"
    )
    teach.student_copy(tmp_path / "a.ipynb", tmp_path / "out/a.ipynb")
    (cell,) = nbformat.read(tmp_path / "out/a.ipynb", as_version=4).cells
    assert cell.source == "def f(x):\n    '''Doc.'''\n    raise NotImplementedError\nf"
    assert (cell.outputs, cell.execution_count) == ([], None)
    assert cell.metadata["nbgrader"]["solution"]


def test_a_solution_cell_without_marks_is_refused(tmp_path):
    write(tmp_path / "a.ipynb", "def f(x):\n    return x")
    with pytest.raises(DataError, match="has no ### BEGIN SOLUTION"):
        teach.student_copy(tmp_path / "a.ipynb", tmp_path / "out/a.ipynb")
    assert not (tmp_path / "out").exists()
