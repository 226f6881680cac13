import json
import multiprocessing

import nbformat
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramarket import base, errors, runs, stack

CELL = (
    'width: int = 64  # units\nrate: float = 0.1\nname: str = "digits"\nboth: bool = True\nangles: list[int] = [10, 20]'
)
ALLOWED = {"width": (1, 512), "rate": (0.0, 1.0), "name": ["digits", "mnist-5k"], "both": bool, "angles": (0, 90)}


def check(injected="", cell=CELL, allowed=ALLOWED, after=()):
    """What a kernel holds when the check cell runs: cells so far in `In`, values as globals."""
    cells = [
        "",
        "import math",
        "%matplotlib inline",
        cell,
        *([f"# Parameters\n{injected}\n"] if injected else []),
        *after,
    ]
    namespace = {"In": cells}
    for source in cells[3:]:
        exec(source, namespace)
    return runs.check_parameters(namespace, **allowed)


def test_cells_run_again_in_jupyterlab_are_understood():
    assert check(after=["scratch: int = 3", "bogus = 3"])["width"] == 64
    assert (
        check("widht = 3", after=[CELL])["width"] == 64
    )  # the injected cell was deleted, the parameters cell run again
    assert check(after=[CELL.replace("64", "32")])["width"] == 32
    assert check(cell=f"'A docstring.'\n{CELL}")["width"] == 64


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (CELL.replace("width: int", "width"), r"write `width: type = …"),
        (CELL.replace("width: int", "width: complex"), r"width: unknown type of parameter 'complex'"),
    ],
)
def test_a_parameters_cell_of_the_wrong_form_is_explained(cell, message):
    with pytest.raises(errors.ParameterError, match=message):
        check(cell=cell)


def test_defaults_and_injected_values_come_back():
    assert check() == {"width": 64, "rate": 0.1, "name": "digits", "both": True, "angles": [10, 20]}
    assert check("width = 32\nrate = 1")["width"] == 32


@pytest.mark.parametrize(
    ("injected", "message"),
    [
        ("widht = 3", r"unknown parameter 'widht'\. Did you mean 'width'\?"),
        ("width = 0", r"width = 0 is out of range, expected 1 … 512"),
        ("width = 3.5", r"width = 3\.5 is of type float, expected int"),
        ("width = '3'", r"width = '3' is of type str, expected int"),
        ("width = True", r"width = True is of type bool, expected int"),
        ("both = 1", r"both = 1 is of type int, expected bool"),
        ("rate = float('nan')", r"rate = nan is out of range"),
        ("name = 'digit'", r"name: unknown choice 'digit'\. Did you mean 'digits'\?"),
        ("angles = 20", r"angles = 20, expected a list with one or more of int"),
        ("angles = []", r"angles = \[\], expected a list"),
        ("angles = [10, 99]", r"angles = 99 is out of range, expected 0 … 90"),
    ],
)
def test_bad_parameters_are_refused_by_name(injected, message):
    with pytest.raises(errors.ParameterError, match=message):
        check(injected)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(errors.ParameterError, match=r"'widht'.*rate = 2 is out of range"):
        check("widht = 1\nrate = 2")


def test_the_check_cell_covers_each_parameter_and_nothing_else():
    with pytest.raises(errors.ParameterError, match="parameter 'angles' has no check"):
        check(allowed={name: value for name, value in ALLOWED.items() if name != "angles"})
    with pytest.raises(errors.ParameterError, match="'depth' is checked but is no parameter"):
        check(allowed=ALLOWED | {"depth": (1, 2)})


def test_a_record_comes_back_from_the_file_in_its_order(tmp_path, monkeypatch):
    outputs = []
    monkeypatch.setattr(runs.records, "display", lambda shown, raw: outputs.append(shown))
    runs.record({"seed": 0}, loss=0.25, accuracy=base.Interval(0.9, 0.8, 1.0), best="mean")
    (shown,) = outputs
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", data=shown)])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    found = runs.read(tmp_path / "a.ipynb")
    assert list(found["results"].items()) == [
        ("loss", 0.25), ("accuracy", 0.9), ("accuracy_low", 0.8), ("accuracy_high", 1.0), ("best", "mean")
    ]  # fmt: skip
    assert found["parameters"] == {"seed": 0}
    assert found["environment"] == runs.environment()
    assert "<td>accuracy_low</td><td>0.8</td>" in shown["text/html"]


