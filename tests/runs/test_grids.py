"""Laws of a grid: how many points it has, and which of them are one and the same."""

import math

import nbformat
import notebooks
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramarket import runs
from paramarket.errors import ParameterError
from paramarket.runs import grids

PARAMETERS = (
    "width: int = 64  # units\nrate: float = 1e-3\nwidths: list[int] = [8, 16]\nname: str = ''\nfast: bool = False"
)
VALUES = {
    "width": st.integers(-(10**9), 10**9),
    "rate": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**6), 10**6),
    "widths": st.lists(st.integers(0, 99), min_size=1, max_size=3),
    "name": st.text(max_size=5),
    "fast": st.booleans(),
}
LISTS = {name: st.lists(values, min_size=1, max_size=3, unique_by=repr) for name, values in VALUES.items()}


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    return notebooks.write(tmp_path_factory.mktemp("grids") / "net.ipynb", ["import os", PARAMETERS, "width"])


def hashes(notebook, grid, **more):
    return [point.hash for point in runs.points(notebook, grid, "runs", **more)]


def changed(notebook, folder, change):
    """A copy of the notebook with something changed in it, under the same name."""
    copy = nbformat.read(notebook, as_version=4)
    change(copy.cells)
    folder.mkdir()
    nbformat.write(copy, folder / notebook.name)
    return folder / notebook.name


@given(st.fixed_dictionaries({}, optional=LISTS))
def test_a_grid_has_the_product_of_its_values_and_no_point_twice(notebook, grid):
    if "rate" in grid:
        grid["rate"] = list({float(rate) or 0.0: rate for rate in grid["rate"]}.values())  # 1 and 1.0 are one rate
    points = runs.points(notebook, grid, "runs")
    assert len(points) == math.prod(map(len, grid.values()))
    assert len({point.hash for point in points}) == len({point.output for point in points}) == len(points)


@given(st.permutations(["width", "rate", "fast"]))
def test_the_order_of_a_grid_and_who_names_a_value_make_no_other_points(notebook, order):
    grid = {"width": [64, 8], "rate": [0.001, 1], "fast": [False, True]}
    expected = hashes(notebook, grid)
    assert sorted(hashes(notebook, {name: grid[name] for name in order})) == sorted(expected)
    named = {"widths": [8, 16], "name": ""}  # their defaults
    assert hashes(notebook, grid, parameters=named) == expected
    assert hashes(notebook, {"rate": [1e-3, 1.0]}, parameters={"width": 8, "fast": True}) == [expected[5], expected[7]]


@given(st.sampled_from([0, 1, 2]), st.text(min_size=1, max_size=9).filter(lambda text: "\r" not in text))
def test_changing_any_code_cell_makes_other_points(notebook, tmp_path_factory, place, text):
    folder = tmp_path_factory.mktemp("changed") / "one"

    def change(cells):
        cells[place].source += f"\n# {text!r}"

    assert hashes(changed(notebook, folder, change), {}) != hashes(notebook, {})


def test_outputs_counts_and_prose_make_no_other_points(notebook, tmp_path):
    def run(cells):
        cells[2].outputs = [nbformat.v4.new_output("stream", text="64\n")]
        cells[2].execution_count = 7
        cells.insert(1, nbformat.v4.new_markdown_cell("what it is about"))

    assert hashes(changed(notebook, tmp_path / "one", run), {}) == hashes(notebook, {})

    def untag(cells):
        cells[1].metadata["tags"] = ["parameters", "other"]

    assert hashes(changed(notebook, tmp_path / "two", untag), {}) != hashes(notebook, {})


@pytest.mark.parametrize("what", ["__version__", "THREADS", "library_hash"])
def test_another_version_library_or_number_of_threads_makes_other_points(notebook, monkeypatch, what):
    before = hashes(notebook, {})
    monkeypatch.setattr(grids, what, (lambda: "other") if what == "library_hash" else "9")
    assert hashes(notebook, {}) != before


def test_points_write_nothing_and_their_values_are_pythons(notebook, tmp_path):
    points = runs.points(notebook, {"width": np.arange(1, 3), "rate": np.array([1, 2])}, tmp_path / "out", timeout=9)
    assert not (tmp_path / "out").exists()
    assert [point.parameters["width"] for point in points] == [1, 1, 2, 2]
    defaults = {"widths": [8, 16], "name": "", "fast": False}
    assert repr(points[0].parameters) == repr({"width": 1, "rate": 1.0, **defaults})
    assert points[0].output == tmp_path / "out" / f"{points[0].hash}.ipynb"
    assert points[0].timeout == 9


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"widht": [3]}, r"net\.ipynb: unknown parameter 'widht'\. Did you mean 'width'\?"),
        ({"width": ["64"]}, r"net\.ipynb: width = '64' is of type str, expected int"),
        ({"width": [6.5]}, "width = 6.5 is of type float, expected int"),
        ({"width": [64, True]}, "width = True is of type bool, expected int"),
        ({"rate": ["1e-3"]}, "rate = '1e-3' is of type str, expected float"),
        ({"widths": [8]}, "widths = 8, expected a list with one or more of int"),
        ({"widths": [[]]}, r"widths = \[\], expected a list with one or more of int"),
        ({"width": []}, "the grid of width is empty: give one or more values"),
        ({"name": "ab"}, "the grid of name = 'ab', expected a list"),
        ({"width": [1, 2, 1]}, "the grid of width holds 1 twice"),
        ({"rate": [1, 1.0]}, "the grid of rate holds 1.0 twice"),
        ({"fast": [True]}, "fast is in the grid and among the fixed parameters"),
    ],
)
def test_what_the_notebook_does_not_take_is_refused_by_name(notebook, grid, message):
    with pytest.raises(ParameterError, match=message):
        runs.points(notebook, grid, "runs", parameters={"fast": True})


def test_a_notebook_that_is_not_there_is_named():
    with pytest.raises(ParameterError, match=r"nowhere\.ipynb is missing"):
        runs.points("nowhere.ipynb", {}, "runs")


def test_a_default_that_only_the_kernel_knows_is_left_to_it(tmp_path):
    code = ["import os", "home: str = os.getcwd()\nvalue: int = 1  # what is squared\nfree = [1]", "home"]
    (point,) = runs.points(notebooks.write(tmp_path / "home.ipynb", code), {"free": [{"a": 1}]}, tmp_path)
    assert point.parameters == {"value": 1, "free": {"a": 1}}
