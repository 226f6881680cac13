import ast
import inspect

import nbformat
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from paramarket import data, errors, merge, runs
from paramarket.__main__ import HOME

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


STEPS = "steps: list[int] = [0, 10, 20]\nlast: int = 9\nend: str = ''\n"


def check_one(line, word, injected=""):
    """One parameter that a word checks, beside a list, a number and a text."""
    name = line.split(":")[0]
    allowed = {"steps": (0, 100), "last": (1, 100), "end": str, name: word}
    return check(injected, cell=STEPS + line, allowed=allowed)[name]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("one: int = 3", runs.odd(3, 101)),
        ("one: int = 101", runs.odd(3, 101)),
        ("one: int = 9", runs.number(1, 100, up_to="last")),
        ("one: float = 8.5", runs.number(1, 100, up_to="last")),
        ("one: int = 20", runs.number(1, 100, among="steps")),
        ("some: list[float] = [0.0, 1]", runs.ascending(0.0, 1.0, least=2)),
        ("some: list[int] = [0]", runs.ascending(0, 100, first=0)),
        ("some: list[int] = [10, 11]", runs.ascending(0, 100, above="last")),
        ("some: list[int] = [10, 20]", runs.ascending(1, 100, among="steps")),
        ("some: list[int] = [8, 10]", runs.ascending(1, 100, without="last")),
        ("path: str = ''", runs.file(beside="end")),
        ("path: str = ''", runs.folder()),
    ],
)
def test_what_a_word_asks_for_passes(line, word):
    assert check_one(line, word) == ast.literal_eval(line.split(" = ")[1])


@pytest.mark.parametrize(
    ("line", "word", "message"),
    [
        ("one: int = 4", runs.odd(3, 101), r"one = 4, expected an odd number\."),
        ("one: int = 1", runs.odd(3, 101), r"one = 1 is out of range, expected 3 … 101"),
        ("one: int = 10", runs.number(1, 100, up_to="last"), r"one = 10, expected at most last = 9\."),
        ("one: int = 0", runs.number(1, 100, up_to="last"), r"one = 0 is out of range, expected 1 … 100"),
        ("one: int = 15", runs.number(1, 100, among="steps"), r"one = 15, expected one of steps = \[0, 10, 20\]\."),
        ("one: int = 0", runs.number(1, 100, among="steps"), r"one = 0 is out of range, expected 1 … 100"),
        ("some: list[int] = [2, 1]", runs.ascending(0, 9), r"some = \[2, 1\], expected ascending numbers\."),
        ("some: list[int] = [1, 1]", runs.ascending(0, 9), r"some = \[1, 1\], expected ascending numbers\."),
        ("some: list[int] = [1, 10]", runs.ascending(0, 9), r"some = 10 is out of range, expected 0 … 9"),
        ("some: list[int] = [1]", runs.ascending(0, 9, least=2), r"some = \[1\], expected 2 or more numbers\."),
        ("some: list[int] = [1, 2]", runs.ascending(0, 9, first=0), r"some = \[1, 2\], expected 0 first\."),
        ("some: list[int] = [9, 10]", runs.ascending(0, 99, above="last"), r"expected all above last = 9\."),
        ("some: list[int] = [0, 15]", runs.ascending(0, 99, among="steps"), r"all among steps = \[0, 10, 20\]\."),
        ("some: list[int] = [8, 9]", runs.ascending(0, 99, without="last"), r"expected none equal to last = 9\."),
        ("path: str = 'nowhere'", runs.folder(), r"path = 'nowhere', expected a folder, or \"\"\."),
    ],
)
def test_what_a_word_does_not_ask_for_is_refused_by_name(line, word, message):
    with pytest.raises(errors.ParameterError, match=message):
        check_one(line, word)


@given(st.sets(st.integers(0, 99), min_size=2), st.data())
def test_only_the_order_upwards_is_ascending_and_nothing_twice(numbers, data):
    upwards = sorted(numbers)
    assert check_one(f"some: list[int] = {upwards}", runs.ascending(0, 99)) == upwards
    other = data.draw(st.permutations(upwards).filter(lambda order: order != upwards))
    for wrong in (other, [*upwards, upwards[-1]]):
        with pytest.raises(errors.ParameterError, match="expected ascending numbers"):
            check_one(f"some: list[int] = {wrong}", runs.ascending(0, 99))


