import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def region(name, *, space="    ", begin="### BEGIN SOLUTION", end="### END SOLUTION", line="\n"):
    """A function whose solution is a secret."""
    return line.join([f"def {name}(x):", f"{space}{begin}", f"{space}return 'SECRET'", f"{space}{end}", ""])


def copied(folder, *cells):
    """What a learner sees of cells (source, whether it is marked as a solution, what kind of cell)."""
    notebook = nbformat.v4.new_notebook(cells=[])
    for source, marked, kind in cells:
        cell = getattr(nbformat.v4, f"new_{kind}_cell")(source)
        if marked:
            cell.metadata["nbgrader"] = {"solution": True, "grade": False, "grade_id": "a", "schema_version": 3}
        notebook.cells.append(cell)
    nbformat.write(notebook, folder / "a.ipynb")
    teach.student_copy(folder / "a.ipynb", folder / "b.ipynb")
    return [cell.source for cell in nbformat.read(folder / "b.ipynb", as_version=4).cells]


WHITE = {
    "a space behind": region("g", begin="### BEGIN SOLUTION ", end="### END SOLUTION  "),
    "tabs before": region("g", space="\t"),
    "tabs and spaces": region("g", space=" \t "),
    "Windows line ends": region("g", line="\r\n"),
    "old line ends": region("g", line="\r"),
    "one number sign": region("g", begin="# BEGIN SOLUTION", end="# END SOLUTION"),
    "no number sign at all": region("g", begin="BEGIN SOLUTION", end="END SOLUTION"),
    "words around": region("g", begin="##### BEGIN SOLUTION (two lines) #####", end="#### END SOLUTION ####"),
    "behind code": "def g(x):\n    y = 'SECRET'  ### BEGIN SOLUTION\n    return y + 'SECRET'\n    ### END SOLUTION",
    "within a text": "def g(x):\n    '''\n    ### BEGIN SOLUTION\n    SECRET\n    ### END SOLUTION\n    '''",
    "a form feed": region("g").replace("return 'SECRET'", "a = 'SECRET\x0c SECRET\u2028 SECRET'"),
}


@pytest.mark.parametrize("kind", WHITE)
def test_a_mark_counts_whatever_stands_around_it(tmp_path, kind):
    first = region("f")
    (both,) = copied(tmp_path, (first + WHITE[kind], True, "code"))
    assert "SECRET" not in (tmp_path / "b.ipynb").read_text()
    assert both.count("raise NotImplementedError") == 2
    assert "SOLUTION" not in both


BAD = {
    "not closed": (region("f") + region("g", end=""), True, "BEGIN SOLUTION is not closed"),
    "nested": (
        region("f").replace("return", "### BEGIN SOLUTION\n    return"),
        True,
        "BEGIN SOLUTION within another one",
    ),
    "closed twice": (region("f") + "    ### END SOLUTION\n    return 'SECRET'", True, "END SOLUTION without BEGIN"),
    "not opened": ("def f(x):\n    return 'SECRET'\n    ### END SOLUTION", True, "END SOLUTION without BEGIN"),
    "not marked": (region("f"), False, "is not marked as one in nbgrader's metadata"),
    "no region": ("def f(x):\n    return 'SECRET'", True, "has no ### BEGIN SOLUTION"),
    "small letters": (region("f") + region("g").lower(), True, "'begin solution' reads almost like a mark"),
    "two spaces": (region("f") + region("g", begin="### BEGIN  SOLUTION", end=""), True, "almost like a mark"),
    "small letters, not marked": (region("g").lower(), False, "almost like a mark"),
    "hidden tests not closed": ("### BEGIN HIDDEN TESTS\nassert f(1) == 'SECRET'", False, "HIDDEN TESTS is not closed"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("before", [[], [("# A title", False, "markdown")]])
def test_marks_that_do_not_fit_are_refused_by_cell_and_no_copy_is_left(tmp_path, kind, before):
    source, marked, says = BAD[kind]
    with pytest.raises(DataError, match=rf"a\.ipynb, cell {len(before) + 1}.*{says}"):
        copied(tmp_path, *before, (source, marked, "code"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.ipynb"]


@pytest.mark.parametrize("kind", ["markdown", "raw"])
def test_a_solution_in_words_is_a_solution(tmp_path, kind):
    (text,) = copied(tmp_path, ("Why?\n\n### BEGIN SOLUTION\nSECRET\n### END SOLUTION", True, kind))
    assert text == "Why?\n\nYOUR ANSWER HERE"
    (tmp_path / "b.ipynb").unlink()
    with pytest.raises(DataError, match="is not marked as one"):
        copied(tmp_path, ("### BEGIN SOLUTION\nSECRET\n### END SOLUTION", False, kind))


def test_hidden_tests_and_mark_schemes_are_not_shown(tmp_path):
    tests = "assert f(1) == 1\n### BEGIN HIDDEN TESTS\nassert f(2) == 'SECRET'\n### END HIDDEN TESTS\nprint('done')"
    scheme = "Explain.\n=== BEGIN MARK SCHEME ===\nSECRET\n=== END MARK SCHEME ==="
    assert copied(tmp_path, (tests, False, "code"), (scheme, False, "markdown")) == [
        "assert f(1) == 1\nprint('done')",
        "Explain.",
    ]


@given(
    st.lists(
        st.sampled_from(["x = 1", "    y", "", "\t# BEGIN SOLUTION ", "SECRET", "# END SOLUTION\r", "  z"]), max_size=12
    )
)
def test_no_copy_shows_what_stands_between_two_marks(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("copies")
    inside, hidden = False, []
    for line in lines:
        inside = ("BEGIN" in line) or (inside and "END" not in line)
        hidden.append(inside and "SECRET" in line)
    try:
        (source,) = copied(folder, ("\n".join(lines), True, "code"))
    except DataError:
        assert not (folder / "b.ipynb").exists()
        return
    assert source.count("SECRET") == lines.count("SECRET") - sum(hidden)
    assert source.count("raise NotImplementedError") == sum("BEGIN" in line for line in lines) > 0


@pytest.mark.parametrize("content", [b"", b"{}", b"no notebook", b"\xff\xfe", b'{"nbformat": 99, "cells": []}', b"[1]"])
def test_what_is_no_notebook_is_refused(tmp_path, content):
    (tmp_path / "a.ipynb").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.ipynb is no readable notebook"):
        teach.student_copy(tmp_path / "a.ipynb", tmp_path / "b.ipynb")
    with pytest.raises(DataError, match=r"gone\.ipynb is no readable notebook"):
        teach.student_copy(tmp_path / "gone.ipynb", tmp_path / "b.ipynb")
    assert not (tmp_path / "b.ipynb").exists()


def test_what_controls_showed_last_is_not_handed_on(tmp_path):
    notebook = nbformat.v4.new_notebook(metadata={"widgets": {"state": "SECRET"}})
    nbformat.write(notebook, tmp_path / "a.ipynb")
    teach.student_copy(tmp_path / "a.ipynb", tmp_path / "b.ipynb")
    assert "SECRET" not in (tmp_path / "b.ipynb").read_text()
