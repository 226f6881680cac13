import inspect

import pytest

from paramarket import errors, runs

check_parameters = inspect.unwrap(runs.check_parameters)  # as a notebook calls it: without the tests' type checker

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
    return check_parameters(namespace, **allowed)


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


@pytest.mark.parametrize(
    ("name", "allowed", "message"),
    [
        ("width", [1, 512], r"width is checked by \[1, 512\], expected \(lowest, highest\)"),
        ("width", (1, 2, 64), r"width is checked by \(1, 2, 64\), expected \(lowest, highest\)"),
        ("width", (512, 1), r"width is checked by \(512, 1\), expected \(lowest, highest\)"),
        ("rate", ("0", "1"), r"rate is checked by \('0', '1'\), expected \(lowest, highest\)"),
        ("rate", 1.0, r"rate is checked by 1\.0, expected \(lowest, highest\)"),
        ("angles", str, r"angles is checked by <class 'str'>, expected \(lowest, highest\)"),
        ("name", "digits", r"name is checked by 'digits', expected str or a list of texts"),
        ("name", (0, 1), r"name is checked by \(0, 1\), expected str or a list of texts"),
        ("both", (0, 1), r"both is checked by \(0, 1\), expected bool"),
    ],
)
def test_a_check_that_does_not_fit_its_parameter_is_refused_by_name(name, allowed, message):
    with pytest.raises(errors.ParameterError, match=message):
        check(allowed=ALLOWED | {name: allowed})


def test_parameters_are_checked_in_a_notebook_only():
    with pytest.raises(errors.ParameterError, match="call it in a notebook"):
        runs.check_parameters({}, width=(1, 2))


def test_refuse_if_says_all_that_is_wrong_and_nothing_if_nothing_is():
    runs.refuse_if([])
    with pytest.raises(errors.ParameterError, match=r"a = 1: too few\. b = 2: too many\."):
        runs.refuse_if(["a = 1: too few.", "b = 2: too many."])