def test_files_come_in_pairs(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    word = runs.file(beside="end")

    def try_paths(path, end):
        return check_one("path: str = ''", word, f"path = {str(path)!r}\nend = {str(end)!r}")

    assert try_paths(tmp_path / "a", tmp_path / "b") == str(tmp_path / "a")
    with pytest.raises(errors.ParameterError, match=r"path = '.*', expected both files or none, here with end = ''\."):
        try_paths(tmp_path / "a", "")
    with pytest.raises(errors.ParameterError, match=r"path = '', expected both files or none, here with end = '.*b'\."):
        try_paths("", tmp_path / "b")
    with pytest.raises(errors.ParameterError, match=r"path = '.*c', expected a file, or \"\"\."):
        try_paths(tmp_path / "c", tmp_path / "b")
    with pytest.raises(errors.ParameterError, match=r"path = '.*', expected a file, or \"\"\."):
        try_paths(tmp_path, tmp_path / "b")


def test_a_folder_is_one_that_is_there(tmp_path):
    line = f"path: str = {str(tmp_path)!r}"
    assert check_one(line, runs.folder()) == str(tmp_path)


def test_range_and_rules_are_said_together():
    with pytest.raises(errors.ParameterError) as refused:
        check_one("some: list[int] = [50, 10, 10]", runs.ascending(0, 40, least=4, first=0, among="steps"))
    assert str(refused.value) == (
        "some = 50 is out of range, expected 0 … 40. "
        "some = [50, 10, 10], expected ascending numbers, 4 or more numbers, 0 first, all among steps = [0, 10, 20]."
    )


@pytest.mark.parametrize("wrong", ["steps = 20", "steps = ['a']", "steps = [[0]]", "steps = None"])
def test_nothing_is_compared_with_a_value_of_the_wrong_type(wrong):
    with pytest.raises(errors.ParameterError, match=r"^steps = .*one = 200 is out of range, expected 1 … 100\.$"):
        check_one("one: int = 10", runs.number(1, 100, among="steps"), f"{wrong}\none = 200")


@pytest.mark.parametrize(
    ("line", "word", "message"),
    [
        ("one: int = 3", runs.ascending(1, 9), r"one is of type int, its check is for list\[int\] or list\[float\]"),
        ("some: list[int] = [3]", runs.odd(1, 9), r"some is of type list\[int\], its check is for int"),
        ("some: list[int] = [3]", runs.number(1, 9), r"some is of type list\[int\], its check is for int or float"),
        ("one: int = 3", runs.folder(), r"one is of type int, its check is for str"),
        ("one: int = 3", runs.odd(9, 1), r"one is checked by \(9, 1\), expected \(lowest, highest\)"),
        ("one: int = 3", runs.number(1, 9, up_to="lats"), r"unknown parameter 'lats'\. Did you mean 'last'\?"),
        ("path: str = ''", runs.file(beside="ned"), r"path is checked against an unknown parameter 'ned'"),
    ],
)
def test_a_word_that_does_not_fit_its_parameter_is_refused_by_name(line, word, message):
    with pytest.raises(errors.ParameterError, match=message):
        check_one(line, word)


NOTEBOOKS = {path.stem: path for path in sorted((HOME / "notebooks").glob("[0-9]*.ipynb"))}
QUICK = yaml.safe_load((HOME / "tests/quick.yaml").read_text())


def cells_of(notebook):
    """The parameters cell of a notebook and the check cell beneath it."""
    code = [cell for cell in nbformat.read(NOTEBOOKS[notebook], as_version=4).cells if cell.cell_type == "code"]
    place = next(k for k, cell in enumerate(code) if "parameters" in cell.metadata.get("tags", []))
    return code[place].source, code[place + 1].source


def run_cells(notebook, injected):
    """What the check cell of a notebook gives where papermill has injected a cell."""
    parameters, checks = cells_of(notebook)
    namespace = {"In": ["", parameters, f"# Parameters\n{injected}"], "data": data, "merge": merge, "runs": runs}
    for source in (parameters, injected, checks):
        exec(source, namespace)
    return namespace["parameters"]


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_check_cell_is_one_call_with_one_line_a_parameter_in_their_order(notebook):
    parameters, checks = cells_of(notebook)
    (statement,) = ast.parse(checks).body
    lines = [keyword.value.lineno for keyword in statement.value.keywords]
    names = [keyword.arg for keyword in statement.value.keywords]
    assert names == [node.target.id for node in ast.parse(parameters).body]
    assert lines == list(range(lines[0], lines[0] + len(lines)))


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_the_defaults_of_a_notebook_and_its_quick_parameters_pass(notebook):
    given = "\n".join(f"{name} = {value!r}" for name, value in QUICK[notebook].items())
    assert run_cells(notebook, "").keys() == run_cells(notebook, given).keys() >= QUICK[notebook].keys()


@pytest.mark.parametrize(
    ("notebook", "injected", "name"),
    [
        ("02_align_and_interpolate", "points = 4", "points"),
        ("02_align_and_interpolate", "widths = [64, 16]", "widths"),
        ("02_align_and_interpolate", "widths = [64]", "widths"),
        ("02_align_and_interpolate", "widths = [1, 64]", "widths"),
        ("02_align_and_interpolate", "depths = [2, 2]", "depths"),
        ("02_align_and_interpolate", "depths = [2]", "depths"),
        ("02_align_and_interpolate", "decays = [0.3, 0.0]", "decays"),
        ("02_align_and_interpolate", "decays = [0.3]", "decays"),
        ("02_align_and_interpolate", "rates = [0.007, 0.0007]", "rates"),
        ("02_align_and_interpolate", "rates = [0.007]", "rates"),
        ("02_align_and_interpolate", "methods = ['mean']", "methods"),
        ("02_align_and_interpolate", "model_a = 'README.md'", "model_a"),
        ("02_align_and_interpolate", "model_b = 'README.md'", "model_b"),
        ("03_compare_specialists", "angles = [30.0, 10.0]", "angles"),
        ("03_compare_specialists", "angles = [10.0]", "angles"),
        ("03_compare_specialists", "steps = [20, 80, 160, 320, 640]", "steps"),
        ("03_compare_specialists", "steps = [0, 160]\ncheckpoints = [0, 160]", "steps"),
        ("03_compare_specialists", "steps = [0, 160, 80, 20, 320, 640]", "steps"),
        ("03_compare_specialists", "few_pairs = 11", "few_pairs"),
        ("03_compare_specialists", "angles = [30.0, 20.0]", "angles"),
        ("03_compare_specialists", "pulls = [1.5]", "pulls"),
        ("03_compare_specialists", "angles = [20.0]", "angles"),
        ("03_compare_specialists", "held_steps = 30", "held_steps"),
        ("03_compare_specialists", "held_steps = 0", "held_steps"),
        ("04_sparse_meta_tuning", "sparsities = [0.5, 0.0]", "sparsities"),
        ("04_sparse_meta_tuning", "sparsities = [0.5, 0.9]", "sparsities"),
        ("04_sparse_meta_tuning", "sparsity = 0.5", "sparsities"),
        ("04_sparse_meta_tuning", "known = 95", "known"),
        ("05_soup_of_experts", "budgets = [4000, 500]", "budgets"),
        ("05_soup_of_experts", "budgets = [500, 1000]", "budgets"),
        ("05_soup_of_experts", "counts = [2, 1]", "counts"),
        ("05_soup_of_experts", "counts = [4, 8]", "counts"),
        ("05_soup_of_experts", "few_cameras = [4, 2]", "few_cameras"),
        ("05_soup_of_experts", "few_cameras = [2, 8]", "few_cameras"),
        ("05_soup_of_experts", "widths = [24, 6]", "widths"),
        ("05_soup_of_experts", "widths = [6, 12]", "widths"),
        ("05_soup_of_experts", "sizes = [20, 5]", "sizes"),
        ("05_soup_of_experts", "sizes = [0, 5]", "sizes"),
        ("05_soup_of_experts", "tuning = [25, 10]", "tuning"),
        ("05_soup_of_experts", "tuning = [0, 10]", "tuning"),
        ("05_soup_of_experts", "tuning = [10]", "tuning"),
        ("06_price_the_gain", "sizes = [50, 25]", "sizes"),
        ("06_price_the_gain", "cautions = [1.0, 0.5]", "cautions"),
        ("06_price_the_gain", "label_shares = [0.4, 0.2]", "label_shares"),
        ("06_price_the_gain", "label_shares = [0.1, 0.2]", "label_shares"),
        ("06_price_the_gain", "kept_share = 0.3", "label_shares"),
        ("07_run_the_market", "first = 99", "first"),
        ("07_run_the_market", "first = 1", "first"),
        ("07_run_the_market", "rounds = 4", "first"),
        ("07_run_the_market", "kept_shares = [1.0, 0.02]", "kept_shares"),
        ("07_run_the_market", "kept_shares = [0.1, 1.0]", "kept_shares"),
        ("07_run_the_market", "label_shares = [1.0]", "label_shares"),
        ("07_run_the_market", "label_shares = [1.0, 0.5]", "label_shares"),
        ("07_run_the_market", "agents_folder = 'no-class'", "agents_folder"),
        ("08_share_predictions", "beta = 0.9", "beta"),
        ("08_share_predictions", "alpha = 1.2", "alpha"),
        ("08_share_predictions", "cost = 3.0", "cost"),
        ("08_share_predictions", "costs = [2.0, 1.0]", "costs"),
        ("08_share_predictions", "sizes = [500, 100]", "sizes"),
        ("08_share_predictions", "shared_counts = [300]", "shared_counts"),
        ("08_share_predictions", "noises = [2.0, 1.0]", "noises"),
        ("08_share_predictions", "plants = 2", "plants"),
        ("09_should_we_trade", "pilot_go = 3.0", "pilot_go"),
        ("09_should_we_trade", "prior = 1.0", "prior"),
        ("09_should_we_trade", "pairs = 1", "pairs"),
        ("09_should_we_trade", "model_a = 'no such file'", "model_a"),
    ],
)
def test_what_a_notebook_cannot_use_is_refused_by_name(notebook, injected, name):
    with pytest.raises(errors.ParameterError, match=rf"(^|\. ){name}(: unknown choice| = \S.*, expected)"):
        run_cells(notebook, injected)
