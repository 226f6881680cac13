import inspect
import json

import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramarket import base, errors, runs

record = inspect.unwrap(runs.record)  # as a notebook calls it: without the type checker of the tests
claim = inspect.unwrap(runs.claim)


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Records as a notebook does, and reads it back from the executed file."""

    def recorded(*args, **results):
        outputs = []
        monkeypatch.setattr("IPython.display.display", lambda shown, raw: outputs.append(shown))
        record(*args, **results)
        cells = [nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", data=outputs[0])])]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
        return runs.read(tmp_path / "a.ipynb"), outputs[0]

    return recorded


def test_a_record_comes_back_from_the_file_in_its_order(recorded):
    found, shown = recorded({"seed": 0}, loss=0.25, accuracy=base.Interval(0.9, 0.8, 1.0), best="mean")
    assert list(found["results"].items()) == [
        ("loss", 0.25), ("accuracy", 0.9), ("accuracy_low", 0.8), ("accuracy_high", 1.0), ("best", "mean")
    ]  # fmt: skip
    assert found["parameters"] == {"seed": 0}
    assert found["environment"] == runs.environment()
    assert "<td>accuracy_low</td><td>0.8</td>" in shown["text/html"]
    assert shown["text/plain"].splitlines()[0] == "loss = 0.25"


NUMBERS = [0.1, 3, True, np.float32(0.1), np.float64(0.1), np.int64(3), np.array(0.1)]
NUMBERS += [torch.tensor(0.1), torch.tensor(0.1, dtype=torch.float64), torch.tensor(3)]


@pytest.mark.parametrize("number", NUMBERS, ids=repr)
def test_single_numbers_of_numpy_and_torch_are_recorded_as_pythons(recorded, number):
    found, _ = recorded({}, x=number, y=base.Interval(number, number, number))
    assert list(found["results"]) == ["x", "y", "y_low", "y_high"]
    for value in found["results"].values():
        assert type(value) in (int, float, bool)
        assert value == (number if isinstance(number, (int, float)) else number.item())


KINDS = [float, np.float16, np.float32, np.float64, np.array, torch.tensor]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_record_holds_finite_numbers_only(kind, value):
    number = kind(float(value))
    with pytest.raises(errors.ParameterError, match=f"loss is {value}"):
        record({}, loss=number)
    for end, name in enumerate(("loss", "loss_low", "loss_high")):
        ends = [0.0, 0.0, 0.0]
        ends[end] = number
        with pytest.raises(errors.ParameterError, match=f"{name} is {value}"):
            record({}, loss=base.Interval(*ends))


@pytest.mark.parametrize(
    "value",
    [[0.1], None, {"a": 1}, 1j, np.array([0.1]), torch.zeros(1), object()],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_number_and_no_text_is_refused_by_name(value):
    with pytest.raises(errors.ParameterError, match=f"loss is of type {type(value).__name__}, expected one number"):
        record({}, loss=value)
    with pytest.raises(errors.ParameterError, match="loss_high is of type"):
        record({}, loss=base.Interval(0.0, 0.0, value))
    with pytest.raises(errors.ParameterError, match="loss_low is of type str"):
        record({}, loss=base.Interval(0.0, "0", 0.0))


@pytest.mark.parametrize("end", ["x_low", "x_high"])
def test_two_results_of_one_name_are_refused(recorded, end):
    interval = base.Interval(0.5, 0.4, 0.6)
    for results in ({"x": interval, end: 0.4}, {end: 0.4, "x": interval}):
        with pytest.raises(errors.ParameterError, match=f"two results are called {end}"):
            record({}, **results)
    assert recorded({}, x=0.5, x_low=0.4)[0]["results"] == {"x": 0.5, "x_low": 0.4}


def test_parameters_and_claims_of_the_wrong_container_are_refused_by_name():
    interval = base.Interval(0.5, 0.4, 0.6)
    good = claim("It gains", "2 bars", "gain", {"gain": interval}, above=0)
    with pytest.raises(errors.ParameterError, match=r"parameters = \['seed'\]: expected the dict"):
        record(["seed"], gain=interval)
    for claims in (good, ["It gains"]):  # a claim where a list of claims belongs, and a list of something else
        with pytest.raises(errors.ParameterError, match="is no claim, expected a list of what `claim` gives"):
            record({}, claims, gain=interval)
    with pytest.raises(errors.ParameterError, match=r"claim 'It gains': unknown result 'gain'\. Did you mean 'gains'"):
        record({}, [good], gains=interval)


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


RESULTS = {"gain": base.Interval(0.5, 0.4, 0.6), "loss": 0.5, "texts": base.Interval("a", "b", "c")}
RESULTS |= {"lost": base.Interval(0.5, float("nan"), 0.6), "rows": base.Interval(*np.zeros((3, 2)))}


@pytest.mark.parametrize(
    ("key", "bars", "message"),
    [
        ("gain", {}, r"claim 'It gains': above = None, below = None; expected one of the two"),
        ("gain", {"above": 0, "below": 1}, r"claim 'It gains': above = 0, below = 1; expected one of the two"),
        ("gain", {"above": float("nan")}, r"above is nan"),
        ("gain", {"below": float("inf")}, r"below is inf"),
        ("gain", {"above": "0"}, r"above is of type str"),
        ("gian", {"above": 0}, r"claim 'It gains': unknown result 'gian'\. Did you mean 'gain'"),
        ("loss", {"above": 0}, r"claim 'It gains': loss is of type float, expected an Interval"),
        ("texts", {"above": 0}, r"texts_low is of type str"),
        ("lost", {"above": 0}, r"lost_low is nan"),
        ("rows", {"above": 0}, r"rows_low is of type ndarray"),
    ],
)
def test_a_claim_without_one_bar_or_a_whole_interval_is_refused_by_name(key, bars, message):
    with pytest.raises(errors.ParameterError, match=message):
        claim("It gains", "2 bars", key, RESULTS, **bars)


@given(st.floats(-1e3, 1e3), st.floats(0, 10), st.floats(-1e3, 1e3))
def test_a_claim_above_is_its_mirror_image_below(low, width, bar):
    results = {"x": base.Interval(low, low, low + width), "mirrored": base.Interval(-low, -low - width, -low)}
    above = claim("x", "1", "x", results, above=bar)["verdict"]
    assert above == claim("x", "1", "mirrored", results, below=-bar)["verdict"]


@given(st.floats(1e-6, 1e9))
def test_shown_numbers_are_the_numbers(value):
    assert float(runs.format_number(value).replace(",", "")) == pytest.approx(value, rel=1e-3)
