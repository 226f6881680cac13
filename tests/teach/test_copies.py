import json

import nbformat
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from paramarket import teach
from paramarket.errors import DataError


def write(path, *sources):
    cells = [new_markdown_cell("# Why?"), *map(new_code_cell, sources)]
    nbformat.write(new_notebook(cells=cells), path)


def sources(path):
    return [cell.source for cell in nbformat.read(path, as_version=4).cells]


def edit(path, change):
    """What JupyterLab does when somebody works: read, change, write."""
    notebook = nbformat.read(path, as_version=4)
    change(notebook)
    nbformat.write(notebook, path)


def run(notebook):
    """Leave what a run leaves: outputs, counts, what controls showed, the kernel's version."""
    notebook.cells[1].outputs = [new_output("stream", text="4")]
    notebook.cells[1].execution_count = 7
    notebook.metadata["widgets"] = {}
    notebook.metadata["language_info"] = {"name": "python", "version": "3.11.7"}


def retype(notebook):
    notebook.cells[1].source = "my_own = 2"


@pytest.fixture
def paths(tmp_path):
    write(tmp_path / "a.ipynb", "x = 1")
    return tmp_path / "a.ipynb", tmp_path / "mine/a.ipynb"


def test_a_copy_is_written_once_and_holds_what_the_notebook_holds(paths):
    original, copy = paths
    before = original.read_bytes()
    assert teach.own_copy(original, copy) == "new"
    assert sources(copy) == sources(original)
    nbformat.validate(nbformat.read(copy, as_version=4))
    written = copy.read_bytes()
    assert teach.own_copy(original, copy) == "kept"
    assert copy.read_bytes() == written
    assert original.read_bytes() == before
    assert [path.name for path in copy.parent.iterdir()] == ["a.ipynb"]


@pytest.mark.parametrize("change", [lambda notebook: None, run])
def test_a_copy_that_nobody_edited_follows_the_notebook(paths, change):
    original, copy = paths
    teach.own_copy(original, copy)
    edit(copy, change)
    assert teach.own_copy(original, copy) == "kept"
    write(original, "x = 2")
    assert teach.own_copy(original, copy) == "renewed"
    assert sources(copy) == sources(original)
    assert teach.own_copy(original, copy) == "kept"


EDITS = {
    "a cell retyped": retype,
    "a cell added": lambda notebook: notebook.cells.append(new_code_cell("")),
    "a cell gone": lambda notebook: notebook.cells.pop(),
    "cells in another order": lambda notebook: notebook.cells.reverse(),
    "code that became text": lambda notebook: notebook.cells.append(new_markdown_cell(notebook.cells.pop().source)),
}


@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS)
def test_a_copy_that_somebody_edited_is_kept_byte_for_byte(paths, change):
    original, copy = paths
    teach.own_copy(original, copy)
    edit(copy, change)
    work = copy.read_bytes()
    assert teach.own_copy(original, copy) == "kept"
    write(original, "x = 2")
    assert teach.own_copy(original, copy) == "outdated"
    assert copy.read_bytes() == work
    copy.rename(copy.with_name("a_mine.ipynb"))
    assert teach.own_copy(original, copy) == "new"
    assert copy.with_name("a_mine.ipynb").read_bytes() == work


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(["start", "run", "edit", "release"]), max_size=8))
def test_whatever_happens_no_edit_is_lost_and_a_second_start_changes_nothing(tmp_path, steps):
    original, copy = tmp_path / "a.ipynb", tmp_path / "mine/a.ipynb"
    copy.unlink(missing_ok=True)
    write(original, "version = 0")
    teach.own_copy(original, copy)
    mine = None
    for number, step in enumerate(steps, start=1):
        if step == "release":
            write(original, f"version = {number}")
        elif step == "start":
            teach.own_copy(original, copy)
        elif step == "run":
            edit(copy, run)
        else:
            mine = f"my_own = {number}"
            edit(copy, lambda notebook, source=mine: notebook.cells[1].update(source=source))
    teach.own_copy(original, copy)
    now = copy.read_bytes()
    assert teach.own_copy(original, copy) in ("kept", "outdated")
    assert copy.read_bytes() == now
    assert sources(copy)[1] == mine if mine else sources(copy) == sources(original)


def test_a_notebook_of_ones_own_that_bears_the_name_is_kept(paths):
    original, copy = paths
    copy.parent.mkdir()
    write(copy, "a student copy, say")
    work = copy.read_bytes()
    assert teach.own_copy(original, copy) == "kept"
    assert copy.read_bytes() == work


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[]", b"{}", b'{"cells": 1}', b'{"cells": [{}], "metadata": {}}']
)
def test_what_is_no_notebook_is_kept_and_named(paths, content):
    original, copy = paths
    copy.parent.mkdir()
    copy.write_bytes(content)
    assert teach.own_copy(original, copy) == "unreadable"
    assert copy.read_bytes() == content
    with pytest.raises(DataError, match=r"a\.ipynb is no readable notebook"):
        teach.own_copy(copy, copy.with_name("b.ipynb"))
    assert not copy.with_name("b.ipynb").exists()


def test_a_folder_in_the_place_of_a_copy_is_kept(paths):
    original, copy = paths
    copy.mkdir(parents=True)
    assert teach.own_copy(original, copy) == "unreadable"
    assert copy.is_dir()


@pytest.mark.parametrize("metadata", [{"paramarket": 3}, {"paramarket": None}, {"paramarket": {"copied_from": 1}}, 3])
def test_a_damaged_stamp_costs_nobodys_work(paths, metadata):
    original, copy = paths
    teach.own_copy(original, copy)
    work = {**json.loads(copy.read_text()), "metadata": metadata}
    work["cells"][1]["source"] = "mine"
    copy.write_text(json.dumps(work))
    assert teach.own_copy(original, copy) in ("kept", "outdated", "unreadable")
    assert json.loads(copy.read_text()) == work
