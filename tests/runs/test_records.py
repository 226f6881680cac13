import inspect
import json

import nbformat
import numpy as np
import pytest
import torch

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
    assert found["answer"] == ""
    assert found["claims"] == []
    assert "<td>accuracy</td><td>0.90 [0.80, 1.00]</td>" in shown["text/html"]
    assert shown["text/plain"].splitlines()[0] == "loss = 0.25"


def test_an_answer_and_claims_stand_above_the_results(recorded):
    results = {"gain": base.Interval(0.05, 0.04, 0.06)}
    gains = claim("It <gains>", "2 bars", "gain", results, above=0, unit="% points")
    found, shown = recorded({}, [gains], answer="It gains 5 & more.", **results)
    assert found["answer"] == "It gains 5 & more."
    assert found["claims"] == [gains]
    text = shown["text/html"]
    row = "<td>It &lt;gains&gt;</td><td>5.0 [4.0, 6.0] points</td><td>holds</td>"
    assert text.index("It gains 5 &amp; more.") < text.index(row) < text.index("<td>gain</td>")
    assert shown["text/plain"].splitlines()[0] == "It gains 5 & more."


@pytest.mark.parametrize("answer", ["", "  "])
def test_whoever_claims_something_owes_an_answer(answer):
    results = {"gain": base.Interval(0.5, 0.4, 0.6)}
    with pytest.raises(errors.ParameterError, match="a record with claims needs an answer"):
        record({}, [claim("It gains", "2 bars", "gain", results, above=0)], answer=answer, **results)


@pytest.mark.parametrize("answer", ["It gains.\nMuch.", 0.5, None])
def test_an_answer_is_one_line_of_text(answer):
    with pytest.raises(errors.ParameterError, match="expected one line of text"):
        record({}, answer=answer, gain=0.5)


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