def test_a_record_refuses_nan():
    with pytest.raises(errors.ParameterError, match="loss is nan"):
        runs.record({}, loss=float("nan"))


def test_read_names_files_without_a_record(tmp_path):
    with pytest.raises(errors.DataError, match="no readable notebook"):
        runs.read(tmp_path / "missing.ipynb")
    (tmp_path / "a.ipynb").write_text("{")
    with pytest.raises(errors.DataError, match="no readable notebook"):
        runs.read(tmp_path / "a.ipynb")
    (tmp_path / "b.ipynb").write_text(json.dumps({"cells": []}))
    with pytest.raises(errors.DataError, match="holds no record"):
        runs.read(tmp_path / "b.ipynb")


@pytest.mark.parametrize(
    ("low", "high", "bars", "verdict"),
    [
        (1.0, 2.0, {"above": 0.5}, "holds"),
        (1.0, 2.0, {"above": 1.5}, "partly"),
        (1.0, 2.0, {"above": 2.5}, "fails"),
        (1.0, 2.0, {"below": 2.5}, "holds"),
        (1.0, 2.0, {"below": 1.5}, "partly"),
        (1.0, 2.0, {"below": 0.5}, "fails"),
    ],
)
def test_a_claim_is_judged_by_its_whole_interval(low, high, bars, verdict):
    results = {"gain": base.Interval((low + high) / 2, low, high)}
    assert runs.claim("text", "1 bars", "gain", results, **bars)["verdict"] == verdict


@given(st.floats(1e-6, 1e9))
def test_shown_numbers_are_the_numbers(value):
    assert float(runs.show(value).replace(",", "")) == pytest.approx(value, rel=1e-3)


def noise(shape, seed):
    return {"w": torch.randn(shape, generator=base.stream(seed))}


def test_cached_builds_once_and_is_exact(tmp_path):
    first, again = (runs.cached(noise, folder=tmp_path, shape=[3], seed=0) for _ in range(2))
    assert torch.equal(first["w"], noise([3], 0)["w"])
    assert torch.equal(first["w"], again["w"])
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("change", ["input", "source", "threads"])
def test_cached_builds_again_when_anything_it_was_made_from_changes(tmp_path, monkeypatch, change):
    runs.cached(noise, folder=tmp_path, shape=[3], seed=0)
    build = noise
    if change == "source":

        def build(shape, seed):
            return {"w": torch.zeros(shape)}

    if change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 17)
    runs.cached(build, folder=tmp_path, shape=[3], seed=int(change == "input"))
    assert len(list(tmp_path.iterdir())) == 2


def test_cached_tells_data_nets_and_tensors_apart_by_content(tmp_path, digits):
    def build(**inputs):
        return {"w": torch.zeros(1)}

    inputs = [{"x": digits.train}, {"x": digits.test}, {"x": stack.mlp(3, [4], 2)}, {"x": stack.mlp(3, [5], 2)}]
    inputs += [{"x": torch.zeros(2)}, {"x": torch.ones(2)}, {"x": {"a": 1}}]
    for each in inputs * 2:
        runs.cached(build, folder=tmp_path, **each)
    assert len(list(tmp_path.iterdir())) == len(inputs)
    with pytest.raises(errors.ParameterError, match="cannot tell the content of a object"):
        runs.cached(build, folder=tmp_path, x=object())


def test_a_damaged_artefact_is_built_again_and_a_failed_one_leaves_nothing(tmp_path):
    runs.cached(noise, folder=tmp_path, shape=[3], seed=0)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:20], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(damaged)
        assert torch.equal(runs.cached(noise, folder=tmp_path, shape=[3], seed=0)["w"], noise([3], 0)["w"])
    assert torch.equal(runs.cached(noise, folder=tmp_path, shape=[3], seed=0)["w"], noise([3], 0)["w"])

    def broken():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.cached(broken, folder=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def _build_in_child(folder):
    return runs.cached(noise, folder=folder, shape=[200_000], seed=0)["w"].sum().item()


def test_two_runs_at_once_do_not_collide(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        sums = pool.map(_build_in_child, [tmp_path] * 4)
    assert len(set(sums)) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_refuse_says_all_that_is_wrong_and_nothing_if_nothing_is():
    runs.refuse([])
    with pytest.raises(errors.ParameterError, match=r"a = 1: too few\. b = 2: too many\."):
        runs.refuse(["a = 1: too few.", "b = 2: too many."])
