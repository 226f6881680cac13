import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from paramarket import errors, runs

MARKS = {"solution": True, "grade_id": "a"}


def write(path, used):
    cells = [new_markdown_cell("# Why?", id="a"), new_code_cell("x = 'é'", id="b")]
    cells[1].metadata = {"tags": ["parameters"], "nbgrader": MARKS}
    notebook = new_notebook(cells=cells)
    if used:
        cells[0].metadata = {"papermill": {"status": "completed"}, "tags": []}
        cells[1].metadata |= {"execution": {"iopub.status.busy": "2026"}, "scrolled": True}
        cells[1].outputs, cells[1].execution_count = [new_output("stream", text="4")], 7
        notebook.metadata = {"widgets": {}, "papermill": {}, "paramarket": {}, "language_info": {"version": "3.11.7"}}
    nbformat.write(notebook, path)
    return path


def test_what_a_run_leaves_is_gone_and_what_a_person_wrote_stays(tmp_path):
    fresh, used = write(tmp_path / "fresh.ipynb", False), write(tmp_path / "used.ipynb", True)
    runs.strip(fresh)
    runs.strip(used)
    assert used.read_bytes() == fresh.read_bytes()
    notebook = nbformat.read(used, as_version=4)
    nbformat.validate(notebook)
    assert [cell.source for cell in notebook.cells] == ["# Why?", "x = 'é'"]
    assert notebook.cells[1].metadata == {"tags": ["parameters"], "nbgrader": MARKS}
    assert "version" not in notebook.metadata.language_info
    runs.strip(used)
    assert used.read_bytes() == fresh.read_bytes()


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"cells": 1}', b'{"cells": [{}]}'])
def test_what_is_no_notebook_is_named_and_left_alone(tmp_path, content):
    (tmp_path / "a.ipynb").write_bytes(content)
    with pytest.raises(errors.DataError, match=r"a\.ipynb is no readable notebook"):
        runs.strip(tmp_path / "a.ipynb")
    assert (tmp_path / "a.ipynb").read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 1
